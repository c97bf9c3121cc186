"""Which images a probe looks at, which process looks at which of them, and what lies beside each."""

import itertools
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, TypeVar

import lightning as L
import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_xai.metrics.companions import Companions
from lit_xai.types import Images, Labels, Masks, check_batch, require

T = TypeVar("T")

COMPANIONS = 8
CAREFUL = 16  # where care is taken, the first images are this part of a batch
KEPT = 2**28  # bytes of companions that stay in memory; more are read again at each look


@dataclass
class Source:
    """Reads images of a data set by their place in it, without a trace in torch's random state.

    Args:
        dataset: A map-style set.
        collate: Makes a batch of samples.
    """

    dataset: Any
    collate: Any
    _kept: tuple[Labels, Images] | None = field(default=None, repr=False)

    def batch(self, ids: Labels) -> Sequence[Tensor]:
        """A batch, as a loader would give it."""
        fetch = getattr(self.dataset, "__getitems__", None)
        with torch.random.fork_rng(devices=[]):
            rows = fetch(ids.tolist()) if fetch else [self.dataset[index] for index in ids.tolist()]
            batch: Sequence[Tensor] = self.collate(rows)
        return batch

    def keep(self, ids: Labels, image: int) -> None:
        """Keep these images in memory if, at so many bytes each, they are small."""
        ids = torch.unique(ids)
        if len(ids) and len(ids) * image <= KEPT:
            self._kept = (ids, self.batch(ids)[0])

    def images(self, ids: Labels) -> Images:
        """Pixels of some images, which ascend."""
        if self._kept is None:
            images: Images = self.batch(ids)[0]
            return images
        known, images = self._kept
        return images[torch.searchsorted(known, ids)]


