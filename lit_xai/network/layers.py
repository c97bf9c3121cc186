"""The layers that a rule can be written for."""

import abc
import math
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor
from torch.nn import functional as F

Pair = tuple[int, int]


class Layer(abc.ABC):
    """One call of a network with a known meaning. Concrete layers are final frozen dataclasses."""

    @property
    def name(self) -> str:
        """What the layer is called where no module names it."""
        return type(self).__name__.lower()

    @abc.abstractmethod
    def __call__(self, *sources: Tensor) -> Tensor:
        """The output for these sources, under the layer's own parameters."""

    def pull(self, cotangent: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        """Gradient of <output, cotangent> for each source; for a linear layer, its transpose.

        The sources are held fixed. The result can be differentiated with respect to the cotangent.
        """
        with torch.enable_grad():
            points = [source.detach().requires_grad_() for source in sources]
            graph = cotangent.requires_grad
            return torch.autograd.grad(self(*points), points, cotangent, create_graph=graph)


@dataclass(frozen=True, eq=False)
class Convolution(Layer):
    """y = W * x + b, over two dimensions; W is `raw`, by output channel times `factor`."""

    raw: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    stride: Pair = (1, 1)
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    groups: int = 1
    factor: Tensor | None = field(default=None, repr=False)

    @cached_property
    def weight(self) -> Tensor:
        """W, made when it is first asked for."""
        return folded(self)

    def __call__(self, *sources: Tensor) -> Tensor:
        return self.apply(sources[0], self.weight, self.bias)

    def apply(self, source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W * x + b with the weights given."""
        return F.conv2d(source, weight, bias, self.stride, self.padding, self.dilation, self.groups)

    def pull(self, cotangent: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        if self.factor is not None:
            cotangent = cotangent * self.factor[:, None, None]
        return (self.transpose(cotangent, sources[0], self.raw),)

    def transpose(self, cotangent: Tensor, source: Tensor, weight: Tensor) -> Tensor:
        """W^T g with the weights given, in the shape of `source`."""
        back, _, _ = torch.ops.aten.convolution_backward(
            cotangent, source.detach(), weight, None, self.stride, self.padding, self.dilation,
            False, (0, 0), self.groups, (True, False, False),
        )  # fmt: skip
        result: Tensor = back
        return result


@dataclass(frozen=True, eq=False)
class Linear(Layer):
    """y = W x + b, over the last dimension; W is `raw`, by output times `factor`."""

    raw: Tensor = field(repr=False)
    bias: Tensor | None = field(repr=False)
    factor: Tensor | None = field(default=None, repr=False)

    @cached_property
    def weight(self) -> Tensor:
        """W, made when it is first asked for."""
        return folded(self)

    def __call__(self, *sources: Tensor) -> Tensor:
        return self.apply(sources[0], self.weight, self.bias)

    def apply(self, source: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
        """W x + b with the weights given."""
        return F.linear(source, weight, bias)

    def pull(self, cotangent: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        cotangent = cotangent if self.factor is None else cotangent * self.factor
        return (self.transpose(cotangent, sources[0], self.raw),)

    def transpose(self, cotangent: Tensor, source: Tensor, weight: Tensor) -> Tensor:
        """W^T g with the weights given."""
        return cotangent @ weight


Affine = Convolution | Linear


def folded(layer: Affine) -> Tensor:
    """W, as a tensor that the layer does not keep, unless it is that of the network."""
    if layer.factor is None:
        return layer.raw
    return layer.raw * layer.factor.reshape(-1, *[1] * (layer.raw.ndim - 1))


@dataclass(frozen=True, eq=False)
class Scaling(Layer):
    """y = a x + b, entry by entry with constants: normalisation of pixels, a batch norm that stands alone."""

    scale: Tensor | float = field(repr=False)
    shift: Tensor | float = field(repr=False)

    def __call__(self, *sources: Tensor) -> Tensor:
        return sources[0] * self.scale + self.shift

    def pull(self, cotangent: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        return (cotangent * self.scale,)


@dataclass(frozen=True)
class Rectifier(Layer):
    """y = min(x, ceiling) where x > 0, else slope x: ReLU, ReLU6, leaky ReLU."""

    ceiling: float = math.inf
    slope: float = 0.0

    def __call__(self, *sources: Tensor) -> Tensor:
        x = sources[0]
        if self.slope:
            return F.leaky_relu(x, self.slope)
        return F.relu(x) if self.ceiling == math.inf else F.hardtanh(x, 0.0, self.ceiling)

    def derivative(self, source: Tensor) -> Tensor:
        """dy/dx, by the convention of torch at the kinks."""
        inside = ((source > 0) & (source < self.ceiling)).to(source.dtype)
        return torch.where(source > 0, inside, self.slope) if self.slope else inside


@dataclass(frozen=True)
class MaxPool(Layer):
    """y = max over a window, channel by channel."""

    kernel: Pair
    stride: Pair
    padding: Pair = (0, 0)
    dilation: Pair = (1, 1)
    ceil: bool = False

    def __call__(self, *sources: Tensor) -> Tensor:
        return F.max_pool2d(sources[0], self.kernel, self.stride, self.padding, self.dilation, self.ceil)

    def pull(self, cotangent: Tensor, *sources: Tensor) -> tuple[Tensor, ...]:
        return (self.scatter(self.maxima(sources[0]), cotangent, sources[0]),)

    @staticmethod
    def scatter(maxima: Tensor, entries: Tensor, source: Tensor) -> Tensor:
        """What lies at the output, at the maxima that it comes from: a tensor like the source."""
        blank = torch.zeros_like(source, memory_format=torch.contiguous_format).flatten(2)
        return blank.scatter_add(2, maxima.flatten(2), entries.flatten(2)).reshape_as(source)

    def maxima(self, source: Tensor) -> Tensor:
        """Where the maxima lie, as row times width plus column of the source."""
        source = source.detach().contiguous(memory_format=torch.channels_last)  # where torch is fast at this
        how = self.kernel, self.stride, self.padding, self.dilation, self.ceil
        return F.max_pool2d(source, *how, return_indices=True)[1].contiguous()


@dataclass(frozen=True)
class Average(Layer):
    """y = mean over windows or dimensions: linear, with weights that are not negative."""

    function: Callable[[Tensor], Tensor] = field(repr=False)

    def __call__(self, *sources: Tensor) -> Tensor:
        return self.function(sources[0])


@dataclass(frozen=True)
class Rearrangement(Layer):
    """Every output is a copy of one input, or zero: views, slices, padding, dropout that is off."""

    function: Callable[[Tensor], Tensor] = field(repr=False)

    def __call__(self, *sources: Tensor) -> Tensor:
        return self.function(sources[0])


@dataclass(frozen=True)
class Addition(Layer):
    """y = x1 + x2, of the same shape."""

    def __call__(self, *sources: Tensor) -> Tensor:
        return sources[0] + sources[1]


@dataclass(frozen=True)
class Concatenation(Layer):
    """y = the sources one after another."""

    dim: int = 1

    def __call__(self, *sources: Tensor) -> Tensor:
        return torch.cat(sources, self.dim)


@dataclass(frozen=True)
class Unknown(Layer):
    """A call that no rule is written for."""

    call: str

    @property
    def name(self) -> str:
        return self.call

    def __call__(self, *sources: Tensor) -> Tensor:
        raise NotImplementedError(f"no rule for {self.call}")
