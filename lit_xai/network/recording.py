"""Watching a network while it runs.

It is watched by `torch.overrides.TorchFunctionMode`: nothing is traced, copied or hooked. So any Python in
`forward` is allowed, a ReLU that is used twice is two layers, work in place is done out of place, the logits
are those of the network, and the recording costs one forward pass. What cannot be followed is refused: calls
out of sight, and memory that changes under a value. A number that is read out of a value (`item`) is a
constant from there on, as it is to autograd.
"""

import dataclasses
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch._C._functorch import is_functorch_wrapped_tensor
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_map

from lit_xai.network.layers import (
    Affine,
    Convolution,
    Layer,
    Linear,
    Rearrangement,
    Rectifier,
    Scaling,
    Unknown,
)
from lit_xai.network.reading import is_blank, positional, read, works_in_place
from lit_xai.network.tape import Step, Tape
from lit_xai.types import require

UNSEEN = (
    "`model` must compute its logits from the images by calls of torch that can be watched: pass the eager "
    "module, not a scripted, exported, compiled or vectorised one."
)
CHANGED = (
    "`model` must not change a value in place through another one that shares its memory, nor after it was "
    "read: work out of place."
)

Replace = Callable[[Layer, tuple[Tensor, ...]], Tensor | None]


def record(model: nn.Module, inputs: Tensor, replace: Replace | None = None) -> Tape:
    """Run the network once and keep what it computed; whether gradients are kept too is the caller's mode.

    A batch norm that alone reads a convolution or linear layer is folded into it: the two are one step.

    Args:
        model: The network, in eval mode.
        inputs: The images.
        replace: Computes a layer's output in another way, or returns None to leave it as it is. With it,
            nothing is folded.

    Raises:
        ValueError: The output does not come from the images through calls of torch that can be seen, or is
            no tensor; a value is read after its memory was changed through another one.
    """
    recorder = _Recorder(inputs, replace)
    require(not any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()), UNSEEN)
    with recorder.naming(model), recorder:
        output = recorder.current(model(inputs))
    require(isinstance(output, Tensor), f"`model` must return logits, got a {type(output).__name__}.")
    require(id(output) in recorder.known, UNSEEN)
    recorder.require_unchanged(output)
    steps, moved = (recorder.steps, {}) if replace else _folded(recorder.steps, output)
    modules = {name: moved.get(id(value), value) for name, value in recorder.modules.items()}
    return Tape(inputs, output, tuple(steps), modules)


def _folded(steps: Sequence[Step], output: Tensor) -> tuple[list[Step], dict[int, Tensor]]:
    """The steps with batch norms folded, and what stands for the outputs that are gone by that."""
    readers = Counter(id(source) for step in steps for source in step.sources)
    readers[id(output)] += 1
    kept: dict[int, Step] = {}
    moved: dict[int, Tensor] = {}
    for step in steps:
        before = kept.get(id(step.source))
        if before is not None and readers[id(step.source)] == 1:
            layer = _fold(before.layer, step.layer)
            if layer is not None:
                del kept[id(before.output)]
                moved[id(before.output)] = step.output
                step = dataclasses.replace(before, layer=layer, output=step.output)
        kept[id(step.output)] = step
    return list(kept.values()), moved


def _fold(before: Layer, norm: Layer) -> Affine | None:
    """Both as one layer, where the second is a batch norm of the first."""
    if not isinstance(before, Convolution | Linear) or not isinstance(norm, Scaling):
        return None
    if not isinstance(norm.scale, Tensor) or not isinstance(norm.shift, Tensor):
        return None
    if norm.scale.shape != (1, len(before.raw), *[1] * (before.raw.ndim - 2)):
        return None
    scale, shift = norm.scale.flatten(), norm.shift.flatten()
    return dataclasses.replace(
        before,
        factor=scale if before.factor is None else before.factor * scale,
        bias=shift if before.bias is None else before.bias * scale + shift,
    )


