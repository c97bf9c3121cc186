"""Metrics: how good a map is, and how robust the model."""

from lit_xai.metrics.base import AbsoluteSum, Facts, Metric, Quantity, Reduction, SignedSum
from lit_xai.metrics.closeness import Closeness
from lit_xai.metrics.companions import Companions
from lit_xai.metrics.complexity import Gini
from lit_xai.metrics.controls import EdgeMap, OtherImage, RandomMap
from lit_xai.metrics.faithfulness import Blur, Constant, ImageMean, Perturbation, Removal
from lit_xai.metrics.flags import Accepted, Flags, Missing, Residual
from lit_xai.metrics.robustness import (
    BoundaryDistance,
    CleanAccuracy,
    GradientAlignment,
    GradientMasking,
    RobustAccuracy,
    RobustnessCurve,
)
from lit_xai.metrics.stability import Manipulability

__all__ = [
    "AbsoluteSum",
    "Accepted",
    "Blur",
    "BoundaryDistance",
    "CleanAccuracy",
    "Closeness",
    "Companions",
    "Constant",
    "EdgeMap",
    "Facts",
    "Flags",
    "Gini",
    "GradientAlignment",
    "GradientMasking",
    "ImageMean",
    "Manipulability",
    "Metric",
    "Missing",
    "OtherImage",
    "Perturbation",
    "Quantity",
    "RandomMap",
    "Reduction",
    "Removal",
    "Residual",
    "RobustAccuracy",
    "RobustnessCurve",
    "SignedSum",
]
