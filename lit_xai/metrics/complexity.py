"""Complexity: over how many pixels a map spreads its evidence, and how rough it is."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.metrics.base import AbsoluteSum, Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.types import Images, Scores, require, require_positive

ABSOLUTE = AbsoluteSum()
SIGNED = SignedSum()

Sizes = Float[Tensor, "batch pixel"]


def gini(saliency: Saliency) -> Scores:
    """Gini index of the pixels' absolute values, in double precision.

    G = sum_i (2 i - n - 1) a_i / (n sum_i a_i), with a_1 <= ... <= a_n the n pixels, sorted. 0 where all are
    equal, 1 - 1/n where one pixel has everything, NaN for a map that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
    """
    values = _sizes(saliency).sort(dim=1).values
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=values.device, dtype=values.dtype) - count - 1
    index: Tensor = values @ weights / (count * values.sum(dim=1))
    return index


def entropy(saliency: Saliency) -> Scores:
    """Entropy of the pixels' shares in the map, as a share of the largest it can be, in double precision.

    H = -sum_i p_i log p_i / log n,    p_i = |a_i| / sum_j |a_j|

    0 where one pixel has everything, 1 where all are equal, NaN for a map that is zero, not finite or a
    single pixel.

    Args:
        saliency: One number per pixel; its scale does not matter.
    """
    sizes = _sizes(saliency)
    shares = sizes / sizes.sum(dim=1, keepdim=True)
    total: Tensor = torch.special.entr(shares).sum(dim=1)
    return total / math.log(sizes.shape[1])


def participation_ratio(saliency: Saliency) -> Scores:
    """Share of the pixels that would carry the map if all of them carried the same, in double precision.

    (sum_i |a_i|)^2 / (n sum_i a_i^2): k/n for a map that is equal on k pixels and zero elsewhere; NaN for one
    that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
    """
    sizes = _sizes(saliency)
    return sizes.mean(dim=1).square() / sizes.square().mean(dim=1)


def core(saliency: Saliency, mass: float = 0.9) -> Scores:
    """Smallest share of the pixels that carries `mass` of the sum of absolute values, in double precision.

    NaN for a map that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        mass: Share of the sum, in (0, 1].
    """
    sizes = _sizes(saliency)
    carried = sizes.sort(dim=1, descending=True).values.cumsum(dim=1)
    # A sum that misses the mark by its last digits has reached it.
    short = (carried < mass * (1 - 1e-12) * carried[:, -1:]).sum(dim=1, dtype=carried.dtype)
    return ((short + 1) / sizes.shape[1]).where(carried[:, -1].isfinite(), math.nan)


def total_variation(saliency: Saliency) -> Scores:
    """Differences of neighbouring pixels, as a share of the sum of absolute values, in double precision.

    (sum |a_{y+1,x} - a_{y,x}| + sum |a_{y,x+1} - a_{y,x}|) / sum |a_{y,x}|

    0 for a constant map, 4 for one pixel away from the border; NaN for a map that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
    """
    values = _scaled(saliency)
    down, across = values.diff(dim=1).abs().sum(dim=(1, 2)), values.diff(dim=2).abs().sum(dim=(1, 2))
    return (down + across) / values.abs().sum(dim=(1, 2))


def high_frequency(saliency: Saliency, cutoff: float = 0.5) -> Scores:
    """Share of the map's energy at high spatial frequencies, in double precision.

    sum_{|f| > cutoff / 2} |F(f)|^2 / sum_f |F(f)|^2, F the discrete Fourier transform of the map and |f| the
    length of a frequency in cycles per pixel, of which 1/2 is Nyquist's. 0 for a constant map, about
    1 - pi cutoff^2 / 4 for white noise; NaN for a map that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        cutoff: Share of Nyquist's frequency, above 0.
    """
    values = _scaled(saliency)
    energy = torch.fft.fft2(values).abs().square()
    rows, columns = (torch.fft.fftfreq(side, device=values.device).to(values) for side in values.shape[1:])
    high = torch.hypot(rows[:, None], columns) > cutoff / 2 * (1 + 1e-6)
    share: Tensor = (energy * high).sum(dim=(1, 2)) / energy.sum(dim=(1, 2))
    return share


class Gini(Metric):
    """Sparseness of a map: the Gini index of its pixels' absolute values.

    G = sum_i (2 i - n - 1) a_i / (n sum_i a_i) over the n pixels, a sorted. It depends on n and on the
    resolution of the map: compare it between maps of one shape only.

    Args:
        reduction: Reads a map as one number per pixel, before the absolute value.

    Source: Chalasani et al. 2020, arXiv 1810.06583, after Hurley and Rickard 2009,
        arXiv 0811.4706.
    """

    quantities: ClassVar = {"": Quantity("higher", (0.0, 1.0))}

    def __init__(self, reduction: Reduction = ABSOLUTE) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images) -> Scores:
        return gini(self.reduction(attributions))


class Entropy(Metric):
    """Complexity of a map: the entropy of its pixels' shares, 1 where all are equal.

    H = -sum_i p_i log p_i / log n, p_i = |a_i| / sum_j |a_j| over the n pixels.

    Args:
        reduction: Reads a map as one number per pixel, before the absolute value.

    Source: Bhatt, Weller and Moura 2020, arXiv 2005.00631, section 3 (complexity).
    Deviates: divided by log n, so that it lies in [0, 1].
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 1.0))}

    def __init__(self, reduction: Reduction = ABSOLUTE) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images) -> Scores:
        return entropy(self.reduction(attributions))


