"""How calls of torch are read as layers.

A module, a function and a method, in place or not, are the same layer: what counts is the call.
"""

import math
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_xai.network.layers import (
    Addition,
    Average,
    Concatenation,
    Convolution,
    Layer,
    Linear,
    MaxPool,
    Pair,
    Rearrangement,
    Rectifier,
    Scaling,
    Unknown,
)


def name_of(function: Callable[..., Any]) -> str:
    """What torch calls the function, without the mark of working in place."""
    name = getattr(function, "__name__", str(function))
    return name if name.startswith("__") else name.rstrip("_")


def works_in_place(function: Callable[..., Any], kwargs: dict[str, Any]) -> bool:
    """Whether the call changes its first argument."""
    name = getattr(function, "__name__", "")
    in_place = name.endswith("_") and not name.endswith("__")
    return in_place or name in ("__setitem__", "__iadd__") or bool(kwargs.get("inplace"))


def is_blank(function: Callable[..., Any], args: tuple[Any, ...], sources: Sequence[Tensor]) -> bool:
    """Whether the call asks the images for no more than their shape."""
    return name_of(function) in _BLANKS and len(sources) == 1 and bool(args) and args[0] is sources[0]


def positional(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """The call with what it reads in front: `relu(input=x)` is `relu(x)`."""
    name = name_of(function)
    keys = ("tensors",) if name in _JOINS else ("input", "other") if name in _ARITHMETIC else ("input",)
    if name not in _FRONT or not kwargs:
        return args, kwargs
    front = [key for key in keys[len(args) :] if key in kwargs]
    rest = {key: value for key, value in kwargs.items() if key not in front}
    return (*args, *(kwargs[key] for key in front)), rest


def read(
    function: Callable[..., Any], args: tuple[Any, ...], kwargs: dict[str, Any], sources: Sequence[Tensor]
) -> Layer:
    """The layer that a call of torch is.

    Args:
        function: As `torch.overrides.TorchFunctionMode` hands it over.
        args: Its positional arguments.
        kwargs: Its keyword arguments.
        sources: Those of its arguments that depend on the image; everything else is a constant.
    """
    name = name_of(function)
    layer: Layer | None = None
    if not all(source.is_floating_point() for source in sources):
        pass
    elif name in _ARITHMETIC:
        layer = _arithmetic(name, args, kwargs, sources)
    elif len(sources) == 1 and args and args[0] is sources[0]:
        if name in _READERS:
            layer = _READERS[name](*args, **kwargs)
        elif name in _COPIES:
            in_place = works_in_place(function, kwargs)
            layer = Rearrangement(
                lambda source: function(source.clone() if in_place else source, *args[1:], **kwargs)
            )
        elif name in _AVERAGES:
            layer = Average(lambda source: function(source, *args[1:], **kwargs))
    elif name in _JOINS and len(sources) == len(args[0]):
        layer = _cat(*args, **kwargs)
    return layer or Unknown(name)


def _pair(value: Any) -> Pair:
    one, two = (value, value) if isinstance(value, int) else (tuple(value) * 2)[:2]
    return int(one), int(two)


def _conv2d(
    input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1, padding: Any = 0,
    dilation: Any = 1, groups: int = 1,
) -> Layer | None:  # fmt: skip
    if isinstance(padding, str):
        reach = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        if padding == "same" and any(r % 2 for r in reach):
            return None
        padding = [r // 2 for r in reach] if padding == "same" else 0
    return Convolution(weight, bias, _pair(stride), _pair(padding), _pair(dilation), groups)


def _linear(input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Layer:
    return Linear(weight, bias)


def _batch_norm(
    input: Tensor, running_mean: Tensor | None, running_var: Tensor | None, weight: Tensor | None = None,
    bias: Tensor | None = None, training: bool = False, momentum: float = 0.1, eps: float = 1e-5,
) -> Layer | None:  # fmt: skip
    if training or running_mean is None or running_var is None:
        return None
    scale = (running_var + eps).rsqrt()
    scale = scale if weight is None else scale * weight
    shift = -running_mean * scale
    shift = shift if bias is None else shift + bias
    shape = (1, -1, *[1] * (input.ndim - 2))
    return Scaling(scale.reshape(shape), shift.reshape(shape))


def _max_pool2d(
    input: Tensor, kernel_size: Any, stride: Any = None, padding: Any = 0, dilation: Any = 1,
    ceil_mode: bool = False, return_indices: bool = False,
) -> Layer | None:  # fmt: skip
    if return_indices:
        return None
    stride = kernel_size if stride is None or stride == [] else stride
    return MaxPool(_pair(kernel_size), _pair(stride), _pair(padding), _pair(dilation), ceil_mode)


def _hardtanh(
    input: Tensor, min_val: float = -1.0, max_val: float = 1.0, inplace: bool = False
) -> Layer | None:
    return Rectifier(float(max_val)) if min_val == 0 else None


def _clamp(input: Tensor, min: Any = None, max: Any = None) -> Layer | None:
    if isinstance(min, Tensor) or isinstance(max, Tensor) or min != 0:
        return None
    return Rectifier(math.inf if max is None else float(max))


def _leaky_relu(input: Tensor, negative_slope: float = 0.01, inplace: bool = False) -> Layer:
    return Rectifier(slope=float(negative_slope))


def _dropout(input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False) -> Layer | None:
    return None if training and p else Rearrangement(torch.clone)


def _pad(input: Tensor, pad: Any, mode: str = "constant", value: float | None = None) -> Layer | None:
    if mode == "constant" and value:
        return None
    return Rearrangement(lambda source: F.pad(source, pad, mode))


def _matmul(input: Tensor, other: Tensor) -> Layer | None:
    return Linear(other.mT, None) if other.ndim == 2 else None


def _cat(tensors: Any, dim: int = 0) -> Layer:
    return Concatenation(dim)


def _arithmetic(
    name: str, args: tuple[Any, ...], kwargs: dict[str, Any], sources: Sequence[Tensor]
) -> Layer | None:
    """Sum of two activations of one shape, or entry-by-entry arithmetic of one with a constant."""
    if len(args) != 2 or any(value != 1 for value in kwargs.values()):
        return None
    first, second = args if not name.startswith("__r") else (args[1], args[0])
    kind = _ARITHMETIC[name]
    if len(sources) == 2:
        return Addition() if kind == "add" and first.shape == second.shape else None
    turned = second is sources[0]
    constant, source = (first, second) if turned else (second, first)
    if isinstance(constant, Tensor) and not _fits(constant, source):
        return None
    constant = constant.to(source.dtype) if isinstance(constant, Tensor) else constant
    if kind == "add":
        return Scaling(1.0, constant)
    if kind == "sub":
        return Scaling(-1.0, constant) if turned else Scaling(1.0, -constant)
    if kind == "mul":
        return Scaling(constant, 0.0)
    return None if turned else Scaling(1 / constant, 0.0)


def _fits(constant: Tensor, source: Tensor) -> bool:
    """Whether the constant broadcasts to the shape of the source, and not the other way round."""
    trailing = source.shape[source.ndim - constant.ndim :]
    return constant.ndim <= source.ndim and all(
        one in (1, many) for one, many in zip(constant.shape, trailing, strict=True)
    )


_ARITHMETIC = {
    name: kind
    for kind, names in {
        "add": ("add", "__add__", "__radd__", "__iadd__"),
        "sub": ("sub", "subtract", "__sub__", "__rsub__", "__isub__"),
        "mul": ("mul", "multiply", "__mul__", "__rmul__", "__imul__"),
        "div": ("div", "divide", "true_divide", "__truediv__", "__rtruediv__", "__itruediv__"),
    }.items()
    for name in names
}
_READERS: dict[str, Callable[..., Layer | None]] = {
    "conv2d": _conv2d,
    "linear": _linear,
    "batch_norm": _batch_norm,
    "relu": lambda input, inplace=False: Rectifier(),
    "relu6": lambda input, inplace=False: Rectifier(6.0),
    "hardtanh": _hardtanh,
    "leaky_relu": _leaky_relu,
    "clamp": _clamp,
    "clip": _clamp,
    "clamp_min": _clamp,
    "max_pool2d": _max_pool2d,
    "dropout": _dropout,
    "dropout2d": _dropout,
    "feature_dropout": _dropout,
    "pad": _pad,
    **dict.fromkeys(("matmul", "__matmul__", "mm"), _matmul),
}
_COPIES = frozenset([
    "view", "view_as", "reshape", "reshape_as", "flatten", "ravel", "unflatten", "squeeze", "unsqueeze",
    "expand", "expand_as", "repeat", "tile", "permute", "transpose", "t", "swapaxes", "swapdims", "movedim",
    "moveaxis", "flip", "roll", "contiguous", "clone", "narrow", "select", "__getitem__", "chunk", "split",
    "tensor_split", "unbind", "channel_shuffle", "pixel_shuffle", "pixel_unshuffle", "float", "double", "to",
])  # fmt: skip
_AVERAGES = frozenset(("avg_pool2d", "adaptive_avg_pool2d", "mean", "sum"))
_JOINS = frozenset(("cat", "concat", "concatenate"))
_BLANKS = frozenset([
    "zeros_like", "ones_like", "full_like", "empty_like", "rand_like", "randn_like",
    "new_zeros", "new_ones", "new_full", "new_empty",
])  # fmt: skip
_FRONT = frozenset((*_ARITHMETIC, *_READERS, *_COPIES, *_AVERAGES, *_JOINS))
