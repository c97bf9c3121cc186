"""Maps that let only part of the gradient through each ReLU.

A ReLU is where a network decides; each method here has its own idea of which part of the gradient at its
output counts as evidence. Every other layer passes its plain gradient. Such maps are sharp and say little
about the class: much of what they show is what the early layers see (Sixt, Granz and Landgraf 2020, arXiv
1912.09818).
"""

import math
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions.base import Attribution, require_logits
from lit_xai.attributions.refusal import no_meaning, no_rule
from lit_xai.attributions.score import Logit, Scored, named, settle
from lit_xai.network import Convolution, Layer, MaxPool, Rectifier, Tape, Unknown, record
from lit_xai.types import Images, Labels, require

Gate = Callable[[Tensor, Tensor], Tensor]
Bend = Callable[[Layer, tuple[Tensor, ...]], Tensor | None]
Values = Float[Tensor, "batch value"]


@dataclass(frozen=True)
class GuidedBackprop(Attribution):
    """Gradient of the score, its negative part cut off at every ReLU.

    g' = relu'(v) max(g, 0)

    v is what enters the ReLU, g the gradient at its output. For ReLU6, relu'(v) is 0 also where it saturates.

    Args:
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Raises:
        ValueError: The network has an activation other than ReLU and ReLU6, or another layer without a rule.

    Source: Springenberg, Dosovitskiy, Brox and Riedmiller 2014, arXiv 1412.6806, section 3.4.
    """

    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        def bend(layer: Layer, sources: tuple[Tensor, ...]) -> Tensor | None:
            if not isinstance(layer, Rectifier):
                return None
            return rectified(layer, sources, lambda output, g: through(layer, output, g).relu_())

        return _gradient(self, model, inputs, target, bend)


@dataclass(frozen=True)
class Deconvolution(Attribution):
    """Gradient of the score, its negative part and nothing else cut off at every ReLU.

    g' = max(g, 0)

    g is the gradient at the output of the ReLU. What the ReLU itself did plays no part: where the score is a
    logit, only max-pooling ties the map to the image.

    Args:
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Raises:
        ValueError: The network has an activation other than ReLU and ReLU6, or another layer without a rule.

    Source: Zeiler and Fergus 2013, arXiv 1311.2901, section 2.1; as a rule for gradients, Springenberg et al.
        2014, arXiv 1412.6806, section 3.4.
    """

    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        def bend(layer: Layer, sources: tuple[Tensor, ...]) -> Tensor | None:
            if not isinstance(layer, Rectifier):
                return None
            return rectified(layer, sources, lambda _, g: g.relu())

        return _gradient(self, model, inputs, target, bend)


@dataclass(frozen=True)
class RectifiedGradient(Attribution):
    """Image times the gradient of the score, cut off at every ReLU where it matters little (RectGrad).

    x g(x),    g' = g where a g > tau, else 0, at every ReLU

    a is the output of the ReLU and g the gradient there, already cut off by those after it. tau is the q-th
    percentile of a g over all D units of the layer, for each image by itself: the element of rank
    round((D - 1) q / 100), in ascending order from 0.

    Where tau >= 0, only units with a > 0 and g > 0 are left. Where tau < 0, as happens for a small q, a unit
    that is off has a g = 0 > tau, and the gradient passes it as if it were on. Every ReLU silences a share q
    of its units, so that in a deep network nothing may be left of the gradient: the map is then zero, which
    the metric `Flags` counts.

    Args:
        percentile: q, in [0, 100].
        times_input: Whether the gradient is multiplied by the image. The product is 0 where a pixel is black,
            however much the network makes of it; Brocki and Chung 2020, arXiv 2011.05002, leave it out.
        redistribute: Whether max-pooling shares its gradient out over the window in proportion to the
            activations, see `redistributed`, in place of giving it all to the largest.
        mask_border: Whether the gradient of the outermost units is set to 0 at every convolution whose output
            has the size of its input divided by the stride, rounded up.
        threshold: A number that takes the place of tau at every layer. With 0 and without `times_input`, this
            is `GuidedBackprop`.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.

    Raises:
        ValueError: `percentile` lies outside of [0, 100]; the network has an activation other than ReLU and
            ReLU6, or another layer without a rule.

    Source: Kim, Seo, Jeon, Koo, Choe and Jeon 2019, arXiv 1902.04893; rank, redistribution and border as in
        the released code.
    Deviates: the map keeps its sign; the border is left alone unless asked for, since it is all there is of a
        layer of 2 x 2 places; where ReLU6 saturates, the gradient stops.
    """

    percentile: float = 98.0
    times_input: bool = True
    redistribute: bool = False
    mask_border: bool = False
    threshold: float | None = None
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)
        require(0 <= self.percentile <= 100, f"`percentile` must lie in [0, 100], got {self.percentile!r}.")

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        def bend(layer: Layer, sources: tuple[Tensor, ...]) -> Tensor | None:
            if isinstance(layer, Rectifier):
                return rectified(layer, sources, lambda output, g: self._cut(layer, output, g))
            if isinstance(layer, MaxPool) and self.redistribute:
                return _applied(_Shared, sources[0], layer)
            if isinstance(layer, Convolution) and self.mask_border:
                return _applied(_Framed, layer(*sources)) if _keeps_size(layer, sources[0]) else None
            return None

        maps = _gradient(self, model, inputs, target, bend)
        return inputs.detach() * maps if self.times_input else maps

    def _cut(self, layer: Rectifier, output: Tensor, gradient: Tensor) -> Tensor:
        """The gradient where it matters more than the threshold."""
        weighed = output * gradient
        if self.threshold is None:
            tau = nearest_rank(weighed.flatten(1), self.percentile)
            passing = weighed > tau.view(-1, *[1] * (weighed.ndim - 1))
        else:
            passing = weighed > self.threshold
        if layer.ceiling < math.inf:
            passing &= output < layer.ceiling
        return torch.where(passing, gradient, 0)


