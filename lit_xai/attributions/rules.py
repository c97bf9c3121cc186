"""How a convolution or linear layer shares the relevance of its outputs among its inputs."""

import abc
from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Tensor
from torch.nn import functional as F

from lit_xai.network import Affine, Convolution, folded
from lit_xai.types import require, require_at_least

STABILISER = 1e-9  # what a denominator is moved away from zero by, where the rule has no number of its own


@dataclass(frozen=True, eq=False)
class Junction:
    """A convolution or linear layer, as a rule meets it.

    Args:
        layer: W and b.
        source: What went in: x.
        output: What came out: W x + b.
        absorb: Whether the bias takes its share of the relevance, which then reaches no input.
        positive: Whether no entry of `source` can be negative; halves the work of some rules.
        seen: For a layer with no other weights before it: what `source` is for images of one value.
    """

    layer: Affine
    source: Tensor
    output: Tensor
    absorb: bool = True
    positive: bool = False
    seen: Callable[[float], Tensor] | None = None

    @property
    def bias(self) -> Tensor | None:
        """b, so that it can be added to `output`."""
        bias = self.layer.bias
        return bias if bias is None or not isinstance(self.layer, Convolution) else bias[:, None, None]

    @property
    def product(self) -> Tensor:
        """W x, without another pass through the layer."""
        return self.output if self.bias is None else self.output - self.bias

    def ahead(self, source: Tensor, weight: Tensor) -> Tensor:
        """W x for this source and these weights."""
        return self.layer.apply(source, weight)

    def back(self, message: Tensor, weight: Tensor) -> Tensor:
        """W^T g for these weights, in the shape of the source."""
        return self.layer.transpose(message, self.source, weight)


class Rule(abc.ABC):
    """Shares the relevance R_j of every output of a layer among its inputs.

    Concrete rules are final frozen dataclasses. The contribution of input i to output j is c_ij = w_ij x_i,
    and c+ and c- are its positive and negative part. The sums in the denominators include the bias, or its
    part of the sign in question, where the bias absorbs relevance; where it does not, they are sums of
    contributions alone, and no relevance is lost. They are moved away from zero by 1e-9.
    """

    @abc.abstractmethod
    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        """Relevance of the source, given that of the output."""


@dataclass(frozen=True)
class Epsilon(Rule):
    """In proportion to the contributions; a small number keeps outputs near zero from exploding.

    R_i = sum_j c_ij / (z_j + epsilon sign z_j) R_j,    z_j = sum_i c_ij + b_j

    On all layers of a network of these, ReLUs and max-pools, and with a bias that absorbs, it is input times
    gradient. One transposed layer.

    Args:
        epsilon: In the unit of the outputs, 0 or more; 0 is the rule called LRP-0.

    Source: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise
    relevance propagation", eq. 58.
    """

    epsilon: float = 1e-6

    def __post_init__(self) -> None:
        require_at_least(0, epsilon=self.epsilon)

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        sums = at.output if at.absorb else at.product
        return at.source * at.back(divided(relevance, sums, self.epsilon), folded(at.layer))


@dataclass(frozen=True)
class Gamma(Rule):
    """In proportion to the contributions, those of the sign of the output weighted up.

    R_i = sum_j (c_ij + gamma c_ij^s) / sum_i (c_ij + gamma c_ij^s) R_j,    s = sign of the output j

    With `gamma` 0 it is `Epsilon`, and towards infinity it tends to `ZPlus` on outputs above zero. One layer
    and two transposed layers, as c^s = (c + s |c|) / 2.

    Args:
        gamma: Additional weight, 0 or more.

    Source: Montavon et al. 2019, "Layer-wise relevance propagation: an overview", section 10.2 (inputs
    and outputs above zero); Andeol et al. 2021, arXiv 2106.04923 (both signs).
    Deviates: an output of exactly zero counts as positive.
    """

    gamma: float = 0.25

    def __post_init__(self) -> None:
        require_at_least(0, gamma=self.gamma)

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        half, weight = self.gamma / 2, folded(at.layer)
        magnitude = weight.abs()
        size = at.source if at.positive else at.source.abs()
        sums, sizes = at.product, at.ahead(size, magnitude)
        if at.absorb and at.bias is not None:
            sums, sizes = at.output, sizes + at.bias.abs()
        sign = torch.where(at.output < 0, -1, 1).to(sums.dtype)
        share = divided(relevance, (1 + half) * sums + half * sign * sizes)
        plain = at.source * at.back(share, weight)
        return (1 + half) * plain + half * size * at.back(sign * share, magnitude)


@dataclass(frozen=True)
class AlphaBeta(Rule):
    """Positive and negative contributions apart: alpha times what the first say, less beta times the others.

    R_i = sum_j (alpha c_ij+ / sum_i c_ij+  -  beta c_ij- / sum_i c_ij-) R_j

    Where an output has contributions of one sign alone, the relevance is not conserved. Twice the work of
    `ZPlus`.

    Args:
        alpha: At least 1.
        beta: alpha - 1.

    Source: Bach et al. 2015, "On pixel-wise explanations for non-linear classifier decisions by layer-wise
    relevance propagation", eq. 60.
    """

    alpha: float = 2.0
    beta: float = 1.0

    def __post_init__(self) -> None:
        require_at_least(0, beta=self.beta)
        require(
            abs(self.alpha - self.beta - 1) < 1e-9,
            f"`alpha` - `beta` must be 1, got {self.alpha!r} and {self.beta!r}.",
        )

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        positive = self.alpha * _of_one_sign(at, relevance, 1)
        return positive - self.beta * _of_one_sign(at, relevance, -1) if self.beta else positive


