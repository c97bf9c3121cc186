"""Accuracy and distance on models whose boundary is known."""

import math
from dataclasses import dataclass

import pytest
import torch
from searches import Ball, ToNowhere, ToPlane, ToSphere, answer
from subjects import linear_case
from torch import nn

from lit_xai.attacks.base import Attack, Search
from lit_xai.metrics import BoundaryDistance, CleanAccuracy, RobustAccuracy


@dataclass(frozen=True)
class Move(Attack):
    """Adds a number to every pixel."""

    by: float

    def __call__(self, model, inputs, target):
        return inputs + self.by


class Threshold(nn.Module):
    """Class 1 where the mean of the pixels is above one half; NaN above 0.95."""

    def forward(self, inputs):
        level = inputs.flatten(1).mean(1)
        level = torch.where(level > 0.95, math.nan, level)
        return torch.stack([0.5 - level, level - 0.5], dim=1)


def test_accuracy_is_counted_before_and_after_the_attack():
    levels = torch.tensor([0.1, 0.45, 0.45, 0.6, 0.9, 0.97])
    inputs = levels.view(-1, 1, 1, 1).expand(-1, 2, 3, 3)
    target = torch.tensor([0, 0, 1, 1, 1, 0])
    clean = CleanAccuracy().named(model=Threshold(), inputs=inputs, target=target)["accuracy"]
    assert clean.tolist() == [1, 1, 0, 1, 1, 0]  # NaN is class 0 to argmax, and to nobody else
    attacked = RobustAccuracy(Move(0.1)).named(model=Threshold(), inputs=inputs, target=target)["accuracy"]
    # The second is flipped; the third was wrong to begin with, and moving it mends nothing; then NaN twice.
    assert attacked.tolist() == [1, 0, 0, 1, 0, 0]


def test_an_attack_is_not_believed():
    case = linear_case()
    given = {"model": case.model, "inputs": case.inputs, "target": case.target}
    assert RobustAccuracy(Move(0.0)).named(**given)["accuracy"].tolist() == [1] * 6
    assert RobustAccuracy(ToPlane()).named(**given)["accuracy"].tolist() == [0] * 6


@pytest.mark.parametrize("classes", [2, 10])
def test_distance_on_a_linear_model(classes):
    case = linear_case(classes)
    scores = BoundaryDistance(ToPlane()).named(model=case.model, inputs=case.inputs, target=case.target)
    logits = case.inputs.flatten(1) @ case.weight.T + case.bias
    for image, label in enumerate(case.target.tolist()):
        others = [other for other in range(classes) if other != label]
        expected = min(
            float(
                (logits[image, label] - logits[image, other])
                / (case.weight[label] - case.weight[other]).norm()
            )
            for other in others
        )
        assert float(scores["distance"][image]) == pytest.approx(expected)
    assert scores["found"].tolist() == [1] * 6
    torch.testing.assert_close(scores["opt"], torch.ones_like(scores["opt"]))
    torch.testing.assert_close(scores["over"], torch.zeros_like(scores["over"]), rtol=0, atol=1e-5)


def test_checks_tell_a_poor_point_from_a_good_one():
    centre = torch.full((1, 3, 3), 0.5, dtype=torch.float64)
    inputs, target = centre + 0.03 * torch.randn(5, 1, 3, 3).double(), torch.zeros(5, dtype=torch.int64)

    @dataclass(frozen=True)
    class Past(Search):
        """Twice as far as `ToSphere` goes, and turned away by a right angle."""

        turn: bool

        def find(self, model, inputs, target):
            foot = ToSphere().find(model, inputs, target)
            step = (foot.points - inputs) * 2
            points = inputs + step
            if self.turn:
                points = model.centre + (points - model.centre).flip(3)
            length = (points - inputs).flatten(1).norm(dim=1)
            return answer(model, inputs, points, foot.found, length)

    model = Ball(centre, 0.3)
    given = {"model": model, "inputs": inputs, "target": target}
    far = BoundaryDistance(Past(turn=False)).named(**given)
    torch.testing.assert_close(far["opt"], torch.ones_like(far["opt"]))
    reach = (inputs - centre).flatten(1).norm(dim=1)
    end = 0.6 - reach
    expected = (end**2 / 0.09 - 1) / (2 * end / 0.09 * (0.6 - 2 * reach))
    torch.testing.assert_close(far["over"], expected, rtol=1e-6, atol=1e-6)
    assert (BoundaryDistance(Past(turn=True)).named(**given)["opt"] < 0.999).all()


def test_pixels_on_the_box_are_left_out_of_the_check():
    """With weights (3, 4) and the first pixel at its edge, the closest point moves the second alone."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[3.0, 4.0], [0.0, 0.0]]))
        model[1].bias.copy_(torch.tensor([-1.0, 0.0]))

    @dataclass(frozen=True)
    class Edge(Search):
        def find(self, model, inputs, target):
            points = inputs.clone()
            points[:, :, :, 0] = 0
            points[:, :, :, 1] = 0.25 - 1e-6
            return answer(model, inputs, points, target == 0, (points - inputs).flatten(1).norm(dim=1))

    inputs, target = torch.tensor([[[[0.1, 0.9]]]]), torch.tensor([0])
    scores = BoundaryDistance(Edge()).named(model=model, inputs=inputs, target=target)
    assert float(scores["opt"]) == pytest.approx(1)


def test_what_was_not_found_is_infinitely_far_and_has_no_checks():
    case = linear_case()
    metric = BoundaryDistance(ToNowhere())
    metric.update(model=case.model, inputs=case.inputs[:5], target=case.target[:5])
    values = metric.compute()
    assert math.isinf(values["distance"])
    assert float(values["found"]) == pytest.approx(0.4)
    assert math.isnan(values["opt"])
    assert metric.spread()["opt"]["missing"] == 5
