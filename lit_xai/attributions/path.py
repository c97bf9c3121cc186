"""Maps that add up gradients along a straight path, and so say where a change of score comes from."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.attributions.score import Logit, Scored, gradient, settle
from lit_xai.types import Images, Labels, require, require_at_least

Rule = Literal["trapezoid", "midpoint", "official"]
Positions = Float[Tensor, " step"]


@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """Gradient of the score, averaged from a flat baseline image to the image, times their difference.

    (x - b) * int_0^1 grad s(b + t (x - b)) dt

    The map adds up to s(x) - s(b), as closely as the rule integrates.

    Args:
        steps: Gradients along the path, per image; at least 2, for `midpoint` 1.
        baseline: Pixel value of the flat image where the path starts, in [0, 1]; 0 is black.
        score: What is explained: `Logit()` or "logit", `Margin()` or "margin".
        rule: How the integral is taken, see `nodes`.
        chunk: Largest number of images in one pass of the model.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 3.
    Deviates: the trapezoidal rule in place of the right Riemann sum.
    """

    steps: int = 32
    baseline: float = 0.0
    score: Scored = field(default_factory=Logit)
    rule: Rule = "trapezoid"
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        require_path(self.rule, self.steps, self.chunk)
        require(0 <= self.baseline <= 1, f"`baseline` must lie in [0, 1], got {self.baseline!r}.")

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        start = torch.full_like(inputs, self.baseline)
        return integrate(model, start, inputs.detach(), target, self.score, self.rule, self.steps, self.chunk)


def integrate(
    model: nn.Module,
    start: Images,
    end: Images,
    target: Labels,
    score: Scored,
    rule: Rule,
    steps: int,
    chunk: int,
    rival: Labels | None = None,
) -> Images:
    """Path integral of the gradient along the segment from `start` to `end`, split over the pixels."""
    positions, weights = (node.to(end) for node in nodes(rule, steps))

    def slopes(image: Rows, step: Rows) -> Maps:
        points = start[image].lerp(end[image], positions[step].view(-1, 1, 1, 1))
        return gradient(score, model, points, target[image], None if rival is None else rival[image])

    return (end - start) * packed_sum(slopes, weights, end, chunk)


def nodes(rule: Rule, steps: int) -> tuple[Positions, Positions]:
    """Positions in [0, 1] and weights of a rule with equal spacing h.

    * `trapezoid`: k h, both ends included, h = 1 / (n - 1); weight h, halved at the ends; error of order 2;
    * `midpoint`: (k + 1/2) h, h = 1 / n; weight h; error of order 2, and half that of the trapezoid;
    * `official`: positions of the trapezoid, weight 1 / n, halved at the ends, as released by Wang et al.:
      the weights add up to (n - 1) / n, so every map is short by that factor.
    """
    if rule == "midpoint":
        positions = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        return positions, torch.full_like(positions, 1 / steps)
    positions = torch.linspace(0, 1, steps, dtype=torch.float64)
    weights = torch.full_like(positions, 1 / (steps if rule == "official" else steps - 1))
    weights[[0, -1]] /= 2
    return positions, weights


def require_path(rule: Rule, steps: int, chunk: int) -> None:
    """Refuse a rule that does not exist, and numbers with which it has no meaning."""
    known = ("trapezoid", "midpoint", "official")
    require(rule in known, f"`rule` must be one of {', '.join(known)}, got {rule!r}.")
    require_at_least(1 if rule == "midpoint" else 2, steps=steps)
    require_at_least(1, chunk=chunk)
