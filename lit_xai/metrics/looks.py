"""What a model says of images from which a map's first, or last, pixels are gone.

A look is an interval of ranks: (low, high) removes every pixel whose rank r has low <= r < high. So (0, k)
takes the k pixels that rank first, (n - k, n) those that rank last, (0, 0) nothing and (0, n) everything.
Rank 0 goes first. Pixels of one region may share a rank: then they go together.
"""

import math
from collections.abc import Sequence
from functools import partial

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.memory import once
from lit_xai.metrics.answers import asked, own, shuffled
from lit_xai.metrics.base import Reduction, Saliency
from lit_xai.metrics.removal import Looks, Removal
from lit_xai.metrics.shared import passed
from lit_xai.types import Images, Keys, Labels, Scores

Ranks = Int[Tensor, "batch height width"]
Curves = Float[Tensor, "batch look"]
Look = tuple[int, int]


def ranks_of(
    attributions: Images, reduction: Reduction, model: nn.Module, inputs: Images, target: Labels
) -> Ranks:
    """Rank of each pixel by falling saliency; one sorting for all metrics that ask.

    The random order of equal pixels is the same for all methods, metrics and epochs.
    """

    def sort() -> Ranks:
        saliency = reduction(attributions)
        pixels = math.prod(inputs.shape[2:])
        order = once("ties", model, inputs, target, lambda: shuffled(randomness.keys(inputs, "ties"), pixels))
        return _ranks(saliency.flatten(1), order).reshape(saliency.shape)

    return once(("pixel ranks", repr(reduction)), model, attributions, target, sort)


def ranks_of_parts(values: Float[Tensor, "batch part"], parts: Ranks, keys: Keys) -> Ranks:
    """Rank of the part that holds each pixel, by falling value; equal parts in a random order.

    Args:
        values: One number per part.
        parts: Number of the part that holds the pixel.
        keys: One random key per image; they order parts that are equal.
    """
    ranks = _ranks(values, shuffled(keys, values.shape[1]))
    return ranks.gather(1, parts.flatten(1)).reshape(parts.shape)


def pixel_ranks(saliency: Saliency, keys: Keys) -> Ranks:
    """Rank of each pixel by falling saliency, 0 first; equal pixels in a random order of the sample's own.

    Args:
        saliency: One number per pixel.
        keys: One random key per image.
    """
    values = saliency.flatten(1)
    return _ranks(values, shuffled(keys, values.shape[1])).reshape(saliency.shape)


def levels(count: int, steps: int) -> list[int]:
    """How many of `count` things are gone after each of `steps` steps, or of `count` if there are fewer."""
    steps = min(steps, count)
    return [round(count * step / steps) for step in range(steps + 1)]


def first(counts: Sequence[int]) -> list[Look]:
    """Looks without those that rank first."""
    return [(0, count) for count in counts]


def last(counts: Sequence[int], of: int) -> list[Look]:
    """Looks without those that rank last, of so many."""
    return [(of - count, of) for count in counts]


def seen(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    ranks: Ranks,
    count: int,
    looks: Sequence[Look],
    removal: Removal,
    chunk: int,
) -> dict[str, Curves]:
    """What the model says of the target in each look: `logit`, `probability`, and 1 where it is `decided`.

    Each look costs a forward pass per image, and none if another metric has had it. What is whole, or all
    gone, is looked at once for all maps.

    Args:
        model: The network.
        inputs: Pixels.
        target: The class that is followed.
        ranks: 0 for what goes first.
        count: How many ranks there are.
        looks: Intervals of ranks to remove.
        removal: Makes what stands in place of a pixel.
        chunk: Images that pass the model at once.
    """
    looks = [(0, 0) if low == high else (low, high) for low, high in looks]
    empty = once(("empty", removal), model, inputs, target, lambda: removal(inputs))
    known: dict[Look, Float[Tensor, "3 batch"]] = once(("looks", removal), model, ranks, target, dict)
    for question, images, look in (
        ("clean logits", inputs, (0, 0)),
        (("logits of", removal), empty, (0, count)),
    ):
        if look in looks and look not in known:
            logits = once(question, model, inputs, target, partial(passed, model, images, chunk))
            known[look] = _read(logits[None], target)[:, 0]
    missing = [look for look in dict.fromkeys(looks) if look not in known]
    if missing:
        bounds = torch.tensor(missing, device=inputs.device)[:, :, None, None, None]

        def mixed(images: slice, some: slice) -> Looks:
            (low, high), rank = bounds[some].unbind(1), ranks[images]
            gone = rank < high
            if any(begin for begin, _ in missing[some]):
                gone &= rank >= low
            return removal.fill(inputs[images], gone, empty[images])

        said = asked(model, inputs, target, len(missing), mixed, _read, chunk)
        known.update(zip(missing, said.unbind(1), strict=True))
    columns = torch.stack([known[look] for look in looks], dim=2)
    return dict(zip(("logit", "probability", "decided"), columns, strict=True))


def area(shares: Float[Tensor, "*#batch look"], curves: Curves) -> Scores:
    """Area under each curve by the trapezoid rule, over the share of pixels in [0, 1]."""
    return torch.trapezoid(curves, shares, dim=1)


def _read(logits: Float[Tensor, "look batch class"], target: Labels) -> Float[Tensor, "3 look batch"]:
    """Logit and probability of the target, and 1 where it has the largest logit."""
    decided = (logits.argmax(dim=2) == target) & logits.isfinite().all(dim=2)
    columns = (own(logits, target), own(logits.softmax(dim=2), target), decided.to(logits.dtype))
    return torch.stack(columns)


def _ranks(
    values: Float[Tensor, "batch thing"], order: Int[Tensor, "batch thing"]
) -> Int[Tensor, "batch thing"]:
    """Ranks by falling value; equal ones by their order."""
    falling = order.gather(1, values.gather(1, order).argsort(dim=1, descending=True, stable=True))
    rank = torch.arange(order.shape[1], device=order.device).expand_as(order)
    return torch.empty_like(order).scatter(1, falling, rank)
