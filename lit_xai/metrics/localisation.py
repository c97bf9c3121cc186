"""Localisation: how much of a map lies on the object, beside what a map that knows nothing has there."""

import math
from typing import ClassVar

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional as F

from lit_xai.attributions.similarity import most
from lit_xai.metrics.base import Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.types import Images, Scores, require, require_at_least

SIGNED = SignedSum()

Objects = Bool[Tensor, "batch rows columns"]  # a mask, before its size is known to be that of the map
Pixels = Float[Tensor, "batch pixel"]


def pointing_game(saliency: Saliency, mask: Objects, tolerance: float = 0.0) -> Scores:
    """Whether a map's largest value lies on the object, or no further from it than the tolerance.

    Where several pixels are largest, the share of them that does: what a fair draw hits on average. NaN for
    an image without object, or a map that is not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        mask: The object's pixels.
        tolerance: l2 distance in pixels, at least 0.
    """
    values, inside = _flat(saliency, grown(mask, tolerance))
    largest = values == values.amax(dim=1, keepdim=True)
    return (_inner(largest, inside) / largest.sum(1)).where(_finite(values), math.nan)


def energy(saliency: Saliency, mask: Objects) -> Scores:
    """Share of a map's positive values that lies on the object, in double precision.

    sum_{p in s} max(A_p, 0) / sum_p max(A_p, 0). NaN for an image without object, or a map without positive
    values or that is not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        mask: The object's pixels.
    """
    values, inside = _flat(saliency, mask)
    positive = values.clamp_min(0)
    return (_inner(positive, inside) / positive.sum(1)).where(_finite(values), math.nan)


def top_intersection(saliency: Saliency, mask: Objects, share: float | None = None) -> Scores:
    """Share of a map's k largest pixels that lies on the object.

    |top_k and s| / k; of equal values at the k-th place, what a fair draw has on average. NaN for an image
    without object, or a map that is not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
        mask: The object's pixels.
        share: k over the number of pixels, in (0, 1]; where none is given, k is the size of the object.
    """
    values, inside = _flat(saliency, mask)
    size = inside.sum(1).clamp_min(1)
    count = size if share is None else torch.full_like(size, most(share, values.shape[1]))
    last = values.sort(dim=1, descending=True).values.gather(1, count[:, None] - 1)
    above, equal = (values > last).double(), (values == last).double()
    drawn = (count - above.sum(1)) / equal.sum(1)
    common = _inner(above + drawn[:, None] * equal, inside)
    return (common / count).where(_finite(values), math.nan)


def boundary_localisation(saliency: Saliency, mask: Objects) -> dict[str, Scores]:
    """Four scores of a map z and an object B, in double precision; P and N are where z > 0 and z < 0.

    * loc = |P and B| / (|B| + |P without B|);
    * energy = sum_{P and B} z / sum_P z;
    * positive = sum_{P and B} z / sum_B |z|;
    * concentration = sum_{i in B} w_i / max(r_i, 1), w_i = |z_i| / sum_j |z_j|, r_i the distance in pixels to
      the centre of mass of w.

    NaN for an image without object, a map that is not finite, and where a denominator is zero.

    Args:
        saliency: One number per pixel; its scale does not matter.
        mask: The object's pixels.
    """
    values, inside = _flat(saliency, mask)
    finite = _finite(values)
    sizes, positive = values.abs(), values.clamp_min(0)
    total = sizes.sum(1, keepdim=True)
    weights = sizes / total.where(total > 0, math.nan)
    rows, columns = _places(saliency)
    centre = (weights * rows).sum(1, keepdim=True), (weights * columns).sum(1, keepdim=True)
    radius = torch.hypot(rows - centre[0], columns - centre[1])
    scores = {
        "loc": _inner(values > 0, inside) / ((values > 0) | inside).sum(1),
        "energy": _inner(positive, inside) / positive.sum(1),
        "positive": _inner(positive, inside) / _inner(sizes, inside),
        "concentration": _inner(weights / radius.clamp_min(1), inside),
    }
    return {name: column.where(finite, math.nan) for name, column in scores.items()}