class _Recorder(TorchFunctionMode):
    """Sees every call of torch while a network runs, and notes those that depend on the images."""

    def __init__(self, inputs: Tensor, replace: Replace | None) -> None:
        super().__init__()
        self.replace = replace
        self.known = {id(inputs): inputs}  # what depends on the images; held, so that their ids stay theirs
        self.renewed: dict[int, Tensor] = {}  # what stands for a value after work in place on it
        self.targets: dict[int, Tensor] = {}  # the values worked on, by address; held for the same reason
        self.read: list[tuple[Tensor, int]] = []  # what calls have read, and its version then
        self.steps: list[Step] = []
        self.modules: dict[str, Tensor] = {}
        self.running: list[tuple[str, bool]] = [("", False)]
        self.names: Counter[str] = Counter()
        self.thread = threading.get_ident()

    def current(self, value: Any) -> Any:
        """What stands for a value now."""
        while id(value) in self.renewed:
            value = self.renewed[id(value)]
        return value

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        args, kwargs = positional(func, args, kwargs or {})
        values = list(_tensors((args, kwargs)))
        if any(id(value) in self.renewed for value in values):
            args, kwargs = tree_map(self.current, (args, kwargs))
            values = [self.current(value) for value in values]
        sources = tuple(value for value in values if id(value) in self.known)
        if not sources or is_blank(func, args, sources):
            output = func(*args, **kwargs)
            if isinstance(output, Tensor):
                require(not any(map(is_functorch_wrapped_tensor, values)), UNSEEN)
                self._require_current(values)
            return output
        require(kwargs.get("out") is None, "`model` must not write to `out`: assign what is returned.")
        layer = read(func, args, kwargs, sources)
        target = args[0] if args and works_in_place(func, kwargs) else None
        output = self.replace(layer, sources) if self.replace else None
        if output is None and target is not None:
            output = self._out_of_place(func, layer, args, kwargs)
        elif output is None:
            output = func(*args, **kwargs)
        parts = output if isinstance(output, tuple | list) else [output]
        if any(isinstance(part, Tensor) for part in parts):
            self._require_current(values)
            self.read += [(value, _version(value)) for value in values]
        for index, part in enumerate(parts):
            if isinstance(part, Tensor):
                self._note(layer if part is output else _part(layer, index), sources, part)
        if target is not None:
            self.renewed[id(target)] = output
            if len(target.untyped_storage()):  # what is empty has no address
                self.targets[target.untyped_storage().data_ptr()] = target
        return output

    def _out_of_place(
        self, func: Callable[..., Any], layer: Layer, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> Tensor:
        """What a call would make of its target."""
        if isinstance(layer, Rectifier):
            return layer(args[0])
        copy: Tensor = args[0].clone()
        func(copy, *args[1:], **kwargs)
        return copy

    def _require_current(self, values: Sequence[Tensor]) -> None:
        """Refuse to read memory that the network has changed, as far as it knows, through another value."""
        if self.targets and any(value.untyped_storage().data_ptr() in self.targets for value in values):
            raise ValueError(CHANGED)

    def require_unchanged(self, output: Tensor) -> None:
        """Refuse values that were changed after they were read."""
        self._require_current([output])
        require(all(_version(value) == version for value, version in self.read), CHANGED)

    def _note(self, layer: Layer, sources: tuple[Tensor, ...], output: Tensor) -> None:
        if id(output) in self.known:
            return
        self.known[id(output)] = output
        if not output.is_floating_point():
            return  # nothing can be carried through it; what it decides has no rule
        path, whole = self.running[-1]
        name = path if whole else f"{path}.{layer.name}".lstrip(".")
        self.names[name] += 1
        number = self.names[name]
        self.steps.append(Step(name if number == 1 else f"{name}#{number}", layer, sources, output))

    @contextmanager
    def naming(self, model: nn.Module) -> Iterator[None]:
        """Follow which module runs, through hooks that belong to no module."""
        paths = {id(part): (path, not any(part.children())) for path, part in model.named_modules()}

        def enter(part: nn.Module, args: Any) -> None:
            if threading.get_ident() == self.thread:
                self.running.append(paths.get(id(part), (type(part).__name__, False)))

        def leave(part: nn.Module, args: Any, output: Any) -> None:
            if threading.get_ident() != self.thread:
                return
            path, _ = self.running.pop()
            value = self.current(output)
            if id(value) in self.known:
                self.modules[path] = value

        handles = (register_module_forward_pre_hook(enter), register_module_forward_hook(leave))
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def _tensors(values: Iterable[Any]) -> Iterator[Tensor]:
    """The tensors among the arguments of a call."""
    for value in values:
        if isinstance(value, Tensor):
            yield value
        elif isinstance(value, tuple | list):
            yield from _tensors(value)
        elif isinstance(value, dict):
            yield from _tensors(value.values())


def _version(value: Tensor) -> int:
    """How often the memory of a value was written to, where torch counts."""
    return 0 if value.is_inference() else value._version


def _part(layer: Layer, index: int) -> Layer:
    """One of several outputs of a layer."""
    if isinstance(layer, Rearrangement):
        return Rearrangement(lambda source: layer.function(source)[index])
    return layer if isinstance(layer, Unknown) else Unknown(layer.name)
