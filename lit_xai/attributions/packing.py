"""Many maps per image, few passes of the model, bounded memory."""

from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.types import Images

Rows = Int[Tensor, " row"]
Maps = Float[Tensor, "row channel height width"]


def packed_sum(
    terms: Callable[[Rows, Rows], Maps], weights: Float[Tensor, " step"], like: Images, chunk: int
) -> Images:
    """Weighted sum over the steps of every image, with many (image, step) pairs in one pass.

    sum_k weights[k] terms(i, k)    for every image i

    A pass takes whole steps of all images, so a small batch fills it too, and at most `chunk` rows, so memory
    does not depend on the number of steps. No pair is evaluated twice. The order of summation is fixed.

    Args:
        terms: Maps for the given image numbers and step numbers, one per row.
        weights: Weight of each step.
        like: Anything in the shape of the result.
        chunk: Largest number of rows in one pass.
    """
    images = torch.arange(len(like), device=like.device)
    steps = torch.arange(len(weights), device=like.device)
    totals = []
    for block in torch.split(images, chunk):
        total = like.new_zeros(len(block), *like.shape[1:])
        for together in torch.split(steps, max(1, chunk // max(1, len(block)))):
            maps = terms(block.repeat(len(together)), together.repeat_interleave(len(block)))
            maps = maps.reshape(len(together), *total.shape)
            total = total + (maps * weights[together].view(-1, 1, 1, 1, 1)).sum(0)
        totals.append(total)
    return torch.cat(totals)
