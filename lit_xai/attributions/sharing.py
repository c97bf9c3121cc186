"""Sharing ratios: how much of the vector at one place each place before it accounts for.

The relevance R of a place is carried as the vector s = v R / |v|^2, where v is what entered its ReLU. All
that is linear pulls s back as a gradient, and a source place x that receives g has the relevance <x, g>: its
share of R, for all targets at once. A bias has no direction to be pulled along: its relevance is divided by
the rule, and travels beside, as one number per place.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.attributions import taps
from lit_xai.attributions.base import (
    Attribution,
    check,
    entering,
    keeping_graph,
    require_logits,
    require_one_of,
)
from lit_xai.attributions.refusal import no_rule
from lit_xai.network import (
    Addition,
    Average,
    Concatenation,
    Convolution,
    Layer,
    Linear,
    MaxPool,
    Rearrangement,
    Rectifier,
    Scaling,
    Step,
    Tape,
    record,
)
from lit_xai.types import Images, Labels, Scores, require

Head = Literal["gradient", "grad_cam", "sharing"]


@dataclass(frozen=True)
class SharingRatio(Attribution):
    """Relevance handed from place to place by sharing ratios (SRD): one number per place, for all channels.

    R_i = sum_j mu_ij R_j,  mu_ij = <c_ij, v_j> / |v_j|^2
    c_ij = u_ij + b |u_ij| / sum_i' |u_i'j|

    The vector v_j is what enters a ReLU, its negative entries included; u_ij is what place i adds to it
    through its tap of the convolution, and b the bias, batch norm folded in. At a residual addition v_j is
    the sum, and each path divides its own bias. The shares of one v_j add up to 1; they may be negative. A
    max pool hands each channel to the place of its maximum. The relevance of the last places is what they add
    to the logit. So the map adds up to the logit, but for what arrives where v_j is 0: it has no shares, and
    is lost. Where |v_j| is tiny beside its parts, shares are huge and cancel: maps and their gradients are
    then large, not wrong.

    All classes have the same ratios, and differ in the last places alone: of a grid of n places there are at
    most n linearly independent maps, and of one place all maps are alike up to a factor. A hidden vector of
    an MLP head is one place too. Hence `head`:

    * "gradient": ReLUs on vectors keep their on/off states, and are linear then. What a place adds to the
      logit is <x, gradient> and its share of the biases. It knows classes, and adds up to the logit: the
      default.
    * "grad_cam": max(0, <v, mean gradient over the places>) at the last ReLU that has places, as released for
      VGG.
    * "sharing": by the rule; all classes have the same map, up to a factor.

    Without ReLUs on vectors, "gradient" and "sharing" are the same.

    Args:
        head: How relevance passes ReLUs on vectors.
        contrast: Whether the mean is subtracted from the relevance of the last places; the map adds up to 0.
        bias: Whether biases are shared. Without, c_ij = u_ij, and relevance is lost; the last places keep the
            bias in what they add to the logit.
        joint_pool: Whether a convolution that reads a max pool divides its bias by norm over pairs of pool
            offset and tap, as released; else over its taps, and then over the channels by their squares.
        per_channel: Whether each channel of the image is a place of its own, as released for VGG; else the
            value is divided evenly over the channels.

    Raises:
        ValueError: The network computes what no ratio is defined for, such as GELU, layer norm or attention.

    Source: Han, Kim and Kwak 2024, arXiv 2402.03348, and its released code.
    Deviates: epsilon of batch norm in the bias too, so that maps add up; where all u_ij are 0, b is divided
    evenly. Average pools, concatenations, batch norms without a convolution, grouped convolutions, linear
    layers on maps and ReLU6, none of them in the released code: what is linear is pulled, the bias is divided
    by norm over places or summands, and evenly within an average.
    """

    head: Head = "gradient"
    contrast: bool = False
    bias: bool = True
    joint_pool: bool = False
    per_channel: bool = False

    def __post_init__(self) -> None:
        require_one_of(Head, head=self.head)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        with torch.set_grad_enabled(keeping_graph()):
            tape = _recorded(model, inputs)
            relevance = _Descent(tape, self)([_start(tape, target)])
            return (relevance * (relevance.shape[1] / inputs.shape[1])).expand_as(inputs).contiguous()

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The logit; 0 with `contrast`; for Grad-CAM what its map adds up to."""
        with torch.no_grad():
            tape = _recorded(model, inputs)
            logit = tape.output.gather(1, target[:, None])[:, 0]
            if self.contrast:
                return torch.zeros_like(logit)
            if self.head != "grad_cam":
                return logit
            descent = _Descent(tape, self)
            descent([_start(tape, target)])
            tops = [top.flatten(1).sum(1) for top in descent.tops]
            return torch.stack(tops).sum(0) if tops else logit


