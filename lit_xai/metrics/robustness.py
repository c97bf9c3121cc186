"""Robustness: how far the model's decision is from another one, and whether an attack gets there."""

import math
from collections.abc import Sequence
from functools import partial
from typing import ClassVar

import torch
from torch import nn

from lit_xai.attacks.base import Attack, Boundary, Search
from lit_xai.attacks.losses import CE, LogitMargin, holds
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.attributions.score import Margin
from lit_xai.attributions.similarity import cosine
from lit_xai.memory import once
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.randomness import keys
from lit_xai.types import Epsilon, Flags, Images, Labels, Scores, require, require_at_least, require_positive


def correct(model: nn.Module, inputs: Images, target: Labels) -> Flags:
    """Whether the model predicts the target; logits that are not finite predict nothing."""
    with torch.no_grad():
        return holds(model(inputs), target)


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
    optimal = cosine(step * inside, slope * inside)
    beyond = -margin.double() / (slope.norm(dim=1) * step.norm(dim=1))
    valid = crossed(boundary)
    return optimal.where(valid, math.nan), beyond.where(valid, math.nan)


def crossed(boundary: Boundary) -> Flags:
    """Whether there was a boundary to cross, and it was found: not so for an image of another class."""
    return boundary.found & (boundary.distance > 0)


def neighbours(attack: Attack, model: nn.Module, inputs: Images, target: Labels) -> Images:
    """What an attack answers; attacked once for all metrics that ask for the same."""
    question = ("neighbours", repr(attack))  # a search is asked for its boundary under its own name
    return once(question, model, inputs, target, partial(attack, model, inputs, target)).detach()


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
        attacked = neighbours(self.attack, model, inputs, target)
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


class RobustnessCurve(Metric):
    """Share of images that stay right within each of several l2 distances, from one closest-boundary search.

    a(epsilon) = share of images with distance > epsilon

    A search bounds the distance from above, and so the accuracy: it never rises with epsilon, and a better
    search can only lower it. Quantities are called `at_<epsilon>`; at 0 stands the clean accuracy.

    Args:
        search: Finds the closest boundary point; shared with other metrics and maps that use the same.
        epsilons: Distances in pixel units, at least 0, told apart by four digits.

    Raises:
        ValueError: There is no distance, one is below 0, or two have the same name.

    Source: Croce and Hein 2020, arXiv 1907.02044, section 1 (minimum-norm attacks give all thresholds).
    """

    def __init__(self, search: Search, epsilons: Sequence[Epsilon] = (0.25, 0.5, 1.0, 2.0)) -> None:
        super().__init__()
        self.search, self.epsilons = search, tuple(float(epsilon) for epsilon in epsilons)
        names = [f"at_{epsilon:.4g}" for epsilon in self.epsilons]
        for epsilon in self.epsilons:
            require_at_least(0, epsilons=epsilon)
        require(len(names) > 0, "`epsilons` must hold at least one distance, got none.")
        require(
            len(set(names)) == len(names),
            f"`epsilons` must differ in their first four digits, got {self.epsilons}.",
        )
        self.quantities = {name: Quantity("higher", (0.0, 1.0)) for name in names}  # type: ignore[misc]

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        boundary = self.search.search(model, inputs, target)
        distance = boundary.distance.where(boundary.found, math.inf)
        columns = zip(self.quantities, self.epsilons, strict=True)
        return {name: (distance > epsilon).to(inputs.dtype) for name, epsilon in columns}


class GradientMasking(Metric):
    """Signs that gradients do not lead attacks to where the model fails.

    `cosine` = cos(delta_1, delta_K) of the perturbations of a one-step attack and of one of many steps: it
    drops towards 0 in catastrophic overfitting. `zero` is the share of images at which the margin has an
    input gradient of exactly zero: there, attacks by gradient are blind, and robust accuracy means nothing.

    Args:
        attack: Takes many steps; shared with a `RobustAccuracy` of the same.
        one_step: Takes one.

    Source: Andriushchenko and Flammarion 2020, arXiv 2007.02617 (cosine); Athalye, Carlini and
    Wagner 2018, arXiv 1802.00420, section 3 (gradients that vanish).
    """

    quantities: ClassVar = {"cosine": Quantity("higher", (-1.0, 1.0)), "zero": Quantity("lower", (0.0, 1.0))}

    def __init__(self, attack: Attack, one_step: Attack) -> None:
        super().__init__()
        self.attack, self.one_step = attack, one_step

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        many, one = (neighbours(attack, model, inputs, target) for attack in (self.attack, self.one_step))
        slope = LogitMargin().climb(model, inputs, target)[1].flatten(1)
        return {"cosine": cosine(one - inputs, many - inputs), "zero": (slope == 0).all(1).to(inputs.dtype)}


class GradientAlignment(Metric):
    """Local linearity: cosine of the input gradients at an image and at a random point of the ball around it.

    cos(grad h(x), grad h(x + eta)),    h = log sum_{j != y} exp f_j - f_y,    eta random, |eta| <= epsilon

    1 for a model that is linear there. It drops from one epoch to the next where one-step training
    overfits catastrophically. NaN, left out, where a gradient is exactly zero.

    Args:
        epsilon: Radius of the ball in pixel units, above 0.
        norm: The ball, and how its points are drawn.

    Source: Andriushchenko and Flammarion 2020, arXiv 2007.02617 (GradAlign, what it raises).
    Deviates: h, the loss `CE`, has the direction of the cross entropy's gradient, and does not round to zero.
    The random point may leave the box of pixels, as in the source.
    """

    quantities: ClassVar = {"": Quantity("higher", (-1.0, 1.0))}

    def __init__(self, epsilon: Epsilon, norm: Norm | None = None) -> None:
        super().__init__()
        require_positive(epsilon=epsilon)
        self.epsilon, self.norm = epsilon, Linf() if norm is None else norm

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        shape = inputs.shape[1:]
        eta = self.norm.start(keys(inputs, "alignment"), 0, shape, self.epsilon, inputs.dtype)
        here, there = (CE().climb(model, points, target)[1] for points in (inputs, inputs + eta))
        return cosine(here, there)
