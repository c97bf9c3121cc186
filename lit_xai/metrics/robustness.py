"""Robustness: how far the model's decision is from another one, and whether an attack gets there."""

import math
from typing import ClassVar

import torch
from torch import nn

from lit_xai.attacks.base import Attack, Boundary, Search
from lit_xai.attributions.score import Margin
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.types import Flags, Images, Labels, Scores


def correct(model: nn.Module, inputs: Images, target: Labels) -> Flags:
    """Whether the model predicts the target; logits that are not finite predict nothing."""
    with torch.no_grad():
        logits = model(inputs)
    right: Flags = (logits.argmax(dim=1) == target) & logits.isfinite().all(dim=1)
    return right


def margin_and_slope(
    model: nn.Module, points: Images, target: Labels, rival: Labels
) -> tuple[Scores, Images]:
    """The margin f_c - f_j of the target over the rival, and its gradient, from one forward pass."""
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        margin = Margin()(model(points), target, rival)
        return margin.detach(), torch.autograd.grad(margin.sum(), points)[0]


def boundary_checks(
    model: nn.Module, inputs: Images, target: Labels, boundary: Boundary
) -> tuple[Scores, Scores]:
    """Two checks of a boundary point x' that need no rival search, in double precision.

    opt = cos(x - x', grad m(x')), over pixels where x' does not touch 0 or 1: 1 at a point that no small
    move along the boundary brings closer; over = -m(x') / (||grad m(x')|| ||x - x'||): 0 on the boundary.
    m is the margin over the class at x'. NaN where nothing was found, or where x' is x.
    """
    margin, slope = margin_and_slope(model, boundary.points, target, boundary.label)
    step, slope = (inputs - boundary.points).flatten(1).double(), slope.flatten(1).double()
    inside = ((boundary.points > 0) & (boundary.points < 1)).flatten(1)
    optimal = torch.cosine_similarity(step * inside, slope * inside, dim=1, eps=0.0)
    beyond = -margin.double() / (slope.norm(dim=1) * step.norm(dim=1))
    valid = crossed(boundary)
    return optimal.where(valid, math.nan), beyond.where(valid, math.nan)


def crossed(boundary: Boundary) -> Flags:
    """Whether there was a boundary to cross, and it was found: not so for an image of another class."""
    return boundary.found & (boundary.distance > 0)


class CleanAccuracy(Metric):
    """Share of images that the model classifies right, as they are.

    Source: Fawcett 2006, "An introduction to ROC analysis", section 2.
    """

    quantities: ClassVar = {"accuracy": Quantity("higher", (0.0, 1.0))}

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        return {"accuracy": correct(model, inputs, target).to(inputs.dtype)}


class RobustAccuracy(Metric):
    """Share of images that the model classifies right, as they are and after an attack.

    The attack's answer is not believed: the model looks at the image that it returned.

    Args:
        attack: Looks for a neighbour of another class.

    Source: Madry et al. 2018, arXiv 1706.06083, eq. 2.1 (the inner maximum, of the 0-1 loss).
    """

    quantities: ClassVar = {"accuracy": Quantity("higher", (0.0, 1.0))}

    def __init__(self, attack: Attack) -> None:
        super().__init__()
        self.attack = attack

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        attacked = self.attack(model, inputs, target)
        right = correct(model, inputs, target) & correct(model, attacked, target)
        return {"accuracy": right.to(inputs.dtype)}


class BoundaryDistance(Metric):
    """Median l2 distance to the closest image of another class, in pixel units.

    `distance` is 0 for an image that is misclassified to begin with, and infinite where no boundary was
    found; `found` is the share of images where one was. Two checks say how good the points are, see
    `boundary_checks`: `opt`, 1 for a point that cannot be improved locally, and `over`, 0 on the boundary.

    Args:
        search: Finds the boundary points.

    Source: Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv 1511.04599, eq. 1.
    Deviates: the median of the distance, where eq. 2 takes the mean of distance over norm.
    """

    quantities: ClassVar = {
        "distance": Quantity("higher", (0.0, math.inf), median=True),
        "found": Quantity(None, (0.0, 1.0)),
        "opt": Quantity("higher", (-1.0, 1.0)),
        "over": Quantity("lower", (0.0, math.inf)),
    }

    def __init__(self, search: Search) -> None:
        super().__init__()
        self.search = search

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        boundary = self.search.search(model, inputs, target)
        optimal, beyond = boundary_checks(model, inputs, target, boundary)
        found = boundary.found.to(inputs.dtype)
        distance = boundary.distance.where(boundary.found, math.inf)
        return {"distance": distance, "found": found, "opt": optimal, "over": beyond}
