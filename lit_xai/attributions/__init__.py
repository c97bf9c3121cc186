"""Attributions: from a decision to the evidence for it."""

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.boundary import BoundaryIntegratedGradients, BoundarySaliency, OnBoundary
from lit_xai.attributions.gradient import InputXGradient, Saliency
from lit_xai.attributions.path import IntegratedGradients
from lit_xai.attributions.score import Logit, Margin, Score
from lit_xai.attributions.smoothing import SmoothGrad

__all__ = [
    "Attribution",
    "BoundaryIntegratedGradients",
    "BoundarySaliency",
    "InputXGradient",
    "IntegratedGradients",
    "Logit",
    "Margin",
    "OnBoundary",
    "Saliency",
    "Score",
    "SmoothGrad",
]
