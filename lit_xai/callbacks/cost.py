"""What a regime costs, said before it is paid and after."""

import statistics
import time
from typing import Any

import lightning as L
import torch
from torch import nn

from lit_xai.evaluation.cost import Cost, Regime, cost
from lit_xai.types import Images, Labels

Mark = float | torch.cuda.Event


class RegimeCost(L.Callback):
    """Prints what a batch costs over a standard training step: tried on copies first, measured at last.

    Standard is the cross entropy with the same network, optimizer, batch and precision, without Bort's
    constraint. Loading, validation and explanations are not counted, they are the same for every regime; what
    the trainer adds to a batch, less than a millisecond, is in what is measured alone. The first process
    tries it, and a trial that fails, for want of memory say, is told in one line and leaves the run alone. A
    standard training says nothing, nor does one whose batch norms wait for other processes.
    """

    def __init__(self) -> None:
        self.predicted: Cost | None = None
        self.measured: float | None = None
        self._tried = False
        self._marks: list[tuple[Mark, Mark]] = []
        self._start: Mark = 0.0

    def on_train_batch_start(
        self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self._tried and trainer.is_global_zero:
            self._tried = True
            self._predict(trainer, pl_module, batch[0], batch[1])
        if self.predicted is not None:
            self._start = _mark(pl_module.device)

    def on_train_batch_end(
        self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        if self.predicted is not None and len(self._marks) < 1000:
            self._marks.append((self._start, _mark(pl_module.device)))

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if self.predicted is None or not self._marks:
            return
        if pl_module.device.type == "cuda":
            torch.cuda.synchronize(pl_module.device)
        mine = statistics.median(_seconds(start, end) for start, end in self._marks)
        self.measured = mine / self.predicted.standard
        said = f"{self.measured:.1f} x a standard training step, measured"
        print(f"regime: {said}; {self.predicted.relative:.1f} predicted", flush=True)

    def _predict(self, trainer: L.Trainer, pl_module: Any, inputs: Images, target: Labels) -> None:
        precision = trainer.precision_plugin.forward_context
        regime = Regime(pl_module.model, pl_module.objective, trainer.optimizers[0], precision)
        waiting = any(isinstance(part, nn.SyncBatchNorm) for part in regime.model.modules())
        if waiting or regime.is_standard():
            return
        try:
            found = self.predicted = cost(regime, inputs, target)
        except Exception as error:  # no reason to end a run
            said = str(error).partition("\n")[0]
            print(f"regime: not tried, {type(error).__name__}: {said}", flush=True)
            return
        passes = f"{found.forwards:g} forward and {found.backwards:g} backward passes an image"
        print(f"regime: {found.relative:.1f} x a standard training step, predicted: {passes}", flush=True)


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
