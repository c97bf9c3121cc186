"""Which image comes when, and on which process: splits and orders that are pure functions of a seed."""

from collections.abc import Iterator
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import Dataset, DistributedSampler

from lit_xai.randomness import bits, keyed, keys
from lit_xai.types import Labels, require

Indices = Int[Tensor, " chosen"]


def shuffled(count: int, seed: int, purpose: str, turn: int = 0) -> Indices:
    """A permutation of `count` indices that depends on nothing but the arguments."""
    ids = torch.arange(count)
    with keyed(seed, ids):
        draws = bits(keys(ids, purpose), turn, (1,))
    return draws.flatten().argsort(stable=True)


def stratified(labels: Labels, seed: int, **sizes: int | float | None) -> tuple[Indices, ...]:
    """Draw disjoint splits in which every class has its share, each in shuffled order.

    A split of size m takes m r_c / r images of class c, rounded down or up by the largest remainder, where
    r_c of r images are still there; ties go to the lower class. So a split does not depend on the sizes of
    those named after it, and the first images of a split are a fair sample of it.

    Args:
        labels: Class of every image.
        seed: Fixes the draw.
        **sizes: By name of the split: a count of at least 1, a share of all images in (0, 1), or None for
            the images that the others leave.

    Raises:
        ValueError: Sizes out of range or beyond the data, or a class without an image in a split.
    """
    counts = _counts(len(labels), sizes)
    present = torch.unique(labels)
    gap = int((present == torch.arange(len(present))).cumprod(0).sum())
    require(gap == len(present), f"`labels` must use every class from 0 to the largest: none is {gap}.")
    left = torch.bincount(labels)
    starts = left.cumsum(0) - left
    taken = [torch.zeros_like(left)]
    for name, count in counts.items():
        total = left.sum().clamp(min=1)
        share, remainder = left * count // total, left * count % total
        share[remainder.argsort(descending=True, stable=True)[: count - int(share.sum())]] += 1
        missed = share.argmin()
        enough = (
            f"`{name}` must hold every class: with {count} of {len(labels)} images it has none of {missed}."
        )
        require(bool(share[missed] > 0), enough)
        taken.append(taken[-1] + share)
        left = left - share

    order = shuffled(len(labels), seed, "split")
    ranked = order[labels[order].argsort(stable=True)]  # by class, shuffled within each
    rank = torch.empty_like(order)
    rank[ranked] = torch.arange(len(order)) - starts[labels[ranked]]
    bounds = torch.stack(taken)[:, labels]  # (splits + 1, images)
    inside = (bounds[:-1] <= rank) & (rank < bounds[1:])
    return tuple(order[chosen[order]] for chosen in inside)


def _counts(total: int, sizes: dict[str, int | float | None]) -> dict[str, int]:
    """Sizes as counts; the split without a size gets the rest."""
    counts: dict[str, int] = {}
    for name, size in sizes.items():
        if size is not None:
            whole = isinstance(size, int) and size >= 1
            rule = f"`{name}` must be a count of at least 1 or a share between 0 and 1, got {size!r}."
            require(whole or 0 < size < 1, rule)
            counts[name] = int(size) if whole else max(1, round(size * total))
    asked = sum(counts.values())
    names = " + ".join(f"`{name}`" for name in counts)
    require(asked <= total, f"{names} must not exceed the data: asked for {asked} of {total} images.")
    return {name: counts.get(name, total - asked) for name in sizes}


class TrainingOrder(DistributedSampler[Any]):
    """A new order every epoch, a function of (seed, epoch) alone; processes take turns.

    With R processes the k-th batches of all of them are, together, the k-th batch of one process whose batch
    is R times as large. Fewer than R images, others every epoch, are left out so that all shares are equal.

    Args:
        dataset: What to draw from.
        seed: Fixes the orders of all epochs.
        ranks: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, dataset: Dataset[Any], seed: int, ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, ranks, rank, shuffle=True, seed=seed, drop_last=True)

    def __iter__(self) -> Iterator[int]:
        order = shuffled(len(self.dataset), self.seed, "order", self.epoch)  # type: ignore[arg-type]
        return iter(order[self.rank : self.total_size : self.num_replicas].tolist())


class EvaluationOrder(DistributedSampler[Any]):
    """Every image once, in order, over all processes: no image is repeated to make shares equal.

    Args:
        dataset: What to draw from.
        ranks: Number of processes.
        rank: Number of this process.
    """

    def __init__(self, dataset: Dataset[Any], ranks: int = 1, rank: int = 0) -> None:
        super().__init__(dataset, ranks, rank, shuffle=False)
        self.total_size = len(dataset)  # type: ignore[arg-type]
        self.num_samples = len(range(rank, self.total_size, ranks))

    def __iter__(self) -> Iterator[int]:
        return iter(range(self.rank, self.total_size, self.num_replicas))
