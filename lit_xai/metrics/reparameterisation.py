"""The same function of the same image, written otherwise: a map that changes explains the writing."""

import copy
import math
from collections.abc import Callable
from functools import partial
from typing import Any, ClassVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.boundary import OnBoundary
from lit_xai.attributions.flux import NegativeFlux
from lit_xai.attributions.trajectory import MFABA, AdversarialGradientIntegration
from lit_xai.memory import once
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.metrics.controls import Borrowed
from lit_xai.metrics.shared import clean_logits
from lit_xai.types import Images, Labels, Logits, Scores, require

BOXED = (OnBoundary, NegativeFlux, AdversarialGradientIntegration, MFABA)


def relative_change(before: Images, after: Images) -> Scores:
    """||A' - A|| / ||A|| of two maps, in double precision; NaN where A is zero or either is not finite."""
    first, second = before.flatten(1).double(), after.flatten(1).double()
    change: Scores = (second - first).norm(dim=1) / first.norm(dim=1)
    return change.where(change.isfinite(), math.nan)


def reparameterised(model: nn.Module, inputs: Images, shift: float) -> tuple[nn.Module, nn.Module]:
    """The network f, and a network g with g(x + c) = f(x) whose first layer takes the shift back.

    b' = b - sum W d,    padding d in place of 0,    d = what c has become when it reaches the layer

    The first layer is the convolution or linear layer that is called first; behind a normalisation, d is c by
    the standard deviation of the channel. Its padding is a layer of its own in f as well, so that the two
    differ by c alone. Where that does not give the same function (another layer reads the image as well, or
    what is in front is not affine) the shift is taken back from the pixels: g(z) = f(z - c). Both share
    modules and parameters with the network, which stays as it is; g is f up to rounding.

    Args:
        model: The network f.
        inputs: Images, for their shape, type and device; what is in them does not matter.
        shift: c, in pixel units.
    """
    taken = first_shift(model, inputs)
    if taken is None:
        return model, _with_forward(model, partial(_moving_back, model, shift=shift))
    nets = [_with_forward(model, partial(_taking_back, model, taken=c * taken)) for c in (0.0, shift)]
    return nets[0], nets[1]


def first_shift(model: nn.Module, inputs: Images) -> Tensor | None:
    """What a shift of all pixels by 1 has become when it reaches the first layer, per channel or feature.

    None where taking that back there does not give the same function, as tried on one image.
    """
    black = inputs.new_zeros(1, *inputs.shape[1:])
    ramp = torch.linspace(0, 1, black.numel(), dtype=inputs.dtype, device=inputs.device).view_as(black)
    with torch.no_grad():
        taken = _arriving(model, torch.cat([black, black + 1]))
        if taken is None:
            return None
        meant = model(ramp)
        off = (_taking_back(model, ramp + 1, taken) - meant).abs().max()
        return taken if bool(off <= 1e-3 * meant.abs().max()) else None


class Reparameterisation(Metric):
    """How much a map changes when all pixels are shifted and the first layer takes the shift back.

    * change = ||A' - A|| / ||A||, median: A' is the map of x + c by a network g with g(x + c) = f(x), A that
      of x by the same with c = 0, see `reparameterised`. 0 for a map of the function; one that is multiplied
      by its input changes with the factor, as do rules that look at the first bias;
    * logits = max |g(x + c) - f(x)| / max |f(x)|: what rounding does, and how far `change` is to be believed.

    What a method fixes in pixel units, as a baseline or the bounds of `ZBox`, stays where it is, so that such
    a map changes. Methods that keep their points in [0, 1] do not apply: x + c is not in it. It costs two
    maps per image and one forward pass, and two forward passes per batch.

    Args:
        shift: c, in pixel units, not 0.

    Raises:
        ValueError: `shift` is 0 or not finite.

    Source: Kindermans et al. 2017, arXiv 1711.00867 (input invariance); Brocki and Chung 2020, arXiv
        2011.05002 (the factor as the cause).
    Deviates: the number is ours; padding is shifted as well, without which the function is not the same.
    """

    quantities: ClassVar = {
        "change": Quantity("lower", (0.0, math.inf), median=True),
        "logits": Quantity("lower", (0.0, math.inf)),
    }

    def __init__(self, shift: float = 0.5) -> None:
        super().__init__()
        require(
            shift != 0 and math.isfinite(shift), f"`shift` must be finite and other than 0, got {shift!r}."
        )
        self.shift = shift

    def applies(self, attribution: Attribution) -> bool:
        method = attribution.method if isinstance(attribution, Borrowed) else attribution
        return not isinstance(method, BOXED)

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attribution: Attribution
    ) -> dict[str, Scores]:
        def rewritten() -> tuple[nn.Module, nn.Module, Images, Scores]:
            (same, twin), moved = reparameterised(model, inputs, self.shift), inputs + self.shift
            with torch.no_grad():
                off = (twin(moved).double() - clean).abs().amax(1)
            return same, twin, moved, off / clean.abs().amax(1)

        clean = clean_logits(model, inputs, target).double()
        question = ("reparameterised", self.shift)
        same, twin, moved, off = once(question, model, inputs, target, rewritten)
        maps = (attribution(net, images, target) for net, images in ((same, inputs), (twin, moved)))
        return {"change": relative_change(*maps), "logits": off}


