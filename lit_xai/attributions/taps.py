"""What a linear layer adds to its output from each place, and relevance divided over the places by its norm.

A tap is one offset of a kernel, with a matrix W_t of weights: what place i adds to place j through it is
W_t x_i. For all taps at once the norms cost as many multiplications as the convolution.
"""

import itertools
import math
from collections.abc import Iterable, Iterator, Sequence

import torch
from jaxtyping import Float, Int
from torch import Tensor
from torch.nn import functional as F

from lit_xai.network import Convolution, MaxPool

Window = Convolution | MaxPool
Size = Sequence[int]
Map = Float[Tensor, "batch 1 height width"]
Shares = Float[Tensor, "batch part tap height width"]

_ENTRIES = 1 << 20  # of a product, held at once: what a cache likes


def shared(relevance: Tensor, norms: Tensor, equal: Tensor, dim: int | tuple[int, ...]) -> Tensor:
    """Relevance divided in proportion to the norms over the dimensions; where all are 0, to `equal`."""
    norms = torch.where(norms.sum(dim, keepdim=True) > 0, norms, equal)
    return norms * (relevance / norms.sum(dim, keepdim=True).clamp_min(torch.finfo(norms.dtype).tiny))


def divided(
    layer: Convolution, source: Tensor, relevance: Map, parts: Iterable[Tensor] | None = None
) -> Float[Tensor, "batch part rows columns"]:
    """Relevance at the output of a convolution, divided over what it reads: the source, or each part of it.

    R_i = sum over t, j of R_j |W_t x_i| / sum over all i' of |W_t' x_i'|

    Where nothing that is read adds anything, everything that is read has an equal share.

    Args:
        layer: The convolution.
        source: What it reads.
        relevance: One number per place of its output.
        parts: Which entries of the source are in each part, as 0 and 1.
    """
    size = relevance.shape[2:]
    if parts is None and layer.weight.shape[2:].numel() == 1:
        return back(layer, relevance[:, :, None], source.shape[2:])
    if parts is None:
        norms = tap_norms(layer, source, size)[:, None]
        there = torch.ones_like(source[:1, :1])
    else:
        masks = list(parts)
        norms = torch.stack([tap_norms(layer, source * mask, size) for mask in masks], dim=1)
        there = torch.cat([mask.mean(1, keepdim=True).expand(-1, -1, *source.shape[2:]) for mask in masks], 1)
    seen = F.unfold(there, layer.weight.shape[2:], layer.dilation, layer.padding, layer.stride)
    equal = seen.reshape(len(there), norms.shape[1], norms.shape[2], *size)
    return back(layer, shared(relevance[:, :, None], norms, equal, (1, 2)), source.shape[2:])


