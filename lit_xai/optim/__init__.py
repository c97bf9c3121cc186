"""Optimizers that carry a constraint, and learning-rate schedules."""

from lit_xai.optim.bort import Bort, BortAdamW, BortSGD, bort, constrain_linear_maps
from lit_xai.optim.constraint import correction
from lit_xai.optim.matrices import Amplitude, Layout, linear_maps, measures, residual
from lit_xai.optim.schedule import Cosine, Schedule, Steps, Triangle

__all__ = [
    "Amplitude",
    "Bort",
    "BortAdamW",
    "BortSGD",
    "Cosine",
    "Layout",
    "Schedule",
    "Steps",
    "Triangle",
    "bort",
    "constrain_linear_maps",
    "correction",
    "linear_maps",
    "measures",
    "residual",
]
