"""Sensitivity: how far a map moves with small random changes of the image.

A map that does not look at the image does not move at all, as the control `RandomMap` shows beside every
method. How far one can be moved on purpose, `stability` tells.
"""

import math
from collections.abc import Iterable
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.similarity import most, pearson, ranks, scaled, ssim, top, unit
from lit_xai.metrics.base import AbsoluteSum, Metric, Quantity, Reduction
from lit_xai.metrics.neighbourhood import Bank, Neighbourhood
from lit_xai.types import Images, Labels, Logits, Scores, require

Each = Float[Tensor, "sample batch"]
FLOOR = 1e-6
ABSOLUTE = AbsoluteSum()


def sensitivity(attributions: Images, around: Bank) -> dict[str, Scores]:
    """Largest and mean relative change of the map, ||A_k - A|| / ||A||, over the neighbours.

    Args:
        attributions: A, maps of the images.
        around: A_k, maps of their neighbours.
    """
    change = _changes(attributions, around) / _lengths(attributions)
    change = change.where(change.isfinite(), math.nan)
    return {"max": change.amax(dim=0), "mean": change.mean(dim=0)}


def local_lipschitz(attributions: Images, around: Bank, inputs: Images, points: Bank) -> Scores:
    """How fast the map turns: max_k || A_k / ||A_k|| - A / ||A|| || / ||x_k - x||.

    Args:
        attributions: A, maps of the images.
        around: A_k, maps of their neighbours.
        inputs: x.
        points: x_k.
    """
    rate = _changes(unit(attributions), map(unit, around)) / _changes(inputs, points)
    return rate.where(rate.isfinite(), math.nan).amax(dim=0)


def relative_stability(
    attributions: Images,
    around: Bank,
    inputs: Images,
    points: Bank,
    logits: Logits,
    logits_around: Float[Tensor, "sample batch class"],
    kept: Bool[Tensor, "sample batch"],
) -> dict[str, Scores]:
    """log10 of the largest change of the map by that of image or logits, over neighbours of the same class.

    * ris = || (A_k - A) / A || / || (x_k - x) / x ||, quotients value by value;
    * ros = || (A_k - A) / A || / ||f(x_k) - f(x)||;
    * ris_norm = (||A_k - A|| / ||A||) / (||x_k - x|| / ||x||);
    * ros_norm = (||A_k - A|| / ||A||) / (||f(x_k) - f(x)|| / ||f(x)||).

    No divisor of the first two is less than 1e-6; one of A, than 1e-6 of the largest value of A. NaN where no
    neighbour is of the same class, where a map of one is not finite, and where a divisor is zero; minus
    infinity for a map that does not change.

    Args:
        attributions: A, maps of the images.
        around: A_k, maps of their neighbours.
        inputs: x.
        points: x_k.
        logits: f(x).
        logits_around: f(x_k).
        kept: Whether a neighbour is of the same class.
    """
    size = attributions.double().abs()
    values = torch.maximum(size, FLOOR * size.amax(dim=(1, 2, 3), keepdim=True))
    each, pixels = (
        _changes(attributions, around, values),
        _changes(inputs, points, inputs.abs().clamp_min(FLOOR)),
    )
    whole, moved = _changes(attributions, around) / _lengths(attributions), _changes(inputs, points)
    shifted = _changes(logits, logits_around)
    ratios = {
        "ris": each / pixels.clamp_min(FLOOR),
        "ros": each / shifted.clamp_min(FLOOR),
        "ris_norm": whole / (moved / _lengths(inputs)),
        "ros_norm": whole / (shifted / _lengths(logits)),
    }
    return {name: _worst(ratio, kept).log10() for name, ratio in ratios.items()}


def alike(
    attributions: Images,
    others: Bank,
    reduction: Reduction = ABSOLUTE,
    share: float = 0.1,
    window: int = 7,
) -> dict[str, Scores]:
    """Overlap of the most salient pixels, rank correlation and SSIM of a map and others, mean over these.

    SSIM is that of maps as shares of their totals. NaN where a map is zero or not finite; for the first two
    also where all pixels are equal.

    Args:
        attributions: One map per image.
        others: Those that it is compared with.
        reduction: Reads a map as one number per pixel.
        share: How many of the pixels count as most salient, in (0, 1].
        window: Side of the windows of SSIM in pixels, odd and at least 3.
    """
    saliency = reduction(attributions)
    mass, order, chosen = scaled(saliency), ranks(saliency), top(saliency, share)
    seen = []
    for other in map(reduction, others):
        rank = pearson(order, ranks(other))
        common = (chosen & top(other, share)).sum((1, 2)) / chosen.sum((1, 2)).double()
        seen.append((common.where(~rank.isnan(), math.nan), rank, ssim(mass, scaled(other), window)))
    means = (torch.stack(column).mean(0) for column in zip(*seen, strict=True))
    return dict(zip(("overlap", "spearman", "ssim"), means, strict=True))


def check_reading(share: float, window: int) -> None:
    """Refuse settings with which `alike` has no meaning."""
    most(share, 1)
    require(window >= 3 and window % 2 == 1, f"`window` must be odd and at least 3, got {window}.")


