"""What every observing callback shares: a fixed probe of images, and scores gathered from all processes."""

import abc
import time
from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities import rank_zero_only
from lightning.pytorch.utilities.exceptions import SIGTERMException

from lit_xai.attributions.base import Attribution
from lit_xai.callbacks import record
from lit_xai.callbacks.budget import Budget, Clock
from lit_xai.callbacks.look import Look, reasons, refuse_sharded
from lit_xai.callbacks.look import gather as gather
from lit_xai.callbacks.previous import Previous
from lit_xai.callbacks.record import Column
from lit_xai.callbacks.record import Table as Table
from lit_xai.callbacks.share import Share, everyone, read, rounds, together
from lit_xai.metrics.base import Facts, Metric
from lit_xai.metrics.controls import OtherImage
from lit_xai.observe import chosen, observing
from lit_xai.types import require, require_at_least


class Probe(L.Callback, abc.ABC):
    """Looks at a fixed set of validation images at the end of an epoch's validation.

    The images are drawn once, by seed, and shared out over the processes by position, none twice. Random
    draws inside attributions and metrics belong to (seed, image): they are the same in each epoch, so that
    epochs differ by the weights alone, and do not depend on batch size or number of processes. The scores
    of all processes are brought together and sorted by image before they are averaged: one process and
    many report the same numbers. What could not be scored is refused before the first epoch.

    Args:
        attributions: Methods by name.
        metrics: Metrics by name.
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images explained at a time.
        every_n_epochs: Look after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.
        target: The class to explain: the image's label, or what the model predicts.
        pictures: Images of the probe, the first ones of its random order, whose maps are kept.
        controls: Maps that know nothing, by name, scored beside the others.
        control_samples: Images on which they are scored, the first ones; None for all.
        budget: Keeps looking within a share of the training time.
        on_error: What to do where a method or a metric fails: end the run, or go on without its scores.
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
        *,
        controls: Mapping[str, Attribution] | None = None,
        control_samples: int | None = None,
        budget: Budget | None = None,
        on_error: Literal["flag", "raise"] = "raise",
    ) -> None:
        require_at_least(1, samples=samples, batch_size=batch_size, every_n_epochs=every_n_epochs)
        self.attributions, self.metrics = dict(attributions), dict(metrics)
        self.samples, self.batch_size = samples, batch_size
        self.every_n_epochs, self.seed, self.target = every_n_epochs, seed, target
        self.pictures = pictures
        self.controls = dict(controls or {})
        self.control_samples = samples if control_samples is None else control_samples
        self.budget, self.on_error = budget, on_error
        self.values: dict[str, float] = {}
        self.fresh = False  # whether `values` are of the validation that has just ended
        self.failed: dict[str, str] = {}  # what went wrong first, by the name of what failed
        self.looked_at = 0  # images of the last look
        self._clock = Clock()
        self._looked = False
        self._previous = Previous()
        self._share: Share | None = None

    @abc.abstractmethod
    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        """Keep what was seen; both tables are whole, and the same on every process.

        Args:
            trainer: Knows epoch, rank and run.
            table: One row per image of the probe: its `ids, target, prediction, probability, correct`,
                whether it was `controlled`, and scores by log key.
            pictures: The first `pictures` images: `ids, inputs, target, prediction`, `maps/<attribution>`.
        """

    def quantities(self) -> dict[str, dict[str, Any]]:
        """Facts about every number that will be logged, by log key."""
        listed = self._columns()
        leads = record.leading(listed)
        said = {column.key: column.described() for column in listed}
        return said | {one.lead: record.described("lead", "higher", median=one.facts.median) for one in leads}

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self._active():
            refuse_sharded(trainer)
        # Each verb has its own images, and its own first look.
        self._share, self._looked, self._previous = None, False, Previous()
        probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]
        mine = self.quantities()
        twice = [key for probe in probes if probe is not self for key in probe.quantities() if key in mine]
        require(
            not twice,
            f"two callbacks would log `{(twice or [''])[0]}`: give the metric another name in one of them.",
        )

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.val_dataloaders is not None and self._active():
            self.share(trainer, pl_module)

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.start()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.stop()
        if not fitting(trainer) and self._active():
            self.share(trainer, pl_module)

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._clock.start()

    def on_test_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_start(trainer, pl_module)

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not self._active():
            return
        seconds, trained, name = 0.0, self._clock.seconds, type(self).__name__.lower()
        self.fresh = self._due(trainer, self.every_n_epochs) or bool(self._due_metrics(trainer))
        if self.fresh:
            start = time.perf_counter()
            self.looked_at = len(self.share(trainer, pl_module).labels)
            budget = self.budget if fitting(trainer) else None
            if budget is not None:
                self.looked_at = budget.begin(trained, self.looked_at, pl_module.device)
            table, pictures = self._look(trainer, pl_module)
            self.values = self._averages(table)
            with together():
                self.keep(trainer, table, pictures)
            if budget is not None and (line := budget.end(pl_module.device)):
                self.say(line)
            self._looked = True
            seconds = time.perf_counter() - start
            # An epoch that is not looked at logs nothing; the trainer keeps the values for its checkpoints.
            pl_module.log_dict(self.values)
        pl_module.log(f"time/{name}", seconds)
        if fitting(trainer):
            pl_module.log(f"time/{name}_share", seconds / trained if trained else 0.0)

    def on_test_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.on_validation_epoch_end(trainer, pl_module)

    def share(self, trainer: L.Trainer, pl_module: L.LightningModule) -> Share:
        """This process's part of the probe, read and checked once."""
        if self._share is None:
            asked = any("companions" in metric.needs for metric in self.metrics.values())
            asked = asked or any(isinstance(control, OtherImage) for control in self.controls.values())
            share = read(trainer, pl_module, self.samples, self.seed, asked)
            self._check(pl_module, share)
            self._share = share
        return self._share

    def ends(self, trainer: L.Trainer) -> bool:
        """Whether this is the first validation of a run, or the last, or belongs to no run."""
        if not fitting(trainer):
            return True
        every, epoch = trainer.check_val_every_n_epoch, trainer.current_epoch
        first = not self._looked if every is None else epoch < every
        last = trainer.max_epochs is not None and 0 < trainer.max_epochs <= epoch + (every or 1)
        return first or last or 0 < trainer.max_steps <= trainer.global_step

    def _active(self) -> bool:
        return bool(self.attributions or self.quantities())

    def _every(self, metric: str) -> int:
        """The n of a metric that is scored after each n-th epoch."""
        return self.every_n_epochs

    def _due(self, trainer: L.Trainer, every: int) -> bool:
        """Whether an n-th epoch has come since the last validation, or a run begins or ends."""
        return self.ends(trainer) or trainer.current_epoch % every < (trainer.check_val_every_n_epoch or 1)

    def _due_metrics(self, trainer: L.Trainer) -> dict[str, Metric]:
        return {name: one for name, one in self.metrics.items() if self._due(trainer, self._every(name))}

    def _columns(
        self,
        attributions: Mapping[str, Attribution] | None = None,
        metrics: Mapping[str, Metric] | None = None,
    ) -> list[Column]:
        """Everything that is scored with these methods and metrics; with all of them by default."""
        methods = self.attributions if attributions is None else attributions
        listed = record.columns(methods, self.metrics if metrics is None else metrics, self.controls)
        return listed + [record.failures(name) for name in methods if self.on_error == "flag"]

    def _averages(self, table: Table) -> dict[str, float]:
        return record.averages((column for column in self._columns() if column.key in table), table)

    def _check(self, pl_module: Any, share: Share) -> None:
        """Refuse what could not be scored, in one line."""
        alone = [name for name, control in self.controls.items() if isinstance(control, OtherImage)]
        require(
            len(share.labels) > 1 or not alone,
            f"the control `{(alone or [''])[0]}` needs another image, and the probe has 1: take more "
            "`samples`, or leave the control out.",
        )
        with observing(pl_module.model, self.seed) as model:
            count, labels = len(share.labels), len(set(share.labels.tolist()))
            facts = Facts(
                model, share.shape, pl_module.classes, count, labels, share.masked, pl_module.device
            )
            for name, metric in list(self.metrics.items()):
                self._check_metric(name, metric, facts)

    def _check_metric(self, name: str, metric: Metric, facts: Facts) -> None:
        metric.check(name, facts)

    def _look(self, trainer: L.Trainer, pl_module: Any) -> tuple[Table, Table]:
        """Scores and pictures of the whole probe, sorted by id, on every process."""
        share, metrics = self.share(trainer, pl_module), self._due_metrics(trainer)
        whole = self._due(trainer, self.every_n_epochs)
        attributions = {name: one for name, one in self.attributions.items() if whole or chosen(metrics, one)}
        compared = fitting(trainer) and any("previous" in metric.needs for metric in metrics.values())
        if compared:
            self._previous.recall(trainer)
        look = Look(
            pl_module.model,
            share,
            self.seed,
            self.target,
            attributions,
            metrics,
            self._columns(attributions, metrics),
            self.controls,
            self.control_samples,
            self.pictures,
            self._previous if compared else None,
            strict=self.on_error == "raise" and trainer.world_size == 1,
        )
        budget = self.budget if fitting(trainer) else None
        total, step = self.looked_at or len(share.labels), self.batch_size * share.ranks
        careful = budget is not None and not budget.tried
        # As many rounds on every process, some of which may have no image in the last of them.
        for start, stop in rounds(total, self.control_samples, step, careful):
            if trainer.received_sigterm and trainer.world_size == 1:
                raise SIGTERMException  # a probe may take longer than the time that is left
            with together():
                look.take(start, stop)
            if budget is not None and budget.over(stop, pl_module.device):
                self.looked_at = stop
                break
        self._report(trainer, look.failed)
        if compared:
            maps = gather(look.maps)
            with together():
                self._previous.remember(trainer, maps)
        return gather(look.scores), gather(look.shown)

    def _report(self, trainer: L.Trainer, failed: Mapping[str, str]) -> None:
        """Say what failed on any process, once per name; or end the run, on all of them."""
        seen = {name: text for one in everyone(dict(failed)) for name, text in one.items()}
        new = {name: text for name, text in seen.items() if name not in self.failed}
        self.failed |= new
        for reason in reasons(new):
            require(self.on_error == "flag", f"failed: {reason}.")
            self.say(f"at epoch {trainer.current_epoch}, failed and left out: {reason}")

    @rank_zero_only
    def say(self, line: str) -> None:
        """Print what happened, in one line."""
        print(f"{type(self).__name__}: {line}", flush=True)


def fitting(trainer: L.Trainer) -> bool:
    """Whether the trainer is in `fit`, as opposed to a verb that looks at finished weights."""
    return trainer.state.fn == TrainerFn.FITTING
