"""Observers of a training run: they explain, attack, write and draw, and change nothing but its end."""

from lit_xai.callbacks.bort import BortResidual
from lit_xai.callbacks.explain import Explain
from lit_xai.callbacks.guard import CatastrophicOverfitting, EarlyStop
from lit_xai.callbacks.mirror import WandbMirror
from lit_xai.callbacks.robustness import Robustness
from lit_xai.callbacks.run_folder import CsvLog, RunFolder

__all__ = [
    "BortResidual",
    "CatastrophicOverfitting",
    "CsvLog",
    "EarlyStop",
    "Explain",
    "Robustness",
    "RunFolder",
    "WandbMirror",
]
