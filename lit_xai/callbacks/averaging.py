"""An average of the weights over the run, which is what is looked at and kept."""

from functools import partial
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import WeightAveraging
from lightning.pytorch.trainer.states import TrainerFn
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel

from lit_xai.types import require


class MovingAverage(WeightAveraging):
    """Keeps an exponential moving average of the weights: a <- a + (1 - decay) (w - a) after each batch.

    Training goes on with the weights w. Validation, probes, checkpoints and the end of the run have the
    average a, and so has every command that reads the run folder. It starts as the weights after the first
    step. Buffers in floating point, such as statistics of batch norm, are averaged too, counters are copied.
    Checkpoints hold both, so that a run that is resumed goes on as if it had never stopped; one that is
    resumed with a decay of 0 goes on with the weights w.

    Args:
        decay: Share of the average that a step leaves, from 0 to less than 1; 0 for no average at all.

    Source: Gowal et al. 2020, arXiv 2010.03593, section 4.3 (decay 0.995, attacked and reported copy).
    """

    def __init__(self, decay: float = 0.0) -> None:
        require(0 <= decay < 1, f"`decay` must be at least 0 and less than 1, got {decay!r}.")
        super().__init__(multi_avg_fn=partial(_follow, decay))
        self.decay = decay
        self._lent = False  # whether the module has the average at the moment

    def setup(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        if self.decay and stage == "fit":
            # Only tensors are copied: what else a module holds may lead to the trainer and its processes.
            shell = nn.Module()
            for kind in ("_modules", "_parameters", "_buffers", "_non_persistent_buffers_set"):
                setattr(shell, kind, getattr(pl_module, kind))
            average = AveragedModel(shell, pl_module.device, use_buffers=True, **self._kwargs)
            average.n_averaged = average.n_averaged.cpu()  # asked at each step: no accelerator is waited for
            self._average_model = average

    def should_update(self, step_idx: int | None = None, epoch_idx: int | None = None) -> bool:
        return self._average_model is not None and step_idx is not None

    def on_validation_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            self._swap_models(pl_module)
            self._lent = True

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        """The average stays until `on_validation_end`: probes look now, whatever the order of callbacks."""

    def on_validation_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._lent:
            self._swap_models(pl_module)
            self._lent = False

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        self.on_validation_end(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self._average_model is not None:
            super().on_train_end(trainer, pl_module)

    def state_dict(self) -> dict[str, Any]:
        return super().state_dict() if self.decay else {}

    def on_save_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is not None:
            super().on_save_checkpoint(trainer, pl_module, checkpoint)

    def on_load_checkpoint(
        self, trainer: L.Trainer, pl_module: L.LightningModule, checkpoint: dict[str, Any]
    ) -> None:
        if self._average_model is not None:
            super().on_load_checkpoint(trainer, pl_module, checkpoint)
        elif trainer.state.fn == TrainerFn.FITTING and "current_model_state" in checkpoint:
            pl_module.load_state_dict(checkpoint["current_model_state"])


def averages(trainer: L.Trainer) -> bool:
    """Whether a run ends with an average of its weights."""
    found = [one for one in trainer.callbacks if isinstance(one, WeightAveraging)]  # type: ignore[attr-defined]
    return any(not isinstance(one, MovingAverage) or one.decay for one in found)


@torch.no_grad()
def _follow(decay: float, average: list[Tensor], current: list[Tensor], _: Tensor | int) -> None:
    """Move tensors of one kind towards the current ones; those that count are copied."""
    if average[0].is_floating_point():
        torch._foreach_lerp_(average, current, 1 - decay)
    else:
        torch._foreach_copy_(average, current)
