"""Flags: counts and residuals that are known beforehand."""

import math

import pytest
import torch
from searches import ToNowhere, ToPlane
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import (
    LRP,
    BoundaryDeepLift,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    IntegratedGradients,
    Logit,
    Margin,
    NegativeFlux,
    Saliency,
)
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import Accepted, Flags, Missing, RandomMap, Residual
from lit_xai.metrics.flags import Misclassified, tied
from lit_xai.metrics.shared import clean_logits


@pytest.mark.parametrize(("factor", "residual"), [(1, 0), (2, 0.5), (0, 1), (-1, 2)])
def test_the_residual_of_a_map_that_is_off_by_a_factor(factor, residual):
    case = linear_case()
    method = IntegratedGradients(steps=2)
    maps = factor * method(case.model, case.inputs, case.target)
    scores = Residual().score(case.model, case.inputs, case.target, maps, method)
    torch.testing.assert_close(scores, torch.full_like(scores, residual), rtol=0, atol=1e-12)


def test_a_complete_map_is_complete_for_any_scale_of_the_logits():
    """As long as it is the map's own: a map of another scale adds up to something else."""
    net, inputs = tiny_net(nn.Softplus, torch.float64), torch.rand(5, 2, 8, 8, dtype=torch.float64)
    target, method = net(inputs).argmax(1), IntegratedGradients(steps=64)
    expected = Residual().score(net, inputs, target, method(net, inputs, target), method)
    assert ((expected > 0) & (expected < 1e-2)).all()
    for scale in (1e-9, 1e9):
        scaled = Scaled(net, scale).eval()
        maps = method(scaled, inputs, target)
        own = Residual().score(scaled, inputs, target, maps, method)
        torch.testing.assert_close(own, expected, rtol=1e-6, atol=0)
        other = Residual().score(net, inputs, target, maps, method)
        torch.testing.assert_close(other, torch.ones_like(other), rtol=0, atol=1e-2 + 1e-7)


class Scaled(nn.Module):
    """A model with all of its logits scaled."""

    def __init__(self, model, scale):
        super().__init__()
        self.model, self.scale = model, scale

    def forward(self, inputs):
        return self.scale * self.model(inputs)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_residuals_tell_methods_that_add_up_from_those_that_do_not(dtype):
    """A comparison for exact equality fails both; a coarse sum lies between."""
    net, inputs = tiny_net(nn.Softplus, dtype), torch.rand(5, 2, 8, 8, dtype=dtype)
    target = net(inputs).argmax(1)
    fine, coarse = IntegratedGradients(steps=128), IntegratedGradients(steps=8)
    residuals = [
        Residual().score(net, inputs, target, maps, fine)
        for maps in (
            fine(net, inputs, target),
            coarse(net, inputs, target),
            RandomMap()(net, inputs, target),
        )
    ]
    assert float(residuals[0].max()) < 1e-3
    assert (residuals[0] < residuals[1]).all()
    assert float(residuals[1].mean()) < 0.1 < float(residuals[2].min())


def test_layerwise_relevance_without_bias_is_conserved_and_with_it_is_not():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(nn.Flatten(), nn.Linear(50, 20), nn.ReLU(), nn.Linear(20, 4)).double().eval()
    case = linear_case()
    method = LRP()

    def residual():
        maps = method(net, case.inputs, case.target)
        return Residual().score(net, case.inputs, case.target, maps, method)

    assert method.total(net, case.inputs, case.target).shape == (6,)
    biased = residual()
    with torch.no_grad():
        net[1].bias.zero_()
        net[3].bias.zero_()
    assert float(biased.mean()) > 0.1
    assert float(residual().max()) < 1e-4


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_map_that_is_no_answer_has_no_residual(broken):
    case, method = linear_case(), IntegratedGradients(steps=2)
    maps = method(case.model, case.inputs, case.target)
    maps[2, 0, 0, 0] = broken
    maps[4] = 0
    scores = Residual().score(case.model, case.inputs, case.target, maps, method)
    assert scores.isnan().tolist() == [False, False, True, False, False, False]
    assert float(scores[4]) == 1


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


def test_boundaries_that_were_not_found_are_counted():
    case = linear_case()
    assert Missing().applies(BoundarySaliency())
    assert not Missing().applies(Saliency())
    for search, missing in ((ToPlane(), [0] * 6), (ToNowhere(), [1, 0] * 3)):
        scores = Missing().score(case.model, case.inputs, case.target, BoundarySaliency(search))
        assert scores.tolist() == missing


def test_zero_and_broken_maps_are_counted():
    maps = torch.ones(4, 1, 2, 2)
    maps[1], maps[0, 0, 0, 0] = 0, 0
    maps[2, 0, 0, 0] = torch.nan
    maps[3, 0, 1, 1] = torch.inf
    scores = Flags().score(maps)
    assert scores["zero"].tolist() == [0, 1, 0, 0]
    assert scores["nonfinite"].tolist() == [0, 0, 1, 1]
    assert scores["ties"].isnan().tolist() == [False, False, True, True]


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ties_are_counted_as_one_would_by_hand(dtype):
    maps = torch.randint(6, (20, 3, 4), dtype=torch.int64).to(dtype)
    flat = maps.flatten(1).tolist()
    expected = [sum(row.count(value) > 1 for value in row) / 12 for row in flat]
    assert tied(maps).tolist() == pytest.approx(expected)
    assert len(set(expected)) > 2
    assert float(tied(torch.arange(12, dtype=dtype).view(1, 3, 4))) == 0
    assert float(tied(torch.zeros(1, 3, 4, dtype=dtype))) == 1
    assert float(tied(torch.tensor([[[0.0, -0.0, 1.0]]], dtype=dtype))) == pytest.approx(2 / 3)
    assert float(tied(torch.ones(1, 1, 1, dtype=dtype))) == 0
    torch.testing.assert_close(tied(maps * 1e-30), tied(maps))


def test_ties_are_those_of_pixels_not_of_channels():
    maps = torch.tensor([[[[1.0, 2.0]], [[2.0, 1.0]]], [[[1.0, 1.0]], [[2.0, 3.0]]]])
    assert Flags().score(maps)["ties"].tolist() == [1, 0]


def test_predictions_that_are_not_the_target_are_counted_in_one_pass():
    case = linear_case()
    target = case.target.clone()
    target[1] = (target[1] + 1) % 4
    target[5] = (target[5] + 2) % 4
    counted = Counted(case.model)
    with remembering():
        clean_logits(counted, case.inputs, target)
        scores = Misclassified().score(counted, case.inputs, target)
    assert scores.tolist() == [0, 1, 0, 0, 0, 1]
    assert counted.forwards == 6
    assert float(Misclassified().score(Scaled(case.model, math.nan), case.inputs, target).mean()) == 1
