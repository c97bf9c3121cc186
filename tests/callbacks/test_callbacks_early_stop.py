"""A run that ends where nothing improves, on a network whose robust accuracy follows a script."""

import json
from pathlib import Path

import lightning as L
import pytest
from lightning.pytorch.callbacks import ModelCheckpoint
from scripted import (
    KEY,
    best,
    classifier,
    fitted,
    last,
    probe,
)

from lit_xai.callbacks import EarlyStop, RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory", "ignore:.*sync_dist=True")


@pytest.mark.parametrize(("every", "end"), [(1, 4), (2, 7)])
def test_a_run_ends_after_looks_without_improvement(tmp_path: Path, every: int, end: int) -> None:
    stop = EarlyStop(patience=2)
    script = (0.4, 0.6, 0.5, 0.6, 0.5, 0.5, 0.4, 0.9, 0.9, 0.9)
    folder = RunFolder(tmp_path, 0)
    trainer = fitted(tmp_path, stop, probe(script, every), best(tmp_path), folder, epochs=10)
    assert trainer.current_epoch == end  # an epoch without a look costs no patience
    status = json.loads((tmp_path / "status.json").read_text())
    assert (status["state"], status["epoch"]) == ("finished", end)
    peak = 0.6 if every == 1 else 0.5
    assert status["notes"] == [f"stopped at epoch {end - 1}: {KEY} has not improved over {peak} for 2 looks"]


def test_patience_is_what_this_run_says_and_not_its_checkpoint(tmp_path: Path) -> None:
    script, path = (0.6, 0.5, 0.5, 0.5, 0.5, 0.5), tmp_path / "last.ckpt"
    first = EarlyStop(patience=2, monitor=KEY, mode="max")
    assert fitted(tmp_path, first, probe(script), last(tmp_path), epochs=6).current_epoch == 3
    second = EarlyStop(patience=4, monitor=KEY, mode="max")
    trainer = fitted(tmp_path, second, probe(script), last(tmp_path), epochs=6, resume=path)
    assert trainer.current_epoch == 5
    assert second.waited == 4


def test_a_loss_is_followed_downwards(tmp_path: Path) -> None:
    stop = EarlyStop(patience=2, monitor=KEY, mode="min")
    assert fitted(tmp_path, stop, probe((0.6, 0.5, 0.4, 0.3))).current_epoch == 4
    assert (stop.best, stop.waited) == (pytest.approx(0.3), 0)
    by_checkpoint = EarlyStop(patience=2)
    down = ModelCheckpoint(tmp_path, "best", monitor=KEY, mode="min")
    assert fitted(tmp_path, by_checkpoint, down, probe((0.3, 0.4, 0.5, 0.6))).current_epoch == 3


def test_a_number_that_is_none_is_no_improvement() -> None:
    stop = EarlyStop(patience=3, monitor=KEY, mode="max")
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    for value in (float("nan"), 0.5, float("nan")):
        stop.judge(trainer, classifier(), value)
    assert (stop.best, stop.waited) == (0.5, 1)
