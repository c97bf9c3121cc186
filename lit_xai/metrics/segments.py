"""Parts of an image that are removed as a whole: squares of a grid, and superpixels."""

import math

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.metrics.base import Saliency
from lit_xai.types import Images

Parts = Int[Tensor, "batch height width"]  # number of the part that holds the pixel


def squares(inputs: Images, side: int) -> tuple[Parts, int]:
    """Squares of so many pixels a side, cut off at the far edges; and how many there are."""
    height, width = inputs.shape[2:]
    across = math.ceil(width / side)
    row, column = (torch.arange(size, device=inputs.device) // side for size in (height, width))
    parts = row[:, None] * across + column
    return parts.expand(len(inputs), -1, -1), across * math.ceil(height / side)


def superpixels(inputs: Images, side: int, compactness: float, rounds: int) -> tuple[Parts, int]:
    """Superpixels: pixels that are near each other and alike, grown from the cells of a grid.

    Each round gives a pixel to the nearest of the nine segments that grew from its own cell and those around
    it, by |colour - centre|^2 + (compactness |place - centre| / S)^2, S the side of a cell; then it moves the
    centres to the means of their pixels.

    Args:
        inputs: Pixels.
        side: Segments per side of the image; at most one per pixel.
        compactness: How far a colour may differ, in pixels, before the distance of a cell matters as much.
        rounds: How often pixels are given away; 0 leaves the cells of the grid.

    Returns:
        Number of the segment that holds each pixel, and how many there are; one may hold none.

    Source: Achanta et al. 2012, "SLIC superpixels compared to state-of-the-art superpixel methods",
    algorithm 1.
    Deviates: colours as they are, not in CIELAB; candidates by cell, not by distance; a segment may fall
    into pieces.
    """
    count, channels, height, width = inputs.shape
    down, across = min(side, height), min(side, width)
    row, column = (
        torch.arange(size, device=inputs.device) * cells // size
        for size, cells in ((height, down), (width, across))
    )
    spacing = math.sqrt(height * width / (down * across))
    # Sums in double precision: whatever order a device adds in, no pixel changes hands by it.
    place = torch.cartesian_prod(
        torch.arange(height, device=inputs.device), torch.arange(width, device=inputs.device)
    ).double()
    place = (place * compactness / spacing).expand(count, -1, -1)
    features = torch.cat([inputs.double().flatten(2).transpose(1, 2), place], dim=2)
    parts = (row[:, None] * across + column).flatten().expand(count, -1)
    centres = features.new_zeros(count, down * across, channels + 2)
    reach = [(up, left) for up in (-1, 0, 1) for left in (-1, 0, 1)]
    candidates = torch.stack(
        [
            ((row + up).clamp(0, down - 1)[:, None] * across + (column + left).clamp(0, across - 1)).flatten()
            for up, left in reach
        ]
    )
    for _ in range(rounds):
        centres = means(features, parts, centres)
        distances = torch.stack(
            [(features - centres[:, candidate]).square().sum(dim=2) for candidate in candidates]
        )
        parts = candidates.T.expand(count, -1, -1).gather(2, distances.argmin(dim=0)[:, :, None])[:, :, 0]
    return parts.reshape(count, height, width), down * across


def means(
    values: Float[Tensor, "batch pixel feature"],
    parts: Int[Tensor, "batch pixel"],
    otherwise: Float[Tensor, "batch part feature"],
) -> Float[Tensor, "batch part feature"]:
    """Mean of the values in each part, and what stands for a part without pixels."""
    index = parts[:, :, None].expand_as(values)
    sums = torch.zeros_like(otherwise).scatter_add(1, index, values)
    sizes = torch.zeros_like(otherwise).scatter_add(1, index, torch.ones_like(values))
    return torch.where(sizes > 0, sums / sizes, otherwise)


def mean_of_parts(saliency: Saliency, parts: Parts, count: int) -> Float[Tensor, "batch part"]:
    """Mean saliency of each part, in double precision; minus infinity for one without pixels."""
    values = saliency.double().flatten(1)[:, :, None]
    return means(values, parts.flatten(1), values.new_full((len(values), count, 1), -math.inf))[:, :, 0]


def sum_of_parts(saliency: Saliency, parts: Parts, count: int) -> Float[Tensor, "batch part"]:
    """Sum of the saliency in each part, in double precision."""
    values = saliency.double().flatten(1)
    return values.new_zeros(len(values), count).scatter_add(1, parts.flatten(1), values)
