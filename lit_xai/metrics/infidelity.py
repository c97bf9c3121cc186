"""Infidelity: how badly a map foretells what random disturbances of the image do to the class."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.baselines import Baseline, FlatImage, settled
from lit_xai.attributions.path import begun
from lit_xai.memory import once
from lit_xai.metrics.answers import Answers, asked, blocks, dealt, everyone, own, told_apart
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.metrics.removal import Looks
from lit_xai.metrics.shared import clean_logits, finite_only, logit
from lit_xai.types import Images, Labels, Scores, require_at_least, require_positive

Weights = Float[Tensor, "view batch #channel height width"]
# By ranges of images and of views: what is seen, and the weights I of the map.
Disturbed = Callable[[slice, slice], tuple[Looks, Weights]]


class Disturbance(abc.ABC):
    """What is done to an image at random. Concrete disturbances are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, inputs: Images, samples: int) -> Disturbed:
        """Return what makes the views of each image, of which there are `samples`."""


@dataclass(frozen=True)
class GaussianNoise(Disturbance):
    """Noise on all pixels: x' = clip(x - sigma e, 0, 1), e ~ N(0, I); the map is read as a slope, I = x - x'.

    Args:
        sigma: Standard deviation of the noise, in pixel units; greater than 0.

    Raises:
        ValueError: `sigma` is not above 0.

    Source: Yeh et al. 2019, arXiv 1901.09392, section 2.3 (noisy baseline), sigma 0.2 as released by them.
    Deviates: pixels are kept in [0, 1].
    """

    sigma: float = 0.2

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)

    def __call__(self, inputs: Images, samples: int) -> Disturbed:
        channels, pixels = inputs.shape[1], math.prod(inputs.shape[2:])
        table = randomness.normal(everyone(inputs), 0, (samples, channels, pixels), inputs.dtype)[0]
        noise, places = (self.sigma * table)[:, None], dealt(inputs)[:, None]

        def disturbed(images: slice, some: slice) -> tuple[Looks, Weights]:
            before, draws = inputs[images], noise[some]
            shape = (len(draws), len(before), channels, pixels)
            draws = draws.expand(shape).gather(3, places[images].expand(shape))
            after = (before - draws.reshape(len(draws), *before.shape)).clamp_(0, 1)
            return after, before - after

        return disturbed


@dataclass(frozen=True)
class RandomSquares(Disturbance):
    """One square at b, of random side and place: the map is read as shares of the logit, I = 1 in the square.

    It suits maps in units of the logit, such as gradient times input.

    Args:
        largest: Longest side of a square in pixels, at least 1; no longer than the image is.
        baseline: What is seen in the square: the pixel value of a flat image, in [0, 1], 0 being black; or a
            `Baseline`, of which one image is drawn per image scored.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Yeh et al. 2019, arXiv 1901.09392, section 2.3 (square removal).
    """

    largest: int = 10
    baseline: float | Baseline = field(default_factory=FlatImage)

    def __post_init__(self) -> None:
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, largest=self.largest)

    def __call__(self, inputs: Images, samples: int) -> Disturbed:
        height, width = inputs.shape[2:]
        draws = randomness.uniform(randomness.keys(inputs, "squares"), 0, (3, samples), torch.float64)
        sides = 1 + (draws[:, 0] * min(self.largest, height, width)).long()
        tops = (draws[:, 1] * (height - sides + 1)).long()
        lefts = (draws[:, 2] * (width - sides + 1)).long()
        rows, columns = (torch.arange(size, device=inputs.device) for size in (height, width))
        drawn = torch.stack([sides, tops, lefts]).transpose(1, 2)[..., None]
        start = begun(self.baseline, inputs)

        def disturbed(images: slice, some: slice) -> tuple[Looks, Weights]:
            side, top, left = drawn[:, some, images]
            down, across = (rows >= top) & (rows < top + side), (columns >= left) & (columns < left + side)
            inside = (down[..., None] & across[..., None, :])[:, :, None].to(inputs.dtype)
            return torch.lerp(inputs[images], start[images], inside), inside  # exact at 0 and 1

        return disturbed


NOISE = GaussianNoise()


