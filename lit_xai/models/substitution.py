"""Substitution: a network that computes with other tensors than its own for a while."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from torch import Tensor, nn


@contextmanager
def substituting(model: nn.Module, tensors: Mapping[str, Tensor]) -> Iterator[None]:
    """Within this context, other tensors stand in place of parameters and buffers, wherever these stand.

    Nothing is written into the model's own tensors, which are back on exit, also after an error. A graph that
    was built within may be differentiated after, and leads to whatever the tensors were made from; but what
    is computed again in a backward pass (activation checkpointing) is computed with the model's own.

    Args:
        model: The network.
        tensors: By the names of `named_parameters` and `named_buffers`.
    """
    named = {**dict(model.named_parameters()), **dict(model.named_buffers())}
    others = {id(named[name]): tensor for name, tensor in tensors.items()}
    places = [
        (slots, key, own)
        for part in model.modules()
        for slots in (part._parameters, part._buffers)
        for key, own in slots.items()
        if id(own) in others
    ]
    try:
        for slots, key, own in places:
            slots[key] = others[id(own)]  # type: ignore[assignment]
        yield
    finally:
        for slots, key, own in places:
            slots[key] = own  # type: ignore[assignment]


def copied(model: nn.Module) -> dict[str, Tensor]:
    """Copies of the buffers, by name: what may be counted in them is lost.

    A graph that was built in eval mode keeps the running statistics themselves, and a forward pass in train
    mode changes them behind autograd's back: second derivatives are then wrong, unless it was given copies.
    """
    return {name: buffer.clone() for name, buffer in model.named_buffers()}
