"""The contract of this room: an attack answers a decision with a neighbouring image."""

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass

from jaxtyping import Int
from torch import Tensor, nn

from lit_xai.types import Flags, Images, Labels, Scores

_FOUND: ContextVar[dict[object, tuple[object, "Boundary"]] | None] = ContextVar("found", default=None)


class Attack(abc.ABC):
    """Maps a decision to a neighbour of the input, in pixels, inside [0, 1].

    Pure: same inputs and random state, same images; it touches neither the model nor the inputs. Draws are
    keyed by sample (`lit_xai.randomness`). Concrete attacks are final frozen dataclasses.
    """

    @abc.abstractmethod
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """Return one neighbour per image; `target` is the class to move away from."""


@dataclass(frozen=True)
class Boundary:
    """What a closest-boundary search found, per image.

    Args:
        points: On the far side of the decision boundary where `found`, else the input itself.
        distance: l2 distance to the input in pixel units; 0 for an input that is not of class `target`
            to begin with, infinite where no boundary was found.
        found: Whether the point was checked to flip the decision.
        label: Class predicted at the point.
        forwards: Forward passes spent on this image.
        backwards: Input gradients spent on this image.
    """

    points: Images
    distance: Scores
    found: Flags
    label: Labels
    forwards: Int[Tensor, " batch"]
    backwards: Int[Tensor, " batch"]


class Search(Attack):
    """An attack that looks for the closest point of another class."""

    @abc.abstractmethod
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        """Search, without looking into the memory."""

    def search(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        """Closest boundary point of every image, with what it cost.

        Inside `remembering()`, the same search of the same tensors, or of views on all of them, is done once.
        """
        memory = _FOUND.get()
        if memory is None:
            return self.find(model, inputs, target)
        question = (self, id(model), _identity(inputs), _identity(target))
        if question not in memory:
            # Model and tensors are kept beside the answer, so that their places cannot be given to others.
            memory[question] = ((model, inputs, target), self.find(model, inputs, target))
        return memory[question][1]

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return self.search(model, inputs, target).points


def _identity(tensor: Tensor) -> tuple[object, ...]:
    """What two tensors share exactly if they show the same memory in the same state."""
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.device, tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)


@contextmanager
def remembering() -> Iterator[None]:
    """Within this context every search is done once per (search, model, inputs, target).

    The model must not change inside. A context inside another shares the outer memory.
    """
    if _FOUND.get() is not None:
        yield
        return
    token = _FOUND.set({})
    try:
        yield
    finally:
        _FOUND.reset(token)