def nearest_rank(values: Values, percentile: float) -> Float[Tensor, " batch"]:
    """The element of rank round((D - 1) q / 100) of each row, in ascending order from 0."""
    return values.kthvalue(round((values.shape[1] - 1) * percentile / 100) + 1, dim=1).values


def redistributed(pool: MaxPool, source: Tensor, gradient: Tensor) -> Tensor:
    """The gradient of each window, shared out in proportion to what is positive in it.

    g_i = a_i g / (sum_j a_j + n 1e-10),    a = max(x, 0),    j over the n places of the window

    Where windows overlap, shares add up.

    Raises:
        ValueError: The windows have gaps.
    """
    require(
        pool.dilation == (1, 1),
        f"`redistribute` must be False for a max-pool with gaps, got one with dilation {pool.dilation}.",
    )
    positive, places = source.relu(), pool.kernel[0] * pool.kernel[1]
    window = (pool.kernel, pool.stride, pool.padding, pool.ceil, True, 1)
    share = gradient / (F.avg_pool2d(positive, *window) + places * 1e-10)
    spread: Tensor = torch.ops.aten.avg_pool2d_backward(share, positive, *window)
    return positive * spread


def bent(method: Attribution, model: nn.Module, points: Images, bend: Bend) -> Tape:
    """The network as it runs where `bend` computes the layers that pass back something else.

    Raises:
        ValueError: The logits depend on a layer that the method, `GuidedBackprop` or a kin, has no rule for.
    """
    tape = record(model, points, bend)
    require_logits(tape.output, len(points))
    _require_rules(method, tape)
    return tape


def rectified(layer: Rectifier, sources: tuple[Tensor, ...], gate: Gate) -> Tensor:
    """The layer, passing back what the gate makes of its output and the gradient there."""
    return _applied(_Gated, sources[0], layer, gate)


def through(layer: Rectifier, output: Tensor, gradient: Tensor) -> Tensor:
    """relu'(v) g, in one pass over memory; the output tells it as well as v."""
    if layer.ceiling == math.inf:
        result: Tensor = torch.ops.aten.threshold_backward(gradient, output, 0)
    else:
        result = torch.ops.aten.hardtanh_backward(gradient, output, 0, layer.ceiling)
    return result


def _gradient(method: Any, model: nn.Module, inputs: Images, target: Labels, bend: Bend) -> Images:
    """Gradient of the score, bent."""
    with torch.enable_grad():
        points = inputs.detach().requires_grad_()
        tape = bent(method, model, points, bend)
        score = named(method.score)(tape.output, target).sum()
    return torch.autograd.grad(score, points)[0]


def _require_rules(method: Attribution, tape: Tape) -> None:
    """Refuse a network whose logits depend on a layer that cannot be read, or on a leaky ReLU."""
    needed = {id(tape.output)}
    for step in reversed(tape.steps):
        if id(step.output) in needed:
            needed.update(map(id, step.sources))
            layer = step.layer
            if isinstance(layer, Unknown):
                raise no_rule(method, step)
            if isinstance(layer, Rectifier) and layer.slope:
                raise no_meaning(method, f"has no rule for a leaky ReLU (layer {step.name!r})")


def _applied(function: type[torch.autograd.Function], source: Tensor, *constants: Any) -> Tensor:
    """The function's output, with its own way back."""
    output: Tensor = function.apply(source, *constants)
    return output


def _keeps_size(layer: Convolution, source: Tensor) -> bool:
    """Whether the output has the size of the source divided by the stride, rounded up."""
    axes = zip(
        source.shape[2:], layer.raw.shape[2:], layer.stride, layer.padding, layer.dilation, strict=True
    )
    return all(
        -(-size // stride) == (size + 2 * padding - dilation * (kernel - 1) - 1) // stride + 1
        for size, kernel, stride, padding, dilation in axes
    )


class _Gated(torch.autograd.Function):
    """A ReLU with a gate for its gradient."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, layer: Rectifier, gate: Gate) -> Tensor:
        output = layer(source)
        ctx.save_for_backward(output)
        ctx.gate = gate
        return output

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None, None]:
        (output,) = ctx.saved_tensors
        return ctx.gate(output, gradient), None, None


class _Shared(torch.autograd.Function):
    """A max-pool that shares its gradient out."""

    @staticmethod
    def forward(ctx: Any, source: Tensor, layer: MaxPool) -> Tensor:
        ctx.save_for_backward(source)
        ctx.layer = layer
        return layer(source)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:
        (source,) = ctx.saved_tensors
        return redistributed(ctx.layer, source, gradient), None


class _Framed(torch.autograd.Function):
    """A layer's output, with no gradient at its outermost places."""

    @staticmethod
    def forward(ctx: Any, output: Tensor) -> Tensor:
        return output.view_as(output)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> Tensor:
        kept = torch.zeros_like(gradient)
        kept[:, :, 1:-1, 1:-1] = gradient[:, :, 1:-1, 1:-1]
        return kept
