"""Maps taken on a sphere around the image, where the gradient of the score points back inside."""

from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attacks.norms import L2, Linf, Norm
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.attributions.score import Probability, Scored, gradient, settle
from lit_xai.memory import once
from lit_xai.types import Epsilon, Images, Labels, Scores, require_at_least, require_positive

_L2 = L2()


@dataclass(frozen=True)
class NegativeFlux(Attribution):
    """Inward flux of the gradient through a sphere around the image, split over the pixels (NeFLAG).

    -(1 / k) sum_j grad s(x_j) * n_j,    n_j = (x_j - x) / ||x_j - x||_2,    over the k of the points x_j of
    the sphere where the gradient points inside: grad s(x_j) . n_j < 0

    To first order the flux at x_j is s(x_j) - s(x), so each x_j is sought where the score is low: from a
    random direction u, `steps` times, down to x_j = clip(x + radius u),

    * `Linf`: u <- -sign(grad s(x_j)); a corner of the cube;
    * `L2`: u <- unit(u - eta unit(grad s(x_j))).

    The map adds up to the mean inward flux, 0 or more. Where no point is accepted, the map is 0 and
    `accepted` says so. With `steps=0` the points are random, and a map times `accepted` / `points` is an
    unbiased estimate of the mean over the whole sphere. Costs `points` * (`steps` + 1) gradients per image.

    Args:
        points: Points of the sphere per image, at least 1.
        steps: Gradient steps with which each point is sought, at least 0.
        radius: Radius of the sphere in pixel units, above 0.
        norm: Whose sphere it is.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        eta: Length of a step on the sphere of `L2` in radii, above 0; `Linf` goes to a corner at once.
        clip: Whether the points stay in [0, 1].
        chunk: Largest number of images in one pass of the model.

    Source: Li, Pan, Li, Qiang and Zhu 2023, arXiv 2301.06989 (NeFLAG): the inward flux, 20 points, radius
    0.1. The sign step is that of `AdversarialGradientIntegration`, by the same group.
    Deviates: a re-implementation, as no code was released: the search is our own, and so are geometry and
    steps. The cube is the default, because in l2 such a radius hardly moves a pixel, and the map ranks as
    saliency does; sign steps settle within a few.
    """

    points: int = 20
    steps: int = 5
    radius: Epsilon = 0.1
    norm: Norm = field(default_factory=Linf)
    score: Scored = field(default_factory=Probability)
    eta: float = 0.5
    clip: bool = True
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        require_at_least(1, points=self.points, chunk=self.chunk)
        require_at_least(0, steps=self.steps)
        require_positive(radius=self.radius, eta=self.eta)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self._flux(model, inputs, target)[0]

    def accepted(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """How many of the points have negative flux, per image; in one computation with the maps.

        Inside `remembering()`, whichever of the two is asked for first computes both.
        """
        return self._flux(model, inputs, target)[1]

    def _flux(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Images, Scores]:
        question = ("flux", self)  # the map alone is asked for under the method's own name
        return once(question, model, inputs, target, lambda: self._measure(model, inputs.detach(), target))

    def _measure(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Images, Scores]:
        own = randomness.keys(inputs, "negative_flux")
        shape, dtype = inputs.shape[1:], inputs.dtype
        kept = inputs.new_zeros(len(inputs), self.points)

        def inward(image: Rows, number: Rows) -> Maps:
            centre, label = inputs[image], target[image]
            direction = self.norm.steepest(randomness.normal(own[image] + number, 0, shape, dtype))
            points = self._onto(centre, direction)
            slope = gradient(self.score, model, points, label)
            for _ in range(self.steps):
                direction = self._downhill(direction, slope)
                points = self._onto(centre, direction)
                slope = gradient(self.score, model, points, label)
            terms = -slope * _L2.steepest(points - centre)
            negative = terms.flatten(1).sum(1) > 0
            kept[image, number] = negative.to(dtype)
            return torch.where(negative.view(-1, 1, 1, 1), terms, 0)

        total = packed_sum(inward, inputs.new_ones(self.points), inputs, self.chunk)
        accepted = kept.sum(1)
        return total / accepted.clamp(min=1).view(-1, 1, 1, 1), accepted

    def _downhill(self, direction: Maps, slope: Maps) -> Maps:
        """The next direction in which to look for a low score."""
        uphill = self.norm.steepest(slope)
        if isinstance(self.norm, Linf):
            return -uphill
        return self.norm.steepest(direction - self.eta * uphill)

    def _onto(self, centre: Maps, direction: Maps) -> Maps:
        points = centre + self.radius * direction
        return points.clamp(0, 1) if self.clip else points
