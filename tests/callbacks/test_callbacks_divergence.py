"""Training that fails is told, by name, before anything is spoilt by it."""

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.callbacks import Diverged, Divergence, RunFolder
from lit_xai.callbacks.run_folder import notes
from lit_xai.classifier import Classifier

pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory", "ignore:.*sync_dist=True")
BATCHES = 4


class Odd(nn.Module):
    """Breaks at a training batch, and sees class 1 everywhere during some epochs."""

    def __init__(
        self, broken: float = math.inf, value: float = math.nan, blind: tuple[int, ...] = ()
    ) -> None:
        super().__init__()
        self.layer = nn.Linear(16, 3)
        self.broken, self.value, self.blind = broken, value, blind
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.age += 1
        logits = self.layer(inputs.flatten(1))
        if self.age - 1 == self.broken and self.training:
            return logits * self.value
        epoch = (int(self.age) - 1) // BATCHES
        if epoch in self.blind and not self.training:
            return logits + 100 * torch.eye(3)[1]
        return logits


def fitted(
    folder: Path, net: nn.Module, *callbacks: L.Callback, resume: Any = None, **words: Any
) -> L.Trainer:
    torch.manual_seed(0)
    labels = words.pop("labels", torch.arange(12) % 3)
    images = torch.rand(12, 1, 4, 4) + 3 * torch.eye(16)[labels].reshape(12, 1, 4, 4)
    data = DataLoader(TensorDataset(images.clamp(0, 1), labels), batch_size=3)
    module = Classifier(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.5), channels=1, classes=3)
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=[*callbacks, RunFolder(folder, 0), last(folder)],
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        **{"max_epochs": 3, "log_every_n_steps": 1, **words},
    )
    trainer.fit(module, data, data, ckpt_path=resume)
    return trainer


def last(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def status(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "status.json").read_text())
    return found


@pytest.mark.parametrize("value", [math.nan, math.inf], ids=["nan", "infinite"])
@pytest.mark.parametrize("words", [{}, {"limit_val_batches": 0}, {"val_check_interval": 0.5}], ids=str)
def test_a_loss_that_is_no_number_ends_the_run_at_its_last_epoch(
    tmp_path: Path, value: float, words: dict[str, Any]
) -> None:
    guard = Divergence()
    with pytest.raises(Diverged, match="the training loss is not finite in epoch 1"):
        fitted(tmp_path, Odd(BATCHES + 1, value), guard, **words)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert kept["epoch"] == 0
    assert all(tensor.isfinite().all() for tensor in kept["state_dict"].values())
    found = status(tmp_path)
    assert (found["state"], found["epoch"]) == ("failed", 1)
    assert found["error"] == "Diverged: the training loss is not finite in epoch 1"
    assert found["notes"] == ["the training loss is not finite in epoch 1"]


def test_the_device_is_asked_every_few_batches(tmp_path: Path) -> None:
    class Stopped(L.Callback):
        batch = -1

        def on_train_batch_end(self, *args: Any) -> None:
            Stopped.batch = args[-1]

    with pytest.raises(Diverged):
        fitted(tmp_path, Odd(0), Stopped(), Divergence(every_n_steps=3))
    assert Stopped.batch == 2


def test_it_may_be_told_alone(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    guard = Divergence(on_nan="flag", on_one_class="flag")
    trainer = fitted(tmp_path, Odd(1), guard)
    assert trainer.current_epoch == 3
    said = "Divergence: the training loss is not finite in epoch 0"
    assert capsys.readouterr().out.splitlines()[0] == said
    assert float(trainer.callback_metrics["guard/nonfinite"]) == 1
    assert status(tmp_path)["state"] == "finished"


def test_a_run_without_trouble_says_nothing(tmp_path: Path) -> None:
    guard = Divergence(on_one_class="stop")
    trainer = fitted(tmp_path, Odd(), guard, max_epochs=6)
    assert (trainer.current_epoch, guard.note) == (6, "")
    assert float(trainer.callback_metrics["guard/nonfinite"]) == 0
    assert float(trainer.callback_metrics["guard/one_class"]) < 0.9
    assert notes(trainer) == []


def test_one_class_for_all_images_is_told_and_so_is_its_end(tmp_path: Path) -> None:
    guard = Divergence()
    trainer = fitted(tmp_path, Odd(blind=(1, 2)), guard, max_epochs=5)
    assert trainer.current_epoch == 5
    said = "class 1 is predicted for 100% of the validation images (33% have it) at epoch 1"
    assert status(tmp_path)["notes"] == [f"{said}; over at epoch 3"]


def test_one_class_ends_the_run_where_it_is_told_to_and_stays_so(tmp_path: Path) -> None:
    first, again = Divergence(on_one_class="stop"), Divergence(on_one_class="stop")
    trainer = fitted(tmp_path, Odd(blind=(1,)), first)
    assert trainer.current_epoch == 2
    assert first.note.endswith("at epoch 1; stopped")
    assert status(tmp_path)["state"] == "finished"
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["epoch"] == 1
    trainer = fitted(tmp_path, Odd(), again, resume=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 2
    assert again.note == first.note
    trainer = fitted(tmp_path, Odd(), Divergence(), resume=tmp_path / "last.ckpt")
    assert trainer.current_epoch == 3


def test_labels_of_one_class_excuse_its_predictions(tmp_path: Path) -> None:
    guard = Divergence(on_one_class="stop")
    trainer = fitted(tmp_path, Odd(blind=(0, 1, 2)), guard, labels=torch.ones(12, dtype=torch.int64))
    assert (trainer.current_epoch, guard.note) == (3, "")


@pytest.mark.parametrize("words", [{"share": 0.0}, {"share": 1.0}, {"every_n_steps": 0}])
def test_wrong_numbers_are_refused(words: dict[str, Any]) -> None:
    with pytest.raises(ValueError, match=f"`{next(iter(words))}` must be"):
        Divergence(**words)


def work(folder: Path) -> None:
    """One of two processes: the loss of the second one alone is no number."""
    guard = Divergence(every_n_steps=1)
    rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        fitted(folder, Odd(1 if rank else math.inf), guard, devices=2, strategy="ddp")
    except Diverged as error:
        (folder / f"{rank}.txt").write_text(str(error))


@pytest.mark.slow
def test_two_processes_end_together(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, __file__, str(tmp_path)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    said = [(tmp_path / f"{rank}.txt").read_text() for rank in (0, 1)]
    assert said == ["the training loss is not finite in epoch 0"] * 2


if __name__ == "__main__":
    work(Path(sys.argv[1]))
