"""What a linear layer adds to its output from each place, and relevance divided over the places by its norm.

A tap is one offset of a kernel, with a matrix W_t of weights: what place i adds to place j through it is
W_t x_i. For all taps at once the norms cost as many multiplications as the convolution.

A norm is never 0, but at least the square root of the smallest number: where nothing is added, all shares are
equal.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lit_xai.network import Convolution, MaxPool

Window = Convolution | MaxPool
Size = Sequence[int]
Map = Float[Tensor, "batch 1 height width"]
Shares = Float[Tensor, "batch part tap height width"]

_ENTRIES = 1 << 20  # of a product, held at once: what a cache likes


def shared(relevance: Tensor, norms: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Relevance divided in proportion to the norms over the dimensions."""
    return norms * (relevance / norms.sum(dim, keepdim=True))


def least(like: Tensor) -> float:
    """What stands for a norm of 0."""
    return math.sqrt(torch.finfo(like.dtype).tiny)


def divided(
    layer: Convolution, source: Tensor, relevance: Map, parts: Iterable[Tensor] | None = None
) -> Float[Tensor, "batch part rows columns"]:
    """Relevance at the output of a convolution, divided over what it reads: the source, or each part of it.

    R_i = sum over t, j of R_j |W_t x_i| / sum over all i' of |W_t' x_i'|

    Args:
        layer: The convolution.
        source: What it reads.
        relevance: One number per place of its output.
        parts: Which entries of the source are in each part, as 0 and 1.
    """
    size, shares = relevance.shape[2:], relevance[:, :, None]
    if parts is not None:
        masks = [mask.expand_as(source) for mask in parts]
        floors = [mask.mean(1, keepdim=True) * least(source) for mask in masks]
        norms = [
            tap_norms(layer, source * mask, size, floor) for mask, floor in zip(masks, floors, strict=True)
        ]
        shares = shared(shares, torch.stack(norms, dim=1), (1, 2))
    elif layer.raw.shape[2:].numel() > 1:
        shares = shared(shares, tap_norms(layer, source, size)[:, None], 2)
    return back(layer, shares, source.shape[2:])


def tap_norms(
    layer: Convolution, source: Tensor, size: Size, floor: Tensor | None = None
) -> Float[Tensor, "batch tap rows columns"]:
    """|W_t x_i| for each tap t at each place of the output, i being what t reads there; 0 outside of the map.

    Args:
        layer: The convolution.
        source: What it reads.
        size: Rows and columns of its output.
        floor: The smallest norm at each place of the source; without, the same at all.
    """
    # Taps that read places of the same remainder modulo the stride, and the part of the source that has it.
    down, across = (
        _phases(*sizes)
        for sizes in zip(_kernel(layer), layer.stride, layer.padding, layer.dilation, strict=True)
    )
    norms: dict[tuple[int, int], Tensor] = {}
    for (rows, where, tops), (columns, there, lefts) in itertools.product(down, across):
        places = source[:, :, where, there]
        some = _norms(layer, layer.raw[:, :, rows, columns], places)
        some = some.clamp_min(least(some)) if floor is None else some.maximum(floor[:, :, where, there])
        top, left = max(0, -min(tops.values())), max(0, -min(lefts.values()))
        bottom = max(0, max(tops.values()) + size[0] - places.shape[2])
        right = max(0, max(lefts.values()) + size[1] - places.shape[3])
        some = F.pad(some, (left, right, top, bottom))
        for number, ((row, first), (column, start)) in enumerate(
            itertools.product(tops.items(), lefts.items())
        ):
            norm = some[:, number].narrow(1, top + first, size[0])
            norms[row, column] = norm.narrow(2, left + start, size[1])
    return torch.stack([norm for _, norm in sorted(norms.items())], dim=1)


