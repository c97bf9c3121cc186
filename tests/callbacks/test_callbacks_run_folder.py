"""The record of a run survives resuming, new columns, and what stops the run."""

import csv
import json
from pathlib import Path
from unittest.mock import MagicMock

import lightning as L
from lightning.pytorch.trainer.states import TrainerFn, TrainerState

from lit_xai.callbacks import EarlyStop
from lit_xai.callbacks.run_folder import CsvLog, RunFolder
from lit_xai.provenance import provenance


def rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def test_a_second_logger_appends_and_widens(tmp_path: Path) -> None:
    CsvLog(tmp_path).log_metrics({"epoch": 0, "loss": 1.5}, step=10)
    CsvLog(tmp_path).log_metrics({"epoch": 1, "accuracy": 0.5}, step=20)
    assert rows(tmp_path) == [
        {"epoch": "0", "step": "10", "loss": "1.5", "accuracy": ""},
        {"epoch": "1", "step": "20", "loss": "", "accuracy": "0.5"},
    ]


def test_numbers_are_written_in_full(tmp_path: Path) -> None:
    CsvLog(tmp_path).log_metrics({"x": 0.1 + 0.2}, step=0)
    assert float(rows(tmp_path)[0]["x"]) == 0.1 + 0.2


def test_status_tells_how_a_run_ended(tmp_path: Path) -> None:
    trainer = MagicMock(spec=L.Trainer, state=TrainerState(fn=TrainerFn.FITTING))
    trainer.configure_mock(current_epoch=2, max_epochs=6, callbacks=[])
    module = MagicMock(spec=L.LightningModule)
    folder = RunFolder(tmp_path, seed=3)

    def status() -> dict[str, object]:
        return json.loads((tmp_path / "status.json").read_text())

    folder.on_fit_start(trainer, module)
    assert status()["state"] == "running"
    folder.on_train_start(trainer, module)  # where a resumed run knows its epoch
    assert (status()["state"], status()["epoch"]) == ("running", 2)
    folder.on_train_epoch_end(trainer, module)
    assert (status()["epoch"], status()["epochs"]) == (3, 6)
    assert status()["notes"] == []
    stopped = EarlyStop(patience=2)
    stopped.note = "stopped at epoch 3"
    trainer.callbacks.append(stopped)
    folder.on_train_epoch_end(trainer, module)
    assert status()["notes"] == ["stopped at epoch 3"]
    folder.on_exception(trainer, module, KeyboardInterrupt())
    assert status()["state"] == "interrupted"
    folder.on_exception(trainer, module, RuntimeError("out of memory"))
    assert (status()["state"], status()["error"]) == ("failed", "RuntimeError: out of memory")
    folder.on_fit_end(trainer, module)
    assert (status()["state"], status()["error"]) == ("finished", None)


def test_provenance_names_versions_machine_and_seed() -> None:
    said = provenance(seed=7)
    assert said["seed"] == 7
    assert said["versions"]["torch"]
    assert said["machine"]["cores"] >= 1
    json.dumps(said)


def test_a_row_that_was_cut_off_does_not_spoil_the_next(tmp_path: Path) -> None:
    CsvLog(tmp_path).log_metrics({"epoch": 0, "loss": 1.5}, step=10)
    with (tmp_path / "metrics.csv").open("a") as file:
        file.write("1,2")
    CsvLog(tmp_path).log_metrics({"epoch": 2, "loss": 0.5}, step=30)
    assert [row["loss"] for row in rows(tmp_path)][-1] == "0.5"


def test_provenance_tells_when_a_run_was_resumed_and_how_long_it_took(tmp_path: Path) -> None:
    trainer = MagicMock(spec=L.Trainer, state=TrainerState(fn=TrainerFn.FITTING))
    trainer.configure_mock(current_epoch=1, max_epochs=2, callbacks=[])
    module = MagicMock(spec=L.LightningModule)

    def origin() -> dict[str, object]:
        return json.loads((tmp_path / "provenance.json").read_text())

    first = RunFolder(tmp_path, seed=0)
    first.on_fit_start(trainer, module)
    started = origin()["started"]
    assert "resumed" not in origin()
    first.on_exception(trainer, module, KeyboardInterrupt())
    second = RunFolder(tmp_path, seed=0)
    second.on_fit_start(trainer, module)
    assert origin()["started"] == started
    assert len(origin()["resumed"]) == 1
    second.on_fit_end(trainer, module)
    assert origin()["finished"]
    assert origin()["seconds"] >= 0
