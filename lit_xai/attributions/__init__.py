"""Attributions: from a decision to the evidence for it."""

from lit_xai.attributions.base import Attribution, Conserving, keep_graph
from lit_xai.attributions.baselines import Baseline, FlatImage, NoiseImage, NormalImage, StoredImages
from lit_xai.attributions.boundary import (
    BoundaryDeepLift,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    BoundarySmoothGrad,
    OnBoundary,
)
from lit_xai.attributions.cam import GradCam, GuidedGradCam
from lit_xai.attributions.comparison import Comparison, Manipulated, compared, manipulated, shuffled
from lit_xai.attributions.deeplift import DeepLift, DeepLiftShap
from lit_xai.attributions.flux import NegativeFlux
from lit_xai.attributions.goals import Drawing, Frame, Goal, MapOf
from lit_xai.attributions.gradient import InputXGradient, Saliency
from lit_xai.attributions.guided_path import GuidedIntegratedGradients
from lit_xai.attributions.manipulation import Manipulation, MassCentreAttack, TargetedManipulation, TopKAttack
from lit_xai.attributions.path import ExpectedGradients, IntegratedGradients
from lit_xai.attributions.patterns import activation_pattern_only
from lit_xai.attributions.perturbation import FeatureAblation, Occlusion
from lit_xai.attributions.rectified import Deconvolution, GuidedBackprop, RectifiedGradient
from lit_xai.attributions.relative import RAP
from lit_xai.attributions.relevance import COMPOSITES, LRP, RuledLayer, RuleTable
from lit_xai.attributions.rules import AlphaBeta, Epsilon, Flat, Gamma, Junction, Rule, WSquare, ZBox, ZPlus
from lit_xai.attributions.score import Logit, Margin, Probability, Score
from lit_xai.attributions.sectional import RSP
from lit_xai.attributions.sharing import SharingRatio, effective_receptive_field
from lit_xai.attributions.smoothing import SmoothGrad, SteinGradient
from lit_xai.attributions.surrogate import KernelShap, Lime
from lit_xai.attributions.tracing import SaliencyByTracing, TraceBack
from lit_xai.attributions.trajectory import MFABA, AdversarialGradientIntegration

__all__ = [
    "COMPOSITES",
    "LRP",
    "MFABA",
    "RAP",
    "RSP",
    "AdversarialGradientIntegration",
    "AlphaBeta",
    "Attribution",
    "Baseline",
    "BoundaryDeepLift",
    "BoundaryIntegratedGradients",
    "BoundarySaliency",
    "BoundarySmoothGrad",
    "Comparison",
    "Conserving",
    "Deconvolution",
    "DeepLift",
    "DeepLiftShap",
    "Drawing",
    "Epsilon",
    "ExpectedGradients",
    "FeatureAblation",
    "Flat",
    "FlatImage",
    "Frame",
    "Gamma",
    "Goal",
    "GradCam",
    "GuidedBackprop",
    "GuidedGradCam",
    "GuidedIntegratedGradients",
    "InputXGradient",
    "IntegratedGradients",
    "Junction",
    "KernelShap",
    "Lime",
    "Logit",
    "Manipulated",
    "Manipulation",
    "MapOf",
    "Margin",
    "MassCentreAttack",
    "NegativeFlux",
    "NoiseImage",
    "NormalImage",
    "Occlusion",
    "OnBoundary",
    "Probability",
    "RectifiedGradient",
    "Rule",
    "RuleTable",
    "RuledLayer",
    "Saliency",
    "SaliencyByTracing",
    "Score",
    "SharingRatio",
    "SmoothGrad",
    "SteinGradient",
    "StoredImages",
    "TargetedManipulation",
    "TopKAttack",
    "TraceBack",
    "WSquare",
    "ZBox",
    "ZPlus",
    "activation_pattern_only",
    "compared",
    "effective_receptive_field",
    "keep_graph",
    "manipulated",
    "shuffled",
]