def place_norms(
    weight: Float[Tensor, "out entry"], source: Float[Tensor, "batch channel height width"]
) -> Map:
    """|W_i x_i| for each place i of a map that a linear layer reads as one vector."""
    batch, channels, height, width = source.shape
    places = source.flatten(2).permute(2, 1, 0)
    square = source.new_zeros(height * width, batch)
    block = max(1, _ENTRIES // max(1, weight.shape[1]))
    for start in range(0, len(weight), block):
        matrix = weight[start : start + block].reshape(-1, height * width).t().contiguous()
        square = square + (matrix.view(height * width, -1, channels) @ places).square().sum(1)
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt().t().reshape(batch, 1, height, width)


def back(layer: Window, shares: Shares, size: Size) -> Float[Tensor, "batch part rows columns"]:
    """Every share at the place of the source, of the given size, from which its tap reads; they add up."""
    kernel, (rows, columns) = _kernel(layer), shares.shape[3:]
    reach = (
        (rows - 1) * layer.stride[0] + (kernel[0] - 1) * layer.dilation[0] + 1,
        (columns - 1) * layer.stride[1] + (kernel[1] - 1) * layer.dilation[1] + 1,
    )
    found = F.fold(shares.flatten(3).flatten(1, 2), reach, kernel, layer.dilation, stride=layer.stride)
    top, left = layer.padding
    return F.pad(found, (-left, left + size[1] - reach[1], -top, top + size[0] - reach[0]))


def winners(layer: MaxPool, source: Tensor) -> Iterator[Tensor]:
    """For each offset of the window, which entries of the pooled map come from there, as 0 and 1."""
    index, width = layer.maxima(source), source.shape[3]
    top = torch.arange(index.shape[2], device=index.device)[:, None] * layer.stride[0] - layer.padding[0]
    left = torch.arange(index.shape[3], device=index.device) * layer.stride[1] - layer.padding[1]
    for row, column in itertools.product(*map(range, layer.kernel)):
        across = left + column * layer.dilation[1]
        at = (top + row * layer.dilation[0]) * width + across
        yield ((index == at) & (across >= 0) & (across < width)).to(source.dtype)


def _phases(
    kernel: int, stride: int, padding: int, dilation: int
) -> list[tuple[slice, slice, dict[int, int]]]:
    """Along one side: taps, the places that they read, and at which of these each of them starts."""
    apart = stride // math.gcd(stride, dilation)
    found = []
    for first in range(min(apart, kernel)):
        starts = {tap: (tap * dilation - padding) // stride for tap in range(first, kernel, apart)}
        places = slice((first * dilation - padding) % stride, None, stride)
        found.append((slice(first, None, apart), places, starts))
    return found


def _kernel(layer: Window) -> tuple[int, int]:
    return layer.kernel if isinstance(layer, MaxPool) else (layer.raw.shape[2], layer.raw.shape[3])


def _norms(
    layer: Convolution, raw: Float[Tensor, "into each row column"], places: Tensor
) -> Float[Tensor, "batch tap rows columns"]:
    """|W_t x| at all places, for some taps of a kernel: in the way that is fastest for their number."""
    groups, (out, each) = layer.groups, raw.shape[:2]
    images, channels, height, width = places.shape
    count = height * width
    if not count:  # no place has this remainder
        return places.new_zeros(images, raw.shape[2:].numel(), height, width)
    if images and each > 8 and images * count <= 32:  # weights cost more to copy than to multiply
        # A lone place convolved with the kernel as it is laid out in memory: all taps, last to first.
        alone = places.permute(0, 2, 3, 1).reshape(-1, channels, 1, 1)
        added = F.conv2d(alone, raw.detach(), padding=(raw.shape[2] - 1, raw.shape[3] - 1), groups=groups)
        added = added if layer.factor is None else added * layer.factor.detach()[:, None, None]
        norm: Tensor = torch.linalg.vector_norm(added, dim=1).flatten(1).flip(1)
        return norm.reshape(images, height, width, -1).permute(0, 3, 1, 2)
    matrices = raw.detach().reshape(groups, out // groups, each, -1).permute(3, 0, 1, 2)
    matrices = matrices.clone(memory_format=torch.contiguous_format)
    if layer.factor is not None:
        matrices.mul_(layer.factor.detach().view(groups, -1, 1))
    if each <= 8:
        return _small(matrices, places)
    some_images = max(1, _ENTRIES // max(1, out * count))
    some_taps = max(1, _ENTRIES // max(1, out * max(each, min(images, some_images) * count)))
    return torch.cat(
        [
            torch.cat([_added(some, part) for some in torch.split(matrices, some_taps)], dim=1)
            for part in torch.split(places.contiguous(memory_format=torch.channels_last), some_images)
        ]
    )


def _added(matrices: Float[Tensor, "tap group out each"], places: Tensor) -> Tensor:
    """|W_t x| at all places, all at once."""
    count, groups, out, each = matrices.shape
    matrix = matrices.transpose(0, 1).reshape(-1, each, 1, 1)
    # To one tap a dilation means nothing, but torch then has a faster kernel.
    added = F.conv2d(places, matrix, dilation=2, groups=groups)
    added = added.reshape(len(places), groups, count, out, *places.shape[2:])
    norm: Tensor = torch.linalg.vector_norm(added, dim=3)
    return norm[:, 0] if groups == 1 else torch.linalg.vector_norm(norm, dim=1)


def _small(matrices: Float[Tensor, "tap group out each"], places: Tensor) -> Tensor:
    """The same for few channels in a group, by |W x|^2 = sum over i, j of (W^T W)_ij x_i x_j."""
    _, groups, _, each = matrices.shape
    i, j = torch.triu_indices(each, each, device=places.device)
    matrix = ((matrices.mT @ matrices)[:, :, i, j] * (1 + (i != j))).flatten(1)
    parts = places.reshape(len(places), groups, each, *places.shape[2:])
    products = (parts[:, :, i] * parts[:, :, j]).flatten(3).flatten(1, 2)
    square: Tensor = (matrix @ products).reshape(len(places), len(matrix), *places.shape[2:])
    return square.clamp_min(torch.finfo(square.dtype).tiny).sqrt()
