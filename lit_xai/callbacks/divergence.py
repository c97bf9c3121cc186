"""A training that has failed, told as soon as it has."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from torch import Tensor

from lit_xai.callbacks.guard import say
from lit_xai.callbacks.probe import fitting
from lit_xai.types import require, require_at_least

Reaction = Literal["flag", "stop"]


class Diverged(RuntimeError):
    """Training cannot go on; its text says why, in one line."""


class Divergence(L.Callback):
    """Tells when the training loss is not finite, or when one class is predicted for nearly all images.

    The loss is looked at on the device after each batch, and asked for every `every_n_steps` batches and
    before an epoch is validated or kept: no checkpoint, and no explanation, is of weights behind it. Where
    one class has most of the predictions is seen in each validation. Logged are `guard/nonfinite`, 0 or 1,
    and `guard/one_class`, the largest share of predictions that one class has.

    Args:
        on_nan: What a loss that is not finite does: end the run as failed, at its last finished epoch
            ("stop"), or tell and go on ("flag").
        on_one_class: What one class that is predicted for nearly all images does: tell ("flag"), or end the
            run after that epoch ("stop").
        share: Predictions of one class that are too many, in (0, 1); no fewer of its labels are not counted.
        every_n_steps: Batches between two questions to the device, at least 1.

    Raises:
        ValueError: A number is out of its range.
    """

    advice = "lower the learning rate, warm it up, or clip gradients with `--trainer.gradient_clip_val 1`"

    def __init__(
        self,
        on_nan: Reaction = "stop",
        on_one_class: Reaction = "flag",
        share: float = 0.9,
        every_n_steps: int = 50,
    ) -> None:
        require(0 < share < 1, f"`share` must be greater than 0 and less than 1, got {share!r}.")
        require_at_least(1, every_n_steps=every_n_steps)
        self.on_nan, self.on_one_class = on_nan, on_one_class
        self.share, self.every_n_steps = share, every_n_steps
        self.nonfinite, self.one_class = "", ""  # what was seen, in one line each
        self._bad = torch.zeros(0)  # on the device: whether a loss was not finite since the last question
        self._pending = False  # whether there was a batch since the last question
        self._counts = torch.zeros(0)  # predictions and labels of each class

    @property
    def note(self) -> str:
        """What it has seen and done, in one line."""
        return "; ".join(filter(None, (self.nonfinite, self.one_class)))

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._bad = torch.zeros((), dtype=torch.bool, device=pl_module.device)
        # A run that was ended and is resumed stays ended.
        trainer.should_stop = trainer.should_stop or self.over()

    def over(self) -> bool:
        """Whether the run is to end after an epoch."""
        return bool(self.one_class) and self.on_one_class == "stop"

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        loss = outputs.get("loss") if isinstance(outputs, Mapping) else outputs
        if isinstance(loss, Tensor):
            self._bad = self._bad | ~loss.detach().isfinite()
        self._pending = True
        if (batch_idx + 1) % self.every_n_steps == 0 or trainer.is_last_batch:
            self._ask(trainer)

    def on_validation_start(self, trainer: L.Trainer, pl_module: Any) -> None:
        self._counts = torch.zeros(2, pl_module.classes, device=pl_module.device)
        if fitting(trainer) and not trainer.sanity_checking:
            self._ask(trainer)

    def on_validation_batch_end(
        self,
        trainer: L.Trainer,
        pl_module: L.LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        for row, classes in enumerate((outputs, batch[1])):
            self._counts[row].index_add_(0, classes, torch.ones_like(classes, dtype=self._counts.dtype))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if trainer.sanity_checking or not fitting(trainer):
            return
        counts: Any = trainer.strategy.reduce(self._counts, reduce_op="sum")
        predicted, labels = (counts / counts.sum(1, keepdim=True).clamp(min=1)).tolist()
        largest = max(range(len(predicted)), key=predicted.__getitem__)
        pl_module.log("guard/one_class", predicted[largest])
        if predicted[largest] <= self.share or labels[largest] > self.share:
            if self.one_class and "; over" not in self.one_class and not self.over():
                self.one_class += f"; over at epoch {trainer.current_epoch}"
        elif not self.one_class:
            self.one_class = (
                f"class {largest} is predicted for {predicted[largest]:.0%} of the validation images "
                f"({labels[largest]:.0%} have it) at epoch {trainer.current_epoch}"
            )
            self.one_class += "; stopped" if self.over() else ""
            say(self, self.one_class)
        trainer.should_stop = trainer.should_stop or self.over()

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # After its last batch nothing is asked: the first process may be computing its metrics by itself.
        if self._pending:
            self._ask(trainer)
        pl_module.log("guard/nonfinite", float(bool(self.nonfinite)))

    def state_dict(self) -> dict[str, Any]:
        return {"nonfinite": self.nonfinite, "one_class": self.one_class}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.nonfinite, self.one_class = state_dict["nonfinite"], state_dict["one_class"]

    def _ask(self, trainer: L.Trainer) -> None:
        """Ask the device, and every process, whether a loss was not finite."""
        self._pending = False
        if self.nonfinite or not trainer.strategy.reduce_boolean_decision(bool(self._bad), all=False):
            return
        self.nonfinite = f"the training loss is not finite in epoch {trainer.current_epoch}"
        if self.on_nan == "stop":
            raise Diverged(self.nonfinite)
        say(self, self.nonfinite)
