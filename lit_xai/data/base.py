"""The contract of this room: a source of data loads three splits, and is served the same way everywhere."""

import abc
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import lightning as L
import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn
from torch.utils.data import DataLoader, Dataset

from lit_xai.data.order import EvaluationOrder, Indices, TrainingOrder
from lit_xai.types import Labels, Masks, require, require_at_least

Sample = tuple[Tensor, ...]  # (image, label) or (image, label, mask)
Batch = tuple[Tensor, ...]  # the same, stacked
Pixels = UInt8[Tensor, "batch channel height width"] | Float[Tensor, "batch channel height width"]


class ImageSet(Dataset[Sample]):
    """Labelled images in memory, handed out as float32 in [0, 1].

    Args:
        pixels: Bytes, or floats in [0, 1].
        labels: Class of every image.
        masks: The object's pixels, where known.
    """

    def __init__(self, pixels: Pixels, labels: Labels, masks: Masks | None = None) -> None:
        require(
            len(labels) == len(pixels), f"`labels` must name every image: {len(labels)} of {len(pixels)}."
        )
        self.pixels = pixels
        self.labels = labels.long()
        self.masks = masks

    def __len__(self) -> int:
        return len(self.pixels)

    def __getitem__(self, index: int) -> Sample:
        return tuple(column[0] for column in self.__getitems__([index]))

    def __getitems__(self, indices: list[int]) -> Batch:
        """One batch, gathered at once."""
        chosen = torch.tensor(indices)
        pixels = self.pixels[chosen]
        inputs = pixels.float() if pixels.is_floating_point() else pixels.float() / 255
        batch = (inputs, self.labels[chosen])
        return batch if self.masks is None else (*batch, self.masks[chosen])

    def subset(self, indices: Indices) -> "ImageSet":
        """The chosen images, in the given order."""
        masks = None if self.masks is None else self.masks[indices]
        return ImageSet(self.pixels[indices], self.labels[indices], masks)


def collate(samples: list[Sample] | Batch) -> Batch:
    """Stack samples to a batch; a batch that a dataset gathered by itself passes through."""
    if isinstance(samples, tuple):
        return samples
    return tuple(torch.stack(column) for column in zip(*samples, strict=True))


@dataclass(frozen=True)
class Splits:
    """What a source loads: three map-style datasets of samples, and the names of the classes.

    Args:
        train: For training; carries no masks, which an augmentation would leave behind.
        val: Looked at every epoch.
        test: Looked at once.
        names: One per class; its length is the number of classes.
    """

    train: Dataset[Sample]
    val: Dataset[Sample]
    test: Dataset[Sample]
    names: tuple[str, ...]


class ImageData(L.LightningDataModule, abc.ABC):
    """Serves labelled images for training and evaluation, on one process or on many.

    The training order depends on (seed, epoch) alone. Evaluation shows every image exactly once, whatever
    the number of processes. Loaders leave torch's global generator alone. A concrete source writes `load`;
    what must happen once per machine, such as a download, goes into `prepare_data`.

    Args:
        batch_size: Training images per step and process.
        eval_batch_size: Images per evaluation batch and process.
        workers: Loading processes; 0 is best for images in memory.
        seed: Fixes splits and orders.
        augment: Applied to training images, a batch at a time, on the device.
    """

    def __init__(
        self,
        batch_size: int = 128,
        eval_batch_size: int = 500,
        workers: int = 0,
        seed: int = 0,
        augment: nn.Module | None = None,
    ) -> None:
        super().__init__()
        require_at_least(1, batch_size=batch_size, eval_batch_size=eval_batch_size)
        require_at_least(0, workers=workers)
        self.batch_size = batch_size
        self.eval_batch_size = eval_batch_size
        self.workers = workers
        self.seed = seed
        self.augment = augment

    @abc.abstractmethod
    def load(self) -> Splits:
        """Read the three splits; called once per process, after `prepare_data`."""

    @cached_property
    def splits(self) -> Splits:
        """The three splits, loaded at the first use."""
        return self.load()

    @property
    def names(self) -> tuple[str, ...]:
        """Names of the classes."""
        return self.splits.names

    @property
    def classes(self) -> int:
        """Number of classes."""
        return len(self.names)

    @cached_property
    def image_shape(self) -> tuple[int, int, int]:
        """Channels, height and width of an image."""
        channels, height, width = self.splits.train[0][0].shape
        return channels, height, width

    def setup(self, stage: str) -> None:
        _ = self.image_shape

    def train_dataloader(self) -> DataLoader[Sample]:
        ranks, rank = self._place()
        order = TrainingOrder(self.splits.train, self.seed, ranks, rank)
        return self._loader("train", order, self.batch_size)

    def val_dataloader(self) -> DataLoader[Sample]:
        return self._loader("val", EvaluationOrder(self.splits.val, *self._place()), self.eval_batch_size)

    def test_dataloader(self) -> DataLoader[Sample]:
        return self._loader("test", EvaluationOrder(self.splits.test, *self._place()), self.eval_batch_size)

    def predict_dataloader(self) -> DataLoader[Sample]:
        return self.test_dataloader()

    def on_after_batch_transfer(self, batch: Sequence[Tensor], dataloader_idx: int) -> Batch:
        inputs, *rest = batch  # a list, where torch's pinning made it one
        if self.augment is not None and self.trainer is not None and self.trainer.training:
            inputs = self.augment(inputs)
        return inputs, *rest

    def _loader(
        self, name: str, order: TrainingOrder | EvaluationOrder, batch_size: int
    ) -> DataLoader[Sample]:
        ranks = order.num_replicas
        total = len(order.dataset)  # type: ignore[arg-type]
        require(total >= ranks, f"`{name}` has {total} images for {ranks} processes: use fewer processes.")
        return DataLoader(
            order.dataset,
            batch_size=batch_size,
            sampler=order,
            num_workers=self.workers,
            collate_fn=collate,
            pin_memory=torch.cuda.is_available(),
            persistent_workers=self.workers > 0,
            generator=torch.Generator().manual_seed(self.seed),
        )

    def _place(self) -> tuple[int, int]:
        """Number of processes that share the data, and the number of this one."""
        place: dict[str, Any] | None = self.trainer.distributed_sampler_kwargs if self.trainer else None
        return (place["num_replicas"], place["rank"]) if place else (1, 0)
