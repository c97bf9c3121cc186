"""Faithfulness: what happens to a class's probability when the pixels that a map ranks first go, or come."""

import abc
import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.metrics.base import Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.types import Images, Keys, Labels, Scores, require_at_least, require_positive

Ranks = Int[Tensor, "batch height width"]
Curves = Float[Tensor, "batch points"]


class Removal(abc.ABC):
    """What stands where an image is gone. Concrete operators are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, inputs: Images) -> Images:
        """Return what each image looks like once all its pixels are removed."""


@dataclass(frozen=True)
class Constant(Removal):
    """One value for all pixels.

    Args:
        value: Pixel value in [0, 1]; 0 is black.

    Raises:
        ValueError: `value` lies outside [0, 1].

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (deletion).
    Deviates: 0 is a black pixel here; in the released code it is 0 after normalisation, the mean colour.
    """

    value: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.value <= 1:
            raise ValueError(f"`value` must lie in [0, 1], got {self.value!r}: pixels are not normalised.")

    def __call__(self, inputs: Images) -> Images:
        return torch.full_like(inputs, self.value)


@dataclass(frozen=True)
class ImageMean(Removal):
    """The mean of the image, channel by channel.

    Source: Hooker et al. 2019, arXiv 1806.10758 (a value per channel that carries no shape).
    Deviates: the mean is the image's own.
    """

    def __call__(self, inputs: Images) -> Images:
        return inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs).clone()


@dataclass(frozen=True)
class Blur(Removal):
    """The image under a Gaussian, cut off at the edge of its kernel and scaled with the image's size.

    Scaled down to small images the kernel of the paper hides little: on 28 x 28 digits the class keeps nearly
    all of its probability, and insertion starts where it should end. `Blur(21, 5.0, 28)` hides it.

    Args:
        kernel: Width of the kernel in pixels, odd, at least 3.
        sigma: Standard deviation in pixels, above 0.
        side: The side of an image, in pixels, at which `kernel` and `sigma` hold. For an image of another
            (shorter) side both are scaled; the kernel is never narrower than 3.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (insertion); kernel and sigma of their code.
    Deviates: borders are mirrored and the kernel sums to 1; theirs are padded by zeros.
    """

    kernel: int = 11
    sigma: float = 5.0
    side: int = 224

    def __post_init__(self) -> None:
        require_at_least(3, kernel=self.kernel)
        require_at_least(1, side=self.side)
        require_positive(sigma=self.sigma)
        if self.kernel % 2 == 0:
            raise ValueError(f"`kernel` must be odd, got {self.kernel!r}.")

    def __call__(self, inputs: Images) -> Images:
        channels, height, width = inputs.shape[1:]
        scale = min(height, width) / self.side
        radius = max(1, round((self.kernel - 1) / 2 * scale))
        offset = torch.arange(-radius, radius + 1, device=inputs.device, dtype=inputs.dtype)
        weights = torch.softmax(-((offset / (self.sigma * scale)) ** 2) / 2, dim=0)
        column = weights.reshape(1, 1, -1, 1).expand(channels, -1, -1, -1)
        down, across = (_mirror(size, radius, inputs.device) for size in (height, width))
        blurred = F.conv2d(inputs[:, :, down], column, groups=channels)
        return F.conv2d(blurred[..., across], column.transpose(2, 3), groups=channels)


BLACK = Constant(0.0)
BLURRED = Blur()
SIGNED = SignedSum()


def pixel_ranks(saliency: Saliency, keys: Keys) -> Ranks:
    """Rank of each pixel by falling saliency, 0 first; equal pixels in a random order of the sample's own.

    Args:
        saliency: One number per pixel.
        keys: One random key per image.
    """
    values = saliency.flatten(1)
    shuffled = randomness.uniform(keys, 0, values.shape[1:], torch.float64).argsort(dim=1)
    sorted_ = values.gather(1, shuffled).argsort(dim=1, descending=True, stable=True)
    order = shuffled.gather(1, sorted_)
    positions = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, order, positions).reshape(saliency.shape)


def removal_curves(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    removal: Removal,
    start: Removal,
    steps: int,
    chunk: int,
) -> tuple[Float[Tensor, " points"], Curves, Curves]:
    """Probability of the target while the pixels ranked first are removed, and while they are revealed.

    x_k = b where rank < k, else x (deletion); x where rank < k, else b' (insertion). Costs 2 steps + 1
    forward passes: the unharmed image, where one curve starts and the other ends, is looked at once.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class whose probability is followed.
        ranks: 0 for the pixel that goes, or comes, first.
        removal: Makes b, what deletion puts in place of a pixel.
        start: Makes b', what insertion starts from.
        steps: Steps from all to nothing; at most one per pixel is made.
        chunk: Images that pass the model at once.

    Returns:
        Share of pixels at each point, the deletion curve and the insertion curve.
    """
    pixels = math.prod(inputs.shape[2:])
    steps = min(steps, pixels)
    counts = torch.tensor([round(pixels * step / steps) for step in range(steps + 1)], device=inputs.device)
    # One row per look: deletion 0..steps, then insertion 0..steps-1, whose last point is deletion's first.
    first = torch.stack([removal(inputs), inputs])  # what stands where rank < k, by game
    other = torch.stack([inputs, start(inputs)])
    level = torch.cat([counts, counts[:-1]])
    game = torch.arange(len(level), device=inputs.device) // (steps + 1)
    probabilities = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(inputs) * len(level), device=inputs.device), chunk):
            image, look = rows // len(level), rows % len(level)
            reached = (ranks[image] < level[look, None, None])[:, None]
            mixed = torch.where(reached, first[game[look], image], other[game[look], image])
            seen = model(mixed).softmax(dim=1)
            probabilities.append(seen.gather(1, target[image, None])[:, 0])
    curves = torch.cat(probabilities).reshape(len(inputs), len(level))
    insertion = torch.cat([curves[:, steps + 1 :], curves[:, :1]], dim=1)
    return counts.to(inputs.dtype) / pixels, curves[:, : steps + 1], insertion


def area(shares: Float[Tensor, " points"], curves: Curves) -> Scores:
    """Area under each curve by the trapezoid rule, over the share of pixels in [0, 1]."""
    return torch.trapezoid(curves, shares, dim=1)


class Perturbation(Metric):
    """Deletion and insertion: the target's mean probability while a map's first pixels go, or come.

    deletion = int_0^1 p_c(x with the first share s removed) ds; insertion = int_0^1 p_c(blurred x with the
    first share s revealed) ds; difference = insertion - deletion. All three come from one ranking and one
    look at the unharmed image. A pixel goes with all its channels. Ties are broken at random, per sample.
    A map that is not finite has no score; one that is zero is ranked at random.

    The values follow a model's confidence: read them beside those of a random map (`RandomMap`).

    Args:
        steps: Steps from the whole image to nothing, at least 1; costs 2 `steps` + 1 forward passes.
        removal: What deletion puts in place of a pixel.
        start: What insertion starts from.
        reduction: Reads a map as one number per pixel. The signed sum suits maps whose sign says for or
            against the class; `AbsoluteSum` those where it does not.
        chunk: Images that pass the model at once, at least 1.

    Raises:
        ValueError: `steps` or `chunk` is below 1.

    Source: Petsiuk et al. 2018, arXiv 1806.07421; the difference: Li et al. 2023, arXiv 2301.06989.
    Deviates: trapezoids over the share of pixels; ties in random instead of raster order.
    """

    quantities: ClassVar = {
        "deletion": Quantity("lower", (0.0, 1.0)),
        "insertion": Quantity("higher", (0.0, 1.0)),
        "difference": Quantity("higher", (-1.0, 1.0)),
    }

    def __init__(
        self,
        steps: int = 14,
        removal: Removal = BLACK,
        start: Removal = BLURRED,
        reduction: Reduction = SIGNED,
        chunk: int = 64,
    ) -> None:
        require_at_least(1, steps=steps, chunk=chunk)
        super().__init__()
        self.steps, self.removal, self.start = steps, removal, start
        self.reduction, self.chunk = reduction, chunk

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attributions: Images
    ) -> dict[str, Scores]:
        ranks = pixel_ranks(self.reduction(attributions), randomness.keys(inputs, "ties"))
        shares, down, up = removal_curves(
            model, inputs, target, ranks, self.removal, self.start, self.steps, self.chunk
        )
        finite = attributions.flatten(1).isfinite().all(dim=1)
        deletion = area(shares, down).where(finite, math.nan)
        insertion = area(shares, up).where(finite, math.nan)
        return {"deletion": deletion, "insertion": insertion, "difference": insertion - deletion}


def _mirror(size: int, radius: int, device: torch.device) -> Int[Tensor, " pixel"]:
    """Positions of a row that is mirrored at both ends, edges repeated, as often as the radius asks for."""
    lap = torch.arange(-radius, size + radius, device=device) % (2 * size)
    return torch.minimum(lap, 2 * size - 1 - lap)