class ParticipationRatio(Metric):
    """How large a share of the pixels a map uses.

    * ratio = (sum |a|)^2 / (n sum a^2): k/n for a map that is equal on k of n pixels and zero elsewhere;
    * core: the smallest share of the pixels that carries `mass` of sum |a|.

    Args:
        reduction: Reads a map as one number per pixel, before the absolute value.
        mass: What the core carries, in (0, 1].

    Raises:
        ValueError: `mass` lies outside (0, 1].

    Source: Bell and Dean 1970, "Atomic vibrations in vitreous silica" (participation ratio); Nguyen and
        Martinez 2020, arXiv 2007.07584 (effective complexity: how many features matter).
    Deviates: the pixels of the core are counted by what they carry, in each map by itself, not by a threshold
        on their values.
    """

    quantities: ClassVar = {"ratio": Quantity("lower", (0.0, 1.0)), "core": Quantity("lower", (0.0, 1.0))}

    def __init__(self, reduction: Reduction = ABSOLUTE, mass: float = 0.9) -> None:
        require(0 < mass <= 1, f"`mass` must lie in (0, 1], got {mass!r}.")
        super().__init__()
        self.reduction, self.mass = reduction, mass

    def score(self, attributions: Images) -> dict[str, Scores]:
        saliency = self.reduction(attributions)
        return {"ratio": participation_ratio(saliency), "core": core(saliency, self.mass)}


class TotalVariation(Metric):
    """Roughness of a map: differences of neighbouring pixels, as a share of its sum of absolute values.

    (sum |a_{y+1,x} - a_{y,x}| + sum |a_{y,x+1} - a_{y,x}|) / sum |a|. Signs matter: a checkerboard of +1 and
    -1 is rough, and flat under `AbsoluteSum`. It depends on the resolution of the map.

    Args:
        reduction: Reads a map as one number per pixel.

    Source: Rudin, Osher and Fatemi 1992, "Nonlinear total variation based noise removal algorithms", eq. 2.3.
    Deviates: the sum of both differences in place of the length of the gradient; relative to the map.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 4.0))}

    def __init__(self, reduction: Reduction = SIGNED) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images) -> Scores:
        return total_variation(self.reduction(attributions))


class HighFrequency(Metric):
    """Noisiness of a map: the share of its energy above a part of the highest frequency it can show.

    sum_{|f| > cutoff / 2} |F(f)|^2 / sum_f |F(f)|^2, |f| in cycles per pixel. White noise has about
    1 - pi cutoff^2 / 4 there: 0.80 at a cutoff of one half.

    Args:
        cutoff: Where high frequencies begin, as a share of Nyquist's; above 0.
        reduction: Reads a map as one number per pixel.

    Raises:
        ValueError: `cutoff` is not above 0, or nothing lies above it.

    Source: by definition.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, 1.0))}

    def __init__(self, cutoff: float = 0.5, reduction: Reduction = SIGNED) -> None:
        require_positive(cutoff=cutoff)
        require(cutoff < 1, f"`cutoff` must be less than 1, Nyquist's frequency, got {cutoff!r}.")
        super().__init__()
        self.cutoff, self.reduction = cutoff, reduction

    def score(self, attributions: Images) -> Scores:
        return high_frequency(self.reduction(attributions), self.cutoff)


def _scaled(saliency: Saliency) -> Saliency:
    """Maps over their largest absolute value, in double precision; NaN in those that say nothing."""
    values = saliency.double()
    return values / values.abs().amax(dim=(1, 2), keepdim=True)  # 0/0 and infinity/infinity: NaN


def _sizes(saliency: Saliency) -> Sizes:
    """Absolute values of the pixels over their largest; NaN in maps that say nothing."""
    return _scaled(saliency).abs().flatten(1)
