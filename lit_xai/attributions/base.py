"""The contract of this room: an attribution maps a decision to the evidence for it."""

import abc
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Protocol, get_args, runtime_checkable

import torch
from torch import Tensor, nn

from lit_xai.types import Images, Labels, Scores, require

_KEEPING_GRAPH: ContextVar[bool] = ContextVar("keeping graph", default=False)
_HIGHEST: ContextVar[int] = ContextVar("highest target", default=-1)


class Attribution(abc.ABC):
    """Maps a decision to the evidence for it: one signed number per pixel and channel.

    Pure: same inputs and random state, same maps; it touches neither the model (modes, `.grad`, hooks) nor
    the inputs, also when it fails. Each image is explained by itself: batch size and order do not matter.
    Maps are raw: no absolute value, no normalisation, no sum over channels; a method that knows locations but
    not channels shares its value out evenly over them, so that the sum over the channels is its map. Draws
    are keyed by sample (`lit_xai.randomness`). Concrete attributions are final frozen dataclasses that write
    `maps`.
    """

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """Return one map per image, in the shape of the image, for the class `target`.

        Raises:
            ValueError: The model is in train mode or does not return one row of logits per image; the images
                are not finite or need a gradient; a target is no class of the model; the method has no
                meaning for this model.
        """
        if keeping_graph():
            require(
                self.differentiable,
                f"`{type(self).__name__}` cannot be differentiated: take a method with `differentiable` set.",
            )
        token = _HIGHEST.set(check(model, inputs, target))
        try:
            return self.maps(model, inputs, target)
        finally:
            _HIGHEST.reset(token)

    @abc.abstractmethod
    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """Compute the maps; what is given has been checked."""

    @property
    def differentiable(self) -> bool:
        """Whether the map itself has a gradient with respect to the image, within `keep_graph`."""
        return False


@runtime_checkable
class Conserving(Protocol):
    """An attribution whose map is meant to add up to a known number."""

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """What the map of each image should add up to."""


@contextmanager
def keep_graph() -> Iterator[None]:
    """Within this context, maps can be differentiated: attacks on explanations need it.

    with keep_graph():
        maps = Saliency()(model, inputs.requires_grad_(), target)
    torch.autograd.grad(maps.square().sum(), inputs)
    """
    token = _KEEPING_GRAPH.set(True)
    try:
        with torch.enable_grad():
            yield
    finally:
        _KEEPING_GRAPH.reset(token)


def keeping_graph() -> bool:
    """Whether maps are to be differentiated."""
    return _KEEPING_GRAPH.get()


def entering(inputs: Images) -> Images:
    """The images as a method computes with them: cut off from the caller's graph, unless it is to be kept."""
    return inputs if keeping_graph() else inputs.detach()


def require_logits(logits: Tensor, images: int) -> None:
    """Refuse what is not one row of logits per image, or has no class of the highest target's number."""
    require(
        logits.ndim == 2 and len(logits) == images,
        f"`model` must return logits of shape (batch, class), got {tuple(logits.shape)} for {images} images.",
    )
    classes, highest = logits.shape[1], _HIGHEST.get()
    require(highest < classes, f"`target` must lie in 0..{classes - 1}, got {highest}.")


def require_one_of(known: object, **values: str) -> None:
    """Refuse a value that is not among the literals."""
    names = get_args(known)
    for name, value in values.items():
        require(value in names, f"`{name}` must be {' or '.join(map(repr, names))}, got {value!r}.")


def check(model: nn.Module, inputs: Images, target: Labels) -> int:
    """The highest target, once all that can be checked before the model is called is: in one transfer."""
    training = next((name for name, part in model.named_modules() if part.training), None)
    require(
        training is None,
        f"`model` must be in eval mode, but {f'its {training!r}' if training else 'it'} is in train mode: "
        "call `model.eval()`.",
    )
    require(
        inputs.ndim == 4 and inputs.is_floating_point(),
        "`inputs` must be floats in [0, 1] of shape (batch, channel, height, width), got "
        f"{inputs.dtype} of shape {tuple(inputs.shape)}.",
    )
    require(
        keeping_graph() or not inputs.requires_grad,
        "`inputs` must not need a gradient: pass `inputs.detach()`, or differentiate maps in `keep_graph()`.",
    )
    if not len(inputs):
        return -1
    require(
        target.shape == inputs.shape[:1] and not target.is_floating_point(),
        f"`target` must name a class for every image, got {target.dtype} of shape {tuple(target.shape)} for "
        f"{len(inputs)} images.",
    )
    finite = inputs.detach().isfinite().all().to(target.dtype)
    seen = torch.stack([finite, target.min(), target.max()]).tolist()
    require(bool(seen[0]), "`inputs` must be finite, got NaN or infinity.")
    require(seen[1] >= 0, f"`target` must be at least 0, got {seen[1]}.")
    return int(seen[2])
