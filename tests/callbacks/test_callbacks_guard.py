"""What ends a run, tried on a network whose robust accuracy follows a script, epoch by epoch."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import EarlyStopping, EMAWeightAveraging, ModelCheckpoint
from scripted import (
    BATCHES,
    COLLAPSE,
    KEY,
    Halt,
    Looks,
    Scripted,
    best,
    classifier,
    equal,
    fitted,
    last,
    probe,
)

from lit_xai.callbacks import CatastrophicOverfitting, EarlyStop, MovingAverage, RunFolder

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory", "ignore:.*sync_dist=True")


def test_the_best_checkpoint_by_robust_accuracy_is_not_the_last(tmp_path: Path) -> None:
    looks = Looks()
    trainer = fitted(tmp_path, looks, probe(COLLAPSE), best(tmp_path), last(tmp_path))
    kept = torch.load(tmp_path / "best.ckpt", weights_only=True)
    assert kept["epoch"] == 1
    assert equal(kept["state_dict"], looks.seen[1])
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 3
    assert float(trainer.callback_metrics[KEY]) == pytest.approx(0.5)


def test_a_collapse_is_flagged_and_training_goes_on(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    guard, folder = CatastrophicOverfitting(), RunFolder(tmp_path, 0)
    trainer = fitted(tmp_path, guard, probe(COLLAPSE), best(tmp_path), folder)
    assert trainer.current_epoch == 4
    assert float(trainer.callback_metrics["guard/collapse"]) == 1
    note = f"robustness collapsed at epoch 2: {KEY} fell from 0.600 to 0.100 between two looks"
    assert guard.note == note
    assert capsys.readouterr().out.splitlines() == [f"CatastrophicOverfitting: {note}"]
    assert json.loads((tmp_path / "status.json").read_text())["notes"] == [note]


def test_no_collapse_no_flag(tmp_path: Path) -> None:
    guard = CatastrophicOverfitting(on_collapse="restore", drop=0.55)
    trainer = fitted(tmp_path, guard, probe(COLLAPSE), best(tmp_path))
    assert (trainer.current_epoch, guard.note) == (4, "")
    assert float(trainer.callback_metrics["guard/collapse"]) == 0


def test_a_run_is_stopped_at_the_collapse(tmp_path: Path) -> None:
    guard, looks = CatastrophicOverfitting("stop", monitor=KEY), Looks()
    trainer = fitted(tmp_path, guard, looks, probe(COLLAPSE), last(tmp_path))
    assert trainer.current_epoch == 3
    assert guard.note.endswith("; stopped")
    assert equal(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"], looks.seen[2])


def test_the_weights_of_the_look_before_are_restored_bit_by_bit(tmp_path: Path) -> None:
    guard, looks = CatastrophicOverfitting("restore"), Looks()
    trainer = fitted(tmp_path, guard, looks, probe(COLLAPSE), best(tmp_path), last(tmp_path))
    assert trainer.current_epoch == 3
    assert guard.note.endswith("; stopped with the weights of epoch 1")
    assert not equal(looks.seen[1], looks.seen[2])
    assert equal(trainer.lightning_module.state_dict(), looks.seen[1])
    for name in ("best.ckpt", "last.ckpt"):
        assert equal(torch.load(tmp_path / name, weights_only=True)["state_dict"], looks.seen[1])


def test_validation_within_an_epoch_is_a_look_too(tmp_path: Path) -> None:
    guard = CatastrophicOverfitting("restore", monitor=KEY)
    half = probe(COLLAPSE, per=BATCHES // 2)
    trainer = fitted(tmp_path, guard, half, last(tmp_path), val_check_interval=0.5)
    assert "collapsed at epoch 1" in guard.note
    assert int(trainer.lightning_module.state_dict()["model.net.age"]) == BATCHES
    assert (
        int(torch.load(tmp_path / "last.ckpt", weights_only=True)["state_dict"]["model.net.age"]) == BATCHES
    )


def test_epochs_that_a_run_must_do_do_not_undo_the_restoration(tmp_path: Path) -> None:
    guard, looks = CatastrophicOverfitting("restore", monitor=KEY), Looks()
    trainer = fitted(tmp_path, guard, looks, probe(COLLAPSE), min_epochs=4)
    assert trainer.current_epoch == 4
    assert equal(trainer.lightning_module.state_dict(), looks.seen[1])


def test_a_resumed_run_remembers_the_look_before_and_a_stopped_one_stays_so(tmp_path: Path) -> None:
    def guard() -> CatastrophicOverfitting:
        return CatastrophicOverfitting("restore", monitor=KEY)

    looks, path = Looks(), tmp_path / "last.ckpt"
    fitted(tmp_path, guard(), looks, probe(COLLAPSE, every=2), Halt(1), last(tmp_path))
    kept = torch.load(path, weights_only=True)
    assert equal(kept["state_dict"], looks.seen[1])  # not looked at: the look before was at epoch 0
    again = guard()
    trainer = fitted(tmp_path, again, probe(COLLAPSE, every=2), last(tmp_path), resume=path)
    assert trainer.current_epoch == 3
    assert again.note.endswith(
        "fell from 0.400 to 0.100 between two looks; stopped with the weights of epoch 0"
    )
    assert equal(trainer.lightning_module.state_dict(), looks.seen[0])
    once_more, unseen = guard(), Looks()
    trainer = fitted(tmp_path, once_more, unseen, probe(COLLAPSE), last(tmp_path), resume=path)
    assert unseen.seen == {}
    assert once_more.note == again.note
    assert equal(trainer.lightning_module.state_dict(), looks.seen[0])


def test_one_step_that_leads_far_is_a_collapse_too(tmp_path: Path) -> None:
    single = {"fgsm": Scripted((0.85, 0.8, 0.55, 0.7))}
    guard = CatastrophicOverfitting(monitor=KEY, one_step="robust/fgsm/accuracy")
    fitted(tmp_path, guard, probe((0.5, 0.4, 0.33, 0.28), **single))
    # Far above at first too, where nothing has fallen; and no step is as large as `drop`.
    assert guard.note == (
        f"robustness collapsed at epoch 3: {KEY} fell from 0.500 to 0.280, "
        "robust/fgsm/accuracy lies 0.420 above it"
    )


def test_a_look_that_saw_nothing_hides_no_collapse() -> None:
    guard, module = CatastrophicOverfitting("restore", monitor=KEY), classifier()
    trainer = L.Trainer(logger=False, accelerator="cpu", enable_checkpointing=False)
    for value in (0.6, float("nan")):
        guard.judge(trainer, module, value)
        kept = {name: tensor.clone() for name, tensor in guard.weights.items()}
        with torch.no_grad():
            module.model.net.layer.weight.fill_(torch.nan)
    guard.judge(trainer, module, 0.1)
    assert f"{KEY} fell from 0.600 to 0.100" in guard.note
    assert equal(module.state_dict(), kept)
    assert not module.model.net.layer.weight.isnan().any()


@pytest.mark.parametrize(
    ("callback", "other", "said"),
    [
        (EarlyStop(patience=2), None, "`patience` is 2, and nothing chooses the best checkpoint"),
        (
            CatastrophicOverfitting("stop"),
            ModelCheckpoint(monitor="val/accuracy"),
            "name a `monitor`, such as",
        ),
        (
            CatastrophicOverfitting("restore", monitor=KEY),
            EMAWeightAveraging(),
            "an average of the weights",
        ),
        (
            CatastrophicOverfitting("restore", monitor=KEY),
            MovingAverage(0.5),
            "an average of the weights",
        ),
    ],
    ids=("early", "stop", "average", "ema"),
)
def test_an_end_that_could_not_come_is_refused_before_training(
    tmp_path: Path, callback: L.Callback, other: L.Callback | None, said: str
) -> None:
    looks = Looks()
    with pytest.raises(ValueError, match=said):
        fitted(tmp_path, callback, looks, probe(COLLAPSE), *([other] if other else []))
    assert looks.seen == {}


def test_a_key_that_is_not_logged_is_refused(tmp_path: Path) -> None:
    guard = CatastrophicOverfitting(monitor="robust/apgd/accuracy")
    with pytest.raises(ValueError, match=r"not log it; the nearest are robust/pgd/accuracy, .*val/accuracy"):
        fitted(tmp_path, guard, probe(COLLAPSE))


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        (lambda: EarlyStop(patience=-1), "`patience` must be at least 0"),
        (lambda: EarlyStop(3, monitor="val/loss"), "`mode` must be max or min, got None"),
        (lambda: CatastrophicOverfitting(drop=0.0), "`drop` must be greater than 0"),
        (lambda: CatastrophicOverfitting(drop=1.5), "`drop` must be less than 1"),
        (lambda: CatastrophicOverfitting(gap=-1.0), "`gap` must be greater than 0"),
    ],
)
def test_wrong_numbers_are_refused(wrong: Any, said: str) -> None:
    with pytest.raises(ValueError, match=said):
        wrong()


def work(kind: str, folder: Path) -> None:
    """One of two processes; it writes how its run ended."""
    guard, stop = CatastrophicOverfitting(kind, monitor=KEY), EarlyStop(2, monitor=KEY, mode="max")
    theirs, looks = EarlyStopping(monitor=KEY, mode="max", patience=2), Looks()
    look = probe((0.4, 0.6, 0.1, 0.1, 0.1, 0.1), per=BATCHES // 2)  # half of the batches each
    trainer = fitted(folder, guard, stop, theirs, looks, look, epochs=6, devices=2, strategy="ddp")
    weights = trainer.lightning_module.state_dict()
    said = {
        "epochs": trainer.current_epoch,
        "restored": equal(weights, looks.seen[1]),
        "weights": sum(float(value.double().sum()) for key, value in weights.items() if "layer" in key),
        "notes": [guard.note, stop.note],
        "stopped": theirs.stopped_epoch,
    }
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(said))


@pytest.mark.slow
@pytest.mark.parametrize(("kind", "epochs"), [("restore", 3), ("flag", 4)])
def test_two_processes_decide_the_same(tmp_path: Path, kind: str, epochs: int) -> None:
    done = subprocess.run(
        [sys.executable, __file__, kind, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert first == second
    assert first["epochs"] == epochs
    assert first["restored"] is (kind == "restore")
    assert first["notes"][0].startswith("robustness collapsed at epoch 2")
    assert bool(first["notes"][1]) is (kind == "flag")
    assert first["stopped"] == (3 if kind == "flag" else 0)  # Lightning's own callback sees the number too
    assert done.stdout.count("CatastrophicOverfitting: ") == 1


if __name__ == "__main__":
    work(sys.argv[1], Path(sys.argv[2]))
