"""How alike two maps are: one number per image, in double precision.

Maps have one number per pixel here, but for a cosine. What has no meaning for a pair is NaN: maps that are
not finite, for a cosine those that are zero, and for a correlation those that are constant.
"""

import math

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lit_xai.types import Images, Scores, require

Places = Float[Tensor, "batch height width"]
Rows = Float[Tensor, "batch value"]
Maps = Float[Tensor, "batch ..."]


def shares(maps: Images) -> Places:
    """What share each pixel has in a map: the size of its values, over the total; 0 for a map that is zero.

    h_p = sum_c |M_cp| / sum_cq |M_cq|
    """
    sizes = maps.abs().sum(1)
    total = sizes.sum((1, 2), keepdim=True)
    return sizes / total.clamp_min(torch.finfo(maps.dtype).tiny)


def scaled(maps: Places) -> Places:
    """Maps over the sum of their absolute values, in double precision; NaN for one that is zero."""
    values = maps.double()
    values = values / values.abs().amax((1, 2), keepdim=True)
    return values / values.abs().sum((1, 2), keepdim=True)


def unit(maps: Maps) -> Rows:
    """Maps of length 1, in double precision, whatever their scale; NaN for one that is zero or not finite."""
    rows = maps.flatten(1).double()
    rows = rows / rows.abs().amax(1, keepdim=True)
    units: Rows = rows / torch.linalg.vector_norm(rows, dim=1, keepdim=True)
    return units


def cosine(first: Maps, second: Maps) -> Scores:
    """Cosine of the angle between the values of two maps."""
    return (unit(first) * unit(second)).sum(1).clamp(-1, 1)


def ssim(first: Places, second: Places, window: int = 7) -> Scores:
    """Mean structural similarity, over all windows that lie within the maps.

    (2 m n + a) (2 cov + b) / ((m^2 + n^2 + a) (var + var' + b)),    a = (0.01 R)^2, b = (0.03 R)^2

    with means m, n, variances and the covariance of the pixels in a window, and the joint range R of both
    maps. In [-1, 1]; 1 for equal maps.

    Args:
        first: One number per pixel, of a scale that the maps share.
        second: The same.
        window: Side of the windows in pixels, odd and at least 3; less where the maps are smaller.

    Source: Wang, Bovik, Sheikh and Simoncelli 2004, "Image quality assessment: from error visibility to
    structural similarity", eq. 13.
    Deviates: even weights in a window in place of Gaussian ones, which want larger images.
    """
    require(window >= 3 and window % 2 == 1, f"`window` must be odd and at least 3, got {window}.")
    side = min(window, *first.shape[1:])
    x, y = first.double()[:, None], second.double()[:, None]
    both = torch.cat([x, y], dim=1)
    low, high = (end((1, 2, 3), keepdim=True) for end in (both.amin, both.amax))
    spread = high - low
    scale = torch.where(spread > 0, spread, 1)
    a, b = 0.01**2, 0.03**2
    offset = low / scale
    x, y = (x - low) / scale, (y - low) / scale  # variances of small numbers lose no digits
    moments = torch.cat([x, y, x * x, y * y, x * y], dim=1)
    moments = moments.unfold(2, side, 1).mean(-1).unfold(3, side, 1).mean(-1)  # down, then across
    mean_x, mean_y, xx, yy, xy = torch.split(moments, 1, dim=1)
    var_x, var_y, covariance = xx - mean_x * mean_x, yy - mean_y * mean_y, xy - mean_x * mean_y
    mean_x, mean_y = mean_x + offset, mean_y + offset
    likeness = (2 * mean_x * mean_y + a) / (mean_x.square() + mean_y.square() + a)
    likeness = likeness * (2 * covariance + b) / (var_x + var_y + b)
    mean: Tensor = likeness.mean((1, 2, 3))
    return mean.where(_finite(first, second), math.nan)


def spearman(first: Places, second: Places) -> Scores:
    """Correlation of the ranks of the pixels, see `ranks`.

    Source: Spearman 1904, "The proof and measurement of association between two things".
    """
    return pearson(ranks(first), ranks(second))


def pearson(first: Places, second: Places) -> Scores:
    """Correlation of the values of the pixels.

    Source: Pearson 1895, "Note on regression and inheritance in the case of two parents".
    """
    x, y = _centred(first), _centred(second)
    correlation: Tensor = (x * y).sum(1) / (x.norm(dim=1) * y.norm(dim=1))
    return correlation.clamp(-1, 1)


def ranks(maps: Places) -> Places:
    """Ranks of the pixels from 1, the mean of them where values are equal; NaN for a map that is not finite.

    `spearman(a, b)` is `pearson(ranks(a), ranks(b))`: a map that is compared with many is ranked once.
    """
    rows = maps.flatten(1)
    ordered, order = rows.sort(dim=1)
    place = torch.arange(rows.shape[1], device=rows.device)
    differs = ordered[:, 1:] != ordered[:, :-1]
    first = torch.where(F.pad(differs, (1, 0), value=True), place, 0).cummax(1).values
    last = torch.where(F.pad(differs, (0, 1), value=True), place, len(place)).flip(1).cummin(1).values.flip(1)
    mean = (first + last + 2).double() / 2
    ranked = torch.empty_like(mean).scatter(1, order, mean)
    return ranked.where(rows.isfinite().all(1, keepdim=True), math.nan).view_as(maps)


def overlap(first: Places, second: Places, share: float = 0.1) -> Scores:
    """Share of the pixels with the largest values of one map that are among those of the other.

    |top_k(A) and top_k(B)| / k; k / n for maps that have nothing to do with each other, on average. Of equal
    values the first counts as larger.

    Args:
        first: One number per pixel.
        second: The same.
        share: k / n, in (0, 1]; k is at least 1.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547, section 2 (top-k intersection).
    """
    common = top(first, share) & top(second, share)
    count = most(share, first.shape[1] * first.shape[2])
    return (common.sum((1, 2)).double() / count).where(_finite(first, second), math.nan)


def top(values: Places, share: float) -> Tensor:
    """Which pixels are the k with the largest values."""
    rows = values.flatten(1)
    count = most(share, rows.shape[1])
    least = rows.topk(count, dim=1).values[:, -1:]
    above, equal = rows > least, rows == least
    room = count - above.sum(1, keepdim=True)
    return (above | (equal & (equal.cumsum(1) <= room))).view_as(values)


def most(share: float, pixels: int) -> int:
    """The number k of pixels that a share is."""
    require(0 < share <= 1, f"`share` must lie in (0, 1], got {share!r}.")
    return max(1, round(share * pixels))


def _centred(maps: Places) -> Rows:
    """Maps less their mean, over their range; NaN for one without any, as a mean may miss it by a digit."""
    rows = maps.flatten(1).double()
    span = rows.amax(1, keepdim=True) - rows.amin(1, keepdim=True)
    return (rows - rows.mean(1, keepdim=True)) / span.where(span > 0, math.nan)


def _finite(first: Places, second: Places) -> Tensor:
    return (first.isfinite() & second.isfinite()).flatten(1).all(1)
