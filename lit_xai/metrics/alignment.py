"""Alignment: what the slopes of a model look like, and how far away they put its decision boundary."""

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attacks.losses import CE
from lit_xai.attributions.similarity import cosine, unit
from lit_xai.memory import once
from lit_xai.metrics.base import Facts, Metric, Quantity
from lit_xai.metrics.shared import clean_logits
from lit_xai.types import Images, Labels, Logits, Scores, require, require_at_least


@dataclass(frozen=True, eq=False)
class Slopes:
    """Two input gradients of a model.

    Args:
        winner: That of the largest logit.
        loss: That of the cross entropy of the target.
    """

    winner: Images
    loss: Images


def alignment(inputs: Images, slope: Images) -> Scores:
    """Length of an image along the direction of a gradient; NaN where that is zero or not finite.

    alpha = |<x, g>| / ||g||_2

    Args:
        inputs: x, the image.
        slope: g, a gradient.
    """
    return (inputs.flatten(1).double() * unit(slope)).sum(1).abs()


def centred(inputs: Images) -> Images:
    """Each channel of each image less its mean: without its brightness and its colour cast."""
    return inputs - inputs.mean((2, 3), keepdim=True)


def linearised_robustness(model: nn.Module, inputs: Images, competitors: int) -> Scores:
    """Distance at which the linearised model would change its decision.

    rho = min_j (z_c - z_j) / ||grad z_c - grad z_j||_2,    c the winning class, j the next ones

    For a linear model with no more competitors than j runs over, it is the distance to the decision boundary.
    NaN where no gradient tells the classes apart.

    Args:
        model: The network, of two classes at least.
        inputs: Pixels.
        competitors: How many of the classes that follow the winner are tried; all, if there are not as many.
    """
    with torch.enable_grad():
        points, logits = _followed(model, inputs)
        order = logits.detach().topk(min(competitors + 1, logits.shape[1]), dim=1).indices
        leads = logits.gather(1, order[:, :1]) - logits.gather(1, order[:, 1:])
        lengths = [
            _norm(torch.autograd.grad(lead.sum(), points, retain_graph=True)[0]) for lead in leads.unbind(1)
        ]
    reach = (leads.detach().double() / torch.stack(lengths, dim=1)).amin(1)
    return reach.where(reach.isfinite(), math.nan)


def curvature(model: nn.Module, inputs: Images, target: Labels) -> tuple[Scores, Scores]:
    """How fast the gradient of the loss turns along its own direction, and over its own length.

    ||H v||_2 and ||H v||_2 / ||g||_2,    g = grad l, v = g / ||g||_2, H the Hessian of l

    The loss is taken because a logit of a ReLU network has no curvature almost everywhere. Costs one forward
    pass, one gradient, and one gradient of the gradient. NaN where g is zero or not finite.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class of the loss.
    """
    with torch.enable_grad():
        points, logits = _followed(model, inputs)
        (slope,) = torch.autograd.grad(cross_entropy(logits, target).sum(), points, create_graph=True)
        direction = unit(slope.detach()).nan_to_num().to(slope.dtype).view_as(slope)
        (turn,) = torch.autograd.grad((slope * direction).sum(), points, materialize_grads=True)
    length, bend = _norm(slope.detach()), _norm(turn)
    valid = (length > 0) & length.isfinite() & bend.isfinite()
    return bend.where(valid, math.nan), (bend / length).where(valid, math.nan)


def cross_entropy(logits: Logits, target: Labels) -> Scores:
    """Cross entropy whose first two derivatives keep their digits however sure of the target the model is.

    l = log(1 + e^h),    h = log sum_{j != y} exp z_j - z_y
    """
    return F.softplus(CE()(logits, target), threshold=50.0)  # beyond it is h, to the last digit


def slopes(model: nn.Module, inputs: Images, target: Labels) -> Slopes:
    """Gradients of the largest logit and of the loss, from one forward pass, for all metrics that ask."""

    def look() -> Slopes:
        with torch.enable_grad():
            points, logits = _followed(model, inputs)
            largest, loss = logits.max(1).values.sum(), cross_entropy(logits, target).sum()
            (winner,) = torch.autograd.grad(largest, points, retain_graph=True)
            return Slopes(winner, torch.autograd.grad(loss, points)[0])

    return once("slopes", model, inputs, target, look)


