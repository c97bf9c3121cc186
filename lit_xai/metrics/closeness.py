"""Closeness: how much a boundary map differs from its plain twin, and what that says about the model."""

import math
from typing import ClassVar

from torch import nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.boundary import OnBoundary
from lit_xai.attributions.similarity import cosine
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.metrics.robustness import crossed, margin_and_slope
from lit_xai.metrics.shared import maps_of
from lit_xai.types import Images, Labels, Scores


def closeness(plain: Images, other: Images, distance: Scores) -> dict[str, Scores]:
    """Difference of two maps taken a distance apart, in double precision.

    raw = ||P - B||, norm = ||P||, relative = raw / norm, cosine = <P, B> / (||P|| ||B||), lam_hat = raw /
    distance. NaN where a map is not finite, or where its norm is needed and is zero.

    Args:
        plain: P, the map at the image.
        other: B, the map at the other point.
        distance: l2 distance between the two points.
    """
    first, second = plain.flatten(1).double(), other.flatten(1).double()
    raw, norm = (first - second).norm(dim=1), first.norm(dim=1)
    scores = {
        "raw": raw,
        "norm": norm,
        "relative": (raw / norm).where(norm > 0, math.nan),
        "cosine": cosine(plain, other),
        "lam_hat": (raw / distance).where(distance > 0, math.nan),
    }
    return {name: column.where(raw.isfinite(), math.nan) for name, column in scores.items()}


class Closeness(Metric):
    """Difference between a boundary map B and its plain twin P, at distance d = ||x - x'||.

    * raw = ||P - B||: what theory bounds by lambda d, but it grows with the scale of the logits;
    * norm = ||P||: what raw has to be held against where training has changed it;
    * relative = raw / norm and cosine = <P, B> / (||P|| ||B||): free of that scale, read them beside raw;
    * lam_hat = raw / d, median: for gradients, a lower bound of the local Lipschitz constant lambda;
    * kappa = m(x) / (||grad m(x)|| d), median: 1 where the margin m is affine from x to x', so that the
      gradient at x tells the true distance;
    * log_kappa = |log kappa|, median: how far it tells it wrong, too near and too far alike.

    Applies to attributions on a boundary. An image counts where a boundary was found at a distance above
    zero: one that is misclassified to begin with has no boundary to cross.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (raw and its bound).
    Deviates: all but raw are added; m is the margin over the class at x', held fixed,
        so that kappa is 1 for every linear model. Under the score `Margin`, the plain twin has the runner-up
        at x for its rival: where that is another class than at x', the difference of rivals counts too.
    """

    quantities: ClassVar = {
        "raw": Quantity("lower", (0.0, math.inf)),
        "norm": Quantity(None, (0.0, math.inf)),
        "relative": Quantity("lower", (0.0, math.inf)),
        "cosine": Quantity("higher", (-1.0, 1.0)),
        "lam_hat": Quantity("lower", (0.0, math.inf), median=True),
        "kappa": Quantity(None, (0.0, math.inf), median=True),
        "log_kappa": Quantity("lower", (0.0, math.inf), median=True),
    }

    def applies(self, attribution: Attribution) -> bool:
        return isinstance(attribution, OnBoundary)

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attributions: Images,
        attribution: OnBoundary,
    ) -> dict[str, Scores]:
        boundary = attribution.search.search(model, inputs, target)
        distance = boundary.distance.double()
        scores = closeness(maps_of(attribution.plain, model, inputs, target), attributions, distance)
        margin, slope = margin_and_slope(model, inputs, target, boundary.label)
        scores["kappa"] = margin.double() / (slope.flatten(1).double().norm(dim=1) * distance)
        scores["log_kappa"] = scores["kappa"].log().abs()
        return {name: column.where(crossed(boundary), math.nan) for name, column in scores.items()}
