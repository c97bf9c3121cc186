"""Maps taken from the closest point where the decision changes.

c is the class of the image throughout, also at the boundary point. Where the search finds no such point the
map is NaN, so that the image is left out of every mean and counted as missing; nothing is put in its place.
Under `Margin` the rival is the class on the other side, held fixed. An image that is not of class c to begin
with is its own boundary point.
"""

from dataclasses import dataclass, field
from typing import Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.portfolio import ClosestBoundary
from lit_xai.attributions.base import Attribution, require_logits
from lit_xai.attributions.deeplift import DeepLift, rescale
from lit_xai.attributions.gradient import Saliency
from lit_xai.attributions.packing import Maps, Rows
from lit_xai.attributions.path import IntegratedGradients, Rule, integrate, rise
from lit_xai.attributions.score import Logit, Scored, gradient, settle
from lit_xai.attributions.smoothing import SmoothGrad, mean_around
from lit_xai.types import Flags, Images, Labels, Scores


@runtime_checkable
class OnBoundary(Protocol):
    """An attribution that is built on a search, and has a plain twin to be compared with."""

    @property
    def search(self) -> Search:
        """Finds the boundary points."""

    @property
    def plain(self) -> Attribution:
        """The same method without the boundary, with the same score."""


@dataclass(frozen=True)
class BoundarySaliency(Attribution):
    """Gradient of the score at the closest boundary point (BSM).

    grad s(x'),    x' = the closest point of another class

    Args:
        search: Finds the boundary points.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (boundary-based saliency map).
    Deviates: NaN where no boundary point was found; the released code explains a point that does not flip.
    """

    search: Search = field(default_factory=ClosestBoundary)
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    @property
    def plain(self) -> Saliency:
        """The gradient at the image."""
        return Saliency(self.score)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        boundary = closest(self.search, model, inputs, target)
        maps = gradient(self.score, model, boundary.points, target, boundary.label)
        return found_only(maps, boundary.found)


@dataclass(frozen=True)
class BoundaryIntegratedGradients(Attribution):
    """Integrated gradients from the closest boundary point to the image (BIG).

    (x - x') * int_0^1 grad s(x' + t (x - x')) dt,    x' = the closest point of another class

    The map adds up to s(x) - s(x'), as closely as the rule integrates. Under `Margin`, and with x' on the
    boundary itself, that is the lead of c at x over the class on the other side.

    Args:
        search: Finds the boundary points.
        steps: Gradients along the path, per image; at least 2, for `midpoint` 1.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        rule: How the integral is taken, see `lit_xai.attributions.path.nodes`.
        chunk: Largest number of images in one pass of the model.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (boundary-based integrated gradients).
    Deviates: NaN where no boundary point was found; weights that add up to 1, unless `rule="official"`.
    """

    search: Search = field(default_factory=ClosestBoundary)
    steps: int = 32
    score: Scored = field(default_factory=Logit)
    rule: Rule = "trapezoid"
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        _ = self.plain  # which refuses what has no meaning

    @property
    def plain(self) -> IntegratedGradients:
        """Integrated gradients from black."""
        return IntegratedGradients(steps=self.steps, score=self.score, rule=self.rule, chunk=self.chunk)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        boundary = closest(self.search, model, inputs, target)
        start, end, rival = boundary.points, inputs.detach(), boundary.label
        maps = integrate(model, start, end, target, self.score, self.rule, self.steps, self.chunk, rival)
        return found_only(maps, boundary.found)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the boundary point to the image, NaN where there is no such point."""
        return risen(self.search, model, inputs, target, self.score, self.chunk)


@dataclass(frozen=True)
class BoundarySmoothGrad(Attribution):
    """Mean gradient of the score over Gaussian noise at the closest boundary point (BSG).

    (1 / n) sum_k grad s(x' + sigma e_k),    e_k ~ N(0, I),    x' = the closest point of another class

    Args:
        search: Finds the boundary points.
        sigma: Standard deviation of the noise, in pixel units; greater than 0.
        samples: Noise draws per image, at least 1; the draws are those of the plain `SmoothGrad`.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (released code: boundary-based smooth gradient).
    Deviates: NaN where no boundary point was found.
    """

    search: Search = field(default_factory=ClosestBoundary)
    sigma: float = 0.15
    samples: int = 16
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        _ = self.plain  # which refuses what has no meaning

    @property
    def plain(self) -> SmoothGrad:
        """The mean gradient around the image."""
        return SmoothGrad(self.sigma, self.samples, Saliency(self.score), self.chunk)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        boundary = closest(self.search, model, inputs, target)

        def slopes(points: Images, image: Rows) -> Maps:
            return gradient(self.score, model, points, target[image], boundary.label[image])

        maps = mean_around(boundary.points, slopes, self.sigma, self.samples, self.chunk)
        return found_only(maps, boundary.found)


@dataclass(frozen=True)
class BoundaryDeepLift(Attribution):
    """DeepLIFT with the closest boundary point as the baseline (BDL).

    (x - x') * m(x, x'),    m = multipliers of the rescale rule,    x' = the closest point of another class

    The map adds up to s(x) - s(x'), up to rounding.

    Args:
        search: Finds the boundary points.
        score: What is explained: `Logit()` or `Margin()`, or its name.

    Raises:
        ValueError: As for `DeepLift`.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (released code: boundary-based DeepLIFT).
    Deviates: NaN where no boundary point was found.
    """

    search: Search = field(default_factory=ClosestBoundary)
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)
        _ = self.plain  # which refuses what has no meaning

    @property
    def plain(self) -> DeepLift:
        """DeepLIFT from black."""
        return DeepLift(score=self.score)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        boundary = closest(self.search, model, inputs, target)
        maps = rescale(self, model, inputs.detach(), boundary.points, target, self.score, boundary.label)
        return found_only(maps, boundary.found)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the boundary point to the image, NaN where there is no such point."""
        return risen(self.search, model, inputs, target, self.score, max(1, len(inputs)))


def closest(search: Search, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
    """The boundary points; logits that `require_logits` refuses do not get as far as the search."""
    handle = model.register_forward_hook(lambda _, images, logits: require_logits(logits, len(images[0])))
    try:
        return search.search(model, inputs, target)
    finally:
        handle.remove()


def risen(
    search: Search, model: nn.Module, inputs: Images, target: Labels, score: Scored, chunk: int
) -> Scores:
    """The rise of the score from the boundary points to the images, with the rival of the boundary points."""
    boundary = closest(search, model, inputs, target)
    found = rise(model, boundary.points, inputs, target, score, chunk, boundary.label)
    return found_only(found, boundary.found)


def found_only(values: Float[Tensor, "batch ..."], found: Flags) -> Float[Tensor, "batch ..."]:
    """The values, NaN where no boundary point was found."""
    return torch.where(found.view(-1, *[1] * (values.ndim - 1)), values, torch.nan)