def _with_forward(model: nn.Module, forward: Callable[[Images], Logits]) -> nn.Module:
    """The network with another forward pass; modules, parameters, hooks and names are its own.

    The pass is a `partial` of the network, not a closure around it: a copy of the twin, as `Untrained` makes
    one, then runs the weights of the copy.
    """
    twin = copy.copy(model)
    twin.forward = forward
    return twin


def _arriving(model: nn.Module, pair: Images) -> Tensor | None:
    """How two flat images differ when they reach the first layer, one number per channel or feature.

    None where they reach none. That it is the same number at every place is for the caller to try.
    """
    try:
        with _First(None):
            model.forward(pair)
    except _Reached as reached:
        taken: Tensor = reached.seen[1] - reached.seen[0]
        if reached.name == "conv2d":
            return taken[:, :1, :1]
        return taken.flatten(0, -2)[0] if taken.ndim > 1 else taken
    return None


def _moving_back(model: nn.Module, images: Images, shift: float) -> Logits:
    """A forward pass of images whose pixels are moved back."""
    logits: Logits = model.forward(images - shift)
    return logits


def _taking_back(model: nn.Module, images: Images, taken: Tensor) -> Logits:
    """A forward pass whose first layer takes something back from what it reads."""
    with _First(taken):
        logits: Logits = model.forward(images)
    return logits


class _Reached(Exception):
    """The first layer was reached: the way to leave a network there."""

    def __init__(self, name: str, seen: Tensor) -> None:
        super().__init__(name)
        self.name, self.seen = name, seen


class _First(TorchFunctionMode):
    """Computes the first convolution or linear layer otherwise; with nothing to take back, stops there."""

    def __init__(self, taken: Tensor | None) -> None:
        super().__init__()
        self.taken, self.waiting = taken, True

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        name = getattr(func, "__name__", "")
        if not self.waiting or name not in ("conv2d", "linear"):
            return func(*args, **(kwargs or {}))
        self.waiting = False
        if self.taken is None:
            raise _Reached(name, args[0] if args else (kwargs or {})["input"])
        layer = _convolution if name == "conv2d" else _linear
        return layer(self.taken, *args, **(kwargs or {}))


def _linear(taken: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """W (x - d) + b, as a linear layer that reads x."""
    less = F.linear(taken, weight)
    return F.linear(input, weight, -less if bias is None else bias - less)


def _convolution(
    taken: Tensor, input: Tensor, weight: Tensor, bias: Tensor | None = None, stride: Any = 1,
    padding: Any = 0, dilation: Any = 1, groups: int = 1,
) -> Tensor:  # fmt: skip
    """W * (x - d) + b with padding 0, as a convolution that reads x, with padding d."""
    less = F.conv2d(taken.expand(1, -1, *weight.shape[2:]), weight, None, groups=groups).flatten()
    before, after = _padding(padding, dilation, weight)
    if any((*before, *after)):
        edges = (before[1], after[1], before[0], after[0])
        frame = F.pad(input.new_zeros(1, 1, *input.shape[2:]), edges, value=1.0) * taken
        input = F.pad(input, edges) + frame
    return F.conv2d(input, weight, -less if bias is None else bias - less, stride, 0, dilation, groups)


def _padding(padding: Any, dilation: Any, weight: Tensor) -> tuple[list[int], list[int]]:
    """Rows and columns of padding before and after the image."""
    if padding == "same":
        reach = [d * (k - 1) for d, k in zip(_pair(dilation), weight.shape[2:], strict=True)]
        return [r // 2 for r in reach], [r - r // 2 for r in reach]
    sides = [0, 0] if padding == "valid" else _pair(padding)
    return sides, sides


def _pair(value: Any) -> list[int]:
    sizes = [value] if isinstance(value, int) else list(value)
    return sizes if len(sizes) == 2 else sizes * 2