def tap_norms(layer: Convolution, source: Tensor, size: Size) -> Float[Tensor, "batch tap rows columns"]:
    """|W_t x_i| for each tap t at each place of the output, i being what t reads there, if anything.

    Args:
        layer: The convolution.
        source: What it reads.
        size: Rows and columns of its output.
    """
    (rows, columns), steps = layer.stride, layer.dilation
    kernel = _kernel(layer)
    # Taps that read places of the same remainder modulo the stride, and the part of the source that has it.
    apart = (rows // math.gcd(rows, steps[0]), columns // math.gcd(columns, steps[1]))
    norms: dict[Size, Tensor] = {}
    for first in itertools.product(range(min(apart[0], kernel[0])), range(min(apart[1], kernel[1]))):
        some = (range(first[0], kernel[0], apart[0]), range(first[1], kernel[1], apart[1]))
        weight = layer.weight[:, :, first[0] :: apart[0], first[1] :: apart[1]]
        corner = [tap * step - pad for tap, step, pad in zip(first, steps, layer.padding, strict=True)]
        places = source[:, :, corner[0] % rows :: rows, corner[1] % columns :: columns]
        for tap, norm in zip(
            itertools.product(*some), _norms(weight, places, layer.groups).unbind(1), strict=True
        ):
            top = (tap[0] * steps[0] - layer.padding[0]) // rows
            left = (tap[1] * steps[1] - layer.padding[1]) // columns
            reach = (-left, left + size[1] - norm.shape[2], -top, top + size[0] - norm.shape[1])
            norms[tap] = F.pad(norm, reach)
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
    return _root(square).t().reshape(batch, 1, height, width)


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


def maxima(layer: MaxPool, source: Tensor) -> Int[Tensor, "batch channel rows columns"]:
    """Where the maxima of a pool lie, as row times width plus column of the source."""
    source = source.detach().contiguous(memory_format=torch.channels_last)  # where torch is fast at this
    _, index = F.max_pool2d(
        source, layer.kernel, layer.stride, layer.padding, layer.dilation, layer.ceil, return_indices=True
    )
    return index.contiguous()


def scatter(index: Int[Tensor, "batch channel rows columns"], entries: Tensor, source: Tensor) -> Tensor:
    """What lies at the output of a pool, at the maxima that it comes from: a tensor like the source."""
    blank = torch.zeros_like(source, memory_format=torch.contiguous_format).flatten(2)
    return blank.scatter_add(2, index.flatten(2), entries.flatten(2)).view_as(source)


def winners(layer: MaxPool, source: Tensor) -> Iterator[Tensor]:
    """For each offset of the window, which entries of the pooled map come from there, as 0 and 1."""
    index, width = maxima(layer, source), source.shape[3]
    top = torch.arange(index.shape[2], device=index.device)[:, None] * layer.stride[0] - layer.padding[0]
    left = torch.arange(index.shape[3], device=index.device) * layer.stride[1] - layer.padding[1]
    for row, column in itertools.product(*map(range, layer.kernel)):
        at = (top + row * layer.dilation[0]) * width + left + column * layer.dilation[1]
        yield (index == at).to(source.dtype)


def _kernel(layer: Window) -> tuple[int, int]:
    return layer.kernel if isinstance(layer, MaxPool) else (layer.weight.shape[2], layer.weight.shape[3])


def _norms(
    weight: Float[Tensor, "into each row column"], places: Tensor, groups: int
) -> Float[Tensor, "batch tap rows columns"]:
    """|W_t x| at all places, for every tap of a kernel."""
    each, count = weight.shape[1], weight.shape[2:].numel()
    batch, _, height, width = places.shape
    if each <= 8:
        return _small(weight, places, groups)
    out = len(weight) // groups
    matrix = weight.reshape(groups, out, *weight.shape[1:]).permute(0, 3, 4, 1, 2)
    matrix = matrix.reshape(groups, count * out, each).transpose(1, 2)
    rows = places.permute(0, 2, 3, 1).reshape(batch * height * width, groups, each).transpose(0, 1)
    block = max(64, _ENTRIES // max(1, count * len(weight)))
    norms = []
    for start in range(0, max(1, rows.shape[1]), block):
        some = rows[:, start : start + block]
        added = (some @ matrix).reshape(groups, some.shape[1], count, out)
        norms.append(torch.linalg.vector_norm(added, dim=3))
    norm = torch.cat(norms, dim=1)
    norm = norm[0] if groups == 1 else torch.linalg.vector_norm(norm, dim=0)
    return norm.reshape(batch, height, width, count).permute(0, 3, 1, 2)


def _small(weight: Tensor, places: Tensor, groups: int) -> Tensor:
    """The same for few channels in a group, by |W x|^2 = sum over i, j of (W^T W)_ij x_i x_j."""
    each = weight.shape[1]
    grouped = weight.reshape(groups, -1, each, weight.shape[2:].numel())
    gram = torch.einsum("goit,gojt->tgij", grouped, grouped)
    i, j = torch.triu_indices(each, each, device=weight.device)
    matrix = (gram[:, :, i, j] * (1 + (i != j))).flatten(1)
    parts = places.reshape(len(places), groups, each, *places.shape[2:])
    products = (parts[:, :, i] * parts[:, :, j]).flatten(3).flatten(1, 2)
    square = (matrix @ products).reshape(len(places), len(matrix), *places.shape[2:])
    return _root(square)


def _root(square: Tensor) -> Tensor:
    """The square root, 0 of what is not positive, with a slope of 0 there."""
    known = square > 0
    root: Tensor = torch.where(known, square, 1).sqrt() * known
    return root