@dataclass(frozen=True)
class Share:
    """The part of the probe that one process looks at: every `ranks`-th image of its random order.

    Args:
        inputs: Pixels.
        target: Labels.
        ids: Places in the data set.
        mask: The object's pixels, where the data have them.
        rank: Number of this process.
        ranks: Number of processes.
        labels: Labels of the whole probe, in its random order.
        shape: Channels, height and width of an image.
        masked: Whether the data have masks.
        source: Reads images.
        beside: Ids and labels of the companions of each image, where something asks for them.
    """

    inputs: Images
    target: Labels
    ids: Labels
    mask: Masks | None
    rank: int
    ranks: int
    labels: Int[Tensor, " probe"]
    shape: tuple[int, int, int]
    masked: bool
    source: Source
    beside: tuple[Int[Tensor, "batch other"], Int[Tensor, "batch other"]] | None = None

    def rows(self, start: int, stop: int) -> slice:
        """Which images of this process lie from `start` to `stop` in the random order of the whole probe."""
        first, last = (max(0, -((self.rank - cut) // self.ranks)) for cut in (start, stop))
        return slice(first, last)

    def companions(self, rows: slice) -> Companions | None:
        """What lies beside some images of this process."""
        if self.beside is None:
            return None
        ids, labels = (column[rows] for column in self.beside)
        device = self.inputs.device
        if not ids.numel():  # an image that is alone
            return Companions(
                torch.empty(*ids.shape, *self.shape, device=device), labels.to(device), ids.to(device)
            )
        unique, places = torch.unique(ids, return_inverse=True)
        images = self.source.images(unique)[places]
        return Companions(images.to(device), labels.to(device), ids.to(device))


def read(trainer: L.Trainer, pl_module: Any, samples: int, seed: int, companions: bool = False) -> Share:
    """Draw the probe, and read what this process looks at.

    The random order of the images depends on the seed alone: fewer of them are the first of more.

    Args:
        trainer: Knows the data.
        pl_module: Knows the shape of images, and the device.
        samples: Images in the probe, of all processes together.
        seed: Chooses them.
        companions: Whether each image needs others beside it.

    Raises:
        ValueError: On every process, if the images of one of them cannot be looked at.
    """
    source = _source(trainer)
    generator = torch.Generator().manual_seed(seed)
    order = torch.randperm(len(source.dataset), generator=generator)[:samples]
    rank, ranks = trainer.global_rank, trainer.world_size
    ids = order[rank::ranks]
    inputs, target, mask = torch.empty(0, pl_module.channels, 1, 1), torch.empty(0, dtype=torch.int64), None
    with together():
        if len(ids):
            inputs, target, mask = _checked(source.batch(ids), pl_module)
    channels, height, width = inputs.shape[1:]
    seen = everyone((rank, target, (channels, height, width), mask is not None))
    labels = torch.zeros(len(order), dtype=torch.int64)
    for place, theirs, *_ in seen:
        labels[place::ranks] = theirs
    _, _, shape, masked = next(one for one in seen if len(one[1]))
    beside = None
    if companions:
        chosen = drawn(order, labels, seed, range(rank, len(order), ranks))
        beside = (order[chosen], labels[chosen])
        with together():
            source.keep(beside[0].flatten(), inputs[:1].nbytes)
    device = pl_module.device
    own = (inputs.to(device), target.to(device), ids.to(device), None if mask is None else mask.to(device))
    return Share(*own, rank, ranks, labels, shape, masked, source, beside)


def rounds(images: int, first: int, step: int, careful: bool = False) -> list[tuple[int, int]]:
    """Parts of the random order, of at most `step` images, none of which reaches across the `first` ones.

    Where care is taken, they begin with a few images, and none is longer than all before it.
    """
    cuts = [0]
    while (done := cuts[-1]) < images:
        size = min(step, max(step // CAREFUL, done, 1)) if careful else step
        cuts.append(min(done + size, images, first if done < first else images))
    return list(itertools.pairwise(cuts))


def drawn(order: Labels, labels: Labels, seed: int, places: Sequence[int]) -> Int[Tensor, "image other"]:
    """Draw companions for images at some places of a probe: the places of others in its random order.

    Those of other labels than the image come first, and among them one of each label before the second of
    any. They depend on the seed, the images and their labels alone.
    """
    known, count = labels.numpy(), min(COMPANIONS, len(order) - 1)
    rows = np.zeros((len(places), count), dtype=np.int64)
    for row, place in enumerate(places):
        others = np.random.default_rng([seed % 2**64, int(order[place])]).permutation(len(order))
        others = others[others != place]
        theirs = known[others]
        sorting = theirs.argsort(kind="stable")
        ordered = theirs[sorting]
        turn = np.empty(len(others), dtype=np.int64)  # how many of the same label stand before it
        turn[sorting] = np.arange(len(others)) - np.searchsorted(ordered, ordered)
        turn[theirs == known[place]] += len(order)
        rows[row] = others[turn.argsort(kind="stable")[:count]]
    return torch.from_numpy(rows)


def everyone(mine: T) -> list[T]:
    """What every process says, in the order of their ranks."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return [mine]
    said: list[Any] = [None] * torch.distributed.get_world_size()
    torch.distributed.all_gather_object(said, mine)
    return said


@contextmanager
def together() -> Iterator[None]:
    """What fails inside on one process fails on all of them: none waits for one that is gone.

    Raises:
        ValueError: On the others, where one refuses what it is given.
        RuntimeError: On the others, where it is something else.
    """
    failure: Exception | None = None
    try:
        yield
    except Exception as error:
        failure = error
    kind = ValueError if isinstance(failure, ValueError | TypeError) else RuntimeError
    said = everyone(None if failure is None else (kind, str(failure) or type(failure).__name__))
    if failure is not None:
        raise failure
    for kind, text in filter(None, said):
        raise kind(text)


def _source(trainer: L.Trainer) -> Source:
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loader: Any = loaders[0] if isinstance(loaders, Sequence) else loaders
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "the probe is read by index: validation data must be a DataLoader over a map-style set."
        )
    dataset: Any = loader.dataset
    require(len(dataset) > 0, "the probe is empty: the validation set has no images; give it some.")
    return Source(dataset, loader.collate_fn)


def _checked(batch: Sequence[Tensor], pl_module: Any) -> tuple[Images, Labels, Masks | None]:
    inputs, target, mask = batch[0], batch[1], batch[2] if len(batch) > 2 else None
    check_batch(inputs, target, pl_module.channels, pl_module.classes)
    expected = (len(inputs), *inputs.shape[2:])
    require(
        mask is None or (tuple(mask.shape) == expected and mask.dtype == torch.bool),
        f"masks must be true or false for each pixel of the images, shape {expected}, got "
        f"{getattr(mask, 'dtype', None)} of shape {tuple(getattr(mask, 'shape', ()))}: mend the data.",
    )
    return inputs, target, mask
