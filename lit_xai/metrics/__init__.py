"""Metrics: how good a map is, and how robust the model."""

from lit_xai.metrics.alignment import (
    Alignment,
    Confidence,
    Curvature,
    GradientNorm,
    LinearisedRobustness,
    Slopes,
)
from lit_xai.metrics.base import AbsoluteSum, Facts, Metric, Quantity, Reduction, SignedSum
from lit_xai.metrics.baseline_sensitivity import BaselineSensitivity
from lit_xai.metrics.closeness import Closeness
from lit_xai.metrics.companions import Companions
from lit_xai.metrics.complexity import Entropy, Gini, HighFrequency, ParticipationRatio, TotalVariation
from lit_xai.metrics.controls import CentreMap, EdgeMap, OtherImage, RandomMap
from lit_xai.metrics.correlation import Ablation, FaithfulnessCorrelation, FaithfulnessEstimate, SensitivityN
from lit_xai.metrics.credible import credible
from lit_xai.metrics.drift import Drift
from lit_xai.metrics.faithfulness import ROAD, SRG, Perturbation
from lit_xai.metrics.flags import Accepted, Flags, Misclassified, Missing, Residual
from lit_xai.metrics.flipping import AOPC, IROF, PixelFlipping
from lit_xai.metrics.grid import GridPointingGame
from lit_xai.metrics.imputation import LinearImputation
from lit_xai.metrics.infidelity import Disturbance, GaussianNoise, Infidelity, RandomSquares
from lit_xai.metrics.input_bias import BlindColour, ColourSweep, Polarity
from lit_xai.metrics.localisation import (
    BoundaryLocalisation,
    EnergyGame,
    PointingGame,
    RelevanceRank,
    TopKIntersection,
)
from lit_xai.metrics.monotonicity import Monotonicity
from lit_xai.metrics.neighbourhood import InBall, Neighbourhood, Neighbours, Noise, Normal
from lit_xai.metrics.patterns import PatternOnlyAccuracy
from lit_xai.metrics.randomisation import EfficientRandomisation, ModelRandomisation, RandomLogit
from lit_xai.metrics.removal import Blur, Constant, ImageMean, Removal, UniformNoise
from lit_xai.metrics.reparameterisation import Reparameterisation
from lit_xai.metrics.robustness import (
    BoundaryDistance,
    CleanAccuracy,
    GradientAlignment,
    GradientMasking,
    RobustAccuracy,
    RobustnessCurve,
)
from lit_xai.metrics.sensitivity import LocalLipschitz, NeighbourSimilarity, RelativeStability, Sensitivity
from lit_xai.metrics.stability import Approach, AttackedStability, Manipulability
from lit_xai.metrics.untrained import Untrained

__all__ = [
    "AOPC",
    "IROF",
    "ROAD",
    "SRG",
    "Ablation",
    "AbsoluteSum",
    "Accepted",
    "Alignment",
    "Approach",
    "AttackedStability",
    "BaselineSensitivity",
    "BlindColour",
    "Blur",
    "BoundaryDistance",
    "BoundaryLocalisation",
    "CentreMap",
    "CleanAccuracy",
    "Closeness",
    "ColourSweep",
    "Companions",
    "Confidence",
    "Constant",
    "Curvature",
    "Disturbance",
    "Drift",
    "EdgeMap",
    "EfficientRandomisation",
    "EnergyGame",
    "Entropy",
    "Facts",
    "FaithfulnessCorrelation",
    "FaithfulnessEstimate",
    "Flags",
    "GaussianNoise",
    "Gini",
    "GradientAlignment",
    "GradientMasking",
    "GradientNorm",
    "GridPointingGame",
    "HighFrequency",
    "ImageMean",
    "InBall",
    "Infidelity",
    "LinearImputation",
    "LinearisedRobustness",
    "LocalLipschitz",
    "Manipulability",
    "Metric",
    "Misclassified",
    "Missing",
    "ModelRandomisation",
    "Monotonicity",
    "NeighbourSimilarity",
    "Neighbourhood",
    "Neighbours",
    "Noise",
    "Normal",
    "OtherImage",
    "ParticipationRatio",
    "PatternOnlyAccuracy",
    "Perturbation",
    "PixelFlipping",
    "PointingGame",
    "Polarity",
    "Quantity",
    "RandomLogit",
    "RandomMap",
    "RandomSquares",
    "Reduction",
    "RelativeStability",
    "RelevanceRank",
    "Removal",
    "Reparameterisation",
    "Residual",
    "RobustAccuracy",
    "RobustnessCurve",
    "Sensitivity",
    "SensitivityN",
    "SignedSum",
    "Slopes",
    "TopKIntersection",
    "TotalVariation",
    "UniformNoise",
    "Untrained",
    "credible",
]
