"""Maps made by running the network backwards: where the features of an image came from."""

from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attributions.base import Attribution, require_logits
from lit_xai.attributions.refusal import no_meaning
from lit_xai.models.backtracking import Backtracking, Pooling, feature_map
from lit_xai.network import record
from lit_xai.types import Images, Labels, require, require_at_least, require_positive


@dataclass(frozen=True)
class SaliencyByTracing(Attribution):
    """Where in the image the strongest features came from, each traced back by itself (SAT).

    sum_c z_c M_c,    M_c = 1[S_c > t mean(S_c)],    S_c = sum over colours of |T(B e_c) - T(0)|

    z_c is the peak of channel c, e_c is 1 at its place, and T runs the network backwards. The class does not
    matter: the map shows what was seen, not what it speaks for. Weights with orthogonal rows are what it is
    made for.

    Args:
        layer: Name of a module with output (batch, channel, height, width); by default the last that still
            tells places apart.
        features: How many channels are traced, those of the largest peaks, at least 1.
        amplitude: B, above 0: a feature, in units of the layer, large enough to outweigh biases.
        threshold: t, at least 0: how far a pixel stands out of the mean.
        skip_border: Whether channels with their peak on the border of the layer are left out.
        pooling: What a max pool becomes, see `Backtracking`.
        guided: Whether a ReLU passes on only what it had let through, see `Backtracking`.
        chunk: Images in one pass at most, forwards or backwards, at least 1.

    Raises:
        ValueError: The layer does not exist or has no places, or one on the way back has no inverse.

    Source: Zhang et al. 2023, arXiv 2212.09062, algorithm 1; B, t and the border as in the released code.
    Deviates: not divided by its maximum; divided evenly over the channels of the image. A channel left out
    for its border counts nothing, where the released code gives it a peak of -100.
    """

    layer: str | None = None
    features: int = 256
    amplitude: float = 1000.0
    threshold: float = 3.0
    skip_border: bool = True
    pooling: Pooling = "nearest"
    guided: bool = False
    chunk: int = 256

    def __post_init__(self) -> None:
        require_at_least(1, features=self.features, chunk=self.chunk)
        require_positive(amplitude=self.amplitude)
        require_at_least(0, threshold=self.threshold)
        Backtracking(self.pooling, self.guided)

    @torch.no_grad()
    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return torch.cat([self._traced(model, block) for block in torch.split(inputs.detach(), self.chunk)])

    def _traced(self, model: nn.Module, inputs: Images) -> Images:
        tape = record(model, inputs)
        require_logits(tape.output, len(inputs))
        value = feature_map(tape) if self.layer is None else tape.value(self.layer)
        if value is None:
            raise no_meaning(self, "needs a layer with places, and this network has none")
        require(
            value.ndim == 4,
            "`layer` must have an output (batch, channel, height, width), but "
            f"{self.layer!r} gives {tuple(value.shape)}: name another, or none.",
        )
        height, width = value.shape[2:]
        peaks, places = value.flatten(2).max(2)
        if self.skip_border:
            row, column = places // width, places % width
            inside = (row > 0) & (row < height - 1) & (column > 0) & (column < width - 1)
            peaks = peaks.masked_fill(~inside, -torch.inf)
        peaks, channels = peaks.topk(min(self.features, peaks.shape[1]))
        peaks = peaks.masked_fill(peaks == -torch.inf, 0)
        entries = channels * (height * width) + places.gather(1, channels)

        back = Backtracking(self.pooling, self.guided)
        blank = torch.zeros_like(value)[None]
        base = back(tape, value, blank)
        total, order = torch.zeros_like(inputs[:, 0]), torch.arange(peaks.shape[1], device=peaks.device)
        for some in torch.split(order, max(1, self.chunk // max(1, len(inputs)))):
            lone = blank.flatten(2).repeat(len(some), 1, 1)
            lone.scatter_(2, entries[:, some].T[:, :, None], self.amplitude)
            seen = (back(tape, value, lone.reshape(len(some), *value.shape)) - base).abs().sum(2)
            stands_out = seen > self.threshold * seen.mean((2, 3), keepdim=True)
            total = total + (peaks[:, some].T[:, :, None, None] * stands_out).sum(0)
        return (total / inputs.shape[1])[:, None].expand_as(inputs).contiguous()


@dataclass(frozen=True)
class TraceBack(Attribution):
    """All features of a late layer, traced back to the image at once, where that is positive.

    relu(T(z))

    T runs the network backwards from the features z of the image. What comes out is a picture in pixel units,
    the image itself if nothing is lost on the way; the class does not matter.

    Args:
        layer: Name of a module; by default the last that still tells places apart, and without one the
            logits.
        pooling: What a max pool becomes, see `Backtracking`.
        guided: Whether a ReLU passes on only what it had let through, see `Backtracking`.

    Raises:
        ValueError: The layer does not exist, or one on the way back has no inverse.

    Source: Zhang et al. 2023, arXiv 2212.09062, and the released code.
    Deviates: not divided by its maximum. The way back ends before the normalisation of pixels, not behind it.
    """

    layer: str | None = None
    pooling: Pooling = "nearest"
    guided: bool = False

    def __post_init__(self) -> None:
        Backtracking(self.pooling, self.guided)

    @torch.no_grad()
    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        tape = record(model, inputs)
        require_logits(tape.output, len(inputs))
        value = feature_map(tape) if self.layer is None else tape.value(self.layer)
        value = tape.output if value is None else value
        return Backtracking(self.pooling, self.guided)(tape, value, value[None])[0].clamp(min=0)
