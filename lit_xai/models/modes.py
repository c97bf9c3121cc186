"""Modes: a network put into another mode for a while, and back."""

from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Literal

import torch
from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm

BatchNorm = Literal["eval", "train", "frozen"]


@contextmanager
def evaluating(*modules: nn.Module) -> Iterator[None]:
    """Within this context the modules are in eval mode.

    On exit, also after an error, each submodule has the mode it had: one frozen in eval mode stays so.
    """
    modes = [(part, part.training) for module in modules for part in module.modules()]
    try:
        for part, _ in modes:
            part.training = False
        yield
    finally:
        for part, training in modes:
            part.training = training


@contextmanager
def unnoticed(*modules: nn.Module) -> Iterator[None]:
    """Within this context batch norms keep nothing of what passes them: no running mean, no count.

    All stay in their mode: those in train mode normalise with the statistics of the batch.
    """
    norms = {part for module in modules for part in module.modules() if isinstance(part, _BatchNorm)}
    tracking = [part for part in norms if part.training and part.track_running_stats]
    try:
        for part in tracking:
            part.track_running_stats = False
        yield
    finally:
        for part in tracking:
            part.track_running_stats = True


def crafting(model: nn.Module, batch_norm: BatchNorm) -> AbstractContextManager[None]:
    """The mode in which training images are made.

    Args:
        model: The network, in train mode.
        batch_norm: "eval": all of the model is in eval mode. "train": it stays as it is, and batch norms
            learn their statistics from the images on their way as well. "frozen": it stays as it is, but
            batch norms keep nothing of what they see.
    """
    if batch_norm == "eval":
        return evaluating(model)
    return unnoticed(model) if batch_norm == "frozen" else nullcontext()


def eagerly() -> AbstractContextManager[object]:
    """Within this context compiled networks run as they are written.

    What is compiled can be differentiated once; what runs here, twice.
    """
    stance: AbstractContextManager[object] = torch.compiler.set_stance("force_eager")
    return stance
