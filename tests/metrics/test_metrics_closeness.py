"""Closeness against models whose boundary and gradients are known."""

import math
from dataclasses import dataclass

import pytest
import torch
from searches import Ball, ToNowhere, ToPlane, ToSphere, answer
from subjects import linear_case
from torch import nn

from lit_xai.attacks.base import Search
from lit_xai.attributions import BoundaryIntegratedGradients, BoundarySaliency, IntegratedGradients, Saliency
from lit_xai.metrics import Closeness
from lit_xai.metrics.closeness import closeness


def scored(model, inputs, target, attribution):
    maps = attribution(model, inputs, target)
    given = {"model": model, "inputs": inputs, "target": target}
    return Closeness().named(**given, attributions=maps, attribution=attribution)


def alike(column, value, tolerance=1e-7):
    torch.testing.assert_close(column, torch.full_like(column, value), rtol=0, atol=tolerance)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_a_linear_model_has_one_map_everywhere(classes):
    case = linear_case(classes)
    scores = scored(case.model, case.inputs, case.target, BoundarySaliency(ToPlane()))
    exact = {"raw": 0, "relative": 0, "cosine": 1, "lam_hat": 0, "kappa": 1, "log_kappa": 0}
    for name, value in exact.items():
        alike(scores[name], value)
    torch.testing.assert_close(scores["norm"], case.weight[case.target].norm(dim=1))


def test_a_ball_in_closed_form():
    centre = torch.full((2, 4, 4), 0.5, dtype=torch.float64)
    radius, draw = 0.4, torch.randn(6, 2, 4, 4, dtype=torch.float64)
    reach = torch.linspace(0.05, 0.35, 6, dtype=torch.float64)
    inputs = centre + draw * (reach / draw.flatten(1).norm(dim=1)).view(-1, 1, 1, 1)
    target = torch.zeros(6, dtype=torch.int64)
    scores = scored(Ball(centre, radius), inputs, target, BoundarySaliency(ToSphere()))
    # grad f_0 = -2 (x - centre) / radius^2 at x, and the same at the point where the ray leaves the ball.
    distance = radius - reach
    expected = {
        "raw": 2 * distance / radius**2,
        "relative": distance / reach,
        "cosine": torch.ones_like(reach),
        "lam_hat": torch.full_like(reach, 2 / radius**2),
        "norm": 2 * reach / radius**2,
        "kappa": (radius + reach) / (2 * reach),
        "log_kappa": ((radius + reach) / (2 * reach)).log().abs(),
    }
    for name, column in expected.items():
        torch.testing.assert_close(scores[name], column, rtol=1e-6, atol=1e-6)


def test_the_scale_of_the_logits_moves_raw_norm_and_lam_hat_alone():
    centre = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    inputs, target = centre + 0.1 * torch.randn(4, 1, 3, 3).double(), torch.zeros(4, dtype=torch.int64)
    model, louder = Ball(centre, 2.0), Ball(centre, 2.0)
    louder.forward = lambda inputs: 1e6 * model(inputs)
    plain = scored(model, inputs, target, BoundarySaliency(ToSphere()))
    loud = scored(louder, inputs, target, BoundarySaliency(ToSphere()))
    for name in ("relative", "cosine", "kappa", "log_kappa"):
        torch.testing.assert_close(loud[name], plain[name])
    for name in ("raw", "norm", "lam_hat"):
        torch.testing.assert_close(loud[name], plain[name] * 1e6)


def test_numbers_by_hand():
    plain = torch.tensor([3.0, 4.0]).view(1, 1, 1, 2)
    other = torch.tensor([4.0, 3.0]).view(1, 1, 1, 2)
    scores = closeness(plain, other, torch.tensor([0.5]))
    alike(scores["raw"], math.sqrt(2))
    alike(scores["relative"], math.sqrt(2) / 5)
    alike(scores["cosine"], 24 / 25)
    alike(scores["lam_hat"], 2 * math.sqrt(2))


