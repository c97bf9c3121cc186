"""What a run says where nobody watches a bar: one line per epoch."""

import time

import lightning as L
from lightning.pytorch.utilities import rank_zero_only


class EpochLines(L.Callback):
    """Prints one line per epoch: accuracy, robustness, time, and what is left."""

    def __init__(self) -> None:
        self._start, self._first, self._observed = time.time(), 0, 0.0

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start, self._first = time.time(), trainer.current_epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        metrics = trainer.callback_metrics  # by every process: what is averaged over them is averaged now
        done, epochs = trainer.current_epoch + 1, trainer.max_epochs or 0
        shown = [
            f"{label} {float(metrics[key]):.3f}"
            for label, key in (
                ("loss", "train/loss"),
                ("accuracy", "val/accuracy"),
                ("robust", "robust/pgd/accuracy"),
                ("boundary", "robust/boundary/distance"),
            )
            if key in metrics
        ]
        spent = time.time() - self._start
        left = spent / (done - self._first) * (epochs - done)
        seconds = {key: float(value) for key, value in metrics.items() if key.startswith("time/")}
        share = ""
        if "time/explain_share" in seconds:
            share = f"explaining {seconds['time/explain_share']:.0%} of training, "
        self._observed += sum(value for key, value in seconds.items() if not key.endswith("_share"))
        share += f"observing {self._observed / spent:.0%} of the time"
        _say(f"epoch {done}/{epochs}  {'  '.join(shown)}  {share}  {left:.0f} s left")


@rank_zero_only
def _say(line: str) -> None:
    print(line, flush=True)
