"""Ends of a run that a probe decides: nothing gained for a while, or robustness lost at one blow."""

import abc
import math
from collections.abc import Mapping
from difflib import get_close_matches
from typing import Any, Literal

import lightning as L
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.utilities import rank_zero_only
from torch import Tensor

from lit_xai.callbacks.averaging import averages
from lit_xai.callbacks.probe import Probe, fitting
from lit_xai.types import require, require_at_least, require_positive

Weights = Mapping[str, Tensor]


class Follower(L.Callback, abc.ABC):
    """Follows a number from look to look, and may end the run.

    An epoch in which the probe behind the number did not look is none: the number that the trainer still
    keeps from an earlier epoch is not judged again. What a probe measures is the same on every process, and
    so is every decision here.

    Args:
        monitor: The log key to follow; what chooses the best checkpoint by default.
    """

    advice = ""  # what to do about it, in words

    def __init__(self, monitor: str | None) -> None:
        self.monitor = monitor
        self.note = ""  # what it has seen and done, in one line

    @abc.abstractmethod
    def judge(self, trainer: L.Trainer, pl_module: L.LightningModule, value: float) -> None:
        """Judge the number that was just measured."""

    @abc.abstractmethod
    def over(self) -> bool:
        """Whether the run is to end."""

    def key(self, trainer: L.Trainer) -> str | None:
        """The log key that is followed, if any."""
        return self.monitor or chooser(trainer)[0]

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        key = None if trainer.sanity_checking or not fitting(trainer) else self.key(trainer)
        value = None if key is None else measured(trainer, key)
        if value is not None:
            self.judge(trainer, pl_module, value)
            trainer.should_stop = trainer.should_stop or self.over()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that was ended and is resumed stays ended.
        trainer.should_stop = trainer.should_stop or self.over()


class EarlyStop(Follower):
    """Ends a run in which a number has not improved for some looks.

    Robust accuracy peaks long before training ends: what is followed is measured on held-out images, by
    default the very number that chooses the best checkpoint.

    Args:
        patience: Looks without improvement after which the run ends; 0 for never.
        min_delta: How much better a number must be to be an improvement, at least 0.
        monitor: The log key to follow; that of the best checkpoint by default.
        mode: Whether more is better ("max") or less ("min"); as for the best checkpoint by default, to be
            said for a `monitor` that is named here.

    Raises:
        ValueError: A number is below its least value, a `monitor` has no `mode`, or nothing is followed.

    Source: Rice, Wong and Kolter 2020, "Overfitting in adversarially robust deep learning", arXiv 2002.11569.
    """

    def __init__(
        self,
        patience: int = 0,
        min_delta: float = 0.0,
        monitor: str | None = None,
        mode: Literal["max", "min"] | None = None,
    ) -> None:
        require_at_least(0, patience=patience, min_delta=min_delta)
        require(
            monitor is None or mode is not None,
            f"`mode` must be max or min, got None: say whether more of {monitor} is better, or less.",
        )
        super().__init__(monitor)
        self.patience, self.min_delta, self.mode = patience, min_delta, mode
        self.best: float | None = None
        self.waited = 0

    def key(self, trainer: L.Trainer) -> str | None:
        return super().key(trainer) if self.patience else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        require(
            not self.patience or self.key(trainer) is not None,
            f"`patience` is {self.patience}, and nothing chooses the best checkpoint: name a `monitor`.",
        )

    def judge(self, trainer: L.Trainer, pl_module: L.LightningModule, value: float) -> None:
        sign = -1.0 if (self.mode or chooser(trainer)[1]) == "min" else 1.0
        gained = self.best is None or sign * (value - self.best) > self.min_delta
        if gained and not math.isnan(value):
            self.best, self.waited = value, 0
            return
        self.waited += 1
        if self.waited == self.patience:
            best = "" if self.best is None else f" over {self.best:.4g}"
            self.note = (
                f"stopped at epoch {trainer.current_epoch}: {self.key(trainer)} has not improved{best} "
                f"for {self.patience} looks"
            )
            say(self, self.note)

    def over(self) -> bool:
        return 0 < self.patience <= self.waited

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best, "waited": self.waited, "note": self.note}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best, self.waited = state_dict["best"], state_dict["waited"]
        # A run that is given more patience goes on.
        self.note = state_dict["note"] if self.over() else ""


