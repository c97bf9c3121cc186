"""What a regime costs, said before it is paid and after."""

import statistics
import time
from typing import Any

import lightning as L
import torch
from lightning.pytorch.utilities import rank_zero_only

from lit_xai.evaluation.cost import Cost, Regime, cost, standard_seconds

Mark = float | torch.cuda.Event


class RegimeCost(L.Callback):
    """Prints what a batch costs over a standard training step: tried on copies at first, measured at last.

    Standard is the cross entropy with the same network, optimizer, batch and precision, without Bort's
    constraint. Loading, validation and explanations are not counted, they are the same for every regime. A
    standard training says nothing.
    """

    def __init__(self) -> None:
        self.predicted: Cost | None = None
        self.measured: float | None = None
        self._first: tuple[Any, Any] | None = None  # a batch
        self._marks: list[tuple[Mark, Mark]] = []
        self._start: Mark = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if self._first is None:
            self._first = batch[0], batch[1]
            self._predict(trainer, pl_module)
        if self.predicted is not None:
            self._start = _mark(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.predicted is not None and len(self._marks) < 1000:
            self._marks.append((self._start, _mark(pl_module.device)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.predicted is None or self._first is None or not self._marks:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        mine = statistics.median(_seconds(start, end) for start, end in self._marks)
        self.measured = mine / standard_seconds(_regime(trainer, pl_module), *self._first)
        said = f"{self.measured:.1f} x a standard training step, measured"
        _say(f"{said}; {self.predicted.relative:.1f} predicted")

    def _predict(self, trainer: L.Trainer, pl_module: Any) -> None:
        regime = _regime(trainer, pl_module)
        if regime.is_standard() or self._first is None:
            return
        found = self.predicted = cost(regime, *self._first)
        _say(
            f"{found.relative:.1f} x a standard training step, predicted: {found.forwards:g} forward and "
            f"{found.backwards:g} backward passes an image"
        )


def _regime(trainer: L.Trainer, pl_module: Any) -> Regime:
    precision = trainer.precision_plugin.forward_context
    return Regime(pl_module.model, pl_module.objective, trainer.optimizers[0], precision)


def _mark(device: torch.device) -> Mark:
    """A moment, on the clock of the device: nothing waits for it."""
    if device.type != "cuda":  # of this process: no other one moves it
        return time.process_time()
    event = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]
    event.record(torch.cuda.current_stream(device))
    return event


def _seconds(start: Mark, end: Mark) -> float:
    if isinstance(start, torch.cuda.Event):
        return float(start.elapsed_time(end)) / 1000  # type: ignore[arg-type]
    return end - start  # type: ignore[operator]


@rank_zero_only
def _say(what: str) -> None:
    print(f"regime: {what}", flush=True)