class Alignment(Metric):
    """Whether a model's gradients look like the image: they do where a model is robust.

    * alpha = |<x, g>| / ||g||_2, median, g the gradient of the largest logit. Of a linear model without bias
      and with two opposite logits it is the distance to the boundary;
    * cosine = <x - m, g> / (||x - m|| ||g||), m the mean of each channel, so that a bright image does not
      look like any gradient of one sign;
    * cosine_loss: the same with the direction -grad l in which the loss falls.

    Source: Etmann et al. 2019, arXiv 1905.04172 (alignment); the cosines: their released code.
    Deviates: their cosines are those of x itself; and that of the loss has the opposite sign.
    """

    quantities: ClassVar = {
        "alpha": Quantity("higher", (0.0, math.inf), median=True),
        "cosine": Quantity("higher", (-1.0, 1.0)),
        "cosine_loss": Quantity("higher", (-1.0, 1.0)),
    }

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        seen, image = slopes(model, inputs, target), centred(inputs)
        return {
            "alpha": alignment(inputs, seen.winner),
            "cosine": cosine(image, seen.winner),
            "cosine_loss": cosine(image, -seen.loss),
        }


class LinearisedRobustness(Metric):
    """Median l2 distance to the boundary that the model's slopes promise, in pixel units.

    rho = min_j (z_c - z_j) / ||grad z_c - grad z_j||_2,    c the winning class, j the next `competitors`

    Exact for a linear model. Far above the distance that a search finds (`BoundaryDistance`), it tells of
    gradients that hide the boundary. Costs one forward pass and `competitors` gradients.

    Args:
        competitors: How many of the classes that follow the winner are tried, at least 1.

    Raises:
        ValueError: `competitors` is below 1.

    Source: Etmann et al. 2019, arXiv 1905.04172 (linearized robustness).
    Deviates: the minimum runs over the largest logits alone.
    """

    quantities: ClassVar = {"": Quantity("higher", (0.0, math.inf), median=True)}

    def __init__(self, competitors: int = 3) -> None:
        require_at_least(1, competitors=competitors)
        super().__init__()
        self.competitors = competitors

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        require(facts.classes > 1, f"`{name}` needs at least 2 classes, got {facts.classes}: leave it out.")

    def score(self, model: nn.Module, inputs: Images) -> Scores:
        return linearised_robustness(model, inputs, self.competitors)


class GradientNorm(Metric):
    """Length of the input gradient of the loss: how much a small change of the image can raise it.

    ||grad l||_1 and ||grad l||_2, l the cross entropy of the target. To first order the loss rises by epsilon
    times the l1 norm within an linf ball, and the l2 norm within an l2 ball. A model that is sure of itself
    has a small one too: read it beside `Confidence`.

    Source: Simon-Gabriel et al. 2019, arXiv 1802.01421 (gradient norms as a measure of vulnerability).
    """

    quantities: ClassVar = {
        "l1": Quantity("lower", (0.0, math.inf)),
        "l2": Quantity("lower", (0.0, math.inf)),
    }

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        slope = slopes(model, inputs, target).loss
        norms = {"l1": _norm(slope, 1), "l2": _norm(slope)}
        return {name: norm.where(norm.isfinite(), math.nan) for name, norm in norms.items()}


class Curvature(Metric):
    """How fast the loss's gradient turns: where it is large, gradients say little about what lies near.

    norm = ||H v||_2, relative = ||H v||_2 / ||g||_2, median, with g the input gradient of the loss, v its
    direction and H its Hessian. Only the second is free of the scale of the loss.

    Source: Moosavi-Dezfooli et al. 2019, arXiv 1811.09716 (H v); relative: Srinivas et al. 2022,
    arXiv 2206.07144 (normalized curvature).
    Deviates: v is the direction of the gradient, where the first has that of its sign, and H v is exact, not
    a difference of gradients; the second takes the largest eigenvalue of H.
    """

    quantities: ClassVar = {
        "norm": Quantity("lower", (0.0, math.inf)),
        "relative": Quantity("lower", (0.0, math.inf), median=True),
    }

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        return dict(zip(self.quantities, curvature(model, inputs, target), strict=True))


class Confidence(Metric):
    """How sure the model is: the largest probability, and its lead over the second.

    Removal curves follow it, and loss gradients vanish with it: an explanation's quality that moves with
    confidence alone has not moved.

    Source: Hendrycks and Gimpel 2017, arXiv 1610.02136, section 2 (the maximum softmax probability).
    """

    quantities: ClassVar = {
        "probability": Quantity(None, (0.0, 1.0)),
        "margin": Quantity(None, (0.0, 1.0)),
    }

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        require(facts.classes > 1, f"`{name}` needs at least 2 classes, got {facts.classes}: leave it out.")

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        logits = clean_logits(model, inputs, target)
        first, second = logits.double().softmax(1).topk(2, dim=1).values.unbind(1)
        return {"probability": first, "margin": first - second}


def _followed(model: nn.Module, inputs: Images) -> tuple[Images, Logits]:
    """The images as autograd follows them, and their logits."""
    points = inputs.detach().requires_grad_()
    return points, model(points).to(points.dtype)


def _norm(maps: Images, order: int = 2) -> Scores:
    norm: Tensor = maps.flatten(1).double().norm(order, dim=1)
    return norm
