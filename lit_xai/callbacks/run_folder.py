"""The run folder: the record of a run, whatever happens to it."""

import csv
import json
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_only

from lit_xai.callbacks.probe import Probe, fitting
from lit_xai.provenance import now, provenance


class RunFolder(L.Callback):
    """Writes what a run is and how it goes: `provenance.json`, `quantities.json`, `status.json`.

    Args:
        folder: The run folder.
        seed: The run's seed.
    """

    def __init__(self, folder: Path, seed: int | None) -> None:
        self.folder, self.seed = folder, seed
        self._start = time.time()
        self._origin: dict[str, Any] = {}
        self._described = False

    def on_fit_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        # A run that is resumed counts the seconds of its earlier parts too.
        self._start = time.time() - self._spent()
        self._origin = provenance(self.seed)
        before = self._read("provenance.json")
        if before.get("started") and self._read("status.json").get("epoch"):
            resumed = [*before.get("resumed", []), self._origin["started"]]
            self._origin |= {"started": before["started"], "resumed": resumed}
        self._described = False
        self._write("provenance.json", self._origin)
        self._status(trainer, "running")

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._status(trainer, "running")  # a run that is resumed knows its epoch only now

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not self._described:  # by now, every probe has left out what model and data cannot show
            probes = [callback for callback in trainer.callbacks if isinstance(callback, Probe)]  # type: ignore[attr-defined]
            self._write("quantities.json", {k: v for probe in probes for k, v in probe.quantities().items()})
            self._described = True

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._status(trainer, "running", done=trainer.current_epoch + 1)

    def on_fit_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        seconds = round(time.time() - self._start, 3)
        self._write("provenance.json", self._origin | {"finished": now(), "seconds": seconds})
        self._status(trainer, "finished")

    def on_exception(
        self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException
    ) -> None:
        stopped = isinstance(exception, KeyboardInterrupt | SystemExit)
        said = f"{type(exception).__name__}: {exception}"
        self._status(trainer, "interrupted" if stopped else "failed", error=said)

    def _spent(self) -> float:
        status = self._read("status.json")
        return float(status.get("seconds", 0)) if status.get("epoch") else 0.0

    def _read(self, name: str) -> dict[str, Any]:
        try:
            content = json.loads((self.folder / name).read_text())
        except (OSError, ValueError):
            return {}
        return content if isinstance(content, dict) else {}

    def _status(
        self, trainer: L.Trainer, state: str, done: int | None = None, error: str | None = None
    ) -> None:
        if not fitting(trainer):
            return
        status = {
            "state": state,
            "epoch": trainer.current_epoch if done is None else done,
            "epochs": trainer.max_epochs,
            "seconds": round(time.time() - self._start, 3),
            "error": error,
            "notes": notes(trainer),
        }
        self._write("status.json", status)

    @rank_zero_only
    def _write(self, name: str, content: Mapping[str, Any]) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        draft = self.folder / f".{name}"
        draft.write_text(json.dumps(content, indent=2) + "\n")
        draft.replace(self.folder / name)  # a reader never sees half a file


def notes(trainer: L.Trainer) -> list[str]:
    """What callbacks have seen that the run is to be judged by, in one line each."""
    said = (getattr(callback, "note", "") for callback in trainer.callbacks)  # type: ignore[attr-defined]
    return [note for note in said if isinstance(note, str) and note]


class CsvLog(Logger):
    """`metrics.csv`, one row per call: rows of an earlier part of the run stay when it is resumed.

    Args:
        folder: The run folder.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.path = folder / "metrics.csv"

    @property
    def name(self) -> str:
        return "csv"

    @property
    def version(self) -> str:
        return self.path.parent.name

    @rank_zero_only
    def log_hyperparams(self, *args: Any, **kwargs: Any) -> None:
        """The configuration has its own file."""

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        row = {"epoch": "", "step": step, **metrics}
        header: list[str] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                header = next(csv.reader(file), [])
        new = [key for key in row if key not in header]
        if new:
            self._widen(header + new)
        with self.path.open("a", newline="") as file:
            if not self.path.read_bytes().endswith(b"\n"):
                file.write("\r\n")  # a row that a kill cut off stays alone
            csv.DictWriter(file, header + new, restval="").writerow(row)

    def _widen(self, header: list[str]) -> None:
        """Rewrite the table with more columns, all rows kept."""
        rows: list[dict[str, str]] = []
        if self.path.exists():
            with self.path.open(newline="") as file:
                rows = list(csv.DictReader(file))
        self.path.parent.mkdir(parents=True, exist_ok=True)
        draft = self.path.with_suffix(".draft")
        with draft.open("w", newline="") as file:
            writer = csv.DictWriter(file, header, restval="")
            writer.writeheader()
            writer.writerows(rows)
        draft.replace(self.path)
