"""Many views of each image, few passes of the model: what metrics that change images share."""

import math
from collections.abc import Callable, Iterator

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.metrics.removal import Looks
from lit_xai.metrics.shared import passed
from lit_xai.types import Images, Keys, Labels, Scores

Answers = Float[Tensor, "batch view"]
Places = Int[Tensor, "batch pixel"]
Read = Callable[[Float[Tensor, "view batch class"], Labels], Float[Tensor, "*quantity view batch"]]

# Numbers in the images that are made at once: more do not fit a cache, fewer leave a device idle.
MADE = {"cpu": 2**17, "cuda": 2**23}
ROUNDINGS = 16  # a difference of so many rounding errors may be none


def asked(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    views: int,
    made: Callable[[slice, slice], Looks],
    read: Read,
    chunk: int,
) -> Float[Tensor, "*quantity view batch"]:
    """What the model says of each view of each image; one forward pass per view.

    Args:
        model: The network.
        inputs: Pixels.
        target: The classes.
        views: Views of each image.
        made: The views, by ranges of images and of views: as many at once as are worth it.
        read: What is kept of the logits.
        chunk: Images that pass the model at once.
    """
    columns = []
    with torch.no_grad():
        for images, ranges in blocks(inputs, views):
            rows = []
            for some in ranges:
                seen = made(images, some)
                logits = passed(model, seen.flatten(0, 1), chunk)
                rows.append(read(logits.reshape(*seen.shape[:2], logits.shape[1]), target[images]))
            columns.append(torch.cat(rows, dim=-2))
    return torch.cat(columns, dim=-1)


def blocks(inputs: Images, views: int) -> Iterator[tuple[slice, list[slice]]]:
    """Ranges of the images, of even size, and for each of them the ranges of the views to be made at once."""
    count = len(inputs)
    room = max(1, MADE.get(inputs.device.type, MADE["cuda"]) // math.prod(inputs.shape[1:]))
    block = max(1, math.ceil(count / max(1, math.ceil(count / room))))
    together = max(1, room // block)
    ranges = [slice(view, min(view + together, views)) for view in range(0, views, together)]
    for image in range(0, max(1, count), block):
        yield slice(image, image + block), ranges


def own(logits: Float[Tensor, "view batch class"], target: Labels) -> Float[Tensor, "view batch"]:
    """Logit of the target."""
    return logits.gather(2, target.expand(len(logits), -1)[:, :, None])[:, :, 0]


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
    return shuffled(randomness.keys(inputs, "dealt"), math.prod(inputs.shape[2:]))


def shuffled(keys: Keys, count: int) -> Places:
    """An order of so many things for each key, at random."""
    return randomness.bits(keys, 0, (count,)).argsort(dim=1)


def everyone(inputs: Images) -> Int[Tensor, " one"]:
    """The key of draws that all images share, in all epochs and runs."""
    return torch.zeros(1, dtype=torch.int64, device=inputs.device)
