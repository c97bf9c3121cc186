"""Explanations of a fixed probe, each epoch, with their quality."""

import inspect
from collections.abc import Mapping
from contextlib import suppress
from difflib import get_close_matches
from pathlib import Path
from typing import Any, Literal

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn

from lit_xai import attributions as methods
from lit_xai.attributions.base import Attribution
from lit_xai.callbacks import gallery, mirror, record
from lit_xai.callbacks.budget import Budget
from lit_xai.callbacks.look import reasons
from lit_xai.callbacks.probe import Probe, fitting
from lit_xai.callbacks.record import Table
from lit_xai.metrics.base import Facts, Metric
from lit_xai.metrics.controls import EdgeMap, OtherImage, RandomMap
from lit_xai.metrics.credible import credible
from lit_xai.metrics.untrained import Untrained
from lit_xai.observe import about_model
from lit_xai.types import require, require_at_least, require_positive

SAMPLES = "explain/samples"
SELDOM = ("randomisation_complexity",)  # of the default metrics, those that are scored each tenth epoch


class Explain(Probe):
    """Explains a fixed probe after each epoch and logs `explain/<attribution>/<metric>`.

    Beside every number stand that of maps that know nothing, `control/<control>[/<attribution>]/<metric>`,
    and the lead over the random one, `lead/<attribution>/<metric>`: the mean difference, image by image,
    signed so that more is better.

    All that was seen at an epoch stays in the folder `explanations` of the run: in `epoch_<n>.csv` a row per
    number, with spread, count, missing scores, its mean over the images that are classified correctly, and
    its lead; in `epoch_<n>.npz` the scores image by image. Maps and pictures of the first `pictures` images
    stand beside them for the first and the last epoch, and for each `pictures_every_n_epochs` between.

    Args:
        attributions: Methods by name; the name is the one on plots.
        metrics: Metrics by name; those of `lit_xai.metrics.credible` that apply by default, none if empty.
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images explained at a time.
        every_n_epochs: Explain after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.
        target: The class to explain: the image's label, or what the model predicts.
        pictures: Images of the probe whose maps are kept.
        pictures_every_n_epochs: Keep maps of these epochs too; 0 for the first and the last alone.
        controls: Maps that know nothing, by name; a random map, edges, the map of another image and that of
            the untrained network by default, none if empty.
        control_samples: Images on which controls are scored; null for all.
        metrics_every_n_epochs: Other n than `every_n_epochs`, by name of the metric; by default, 10 for
            `randomisation_complexity` of the default metrics.
        max_share_of_epoch: Share of an epoch's training time that explaining may take, above 0. It takes
            fewer images where it would take longer, the first ones of a random order, one at least, and says
            so; the first look, which does not know yet what an image costs, begins with a few. Null for no
            limit.
        on_error: What to do where a method or a metric fails: report it, log the share of images that have
            failed as `explain/<attribution>/flag/failed` and go on ("flag"), or end the run ("raise").

    Raises:
        ValueError: A number is below its least value, or a metric has no such name; before the first epoch,
            also: a metric applies to none of the methods, or needs what model or data do not have.
    """

    def __init__(
        self,
        attributions: dict[str, Attribution],
        metrics: dict[str, Metric] | None = None,
        samples: int = 64,
        batch_size: int = 64,
        every_n_epochs: int = 1,
        seed: int = 0,
        target: Literal["label", "prediction"] = "label",
        pictures: int = 8,
        pictures_every_n_epochs: int = 0,
        controls: dict[str, Attribution] | None = None,
        control_samples: int | None = 64,
        metrics_every_n_epochs: dict[str, int] | None = None,
        max_share_of_epoch: float | None = None,
        on_error: Literal["flag", "raise"] = "flag",
    ) -> None:
        require_at_least(0, pictures=pictures, pictures_every_n_epochs=pictures_every_n_epochs)
        require_at_least(1, control_samples=1 if control_samples is None else control_samples)
        require_positive(max_share_of_epoch=1 if max_share_of_epoch is None else max_share_of_epoch)
        self.by_default = metrics is None
        if metrics is None:
            menu = credible() if attributions else {}
            metrics = {name: one for name, one in menu.items() if applies(one, attributions)}
        if controls is None:
            controls = {"random_map": RandomMap(), "edge_map": EdgeMap(), "other_image": OtherImage()}
            controls["untrained"] = Untrained()
            if samples == 1:
                del controls["other_image"]
        super().__init__(
            attributions,
            metrics,
            samples,
            batch_size,
            every_n_epochs,
            seed,
            target,
            pictures,
            controls=controls if attributions else {},
            control_samples=control_samples,
            budget=None if max_share_of_epoch is None else Budget(max_share_of_epoch),
            on_error=on_error,
        )
        self.pictures_every_n_epochs = pictures_every_n_epochs
        seldom = {name: 10 for name in SELDOM if name in metrics} if self.by_default else {}
        self.metrics_every_n_epochs = seldom | (metrics_every_n_epochs or {})
        for name, every in self.metrics_every_n_epochs.items():
            near = get_close_matches(name, self.metrics, 1, cutoff=0)
            remedy = f"did you mean `{near[0]}`?" if near else "there are none."
            require(name in self.metrics, f"`metrics_every_n_epochs` names no metric by {name!r}: {remedy}")
            require_at_least(1, metrics_every_n_epochs=every)

    @property
    def note(self) -> str:
        """What the run is to be judged by, in one line."""
        failed = f"failed and left out: {', '.join(reasons(self.failed))}" if self.failed else ""
        return "; ".join(filter(None, (failed, self.budget.note if self.budget is not None else "")))

    def quantities(self) -> dict[str, dict[str, Any]]:
        samples = {} if self.budget is None else {SAMPLES: record.described("samples", None, 0)}
        return super().quantities() | samples

    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        if self.budget is not None:
            self.values[SAMPLES] = float(len(table["ids"]))
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "explanations"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch_{trainer.current_epoch:03d}" if fitting(trainer) else TrainerFn(trainer.state.fn).value
        stem = folder / name
        scored = [column for column in self._columns() if column.key in table]
        arrays = {f"scores/{column.key}": table[column.key] for column in scored}
        arrays |= {f"probe_{key}": table[key] for key in table if f"scores/{key}" not in arrays}
        if self._pictured(trainer) and len(pictures["ids"]):
            arrays |= pictures
            gallery.save(stem.with_suffix(".png"), pictures)
            mirror.images(trainer, gallery.sheets(pictures))
        record.save(stem.with_suffix(".npz"), arrays)
        record.write(stem.with_suffix(".csv"), record.rows(scored, table))

    def _every(self, metric: str) -> int:
        return self.metrics_every_n_epochs.get(metric, self.every_n_epochs)

    def _pictured(self, trainer: L.Trainer) -> bool:
        every = self.pictures_every_n_epochs
        return self.ends(trainer) or bool(every and self._due(trainer, every))

    def _check_metric(self, name: str, metric: Metric, facts: Facts) -> None:
        idle = bool(self.attributions) and not applies(metric, self.attributions)
        require(
            not idle,
            f"`{name}` applies to none of the attributions ({', '.join(self.attributions)}): leave it out, "
            f"or add one that it applies to{_such_as(metric) if idle else ''}.",
        )
        try:
            super()._check_metric(name, metric, facts)
        except ValueError as refusal:
            if not self.by_default:
                raise
            del self.metrics[name]
            self.say(f"left out: {refusal}")


def applies(metric: Metric, attributions: Mapping[str, Attribution]) -> bool:
    """Whether a metric says something about the model, or about one of these methods."""
    return about_model(metric) or any(metric.applies(one) for one in attributions.values())


def _such_as(metric: Metric) -> str:
    """Some methods that a metric applies to, in words."""
    named: list[str] = []
    for name in methods.__all__:
        method = getattr(methods, name)
        if isinstance(method, type) and issubclass(method, Attribution) and not inspect.isabstract(method):
            with suppress(TypeError):  # a method that cannot be built without a word
                named += [name] if metric.applies(method()) else []
    return f", such as {' or '.join(named[:2])}" if named else ""
