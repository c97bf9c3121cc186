"""What every observing callback shares: a fixed probe of images, and scores gathered from all processes."""

import abc
import math
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import lightning as L
import numpy as np
import torch
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor
from torch.utils.data import DataLoader, IterableDataset

from lit_xai.attributions.base import Attribution
from lit_xai.metrics.base import Metric
from lit_xai.observe import MODEL, about_model, explain, log_key, observing
from lit_xai.types import Images, Labels, Masks, check_batch, require, require_at_least

Table = Mapping[str, np.ndarray]


@dataclass(frozen=True)
class Share:
    """The part of the probe that one process looks at.

    Args:
        inputs: Pixels.
        target: Labels.
        ids: Positions in the data set.
        mask: The object's pixels, where the data have them.
        last_picture: Images up to this id are those whose maps are kept.
    """

    inputs: Images
    target: Labels
    ids: Labels
    mask: Masks | None
    last_picture: int


class Probe(L.Callback, abc.ABC):
    """Looks at a fixed set of validation images at the end of an epoch's validation.

    The images are drawn once, by seed, and shared out over the processes by position, none twice. Random
    draws inside attributions and metrics belong to (seed, image): they are the same in each epoch, so that
    epochs differ by the weights alone, and do not depend on batch size or number of processes. The scores
    of all processes are brought together and sorted by image before they are averaged: one process and
    many report the same numbers.

    Args:
        attributions: Methods by name.
        metrics: Metrics by name.
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images explained at a time.
        every_n_epochs: Look after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.
        target: The class to explain: the image's label, or what the model predicts.
        pictures: Images of the probe, the first ones, whose maps are kept.
    """

    def __init__(
        self,
        attributions: Mapping[str, Attribution],
        metrics: Mapping[str, Metric],
        samples: int,
        batch_size: int,
        every_n_epochs: int,
        seed: int,
        target: Literal["label", "prediction"],
        pictures: int = 0,
    ) -> None:
        require_at_least(1, samples=samples, batch_size=batch_size, every_n_epochs=every_n_epochs)
        self.attributions, self.metrics = dict(attributions), dict(metrics)
        self.samples, self.batch_size = samples, batch_size
        self.every_n_epochs, self.seed, self.target = every_n_epochs, seed, target
        self.pictures = pictures
        self.values: dict[str, float] = {}
        self.fresh = False  # whether `values` are of the validation that has just ended
        self._looked = False
        self._share: Share | None = None

    @abc.abstractmethod
    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        """Keep what was seen; both tables are whole, and the same on every process.

        Args:
            trainer: Knows epoch, rank and run.
            table: Scores by log key, one row per image of the probe, and their `ids`.
            pictures: The first `pictures` images: `ids, inputs, target, prediction`, `maps/<attribution>`.
        """

    def quantities(self) -> dict[str, dict[str, Any]]:
        """Facts about every number that will be logged, by log key."""
        return {
            log_key(attribution, metric, name): {
                "better": quantity.better,
                "low": _finite(quantity.bounds[0]),
                "high": _finite(quantity.bounds[1]),
                "median": quantity.median,
            }
            for attribution, metric in self._pairs()
            for name, quantity in self.metrics[metric].quantities.items()
        }

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        # Each verb has its own images, and its own first look.
        self._share, self._looked = None, False
        probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]
        mine = self.quantities()
        twice = [key for probe in probes if probe is not self for key in probe.quantities() if key in mine]
        require(
            not twice,
            f"two callbacks would log `{(twice or [''])[0]}`: give the metric another name in one of them.",
        )

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        refuse_sharded(trainer)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not (self.attributions or self.quantities()):
            return
        seconds = 0.0
        self.fresh = self._due(trainer) or not self._looked
        if self.fresh:
            start = time.perf_counter()
            table, pictures = self._look(trainer, pl_module)
            self.values = self._averages(table)
            self.keep(trainer, table, pictures)
            self._looked = True
            seconds = time.perf_counter() - start
            # An epoch that is not looked at logs nothing; the trainer keeps the values for its checkpoints.
            pl_module.log_dict(self.values)
        pl_module.log(f"time/{type(self).__name__.lower()}", seconds)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_epoch_end(trainer, pl_module)

    def share(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Share:
        """This process's part of the probe, read once."""
        if self._share is None:
            self._share = _read(trainer, pl_module, self.samples, self.seed, self.pictures)
        return self._share

    def _due(self, trainer: L.Trainer) -> bool:
        epoch = trainer.current_epoch
        last = trainer.max_epochs is not None and epoch == trainer.max_epochs - 1
        return not fitting(trainer) or epoch % self.every_n_epochs == 0 or last

    def _pairs(self) -> list[tuple[str, str]]:
        """Every (attribution, metric) that is scored; metrics of the model under `MODEL`."""
        own = [(MODEL, name) for name, metric in self.metrics.items() if about_model(metric)]
        return own + [
            (name, key)
            for name, attribution in self.attributions.items()
            for key, metric in self.metrics.items()
            if not about_model(metric) and metric.applies(attribution)
        ]

    def _look(self, trainer: L.Trainer, pl_module: Any) -> tuple[Table, Table]:
        """Scores and pictures of the whole probe, sorted by id, on every process."""
        share, model = self.share(trainer, pl_module), pl_module.model
        tables: list[dict[str, Tensor]] = []
        pictures: list[dict[str, Tensor]] = []
        for first in range(0, len(share.ids), self.batch_size):  # none, on a process without images
            rows = slice(first, first + self.batch_size)
            if trainer.received_sigterm and trainer.world_size == 1:
                raise SIGTERMException  # a probe may take longer than the time that is left
            inputs, target, ids = share.inputs[rows], share.target[rows], share.ids[rows]
            mask = None if share.mask is None else share.mask[rows]
            with observing(model, self.seed), torch.no_grad():
                prediction = model(inputs).argmax(1)
            if self.target == "prediction":
                target = prediction
            seen = explain(model, inputs, target, self.attributions, self.metrics, self.seed, ids, mask)
            tables.append({"ids": ids, **seen.flat()})
            maps = {f"maps/{name}": value for name, value in seen.maps.items()}
            shown = {"ids": ids, "inputs": inputs, "target": target, "prediction": prediction, **maps}
            kept = ids <= share.last_picture
            pictures.append({key: value[kept] for key, value in shown.items()})
        return gather(tables), gather(pictures)

    def _averages(self, table: Table) -> dict[str, float]:
        return {
            key: float(quantity.average(torch.from_numpy(table[key])))
            for attribution, metric in self._pairs()
            for name, quantity in self.metrics[metric].quantities.items()
            for key in [log_key(attribution, metric, name)]
        }


def gather(parts: Sequence[Mapping[str, Tensor]]) -> Table:
    """Bring the rows of all processes together, sorted by `ids`. A process may have none."""
    mine = {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in (parts or [{}])[0]}
    tables: list[Table] = [mine]
    if torch.distributed.is_available() and torch.distributed.is_initialized():
        tables = [{}] * torch.distributed.get_world_size()
        torch.distributed.all_gather_object(tables, mine)
    filled = [table for table in tables if table]
    order = np.concatenate([table["ids"] for table in filled]).argsort()
    return {key: np.concatenate([table[key] for table in filled])[order] for key in filled[0]}


def fitting(trainer: L.Trainer) -> bool:
    """Whether the trainer is in `fit`, as opposed to a verb that looks at finished weights."""
    return trainer.state.fn == TrainerFn.FITTING


def refuse_sharded(trainer: L.Trainer) -> None:
    """Refuse weights that are spread over processes, or of half precision: attributions read whole ones."""
    name = type(trainer.strategy).__name__
    require(
        not any(kind in name for kind in ("FSDP", "DeepSpeed", "ModelParallel")),
        f"explaining needs whole weights on each device, and {name} splits them: "
        "use `--trainer.strategy ddp`.",
    )
    require(
        str(trainer.precision) not in ("bf16-true", "16-true"),
        f"explaining needs weights of at least float32, and precision {trainer.precision} halves them: "
        "use `--trainer.precision bf16-mixed`.",
    )


def _read(trainer: L.Trainer, pl_module: Any, samples: int, seed: int, pictures: int) -> Share:
    loaders = trainer.test_dataloaders if trainer.testing else trainer.val_dataloaders
    loader: Any = loaders[0] if isinstance(loaders, Sequence) else loaders
    if not isinstance(loader, DataLoader) or isinstance(loader.dataset, IterableDataset):
        raise TypeError(
            "the probe is read by index: validation data must be a DataLoader over a map-style set."
        )
    dataset: Any = loader.dataset
    require(len(dataset) > 0, "the probe is empty: the validation set has no images; give it some.")
    generator = torch.Generator().manual_seed(seed)
    chosen = torch.randperm(len(dataset), generator=generator)[:samples].sort().values
    last_picture = int(chosen[:pictures].max()) if pictures else -1
    ids = chosen[trainer.global_rank :: trainer.world_size]
    if len(ids) == 0:
        images, labels = torch.empty(0, pl_module.channels, 1, 1), torch.empty(0, dtype=torch.int64)
        return Share(images, labels, ids, None, last_picture)
    fetch = getattr(dataset, "__getitems__", None)
    rows = fetch(ids.tolist()) if fetch else [dataset[index] for index in ids.tolist()]
    batch = [tensor.to(pl_module.device) for tensor in loader.collate_fn(rows)]
    check_batch(batch[0], batch[1], pl_module.channels, pl_module.classes)
    mask = batch[2] if len(batch) > 2 else None
    return Share(batch[0], batch[1], ids.to(pl_module.device), mask, last_picture)


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None