def area(mask: Objects) -> Scores:
    """Share of the image that the object covers, in double precision; NaN where there is no object."""
    inside = mask.flatten(1)
    return inside.double().mean(1).where(inside.any(1), math.nan)


def grown(mask: Objects, tolerance: float) -> Objects:
    """The pixels that are no further from the object than a distance in pixels."""
    reach = int(tolerance)
    if reach == 0:
        return mask
    offset = torch.arange(-reach, reach + 1, device=mask.device)
    disc = offset[:, None].square() + offset.square() <= tolerance**2
    touched = F.conv2d(mask[:, None].float(), disc[None, None].float(), padding=reach)
    return touched[:, 0] > 0.5


class PointingGame(Metric):
    """Whether a map's largest value lies on the object.

    * hit: 1 where it does, or where it is no further from it than the tolerance; where several pixels are
      largest, the share of them that does. A constant map hits by chance;
    * chance: what a random map hits, the share of the image that counts as the object.

    The object is often in the middle of the image: read it beside the control `CentreMap`, too.

    Args:
        tolerance: l2 distance in pixels, at least 0.
        side: The side of an image, in pixels, at which `tolerance` holds; for an image of another (shorter)
            side it is scaled. 15 pixels at 224 are usual.
        reduction: Reads a map as one number per pixel.

    Raises:
        ValueError: `tolerance` is below 0 or `side` below 1; masks are not of the images' size.

    Source: Zhang et al. 2018, arXiv 1608.00507, section 4.1 (a tolerance of 15 pixels).
    Deviates: no tolerance unless one is asked for; ties by their expected value in place of raster order.
    """

    quantities: ClassVar = {"hit": Quantity("higher", (0.0, 1.0)), "chance": Quantity(None, (0.0, 1.0))}

    def __init__(self, tolerance: float = 0.0, side: int = 224, reduction: Reduction = SIGNED) -> None:
        require_at_least(0, tolerance=tolerance)
        require_at_least(1, side=side)
        super().__init__()
        self.tolerance, self.side, self.reduction = tolerance, side, reduction

    def score(self, attributions: Images, mask: Objects) -> dict[str, Scores]:
        reach = self.tolerance * min(attributions.shape[2:]) / self.side
        hit = pointing_game(self.reduction(attributions), mask, reach)
        return {"hit": hit, "chance": area(grown(mask, reach)).where(~hit.isnan(), math.nan)}


class EnergyGame(Metric):
    """How much of a map's positive values lies on the object.

    * share = sum_{p in s} max(A_p, 0) / sum_p max(A_p, 0);
    * weighted = share times P / |s|, P the number of pixels: how many times what it would be by chance;
    * chance = |s| / P.

    A map without positive values has no score.

    Args:
        reduction: Reads a map as one number per pixel; what is negative then counts as none.

    Raises:
        ValueError: Masks are not of the images' size.

    Source: Wang et al. 2020, arXiv 1910.01279, section 4.3 (share); as relevance mass accuracy: Arras, Osman
        and Samek 2022, arXiv 2003.07258; weighted: Kohlbrenner et al. 2020, arXiv 1910.09840.
    """

    quantities: ClassVar = {
        "share": Quantity("higher", (0.0, 1.0)),
        "weighted": Quantity("higher", (0.0, math.inf)),
        "chance": Quantity(None, (0.0, 1.0)),
    }

    def __init__(self, reduction: Reduction = SIGNED) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images, mask: Objects) -> dict[str, Scores]:
        share = energy(self.reduction(attributions), mask)
        chance = area(mask).where(~share.isnan(), math.nan)
        return {"share": share, "weighted": share / chance, "chance": chance}


class RelevanceRank(Metric):
    """How many of a map's |s| largest pixels lie on the object, which has |s| pixels.

    * share = |top_|s| and s| / |s|; of equal values at the last place, what a fair draw has on average;
    * chance = |s| / P, P the number of pixels.

    Args:
        reduction: Reads a map as one number per pixel.

    Raises:
        ValueError: Masks are not of the images' size.

    Source: Arras, Osman and Samek 2022, arXiv 2003.07258 (relevance rank accuracy).
    Deviates: ties by their expected value in place of the order of the sort.
    """

    quantities: ClassVar = {"share": Quantity("higher", (0.0, 1.0)), "chance": Quantity(None, (0.0, 1.0))}

    def __init__(self, reduction: Reduction = SIGNED) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images, mask: Objects) -> dict[str, Scores]:
        share = top_intersection(self.reduction(attributions), mask)
        return {"share": share, "chance": area(mask).where(~share.isnan(), math.nan)}


