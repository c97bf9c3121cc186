"""What certificates say about a set of images: accuracy by radius, its bound, averages, the best of many."""

import csv
import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import ArrayLike
from scipy import stats

from lit_xai.evaluation.intervals import wilson
from lit_xai.models.certificates import ABSTAINED, possible_radii
from lit_xai.types import require, require_at_least

Row = dict[str, str]

# The six columns of published logs, then the counts by which a radius can be checked.
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "count", "samples")
_NEEDED = ("radius", "correct")


@dataclass(frozen=True)
class Certified:
    """Certificates of some images, by one smoothed classifier.

    Args:
        radius: Certified l2 radius of each image, in pixel units; 0 for an abstention.
        correct: Whether the certified class is that of the image.
        abstained: Whether nothing was certified.
        sigma: Noise of the classifier, in pixel units; NaN where it is not known.
        alpha: Probability that one certificate is wrong; NaN where it is not known.
    """

    radius: np.ndarray
    correct: np.ndarray
    abstained: np.ndarray
    sigma: float = math.nan
    alpha: float = math.nan

    def __post_init__(self) -> None:
        require_at_least(1, images=len(self.radius))

    def accuracy(self, radius: ArrayLike) -> Any:
        """Certified accuracy: share of the images that are right with at least this radius."""
        at = np.asarray(radius, dtype=np.float64)
        held = self.correct & (self.radius >= at[..., None])
        return held.mean(axis=-1)[()]

    @property
    def average_radius(self) -> float:
        """Average certified radius (ACR): the mean over all images, with 0 for those that are not right."""
        return float(np.where(self.correct, self.radius, 0.0).mean())

    @property
    def average_radius_error(self) -> float:
        """Standard error of the average certified radius; NaN for one image."""
        count = len(self.radius)
        if count < 2:
            return math.nan
        return float(np.where(self.correct, self.radius, 0.0).std(ddof=1) / math.sqrt(count))

    @property
    def abstention(self) -> float:
        """Share of the images for which nothing is certified."""
        return float(self.abstained.mean())

    def bound(self, radius: ArrayLike, rho: float = 0.001) -> Any:
        """As `accuracy`, less what may be wrong in it: see `at_least`."""
        return at_least(self.accuracy(radius), len(self.radius), self.alpha, rho)


def at_least(accuracy: ArrayLike, images: int, alpha: float, rho: float = 0.001) -> Any:
    """With probability 1 - rho over the noise, the certified accuracy of these images is at least this.

    Each certificate is wrong with probability `alpha` at most, independently of the others: at most q of them
    are, q the (1 - rho) quantile of Binomial(images, alpha); accuracy - q / images, and at least 0.

    Args:
        accuracy: Certified accuracy as it was counted: a number or an array.
        images: How many images, at least 1.
        alpha: Probability that one certificate is wrong, in (0, 1).
        rho: Probability that the bound is wrong, in (0, 1).

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, appendix on certifying a whole test set.
    Deviates: exact, where they have Bernstein's inequality (`released_bound`).
    """
    require_at_least(1, images=images)
    wrong = stats.binom.ppf(1 - rho, images, alpha) / images
    return np.maximum(np.asarray(accuracy) - wrong, 0.0)[()]


def released_bound(accuracy: ArrayLike, images: int, alpha: float, rho: float = 0.001) -> Any:
    """The bound of the released analysis: acc - a - sqrt(a (1 - a) ln(1/rho) / N) - ln(1/rho) / (3 N).

    To compare with published tables alone: Bernstein's inequality has a factor 2 below the root, without
    which the bound fails more often than with probability rho (at N = 10,000 and alpha = 0.01, 2.5 times).

    Args:
        accuracy: Certified accuracy as it was counted: a number or an array.
        images: Their number N, at least 1.
        alpha: Probability that one certificate is wrong, in (0, 1).
        rho: Nominal probability that the bound is wrong, in (0, 1).

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, released code, `HighProbAccuracy`.
    """
    require_at_least(1, images=images)
    spread = math.sqrt(alpha * (1 - alpha) * math.log(1 / rho) / images)
    return (np.asarray(accuracy) - alpha - spread - math.log(1 / rho) / (3 * images))[()]


def envelope(classifiers: Iterable[Certified], radius: ArrayLike) -> Any:
    """Certified accuracy of the best of several classifiers, at each radius.

    Each point is of one classifier, as a rule of one sigma, and the choice is made after the fact.
    """
    return np.max([one.accuracy(radius) for one in classifiers], axis=0)


def unexplained(
    printed: Sequence[str], samples: int, alpha: float, sigma: float, form: str = ".3"
) -> list[str]:
    """Radii of a log that no count of votes explains: they were made with other terms or another bound.

    For given terms a radius is a function of one integer, so a log can be checked without its counts. That
    a log passes says little about single digits of the counts; one that fails, fails for certain.

    Args:
        printed: Radii as the log has them, without abstentions.
        samples: Votes of the estimation, at least 1.
        alpha: Probability that a radius is wrong, in (0, 1).
        sigma: Standard deviation of the noise in pixel units, greater than 0.
        form: How the log prints: `.3` for three digits, `.4f` for four decimals, nothing for all digits.
    """
    known = {format(radius, form) for radius in possible_radii(samples, alpha, sigma).tolist()}
    return [text for text in printed if text not in known]


def read_table(path: Path) -> list[Row]:
    """The whole lines of a table of certificates, by column; lines that begin with # are left out.

    Raises:
        ValueError: It lacks a column.
    """
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.DictReader((line for line in stream if not line.startswith("#")), delimiter="\t")
        missing = set(_NEEDED) - set(rows.fieldnames or ())
        require(not missing, f"it lacks the column `{min(missing, default='')}`")
        return [row for row in rows if all(row[name] for name in _NEEDED)]  # the last line may be torn


def certified(rows: Sequence[Row], sigma: float = math.nan, alpha: float = math.nan) -> Certified:
    """The rows of a table, as numbers. Where it does not say who abstained, those with radius 0 did."""
    radius = np.array([float(row["radius"]) for row in rows])
    correct = np.array([row["correct"].lower() in ("1", "1.0", "true") for row in rows], dtype=bool)
    abstained = np.array(
        [
            int(row["predict"]) == ABSTAINED if row.get("predict") else not float(row["radius"])
            for row in rows
        ],
        dtype=bool,
    )
    return Certified(radius, correct, abstained, sigma, alpha)


def default_radii(found: Certified, count: int = 9) -> list[float]:
    """Radii from 0 to the largest, half a sigma apart; 0 alone where sigma is not known."""
    top, step = float(found.radius.max()), found.sigma / 2
    steps = min(count - 1, int(top / step)) if step > 0 else 0
    return [0.0, *(step * k for k in range(1, steps + 1))]


def summary(found: Certified, radii: Sequence[float] = ()) -> dict[str, Any]:
    """The numbers of a page: accuracies with 95 % Wilson intervals and bounds, averages, abstentions."""
    count = len(found.radius)
    points = []
    for radius in radii or default_radii(found):
        share = float(found.accuracy(radius))
        low, high = wilson(round(share * count), count)
        bound = float(found.bound(radius))
        points.append({"radius": radius, "accuracy": share, "low": low, "high": high, "bound": bound})
    error = found.average_radius_error
    return {
        "images": count,
        "certified": points,
        "average_radius": found.average_radius,
        "average_radius_error": None if math.isnan(error) else error,
        "abstained": found.abstention,
    }
