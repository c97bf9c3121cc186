"""Accuracy over epsilon from the distances to the boundary: one run instead of one per epsilon."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from lit_xai.evaluation.intervals import wilson
from lit_xai.types import require


@dataclass(frozen=True)
class Curve:
    """Share of images that no point within epsilon is known to fool.

    Args:
        epsilons: Radii in pixel units, ascending.
        accuracy: Share of images whose distance is greater than the radius.
        low: Lower end of the 95 % interval.
        high: Upper end of the 95 % interval.
        median: Median distance; infinite where most images are missing.
        missing: Images for which no point was found; they count as robust at every radius.
        images: All images.
    """

    epsilons: list[float]
    accuracy: list[float]
    low: list[float]
    high: list[float]
    median: float
    missing: int
    images: int


def curve(distances: Sequence[float], epsilons: Sequence[float] | None = None) -> Curve:
    """The curve of minimum-norm distances: accuracy(epsilon) = share of images with distance > epsilon.

    Args:
        distances: One per image, at least one: 0 for an image that is misclassified as it is, infinite where
            no point was found.
        epsilons: Radii; by default 101 from 0 to the largest distance that is finite.

    Raises:
        ValueError: There are no distances, or one is negative or NaN.

    Source: Croce and Hein 2020, arXiv 1907.02044, section 1 (minimum-norm attacks give all thresholds).
    """
    require(len(distances) > 0, "`distances` must hold at least one distance, got none.")
    require(all(d >= 0 for d in distances), "`distances` must be at least 0, got a negative one or NaN.")
    ordered, count = sorted(distances), len(distances)
    finite = [distance for distance in ordered if math.isfinite(distance)]
    if epsilons is None:
        most = finite[-1] if finite else 0.0
        epsilons = [most * step / 100 for step in range(101)]
    radii = sorted(epsilons)
    standing = [sum(distance > radius for distance in ordered) for radius in radii]
    bounds = [wilson(number, count) for number in standing]
    return Curve(
        epsilons=radii,
        accuracy=[number / count for number in standing],
        low=[low for low, _ in bounds],
        high=[high for _, high in bounds],
        median=(ordered[(count - 1) // 2] + ordered[count // 2]) / 2,
        missing=count - len(finite),
        images=count,
    )
