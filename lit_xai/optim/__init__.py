"""Optimizers that carry a constraint, and learning-rate schedules."""

from lit_xai.optim.bort import BortAdamW, BortSGD, correction, residual
from lit_xai.optim.schedule import Cosine, Schedule, Steps

__all__ = ["BortAdamW", "BortSGD", "Cosine", "Schedule", "Steps", "correction", "residual"]
