"""Complexity: over how many pixels a map spreads its evidence."""

import math
from typing import ClassVar

import torch

from lit_xai.metrics.base import AbsoluteSum, Metric, Quantity, Reduction, Saliency
from lit_xai.types import Images, Scores

ABSOLUTE = AbsoluteSum()


def gini(saliency: Saliency) -> Scores:
    """Gini index of the pixels' absolute values, in double precision.

    G = sum_i (2 i - n - 1) a_i / (n sum_i a_i), with a_1 <= ... <= a_n the n pixels, sorted. 0 where all are
    equal, 1 - 1/n where one pixel has everything, NaN for a map that is zero or not finite.

    Args:
        saliency: One number per pixel; its scale does not matter.
    """
    values = saliency.flatten(1).abs().double()
    values = values / values.amax(dim=1, keepdim=True)  # 0/0 and infinity/infinity: NaN
    values = values.sort(dim=1).values
    count = values.shape[1]
    weights = 2 * torch.arange(1, count + 1, device=values.device, dtype=values.dtype) - count - 1
    index = values @ weights / (count * values.sum(dim=1))
    return index.where(values.isfinite().all(dim=1), math.nan)


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
