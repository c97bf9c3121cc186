"""Accuracy over epsilon is the share of images whose distance is greater."""

import math
from pathlib import Path

import pytest
import torch
from subjects import linear_case

from lit_xai.attacks import DDN, LinfPGD
from lit_xai.attacks.autoattack import Members
from lit_xai.evaluation import Evaluation, conclude, curve


def test_shares_of_known_distances():
    found = curve([0.0, 1.0, 2.0, math.inf], [0.0, 0.5, 1.0, 3.0])
    assert found.accuracy == [0.75, 0.75, 0.5, 0.25]
    assert (found.median, found.missing, found.images) == (1.5, 1, 4)
    assert all(
        low < share < high for low, share, high in zip(found.low, found.accuracy, found.high, strict=True)
    )


def test_radii_by_default_reach_from_nothing_to_the_last_image_found():
    found = curve([0.3, 0.0, 0.7, math.inf])
    assert (found.epsilons[0], found.epsilons[-1], len(found.epsilons)) == (0.0, 0.7, 101)
    assert found.accuracy[-1] == 0.25  # the missing one counts as robust
    assert found.accuracy == sorted(found.accuracy, reverse=True)


def test_nothing_found_at_all():
    found = curve([math.inf, math.inf])
    assert found.missing == 2
    assert set(found.accuracy) == {1.0}
    assert math.isinf(found.median)


@pytest.mark.parametrize("distances", [[], [-0.1], [math.nan]])
def test_impossible_distances_are_refused(distances: list[float]):
    with pytest.raises(ValueError, match="`distances`"):
        curve(distances)


def test_the_curve_of_a_linear_classifier_is_that_of_its_hyperplanes(tmp_path: Path):
    case = linear_case()
    target = case.target.clone()
    target[0] = (target[0] + 1) % 4  # misclassified as it is
    margins = case.model(case.inputs).detach()
    distances = []
    for row, own in zip(margins, case.target.tolist(), strict=True):
        normals = case.weight[own] - case.weight
        ratios = (row[own] - row) / normals.norm(dim=1)
        distances.append(float(ratios[ratios > 0].min()))
    distances[0] = 0.0
    evaluation = Evaluation(Members(0.01, {"pgd": LinfPGD(0.01, 1)}), search=DDN(), probe=0, batch_size=4)
    evaluation(case.model, lambda ids: (case.inputs[ids], target[ids]), range(6), tmp_path)
    drawn = conclude(tmp_path)["curve"]
    assert (drawn["search"], drawn["norm"], drawn["missing"], drawn["images"]) == (repr(DDN()), "l2", 0, 6)
    for epsilon, accuracy in zip(drawn["epsilons"], drawn["accuracy"], strict=True):
        if min(abs(epsilon - distance) for distance in distances) > 1e-3:
            assert accuracy == pytest.approx(sum(distance > epsilon for distance in distances) / 6)
    assert drawn["median"] == pytest.approx(
        float(torch.tensor(distances).sort().values[2:4].mean()), rel=0.01
    )