class Sensitivity(Metric):
    """How much a map changes under small random changes of the image, by its own length.

    max and mean over neighbours x_k of ||A(x_k) - A(x)|| / ||A(x)||

    A few random neighbours bound the true maximum from below, and far from it in many dimensions: read it
    beside `AttackedStability`. A zero map has no score.

    Args:
        neighbourhood: The neighbours; metrics of equal ones share their maps.

    Source: Yeh, Hsieh, Suggala, Inouye and Ravikumar 2019, arXiv 1901.09392 (max-sensitivity).
    Deviates: relative to ||A(x)||, as in the authors' code; the mean.
    """

    quantities: ClassVar = {
        "max": Quantity("lower", (0.0, math.inf)),
        "mean": Quantity("lower", (0.0, math.inf)),
    }

    def __init__(self, neighbourhood: Neighbourhood) -> None:
        super().__init__()
        self.neighbourhood = neighbourhood

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        bank = self.neighbourhood.around(model, inputs, target)
        return sensitivity(attributions, bank.maps(attribution))


class LocalLipschitz(Metric):
    """How fast a map turns as the image moves: a lower bound of its local Lipschitz constant.

    max over neighbours x_k of || A(x_k) / ||A(x_k)|| - A(x) / ||A(x)|| || / ||x_k - x||

    Args:
        neighbourhood: The neighbours; metrics of equal ones share their maps.

    Source: Alvarez-Melis and Jaakkola 2018, arXiv 1806.08049 (local Lipschitz estimate).
    Deviates: maps have length 1, so that the scale of the logits does not count.
    """

    quantities: ClassVar = {"": Quantity("lower", (0.0, math.inf))}

    def __init__(self, neighbourhood: Neighbourhood) -> None:
        super().__init__()
        self.neighbourhood = neighbourhood

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> Scores:
        bank = self.neighbourhood.around(model, inputs, target)
        return local_lipschitz(attributions, bank.maps(attribution), inputs, bank.points)


class RelativeStability(Metric):
    """Relative change of the map by that of the image (ris) or of the logits (ros), log10, median.

    The largest one over the neighbours that have the class of the image, see `relative_stability`. 0: the map
    changes as much as the image does. ris and ros divide value by value, which values near zero decide;
    ris_norm and ros_norm divide lengths. `kept` is the share of neighbours of the same class. ros falls where
    the map is stable and where the logits are not: read it beside ris.

    Args:
        neighbourhood: The neighbours; metrics of equal ones share their maps.

    Source: Agarwal, Johnson, Pawelczyk, Krishna, Saxena, Zitnik and Lakkaraju 2022, arXiv 2203.06877
        (RIS and ROS).
    Deviates: logarithms; the two by lengths; a divisor is never less than a millionth, of the largest value
        for those of the map.
    """

    quantities: ClassVar = {
        "ris": Quantity("lower", median=True),
        "ros": Quantity("lower", median=True),
        "ris_norm": Quantity("lower", median=True),
        "ros_norm": Quantity("lower", median=True),
        "kept": Quantity(None, (0.0, 1.0)),
    }

    def __init__(self, neighbourhood: Neighbourhood) -> None:
        super().__init__()
        self.neighbourhood = neighbourhood

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        bank = self.neighbourhood.around(model, inputs, target)
        maps = bank.maps(attribution)
        scores = relative_stability(
            attributions, maps, inputs, bank.points, bank.clean, bank.logits, bank.kept
        )
        return {**scores, "kept": bank.kept.double().mean(dim=0)}


class NeighbourSimilarity(Metric):
    """How alike the maps of an image and of its neighbours are, on average over the neighbours.

    overlap of the most salient pixels, rank correlation and SSIM, see `alike`; 1 for a map that stays. Two
    maps that have nothing to do with each other overlap by `share`.

    Args:
        neighbourhood: The neighbours; metrics of equal ones share their maps.
        share: How many of the pixels count as most salient, in (0, 1].
        window: Side of the windows of SSIM in pixels, odd and at least 3; less where images are smaller.
        reduction: Reads a map as one number per pixel.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547, section 2 (top-k intersection, rank correlation);
        Adebayo et al. 2018, arXiv 1810.03292, section 4 (SSIM of maps).
    """

    quantities: ClassVar = {
        "overlap": Quantity("higher", (0.0, 1.0)),
        "spearman": Quantity("higher", (-1.0, 1.0)),
        "ssim": Quantity("higher", (-1.0, 1.0)),
    }

    def __init__(
        self,
        neighbourhood: Neighbourhood,
        share: float = 0.1,
        window: int = 7,
        reduction: Reduction = ABSOLUTE,
    ) -> None:
        check_reading(share, window)
        super().__init__()
        self.neighbourhood, self.share, self.window, self.reduction = neighbourhood, share, window, reduction

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: Attribution,
    ) -> dict[str, Scores]:
        around = self.neighbourhood.around(model, inputs, target).maps(attribution)
        return alike(attributions, around, self.reduction, self.share, self.window)


def _changes(before: Float[Tensor, "batch ..."], around: Iterable[Tensor], unit: Tensor | float = 1) -> Each:
    """l2 distance of each of the others from the first, in these units, in double precision."""
    start = before.double()
    return torch.stack([_lengths((other.double() - start) / unit) for other in around])


def _lengths(values: Float[Tensor, "batch ..."]) -> Scores:
    length: Tensor = torch.linalg.vector_norm(values.flatten(1).double(), dim=1)
    return length


def _worst(ratio: Each, kept: Bool[Tensor, "sample batch"]) -> Scores:
    """Largest ratio over the neighbours that are kept; NaN where there is none, or one is no number."""
    known = ratio.where(ratio.isfinite(), math.nan).where(kept, -math.inf)
    return known.amax(dim=0).where(kept.any(dim=0), math.nan)