def fallen(
    model: nn.Module, inputs: Images, target: Labels, disturbed: Disturbed, samples: int, chunk: int
) -> Answers:
    """What each disturbance takes from the logit, f(x) - f(x'); NaN where that is no more than rounding.

    One forward pass per disturbance, and that of the image as it is, which others may have asked for.
    """
    before = logit(clean_logits(model, inputs, target, chunk), target)[None]
    after = asked(model, inputs, target, samples, lambda *ranges: disturbed(*ranges)[0], own, chunk)
    logits = torch.cat([before, after]).T.double()
    logits = told_apart(logits, logits.abs().amax(1), inputs.dtype)
    return logits[:, :1] - logits[:, 1:]


def claims(attributions: Images, disturbed: Disturbed, samples: int) -> Answers:
    """What a map says that each disturbance takes from the logit, <I, A>, in double precision."""
    size = attributions.abs().amax((1, 2, 3), keepdim=True)
    size = size.where(size != 0, 1)
    maps, columns = attributions / size, []  # of a size that loses no digits in single precision
    for images, ranges in blocks(attributions, samples):
        weights = (disturbed(images, some)[1] for some in ranges)
        sums = [(part * maps[images]).sum((2, 3, 4), dtype=torch.float64) for part in weights]
        columns.append(torch.cat(sums))
    return torch.cat(columns, dim=1).T * size[:, 0, 0].double()


def infidelity(claimed: Answers, lost: Answers) -> dict[str, Scores]:
    """Squared error of what a map claims about what was lost: normalised, as it is, and rescaled.

    ninf = 1 - E[u d]^2 / (E[u^2] E[d^2]);    E[(u - d)^2];    min over b of E[(b u - d)^2] = ninf E[d^2]

    ninf is computed as the part of d that is at right angles to u, so that none of its digits cancel. It and
    the rescaled error are NaN where all u are 0.

    Args:
        claimed: u, what the map says is lost.
        lost: d, what is lost.
    """
    one, other = (rows / rows.abs().amax(1, keepdim=True) for rows in (claimed, lost))
    one, other = (rows / rows.norm(dim=1, keepdim=True) for rows in (one, other))
    apart = other - (one * other).sum(1, keepdim=True) * one
    ninf = apart.square().sum(1).clamp(max=1)
    mean = lost.square().mean(1)
    return {"ninf": ninf, "infidelity": (claimed - lost).square().mean(1), "rescaled": ninf * mean}


class Infidelity(Metric):
    """How badly a map foretells what random disturbances take from the logit.

    u = <I, A>, d = f(x) - f(x'):    ninf = 1 - E[u d]^2 / (E[u^2] E[d^2])

    * ninf: in [0, 1], whatever the scale of map and logits: 0 for the gradient of a linear model, near 1 for
      a map that knows nothing. The number to compare over epochs and models;
    * infidelity: E[(u - d)^2], which grows with the square of both scales;
    * rescaled: the same after the best rescaling of the map, ninf E[d^2].

    What is lost does not depend on the map: it is computed once for all methods that are scored together.
    Disturbances are those of the image, the same in each epoch; each is made to the unharmed image.

    Args:
        disturbance: What is done to the image. `GaussianNoise` suits gradients, `RandomSquares` maps in units
            of the logit.
        samples: Disturbances K per image, at least 2; costs K + 1 forward passes for all methods together.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `samples` is below 2 or `chunk` below 1.

    Source: Yeh et al. 2019, arXiv 1901.09392, definition 2.1 (infidelity); its optimal rescaling as released
        by them.
    Deviates: ninf divides by what no map at all would get, E[d^2].
    """

    quantities: ClassVar = {
        "ninf": Quantity("lower", (0.0, 1.0)),
        "infidelity": Quantity("lower", (0.0, math.inf)),
        "rescaled": Quantity("lower", (0.0, math.inf)),
    }

    def __init__(self, disturbance: Disturbance = NOISE, samples: int = 50, chunk: int = 64) -> None:
        require_at_least(2, samples=samples)
        require_at_least(1, chunk=chunk)
        super().__init__()
        self.disturbance, self.samples, self.chunk = disturbance, samples, chunk

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        def disturb() -> tuple[Disturbed, Answers]:
            made = self.disturbance(inputs, self.samples)
            return made, fallen(model, inputs, target, made, self.samples, self.chunk)

        question = ("infidelity", repr(self.disturbance), self.samples)
        disturbed, lost = once(question, model, inputs, target, disturb)
        scores = infidelity(claims(attributions, disturbed, self.samples), lost)
        return {name: finite_only(column, attributions) for name, column in scores.items()}
