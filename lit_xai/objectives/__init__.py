"""Objectives: what a training batch is asked to minimise, as named terms whose sum is the loss."""

from lit_xai.objectives.adversarial import AdversarialTraining
from lit_xai.objectives.base import Objective
from lit_xai.objectives.smoothing import GaussianAugmentation
from lit_xai.objectives.standard import CrossEntropy

__all__ = ["AdversarialTraining", "CrossEntropy", "GaussianAugmentation", "Objective"]
