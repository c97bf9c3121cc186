"""Observers of a training run: they explain, attack, write and draw, and change nothing but its end.

`MovingAverage` alone changes more: which weights the others see.
"""

from lit_xai.callbacks.averaging import MovingAverage
from lit_xai.callbacks.bort import BortResidual
from lit_xai.callbacks.certify import Certify
from lit_xai.callbacks.cost import RegimeCost
from lit_xai.callbacks.divergence import Diverged, Divergence
from lit_xai.callbacks.explain import Explain
from lit_xai.callbacks.guard import CatastrophicOverfitting, EarlyStop
from lit_xai.callbacks.mirror import WandbMirror
from lit_xai.callbacks.robustness import Robustness
from lit_xai.callbacks.run_folder import CsvLog, RunFolder

__all__ = [
    "BortResidual",
    "CatastrophicOverfitting",
    "Certify",
    "CsvLog",
    "Diverged",
    "Divergence",
    "EarlyStop",
    "Explain",
    "MovingAverage",
    "RegimeCost",
    "Robustness",
    "RunFolder",
    "WandbMirror",
]
