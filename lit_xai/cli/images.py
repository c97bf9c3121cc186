"""The labelled images of one split of any LightningDataModule, by position."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import lightning as L
import torch
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lit_xai.types import Images, Labels, check_batch, require


@dataclass(frozen=True)
class Pool:
    """Images that positions name.

    Args:
        dataset: Map-style, of samples.
        collate: Makes a batch of samples.
        name: Whose they are, in words.
    """

    dataset: Any
    collate: Callable[[Any], Sequence[Any]]
    name: str

    def __len__(self) -> int:
        return len(self.dataset)

    def spaced(self, count: int) -> list[int]:
        """Positions of `count` images, evenly spaced; of all if there are no more."""
        total = len(self)
        return [k * total // count for k in range(min(count, total))] if count < total else list(range(total))

    def batch(self, positions: Sequence[int], channels: int, classes: int) -> tuple[Images, Labels]:
        """The images at some positions, and their labels, checked."""
        inputs, target = self._samples(positions)
        check_batch(inputs, target, channels, classes)
        return inputs, target

    def first(self) -> Images:
        """The first image, as a batch: what a network of these images is given."""
        inputs, _ = self._samples([0])
        check_batch(inputs, torch.zeros(1, dtype=torch.int64), inputs.shape[1] if inputs.ndim == 4 else 3, 1)
        return inputs

    def _samples(self, positions: Sequence[int]) -> tuple[Images, Labels]:
        batch = self.collate([self.dataset[position] for position in positions])
        if not (isinstance(batch, tuple | list) and len(batch) > 1):
            raise TypeError(
                f"samples of the {self.name} must be (image, label), got a {type(batch).__name__}."
            )
        return batch[0], batch[1]


def pool(data: L.LightningDataModule, split: str) -> Pool:
    """The images of a split, "val" or "test".

    Raises:
        ValueError: The data have no such split, or no positions in it.
    """
    name = f"{split} images of {type(data).__name__}"
    try:
        data.prepare_data()
        data.setup("validate" if split == "val" else "test")
        loader: Any = data.val_dataloader() if split == "val" else data.test_dataloader()
    except MisconfigurationException:
        raise ValueError(f"there are no {name}: it has no `{split}_dataloader`.") from None
    loader = loader[0] if isinstance(loader, list | tuple) else loader
    found = loader.dataset
    require(
        hasattr(found, "__len__") and hasattr(found, "__getitem__"),
        f"the {name} must be a map-style dataset: positions name images.",
    )
    require(len(found) > 0, f"there are no {name}.")
    return Pool(found, loader.collate_fn, name)
