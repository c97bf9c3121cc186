"""Objectives: what a training batch is asked to minimise, as named terms whose sum is the loss."""

from lit_xai.objectives.adversarial import AdversarialTraining
from lit_xai.objectives.base import Objective
from lit_xai.objectives.energy import DBort
from lit_xai.objectives.explanation import AttributionAlignment, GradientPenalty
from lit_xai.objectives.fast import FastAdversarial, GradAlign
from lit_xai.objectives.free import FreeAdversarial
from lit_xai.objectives.macer import Macer
from lit_xai.objectives.smooth_adv import SmoothAdv
from lit_xai.objectives.smoothing import Consistency, GaussianAugmentation, StabilityTraining
from lit_xai.objectives.standard import CrossEntropy
from lit_xai.objectives.tradeoff import AdversarialLogitPairing, Mart, Trades
from lit_xai.objectives.weight_perturbation import WeightPerturbed

__all__ = [
    "AdversarialLogitPairing",
    "AdversarialTraining",
    "AttributionAlignment",
    "Consistency",
    "CrossEntropy",
    "DBort",
    "FastAdversarial",
    "FreeAdversarial",
    "GaussianAugmentation",
    "GradAlign",
    "GradientPenalty",
    "Macer",
    "Mart",
    "Objective",
    "SmoothAdv",
    "StabilityTraining",
    "Trades",
    "WeightPerturbed",
]
