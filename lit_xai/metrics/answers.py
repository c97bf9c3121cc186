"""Many disturbed views of each image, few passes of the model: what metrics by random disturbance share."""

import math
from collections.abc import Callable

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.packing import Rows
from lit_xai.types import Images, Labels, Scores

Answers = Float[Tensor, "batch view"]
Places = Int[Tensor, "batch pixel"]

ROUNDINGS = 16  # a difference of so many rounding errors may be none


def answers(
    model: nn.Module, target: Labels, view: Callable[[Rows, Rows], Images], views: int, chunk: int
) -> Answers:
    """Logit of the target in each view of each image, in double precision; one forward pass per view.

    Args:
        model: The network.
        target: The class, per image.
        view: What is seen, by the numbers of image and view, one pair per row.
        views: Views of each image.
        chunk: Images that pass the model at once. All passes but the last are full.
    """
    logits = []
    with torch.no_grad():
        for rows in torch.split(torch.arange(len(target) * views, device=target.device), chunk):
            image, number = rows // views, rows % views
            logits.append(model(view(image, number)).gather(1, target[image, None])[:, 0].double())
    return torch.cat(logits).reshape(len(target), views)


def told_apart(rows: Answers, size: Scores, dtype: torch.dtype) -> Answers:
    """The rows, NaN where the numbers of a row differ by no more than rounding.

    Args:
        rows: What is compared along a row.
        size: Size of the numbers that were rounded, per row.
        dtype: The precision they were rounded to.
    """
    spread = rows.amax(1) - rows.amin(1)
    return rows.where((spread > ROUNDINGS * torch.finfo(dtype).eps * size)[:, None], math.nan)


def dealt(inputs: Images) -> Places:
    """An order of the pixels of each image, at random and its own.

    One table of random numbers, read by each image in its own order, is a table for each image: drawn once,
    and what one image draws says next to nothing of what another one does.
    """
    keys = randomness.keys(inputs, "dealt")
    return randomness.uniform(keys, 0, (math.prod(inputs.shape[2:]),), torch.float64).argsort(dim=1)


def everyone(inputs: Images) -> Int[Tensor, " one"]:
    """The key of draws that all images share, in all epochs and runs."""
    return torch.zeros(1, dtype=torch.int64, device=inputs.device)