@pytest.mark.parametrize("scale", [1e-30, 1e30])
def test_no_norm_overflows_or_vanishes(scale):
    plain, other = torch.rand(3, 1, 4, 4), torch.rand(3, 1, 4, 4)
    expected = closeness(plain, other, torch.ones(3))
    scores = closeness(plain * scale, other * scale, torch.ones(3))
    for name in ("relative", "cosine"):
        torch.testing.assert_close(scores[name], expected[name], rtol=1e-5, atol=1e-6)


def test_what_cannot_be_compared_is_missing():
    plain, other = torch.rand(4, 1, 3, 3), torch.rand(4, 1, 3, 3)
    plain[0], other[1], other[2, 0, 1, 1], other[3, 0, 1, 1] = 0, 0, math.nan, math.inf
    scores = closeness(plain, other, torch.ones(4))
    assert scores["raw"].isnan().tolist() == [False, False, True, True]
    assert scores["norm"].isnan().tolist() == [False, False, True, True]
    assert scores["lam_hat"].isnan().tolist() == [False, False, True, True]
    assert scores["relative"].isnan().tolist() == [True, False, True, True]
    assert scores["cosine"].isnan().tolist() == [True, True, True, True]
    nowhere = closeness(torch.rand(1, 1, 3, 3), torch.rand(1, 1, 3, 3), torch.zeros(1))
    assert [name for name, column in nowhere.items() if column.isnan()] == ["lam_hat"]


def test_log_kappa_counts_too_near_and_too_far_alike():
    """A margin that grows quadratically, or as a root, from the boundary on: kappa is 1/2, or 2."""
    for power, kappa in ((2.0, 0.5), (0.5, 2.0)):
        model = Power(power)
        inputs, target = torch.full((1, 1, 1, 1), 0.8).double(), torch.zeros(1, dtype=torch.int64)
        scores = scored(model, inputs, target, BoundarySaliency(ToHalf()))
        alike(scores["kappa"], kappa, 1e-6)
        alike(scores["log_kappa"], math.log(2), 1e-6)


@dataclass(frozen=True)
class ToHalf(Search):
    """The nearest grey level below one half."""

    def find(self, model, inputs, target):
        points = torch.full_like(inputs, 0.5 - 1e-9)
        return answer(
            model, inputs, points, torch.ones_like(target, dtype=torch.bool), inputs.flatten() - 0.5
        )


class Power(nn.Module):
    """f_0 = sign(x - 1/2) |x - 1/2|^p for the one pixel x, f_1 = 0."""

    def __init__(self, power):
        super().__init__()
        self.power = power
        self.eval()

    def forward(self, inputs):
        offset = inputs.flatten(1) - 0.5
        return torch.cat([offset.sign() * offset.abs() ** self.power, 0 * offset], dim=1)


def test_no_boundary_and_none_to_cross_are_missing():
    case = linear_case()
    scores = scored(case.model, case.inputs, case.target, BoundarySaliency(ToNowhere()))
    assert all(column.isnan().all() for column in scores.values())


def test_it_applies_to_attributions_on_a_boundary():
    metric = Closeness()
    assert metric.applies(BoundarySaliency(ToPlane()))
    assert metric.applies(BoundaryIntegratedGradients(ToPlane()))
    assert not metric.applies(Saliency())
    assert not metric.applies(IntegratedGradients())


def test_integrated_gradients_are_compared_with_their_plain_twin():
    case = linear_case()
    attribution = BoundaryIntegratedGradients(ToPlane(), steps=3)
    found = attribution.search.search(case.model, case.inputs, case.target)
    own = case.weight[case.target].view_as(case.inputs)
    expected = (found.points * own).flatten(1).norm(dim=1)  # x w - (x - x') w
    scores = scored(case.model, case.inputs, case.target, attribution)
    torch.testing.assert_close(scores["raw"], expected)