class TopKIntersection(Metric):
    """How many of a map's k largest pixels lie on the object.

    * share = |top_k and s| / k; of equal values at the k-th place, what a fair draw has on average. An object
      smaller than k pixels cannot have all of them;
    * chance = |s| / P, P the number of pixels.

    Args:
        share: k over the number of pixels, in (0, 1]; k is at least 1.
        reduction: Reads a map as one number per pixel.

    Raises:
        ValueError: `share` lies outside (0, 1]; masks are not of the images' size.

    Source: Theiner, Mueller-Budack and Ewerth 2022, arXiv 2104.14995 (top-k intersection).
    Deviates: k is a share of the image; ties by their expected value in place of the order of the sort.
    """

    quantities: ClassVar = {"share": Quantity("higher", (0.0, 1.0)), "chance": Quantity(None, (0.0, 1.0))}

    def __init__(self, share: float = 0.1, reduction: Reduction = SIGNED) -> None:
        most(share, 1)
        super().__init__()
        self.share, self.reduction = share, reduction

    def score(self, attributions: Images, mask: Objects) -> dict[str, Scores]:
        share = top_intersection(self.reduction(attributions), mask, self.share)
        return {"share": share, "chance": area(mask).where(~share.isnan(), math.nan)}


class BoundaryLocalisation(Metric):
    """The four scores that boundary attributions were introduced with.

    * loc: pixels that are positive and on the object, over those that are either;
    * energy: share of the map's positive values that lies on the object; chance is the area of the object;
    * positive: share of the map on the object that is positive;
    * concentration: share of the map on the object, less with the distance to the map's centre of mass. It
      depends on the size of the image.

    Whether the map is a gradient or a gradient times the image decides what is positive in it. Where a
    denominator is zero, the image has no score.

    Args:
        reduction: Reads a map as one number per pixel.

    Raises:
        ValueError: Masks are not of the images' size.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (positive, concentration); Chattopadhyay et al.
        2018, arXiv 1710.11063 (loc); Wang et al. 2020, arXiv 1910.01279 (energy).
    Deviates: channels are added up first; distances to the centre are at least one pixel, and the centre and
        the total are those of the whole map.
    """

    quantities: ClassVar = {
        name: Quantity("higher", (0.0, 1.0)) for name in ("loc", "energy", "positive", "concentration")
    }

    def __init__(self, reduction: Reduction = SIGNED) -> None:
        super().__init__()
        self.reduction = reduction

    def score(self, attributions: Images, mask: Objects) -> dict[str, Scores]:
        return boundary_localisation(self.reduction(attributions), mask)


def _flat(saliency: Saliency, mask: Objects) -> tuple[Pixels, Bool[Tensor, "batch pixel"]]:
    """Pixels of map and object in rows, those of the map in double precision."""
    (height, width), (rows, columns) = saliency.shape[1:], mask.shape[1:]
    require(
        (rows, columns) == (height, width),
        f"`mask` must have the size of the image, {height}x{width}, got {rows}x{columns}: resize and crop it "
        "as the image is.",
    )
    return saliency.double().flatten(1), mask.flatten(1)


def _inner(values: Tensor, inside: Bool[Tensor, "batch pixel"]) -> Scores:
    """How much of what is given lies on the object: NaN where there is no object."""
    return (values * inside).sum(1, dtype=torch.float64).where(inside.any(1), math.nan)


def _finite(values: Pixels) -> Bool[Tensor, " batch"]:
    return values.isfinite().all(1)


def _places(saliency: Saliency) -> tuple[Float[Tensor, " pixel"], Float[Tensor, " pixel"]]:
    """Row and column of each pixel."""
    height, width = saliency.shape[1:]
    place = torch.arange(height * width, device=saliency.device)
    return (place // width).double(), (place % width).double()
