"""Drift: how much a method's map of an image has moved since the last look at the model."""

import math
from typing import ClassVar

import torch

from lit_xai.attributions.similarity import cosine, overlap, spearman
from lit_xai.metrics.base import Metric, Quantity, Saliency
from lit_xai.types import Images, Scores, require


def drift(now: Saliency, before: Saliency, share: float) -> dict[str, Scores]:
    """How alike two maps of one image are: 1 where nothing has moved.

    spearman and overlap are those of the absolute values, cosine that of the values. NaN where a map is not
    finite, and where an image's pixels are all equal in one of them: they have no order. A cosine has a
    meaning unless one of them is zero.

    Args:
        now: One number per pixel.
        before: The same, earlier.
        share: Share of the pixels that `overlap` compares.
    """
    first, second = now.abs(), before.abs()
    ranks = spearman(first, second)
    return {
        "spearman": ranks,
        "overlap": overlap(first, second, share).where(~ranks.isnan(), math.nan),
        "cosine": cosine(now, before),
    }


class Drift(Metric):
    """How steady a map is from one look at the model to the next: 1 where nothing has moved.

    spearman, overlap of the top pixels, both of the absolute values, and cosine, between the sums over
    channels of the map and of that of the last look. No value of theirs is better: a map should move while
    the model learns, and stay when it has learned. NaN at the first look.

    Args:
        share: Share of the pixels that `overlap` compares, in (0, 1].

    Raises:
        ValueError: `share` lies outside its range.

    Source: by definition; the similarities of Ghorbani, Abid and Zou 2019, arXiv 1710.10547, section 2.
    """

    quantities: ClassVar = {
        "spearman": Quantity(None, (-1.0, 1.0)),
        "overlap": Quantity(None, (0.0, 1.0)),
        "cosine": Quantity(None, (-1.0, 1.0)),
    }

    def __init__(self, share: float = 0.1) -> None:
        require(0 < share <= 1, f"`share` must lie in (0, 1], got {share!r}.")
        super().__init__()
        self.share = share

    def score(self, attributions: Images, previous: Saliency | None) -> dict[str, Scores]:
        now = attributions.sum(1)
        before = torch.full_like(now, math.nan) if previous is None else previous.to(now)
        return drift(now, before, self.share)
