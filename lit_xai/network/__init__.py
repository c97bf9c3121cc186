"""What a network computes, layer by layer: the ground of every rule that is not a plain gradient."""

from lit_xai.network.layers import (
    Addition,
    Affine,
    Average,
    Concatenation,
    Convolution,
    Layer,
    Linear,
    MaxPool,
    Rearrangement,
    Rectifier,
    Scaling,
    Unknown,
    folded,
)
from lit_xai.network.recording import record
from lit_xai.network.softened import softened
from lit_xai.network.tape import Step, Tape

__all__ = [
    "Addition",
    "Affine",
    "Average",
    "Concatenation",
    "Convolution",
    "Layer",
    "Linear",
    "MaxPool",
    "Rearrangement",
    "Rectifier",
    "Scaling",
    "Step",
    "Tape",
    "Unknown",
    "folded",
    "record",
    "softened",
]