class CatastrophicOverfitting(Follower):
    """Tells when robustness is lost between two looks, as it happens where training attacks take one step.

    Robust accuracy under an attack of many steps is followed, and two signs are known: it falls by more than
    `drop` from one look to the next; or it has fallen so far since its best look, in smaller steps, while
    accuracy under a one-step attack lies more than `gap` above it: the network hides from one step alone.
    `guard/collapse` is logged: 0, and 1 from the collapse on.

    Args:
        on_collapse: Tell and go on ("flag"), end the run ("stop"), or end it with the weights of the look
            before ("restore": they are kept in memory and in checkpoints).
        drop: Fall of accuracy that counts as collapse, in (0, 1).
        monitor: Log key of the accuracy under many steps; by default that of the best checkpoint, where it is
            a robust accuracy. Nothing is followed otherwise.
        one_step: Log key of the accuracy under one step, such as `robust/fgsm/accuracy`, if measured.
        gap: Lead of the one-step accuracy that counts as collapse, above 0.

    Raises:
        ValueError: A number is out of its range, a key is not logged, or the run is to end by what is not
            followed, or with weights that an average of weights would replace.

    Source: Wong, Rice and Kolter 2020, "Fast is better than free", arXiv 2001.03994, section 5 and the
    released code (a fall of 0.2 after an epoch, the weights of the epoch before).
    Deviates: a fixed probe of held-out images, where the code attacks the first batch of training images.
    """

    advice = "attack with more steps, or a smaller step size, and take the best checkpoint until then"

    def __init__(
        self,
        on_collapse: Literal["flag", "stop", "restore"] = "flag",
        drop: float = 0.2,
        monitor: str | None = None,
        one_step: str | None = None,
        gap: float = 0.3,
    ) -> None:
        require_positive(drop=drop, gap=gap)
        require(drop < 1, f"`drop` must be less than 1, got {drop!r}: accuracies lie in [0, 1].")
        super().__init__(monitor)
        self.on_collapse, self.drop, self.one_step, self.gap = on_collapse, drop, one_step, gap
        self.before: float | None = None
        self.peak = 0.0
        self.epoch = -1
        self.weights: Weights = {}

    def key(self, trainer: L.Trainer) -> str | None:
        key = super().key(trainer)
        robust = key is not None and key.startswith("robust/") and key.endswith("/accuracy")
        return key if self.monitor or robust else None

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        require(
            self.on_collapse == "flag" or self.key(trainer) is not None,
            f"`on_collapse` is {self.on_collapse!r}, and no robust accuracy chooses the best checkpoint: "
            "name a `monitor`, such as robust/pgd/accuracy.",
        )
        require(
            self.on_collapse != "restore" or not averages(trainer),
            '`on_collapse` is "restore", and an average of the weights (`ema`) ends the run with its own: '
            'take "stop", and the best checkpoint.',
        )

    def judge(self, trainer: L.Trainer, pl_module: L.LightningModule, value: float) -> None:
        single = None if self.one_step is None else measured(trainer, self.one_step)
        lead = None if single is None else single - value
        seen = "" if self.note else self.sign(str(self.key(trainer)), value, lead)
        if seen:
            self.note = f"robustness collapsed at epoch {trainer.current_epoch}: {seen}{self.consequence()}"
            say(self, self.note)
        if self.note and self.on_collapse == "restore" and self.weights:
            pl_module.load_state_dict(self.weights)
            return
        if math.isnan(value):  # says nothing, neither now nor to the next look
            return
        self.before, self.peak, self.epoch = value, max(value, self.peak), trainer.current_epoch
        if self.on_collapse == "restore":
            state = pl_module.state_dict()
            self.weights = {name: tensor.detach().to("cpu", copy=True) for name, tensor in state.items()}

    def sign(self, key: str, value: float, lead: float | None) -> str:
        """What speaks of a collapse, in words; empty where nothing does."""
        if self.before is not None and self.before - value > self.drop:
            return f"{key} fell from {self.before:.3f} to {value:.3f} between two looks"
        if self.peak - value > self.drop and lead is not None and lead > self.gap:
            return f"{key} fell from {self.peak:.3f} to {value:.3f}, {self.one_step} lies {lead:.3f} above it"
        return ""

    def consequence(self) -> str:
        """What is done about it, in words."""
        if self.on_collapse == "restore" and self.weights:
            return f"; stopped with the weights of epoch {self.epoch}"
        return "" if self.on_collapse == "flag" else "; stopped"

    def over(self) -> bool:
        return bool(self.note) and self.on_collapse != "flag"

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.key(trainer) is not None:
            pl_module.log("guard/collapse", float(bool(self.note)))

    def state_dict(self) -> dict[str, Any]:
        weights = dict(self.weights)
        seen = {"before": self.before, "peak": self.peak, "epoch": self.epoch}
        return {"note": self.note, **seen, "weights": weights}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.note, self.before, self.peak = (state_dict[key] for key in ("note", "before", "peak"))
        self.epoch, self.weights = state_dict["epoch"], state_dict["weights"]


@rank_zero_only
def say(who: L.Callback, note: str) -> None:
    """Print what happened, in one line."""
    print(f"{type(who).__name__}: {note}", flush=True)


def chooser(trainer: L.Trainer) -> tuple[str | None, str]:
    """Log key and mode that choose the best checkpoint, if one is chosen."""
    for callback in trainer.checkpoint_callbacks:
        if isinstance(callback, ModelCheckpoint) and callback.monitor is not None:
            return callback.monitor, callback.mode
    return None, "max"


def measured(trainer: L.Trainer, key: str) -> float | None:
    """What the validation that just ended says under a log key; None where its probe did not look."""
    for callback in trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Probe) and key in callback.quantities():
            return callback.values.get(key) if callback.fresh else None
    logged = trainer.callback_metrics
    near = ", ".join(get_close_matches(key, logged, 5, cutoff=0))
    require(key in logged, f"`{key}` is followed, and validation does not log it; the nearest are {near}.")
    return float(logged[key])
