"""A network without kinks, for as long as a context lasts.

The second derivative of a ReLU is zero wherever it exists, so a map that is made of gradients seems not to
move with the image. Softplus has curvature, and tends to the ReLU as beta grows.
"""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.modules.module import register_module_forward_hook, register_module_forward_pre_hook
from torch.overrides import TorchFunctionMode

from lit_xai.network.layers import Rectifier
from lit_xai.network.reading import name_of, positional, read, works_in_place
from lit_xai.types import require, require_positive

_CALLS = frozenset(("relu", "relu6", "hardtanh", "leaky_relu", "clamp", "clip", "clamp_min"))
_LINEAR_FROM = 30.0  # beta x beyond which softplus is x: the difference is 1e-13 / beta


@contextmanager
def softened(model: nn.Module, beta: float) -> Iterator[None]:
    """Within this context, what the model computes in this thread has softplus in place of its ReLUs.

    relu(x) -> ln(1 + exp(beta x)) / beta

    ReLU6 and leaky ReLUs are softened likewise, as modules, functions or methods, in place or not; so is a
    clamp at zero, but for one of a parameter. What is called outside of `model.forward` stays as it is, and
    so does the model: nothing is copied, and nothing hooked that belongs to it. `record` sees the same
    layers, with other outputs. A compiled network has to run eagerly, as it does within `observing`.

    Args:
        model: The network, or the module that holds it.
        beta: Sharpness, above 0, in units of one over what enters a ReLU; the error is at most ln 2 / beta.

    Raises:
        ValueError: Part of the model is scripted, so that its calls cannot be seen.

    Source: Dombrowski et al. 2019, arXiv 1906.07983, section 2 (softplus in place of ReLU).
    """
    require_positive(beta=beta)
    require(
        not any(isinstance(part, torch.jit.ScriptModule) for part in model.modules()),
        "`model` must be the eager module, not a scripted one: its ReLUs cannot be seen.",
    )
    mode, thread = _Softening(beta), threading.get_ident()

    def enter(part: nn.Module, args: Any) -> None:
        if part is model and threading.get_ident() == thread:
            mode.depth += 1

    def leave(part: nn.Module, args: Any, output: Any) -> None:
        if part is model and threading.get_ident() == thread:
            mode.depth -= 1

    handles = (
        register_module_forward_pre_hook(enter),
        register_module_forward_hook(leave, always_call=True),  # also where the network fails
    )
    try:
        with mode:
            yield
    finally:
        for handle in handles:
            handle.remove()


class _Softening(TorchFunctionMode):
    """Computes the ReLUs of a model that is running."""

    def __init__(self, beta: float) -> None:
        super().__init__()
        self.beta = beta
        self.depth = 0  # calls of the model that have begun and not ended

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        kwargs = kwargs or {}
        if not self.depth or name_of(func) not in _CALLS:
            return func(*args, **kwargs)
        args, kwargs = positional(func, args, kwargs)
        source = args[0] if args else None
        if not isinstance(source, Tensor) or isinstance(source, nn.Parameter):
            return func(*args, **kwargs)
        layer = read(func, args, kwargs, (source,))
        if not isinstance(layer, Rectifier):
            return func(*args, **kwargs)
        if works_in_place(func, kwargs):
            return source.copy_(self.soft(layer, source.clone()))
        return self.soft(layer, source)

    def soft(self, layer: Rectifier, source: Tensor) -> Tensor:
        """min(x, ceiling) where x > 0, else slope x, without its kinks."""
        value = F.softplus(source, self.beta, _LINEAR_FROM)
        if layer.slope:
            return layer.slope * source + (1 - layer.slope) * value
        if layer.ceiling < float("inf"):
            return value - F.softplus(source - layer.ceiling, self.beta, _LINEAR_FROM)
        return value