def effective_receptive_field(
    model: nn.Module, inputs: Images, layer: str, location: tuple[int, int]
) -> Float[Tensor, "batch height width"]:
    """Return how much of the vector at one place of a layer each pixel accounts for, by sharing ratios.

    ERF(v_j) = sum_i mu_ij ERF(v_i)

    The ratios are those of `SharingRatio`. Each field adds up to 1, unless relevance is lost where a vector
    is 0; entries may be negative. Fields weighted by the relevance of the last places add up to its map.

    Args:
        model: The network, in eval mode.
        inputs: The images.
        layer: Name of a module, as in `model.named_modules()`, with output (batch, channel, height, width),
            or (batch, channel): a single place. The vector of a ReLU is what entered it.
        location: Row and column of the place, from 0.

    Raises:
        ValueError: There is no such layer, the nearest names being listed, or no such place; the network
            computes what no ratio is defined for.

    Source: Han, Kim and Kwak 2024, arXiv 2402.03348 (effective receptive fields).
    """
    check(model, inputs, inputs.new_zeros(len(inputs), dtype=torch.int64))
    with torch.set_grad_enabled(keeping_graph()):
        tape = record(model, entering(inputs))
        value = tape.value(layer)
        require(
            value.ndim in (2, 4),
            f"`layer` must have an output (batch, channel, height, width), got "
            f"{tuple(value.shape)} from {layer!r}.",
        )
        rows, columns = value.shape[2:] if value.ndim == 4 else (1, 1)
        row, column = location
        require(
            0 <= row < rows and 0 <= column < columns,
            f"`location` must lie in rows 0..{rows - 1} and columns 0..{columns - 1} of {layer!r}, "
            f"got {tuple(location)}.",
        )
        entered = {id(step.output): step.source for step in tape.steps if isinstance(step.layer, Rectifier)}
        value = entered.get(id(value), value)
        chosen = torch.zeros_like(value[:, :1])
        chosen.reshape(len(value), rows, columns)[:, row, column] = 1
        return _Descent(tape, SharingRatio())([(value, _along(value, chosen))])[:, 0]


def _recorded(model: nn.Module, inputs: Images) -> Tape:
    tape = record(model, entering(inputs))
    require_logits(tape.output, len(inputs))
    return tape


def _start(tape: Tape, target: Labels) -> tuple[Tensor, Tensor]:
    """The message at the logits: the direction of the target class."""
    return tape.output, F.one_hot(target, tape.output.shape[1]).to(tape.output)


