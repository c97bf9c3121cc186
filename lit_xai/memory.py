"""One question, asked once: a search or a map that several readers want is computed for the first of them."""

from collections.abc import Callable, Hashable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, TypeVar

from torch import Tensor, nn

Answer = TypeVar("Answer")

_ANSWERS: ContextVar[dict[Hashable, tuple[object, Any]] | None] = ContextVar("answers", default=None)


@contextmanager
def remembering() -> Iterator[None]:
    """Within this context, `once` answers a question that was asked before without computing it again.

    The model must not change inside. A context inside another shares the outer memory.
    """
    if _ANSWERS.get() is not None:
        yield
        return
    token = _ANSWERS.set({})
    try:
        yield
    finally:
        _ANSWERS.reset(token)


def once(
    algorithm: Hashable, model: nn.Module, inputs: Tensor, target: Tensor, answer: Callable[[], Answer]
) -> Answer:
    """The answer of an algorithm about this model and these very tensors, or views on all of them.

    Outside `remembering` it is computed each time.

    Args:
        algorithm: Equal algorithms have equal answers.
        model: The network.
        inputs: The batch.
        target: The classes.
        answer: Computes it.
    """
    memory = _ANSWERS.get()
    if memory is None:
        return answer()
    question = (type(algorithm), algorithm, id(model), _identity(inputs), _identity(target))
    if question not in memory:
        # Model and tensors are kept beside the answer, so that their places cannot be given to others.
        memory[question] = ((model, inputs, target), answer())
    kept: Answer = memory[question][1]
    return kept


def _identity(tensor: Tensor) -> tuple[Hashable, ...]:
    """What two tensors share exactly if they show the same memory in the same state."""
    version = 0 if tensor.is_inference() else tensor._version
    return (tensor.device, tensor.data_ptr(), version, tensor.shape, tensor.stride(), tensor.dtype)
