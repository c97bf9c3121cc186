"""Accuracy over epsilon, and signs of masked gradients, where the answer is known in closed form."""

import math
from dataclasses import dataclass, field

import pytest
import torch
from searches import Ball, ToNowhere, ToPlane
from subjects import linear_case
from torch import nn

from lit_xai import randomness
from lit_xai.attacks import DDN, FGSM, L2, LinfPGD
from lit_xai.attacks.base import Attack
from lit_xai.memory import remembering
from lit_xai.metrics import BoundaryDistance, CleanAccuracy, RobustAccuracy
from lit_xai.metrics.robustness import GradientAlignment, GradientMasking, RobustnessCurve
from lit_xai.observe import explain


@dataclass(frozen=True)
class Along(Attack):
    """Moves the first pixel and the second one."""

    first: float
    second: float
    asked: list[int] = field(default_factory=list, compare=False, hash=False, repr=False)

    def __call__(self, model, inputs, target):
        self.asked.append(len(inputs))
        points = inputs.clone()
        points[:, 0, 0, 0] += self.first
        points[:, 0, 0, 1] += self.second
        return points


class Steps(nn.Module):
    """Rounds the image before a linear layer: right, and without any gradient."""

    def forward(self, inputs):
        level = (4 * inputs).round().flatten(1).mean(1)
        return torch.stack([2 - level, level - 2], dim=1)


def test_the_curve_counts_distances_of_one_search():
    case = linear_case()
    given = {"model": case.model, "inputs": case.inputs, "target": case.target}
    distance = BoundaryDistance(ToPlane()).named(**given)["distance"]
    middle = float(distance.sort().values[2:4].mean())
    metric = RobustnessCurve(ToPlane(), (0.0, middle, 10.0))
    assert list(metric.quantities) == ["at_0", f"at_{middle:.4g}", "at_10"]
    scores = metric.named(**given)
    assert [float(column.mean()) for column in scores.values()] == [1, 0.5, 0]
    assert scores[f"at_{middle:.4g}"].tolist() == (distance > middle).to(distance.dtype).tolist()


def test_a_distance_of_just_epsilon_is_within_reach():
    case = linear_case()
    given = {"model": case.model, "inputs": case.inputs, "target": case.target}
    distance = float(BoundaryDistance(ToPlane()).named(**given)["distance"][0])
    (column,) = RobustnessCurve(ToPlane(), (distance,)).named(**given).values()
    assert column[0] == 0


def test_what_was_not_found_stays_right_and_what_was_wrong_is_wrong_at_all_distances():
    case = linear_case()
    scores = RobustnessCurve(ToNowhere(), (0.0, 100.0)).named(
        model=case.model, inputs=case.inputs, target=case.target
    )
    assert scores["at_0"].tolist() == scores["at_100"].tolist() == [1, 0] * 3


def test_at_zero_stands_the_clean_accuracy():
    case = linear_case()
    target = case.target.clone()
    target[:2] = (target[:2] + 1) % 4
    given = {"model": case.model, "inputs": case.inputs, "target": target}
    clean = CleanAccuracy().named(**given)["accuracy"]
    assert RobustnessCurve(DDN(steps=5), (0,)).named(**given)["at_0"].tolist() == clean.tolist()


def test_curve_and_distance_share_their_search():
    case, search = linear_case(), ToPlane()
    metrics = {"curve": RobustnessCurve(search), "boundary": BoundaryDistance(search)}
    explain(case.model, case.inputs, case.target, {}, metrics, seed=0)
    assert search.asked == [6]


@pytest.mark.parametrize("wrong", [(), (-0.1, 1.0), (0.5, 0.50001), (0.5, math.nan)])
def test_wrong_epsilons_are_refused(wrong):
    with pytest.raises(ValueError, match="`epsilons` must"):
        RobustnessCurve(ToPlane(), wrong)


def test_cosine_of_known_perturbations():
    case = linear_case()
    given = {"model": case.model, "inputs": case.inputs, "target": case.target}
    for one, many, expected in [
        (Along(0.1, 0.0), Along(0.3, 0.0), 1.0),
        (Along(0.1, 0.0), Along(-0.2, 0.0), -1.0),
        (Along(0.1, 0.0), Along(0.0, 0.1), 0.0),
        (Along(0.1, 0.0), Along(0.1, 0.1), math.sqrt(0.5)),
    ]:
        cosine = GradientMasking(many, one).named(**given)["cosine"]
        torch.testing.assert_close(cosine, torch.full_like(cosine, expected), rtol=0, atol=1e-12)
    assert GradientMasking(Along(0.0, 0.0), Along(0.1, 0.0)).named(**given)["cosine"].isnan().all()


def test_a_linear_model_hides_nothing():
    case = linear_case(classes=2)
    given = {"model": case.model, "inputs": case.inputs, "target": case.target}
    many = LinfPGD(epsilon=0.1, steps=5, random_start=False)
    signs = GradientMasking(many, FGSM(epsilon=0.1)).named(**given)
    torch.testing.assert_close(signs["cosine"], torch.ones(6, dtype=torch.float64))
    assert signs["zero"].tolist() == [0] * 6
    aligned = GradientAlignment(0.1).named(**given)[""]
    torch.testing.assert_close(aligned, torch.ones(6, dtype=torch.float64))


def test_a_model_without_gradients_is_found_out():
    inputs, target = torch.full((3, 1, 2, 2), 0.2), torch.zeros(3, dtype=torch.int64)
    given = {"model": Steps(), "inputs": inputs, "target": target}
    attack = LinfPGD(epsilon=0.05, steps=2, random_start=False)
    assert RobustAccuracy(attack).named(**given)["accuracy"].tolist() == [1] * 3  # not to be believed
    signs = GradientMasking(attack, FGSM(epsilon=0.05)).named(**given)
    assert signs["zero"].tolist() == [1] * 3
    assert signs["cosine"].isnan().all()
    assert GradientAlignment(0.05).named(**given)[""].isnan().all()


@pytest.mark.parametrize("norm", [None, L2()])
def test_alignment_in_a_ball_model_is_an_angle_at_its_centre(norm):
    centre = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    inputs, target = centre + 0.1 * torch.randn(5, 1, 3, 3).double(), torch.zeros(5, dtype=torch.int64)
    metric, ids = GradientAlignment(0.2, norm), torch.arange(5)
    with randomness.keyed(3, ids):
        seen = metric.named(model=Ball(centre, 1.0), inputs=inputs, target=target)[""]
        draw = randomness.keys(inputs, "alignment")
        eta = metric.norm.start(draw, 0, (1, 3, 3), 0.2, torch.float64)
    a, b = (inputs - centre).flatten(1), (inputs + eta - centre).flatten(1)
    torch.testing.assert_close(seen, (a * b).sum(1) / a.norm(dim=1) / b.norm(dim=1))
    assert (seen < 0.999).any()


def test_an_attack_is_made_once_for_all_who_ask_and_a_search_is_not_taken_for_its_points():
    case, attack, search = linear_case(), Along(0.1, 0.2), ToPlane()
    metrics = {
        "pgd": RobustAccuracy(attack),
        "masking": GradientMasking(attack, Along(0.1, 0.0)),
        "close": RobustAccuracy(search),
        "boundary": BoundaryDistance(search),
    }
    with remembering():
        seen = explain(case.model, case.inputs, case.target, {}, metrics, seed=0).flat()
    assert attack.asked == [6]
    assert search.asked == [6]
    assert seen["robust/close/accuracy"].tolist() == [0] * 6
    assert (seen["robust/boundary/distance"] > 0).all()