class _Descent:
    """One walk to the pixels: messages are gradients, and beside them goes relevance of places."""

    def __init__(self, tape: Tape, method: SharingRatio) -> None:
        self.tape = tape
        self.method = method
        self.tops: list[Tensor] = []  # relevance of the last places, as the walk comes to them
        self.beside: dict[int, Tensor] = {}  # relevance that has no direction, by value: (batch, 1, ...)
        self.makers = {id(step.output): step for step in tape.steps}
        self.below: set[int] = set()  # values from which a ReLU with places leads to the logits
        for step in reversed(tape.steps):
            if id(step.output) in self.below or (isinstance(step.layer, Rectifier) and step.output.ndim == 4):
                self.below.update(map(id, step.sources))
        self.pixels = {id(tape.inputs)}  # the images, and what they are after normalisation
        for step in tape.steps:
            if isinstance(step.layer, Scaling) and id(step.source) in self.pixels:
                self.pixels.add(id(step.output))

    def __call__(self, seeds: Sequence[tuple[Tensor, Tensor]]) -> Tensor:
        """Relevance of the pixels: (batch, 1, height, width), or with the channels of the image."""
        images = self.tape.inputs
        shares = images * self.tape.walk(seeds, self.rule)
        shares = shares if self.method.per_channel else shares.sum(1, keepdim=True)
        shares = _add(self.beside.get(id(images)), shares)
        if self.method.contrast and not self.tops:
            shares = shares - shares.mean((1, 2, 3), keepdim=True)
        return shares

    def rule(self, step: Step, g: Tensor) -> tuple[Tensor, ...]:
        """Messages for the sources of a step, from the message at its output."""
        beside = self.beside.pop(id(step.output), None)
        x, y = step.source, step.output
        match step.layer:
            case Rectifier() as layer if y.ndim in (2, 4):
                return (self.rectify(layer, x, y, g, beside),)
            case (Convolution() | Linear()) as layer if y.ndim == (2 if isinstance(layer, Linear) else 4):
                if layer.bias is not None and self.counted(y):
                    beside = _add(beside, _inner(layer.bias, g))
                if beside is not None:
                    self.divide(layer, x, beside)
                return layer.pull(g, x)
            case Scaling() as layer:
                if self.counted(y) or id(x) in self.pixels:
                    shift = layer.shift * g
                    apart = self.method.per_channel and id(x) in self.pixels
                    beside = _add(beside, shift if apart else shift.sum(1, keepdim=True))
                self.keep(x, beside)
                return (g * layer.scale,)
            case Average() as layer if y.ndim > 1 and x.shape[1] == y.shape[1]:
                if beside is not None:
                    thin = x[:, : beside.shape[1]]
                    self.keep(x, *layer.pull(beside / layer(torch.ones_like(thin)), thin))
                return layer.pull(g, x)
            case (Addition() | Concatenation()) as layer:
                if beside is not None:
                    self.part(layer, step.sources, beside)
                return (g, g) if isinstance(layer, Addition) else layer.pull(g, *step.sources)
            case MaxPool() as layer:
                index = layer.maxima(x)
                if beside is not None:
                    self.keep(x, layer.scatter(index, _entries(beside, y), x).sum(1, keepdim=True))
                return (layer.scatter(index, g, x),)
            case Rearrangement() as layer:
                if beside is not None:
                    (entries,) = layer.pull(_entries(beside, y), x)
                    self.keep(x, entries.sum(1, keepdim=True) if x.ndim in (2, 4) else entries)
                return layer.pull(g, x)
        raise no_rule(self.method, step)

    def rectify(self, layer: Rectifier, x: Tensor, y: Tensor, g: Tensor, beside: Tensor | None) -> Tensor:
        """A ReLU: of places, or in the head."""
        if y.ndim == 2 and self.method.head != "sharing":
            slope = layer.derivative(x)
            if layer.ceiling < math.inf:
                beside = _add(beside, ((y - slope * x) * g).sum(1, keepdim=True))
            self.keep(x, beside)
            return slope * g
        relevance = _add(beside, (y * g).sum(1, keepdim=True))
        if y.ndim == 4 and id(y) not in self.below:
            if self.method.head == "grad_cam":
                slope = (layer.derivative(x) * g).mean((2, 3), keepdim=True)
                relevance = (x * slope).sum(1, keepdim=True).relu()
            if self.method.contrast:
                relevance = relevance - relevance.mean((2, 3), keepdim=True)
            self.tops.append(relevance)
        return _along(x, relevance)

    def counted(self, y: Tensor) -> bool:
        """Whether a constant that is added to make y has a share: above the last places always."""
        return self.method.bias or id(y) not in self.below

    def keep(self, value: Tensor, relevance: Tensor | None) -> None:
        """Put relevance down beside a value."""
        if relevance is not None:
            if self.method.per_channel and id(value) in self.pixels:
                relevance = _entries(relevance, value)
            self.beside[id(value)] = _add(self.beside.get(id(value)), relevance)

    def part(self, layer: Layer, sources: Sequence[Tensor], beside: Tensor) -> None:
        """Divide relevance beside a sum, or beside channels one after another, by the norms of the parts."""
        if isinstance(layer, Concatenation) and layer.dim % beside.ndim != 1:
            parts: Sequence[Tensor] = layer.pull(beside, *(source[:, :1] for source in sources))
        else:
            norms = torch.stack([torch.linalg.vector_norm(source, dim=1, keepdim=True) for source in sources])
            parts = taps.shared(beside, norms.clamp_min(taps.least(norms)), 0).unbind()
        for source, own in zip(sources, parts, strict=True):
            self.keep(source, own)

    def divide(self, layer: Convolution | Linear, x: Tensor, beside: Tensor) -> None:
        """Divide relevance beside an affine map over the places it reads, by the norms of what they add."""
        apart = self.method.per_channel and id(x) in self.pixels
        maker = self.makers.get(id(x))
        if isinstance(layer, Linear):
            value = self.laid_out(x)
            if value.ndim == 2:
                return self.keep(x, beside)
            if self.method.per_channel and id(value) in self.pixels:
                norms = (torch.linalg.vector_norm(layer.weight, dim=0) * x.abs()).reshape_as(value)
                norms = norms.clamp_min(taps.least(norms))
            else:
                norms = taps.place_norms(layer.weight, value)
            self.keep(value, taps.shared(beside[:, :, None, None], norms, (1, 2, 3)))
        elif apart:
            self.keep(x, taps.divided(layer, x, beside, torch.eye(x.shape[1]).to(x)[:, None, :, None, None]))
        elif self.method.joint_pool and maker is not None and isinstance(maker.layer, MaxPool):
            found = taps.divided(layer, x, beside, taps.winners(maker.layer, maker.source))
            self.keep(maker.source, taps.back(maker.layer, found[:, None], maker.source.shape[2:]))
        else:
            self.keep(x, taps.divided(layer, x, beside))

    def laid_out(self, x: Tensor) -> Tensor:
        """The map that a vector is, where channels, rows and columns were only written one after another."""
        value = x
        while value.ndim < 4 and (maker := self.makers.get(id(value))):
            if not isinstance(maker.layer, Rearrangement):
                break
            value = maker.source
        flat = value.flatten(1)
        return value if value.ndim == 4 and flat.shape == x.shape and torch.equal(flat, x) else x


def _add(one: Tensor | None, other: Tensor) -> Tensor:
    return other if one is None else one + other


def _inner(vector: Tensor, g: Tensor) -> Tensor:
    """<vector, g> over the channels, place by place."""
    flat = g.flatten(2) if g.ndim > 2 else g[:, :, None]
    return (vector.detach() @ flat).reshape_as(g[:, :1])


def _along(x: Tensor, relevance: Tensor) -> Tensor:
    """The message at x that stands for the relevance of its places: x R / |x|^2, and 0 where x is 0."""
    power = x.square().sum(1, keepdim=True)
    alive = power > torch.finfo(x.dtype).tiny ** 0.5
    return x * torch.where(alive, relevance / torch.where(alive, power, 1), 0)


def _entries(relevance: Tensor, x: Tensor) -> Tensor:
    """Relevance of places, divided over the channels of x by their squares; of entries, as it is."""
    if relevance.shape == x.shape:
        return relevance
    return taps.shared(relevance, x.square().clamp_min(taps.least(x)), 1)
