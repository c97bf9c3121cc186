"""Second opinions on attacks: foolbox, and a count of gradients that does not come from the meter."""

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch

with warnings.catch_warnings():  # it imports names that SciPy is about to drop
    warnings.simplefilter("ignore", DeprecationWarning)
    import foolbox

__all__ = ["foolbox", "peer_model", "returning"]


def peer_model(net: torch.nn.Module) -> foolbox.PyTorchModel:
    return foolbox.PyTorchModel(net, bounds=(0, 1), device="cpu")


@contextmanager
def returning(net: torch.nn.Module) -> Iterator[list[int]]:
    """The images of each gradient that comes back to the output of a net."""
    seen: list[int] = []

    def listen(module, inputs, output):
        if output.requires_grad:
            output.register_hook(lambda gradient: seen.append(len(gradient)))

    handle = net.register_forward_hook(listen)
    try:
        yield seen
    finally:
        handle.remove()