@dataclass(frozen=True)
class ZPlus(Rule):
    """In proportion to the positive contributions; negative ones are left out.

    R_i = sum_j c_ij+ / sum_i c_ij+ R_j

    Equal to `AlphaBeta(1, 0)`. An output without positive contributions loses its relevance. One layer and
    one transposed layer where the source cannot be negative, as behind a ReLU, two of each elsewhere.

    Source: Montavon, Lapuschkin, Binder, Samek and Mueller 2017, arXiv 1512.02479 (z+-rule).
    Deviates: inputs may have both signs; the paper has inputs above zero.
    """

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        return _of_one_sign(at, relevance, 1)


@dataclass(frozen=True)
class Flat(Rule):
    """Evenly among the inputs that an output reads, whatever they are.

    R_i = sum_j R_j / (number of inputs of j)

    Padding is no input. The bias takes nothing. About the cost of a layer with one channel.

    Source: Lapuschkin et al. 2019, arXiv 1902.10178 (flat rule).
    """

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        layer, source = at.layer, at.source
        if not isinstance(layer, Convolution):
            return (relevance.sum(-1, keepdim=True) / source.shape[-1]).expand_as(source)
        # All weights are alike, so the channels of a group are added before, and all get the same.
        batch, channels, *size = source.shape
        groups, kernel = layer.groups, layer.raw.shape[2:]
        plane = replace(layer, raw=source.new_ones(groups, 1, *kernel), bias=None, factor=None)
        read = channels // groups * plane(source.new_ones(1, groups, *size))
        grouped = relevance.reshape(batch, groups, relevance.shape[1] // groups, *relevance.shape[2:])
        together = grouped.sum(2) / read.clamp(min=1)
        shares = plane.transpose(together, source.new_empty(batch, groups, *size), plane.raw)
        return shares.repeat_interleave(channels // groups, 1)


@dataclass(frozen=True)
class WSquare(Rule):
    """In proportion to the squared weights, whatever the inputs are.

    R_i = sum_j w_ij^2 / sum_i w_ij^2 R_j

    Source: Montavon, Lapuschkin, Binder, Samek and Mueller 2017, arXiv 1512.02479 (w2-rule).
    Deviates: a bias that absorbs counts as b_j^2 in the sum.
    """

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        squares = folded(at.layer).square()
        sums = at.ahead(at.source.new_ones(1, *at.source.shape[1:]), squares)
        if at.absorb and at.bias is not None:
            sums = sums + at.bias.square()
        return at.back(divided(relevance, sums), squares)


@dataclass(frozen=True)
class ZBox(Rule):
    """For a layer that reads the images: by how far each pixel could have lowered the output.

    R_i = sum_j q_ij / sum_i q_ij R_j,    q_ij = x_i w_ij - l_i w_ij+ - h_i w_ij-

    l and h are what the bounds of the pixels become by the normalisation in front of the layer. The bias
    takes nothing.

    Args:
        low: Lowest value of a pixel.
        high: Highest value of a pixel.

    Source: Montavon, Lapuschkin, Binder, Samek and Mueller 2017, arXiv 1512.02479 (zB-rule).
    """

    low: float = 0.0
    high: float = 1.0

    def __post_init__(self) -> None:
        require(self.low < self.high, f"`low` must be less than `high`, got {self.low!r} and {self.high!r}.")

    def __call__(self, at: Junction, relevance: Tensor) -> Tensor:
        (low, high), weight = self._bounds(at), folded(at.layer)
        above, below = weight.clamp(min=0), weight.clamp(max=0)
        share = divided(relevance, at.product - at.ahead(low, above) - at.ahead(high, below))
        return (at.source - low) * at.back(share, above) + (at.source - high) * at.back(share, below)

    def _bounds(self, at: Junction) -> tuple[Tensor, Tensor]:
        """The lowest and highest source, for a batch of one."""
        if at.seen is None:
            raise ValueError("`ZBox` must be the rule of a layer that reads the images: give it as `first`.")
        ends = [at.seen(end)[:1] for end in (self.low, self.high)]
        return torch.minimum(*ends), torch.maximum(*ends)


def divided(relevance: Tensor, sums: Tensor, epsilon: float | None = None) -> Tensor:
    """R / (z + epsilon sign z); with epsilon 0, zero where z is."""
    epsilon = STABILISER if epsilon is None else epsilon
    if not epsilon:
        return relevance / sums.where(sums != 0, torch.inf)
    return relevance / (sums + torch.copysign(sums.new_full((), epsilon), sums))


def _of_one_sign(at: Junction, relevance: Tensor, sign: int) -> Tensor:
    """Relevance in proportion to the contributions of one sign."""
    source, weight = at.source, folded(at.layer)
    weight = weight if sign > 0 else -weight
    channel = 1 if isinstance(at.layer, Convolution) else -1
    if at.positive:
        weight = F.relu(weight, inplace=weight is not at.layer.raw)
    else:
        source, weight = _halves(source, channel), _halves(weight, channel)
    sums = at.ahead(source, weight)
    if at.absorb and at.bias is not None:
        sums = sums + (sign * at.bias).clamp(min=0)
    terms = source * at.layer.transpose(divided(relevance, sums), source, weight)
    return terms if at.positive else _whole(terms, channel)


def _halves(values: Tensor, channel: int) -> Tensor:
    """Every channel as two: its positive and its negative part; one layer then sees both at once."""
    first = channel % values.ndim
    return torch.stack([values.clamp(min=0), values.clamp(max=0)], first + 1).flatten(first, first + 1)


def _whole(values: Tensor, channel: int) -> Tensor:
    """The two halves of every channel, added up."""
    first = channel % values.ndim
    before, pairs, after = values.shape[:first], values.shape[first] // 2, values.shape[first + 1 :]
    return values.reshape(*before, pairs, 2, *after).sum(first + 1)
