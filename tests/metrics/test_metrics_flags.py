"""Flags: counts and residuals that are known beforehand."""

import pytest
import torch
from searches import ToPlane
from subjects import linear_case

from lit_xai import randomness
from lit_xai.attributions import (
    BoundaryDeepLift,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    IntegratedGradients,
    Logit,
    Margin,
    NegativeFlux,
    Saliency,
)
from lit_xai.memory import remembering
from lit_xai.metrics import Accepted, Flags, Residual


@pytest.mark.parametrize(("factor", "residual"), [(1, 0), (2, 0.5), (0, 1), (-1, 2)])
def test_the_residual_of_a_map_that_is_off_by_a_factor(factor, residual):
    case = linear_case()
    method = IntegratedGradients(steps=2)
    maps = factor * method(case.model, case.inputs, case.target)
    scores = Residual().score(case.model, case.inputs, case.target, maps, method)
    torch.testing.assert_close(scores, torch.full_like(scores, residual), rtol=0, atol=1e-12)


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_the_residual_of_a_path_from_the_boundary_is_what_its_rule_leaves(score):
    """The released weights are short by one part in n; on a linear net nothing else is missing."""
    case = linear_case()
    for method, residual in (
        (BoundaryIntegratedGradients(ToPlane(), steps=8, score=score), 0),
        (BoundaryIntegratedGradients(ToPlane(), steps=8, score=score, rule="official"), 1 / 8),
        (BoundaryDeepLift(ToPlane(), score), 0),
    ):
        maps = method(case.model, case.inputs, case.target)
        scores = Residual().score(case.model, case.inputs, case.target, maps, method)
        torch.testing.assert_close(scores, torch.full_like(scores, residual), rtol=0, atol=1e-7)


def test_the_residual_where_nothing_was_promised_and_nothing_given_is_none():
    case = linear_case()
    method = IntegratedGradients(steps=2, baseline=0.5)
    inputs = torch.full_like(case.inputs, 0.5)
    scores = Residual().score(case.model, inputs, case.target, torch.zeros_like(inputs), method)
    assert torch.equal(scores, torch.zeros_like(scores))


def test_each_flag_applies_to_the_maps_it_is_about():
    assert Residual().applies(IntegratedGradients())
    assert Residual().applies(BoundaryIntegratedGradients())
    assert Residual().applies(BoundaryDeepLift())
    assert not Residual().applies(BoundarySaliency())
    assert not Residual().applies(Saliency())
    assert Accepted().applies(NegativeFlux())
    assert not Accepted().applies(IntegratedGradients())


def test_on_a_linear_score_every_lowest_point_is_accepted_and_half_of_the_random_ones():
    case = linear_case()
    with randomness.keyed(0, torch.arange(len(case.inputs))), remembering():
        lowest = NegativeFlux(points=4, steps=1, score=Logit())
        assert (Accepted().score(case.model, case.inputs, case.target, lowest) == 4).all()
        anywhere = NegativeFlux(points=400, steps=0, score=Logit())
        counts = Accepted().score(case.model, case.inputs, case.target, anywhere)
    assert ((counts - 200).abs() < 5 * 10).all()  # five standard deviations of a fair coin
    assert len(counts.unique()) > 1


def test_zero_and_broken_maps_are_counted():
    maps = torch.ones(4, 1, 2, 2)
    maps[1] = 0
    maps[2, 0, 0, 0] = torch.nan
    maps[3, 0, 1, 1] = torch.inf
    scores = Flags().score(maps)
    assert scores["zero"].tolist() == [0, 1, 0, 0]
    assert scores["nonfinite"].tolist() == [0, 0, 1, 1]
