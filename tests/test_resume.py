"""Two epochs are one epoch, a stop, and one more: bit for bit, for every regime that is shipped."""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import Tensor

from lit_xai.cli.trainer import Command

ROOT = Path(__file__).resolve().parents[1]
CONFIGS = ROOT / "configs"
SMALL = [  # real 8x8 digits in place of the embedded ones, and little of everything
    f"--config={CONFIGS / 'data' / 'sklearn_digits.yaml'}",
    "--data.init_args.batch_size=32",
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=3",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--explain.attributions={}",
    "--explain.metrics={}",
    "--robustness.samples=4",
    "--wandb=disabled",
]
CHECKED = (
    "state_dict",
    "current_model_state",
    "averaging_state",
    "optimizer_states",
    "lr_schedulers",
    "carried",
)


class Stop(L.Callback):
    """Ends a run in the middle of its second epoch."""

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: Any, batch: Any, batch_idx: int) -> None:
        if trainer.current_epoch == 1 and batch_idx == 2:
            raise InterruptedError


def trained(words: list[str], out: Path, stop: bool = False, resume: bool = False) -> dict[str, Any]:
    """What the last checkpoint of a run holds."""
    command = Command([f"--config={CONFIGS / 'quickstart.yaml'}", *words, f"--out={out}"], "fit")
    last = out / "checkpoints" / "last.ckpt"
    if stop:
        command.trainer.callbacks.append(Stop())
        with pytest.raises(InterruptedError):
            command.trainer.fit(command.model, command.datamodule)
    else:
        command.trainer.fit(command.model, command.datamodule, ckpt_path=str(last) if resume else None)
    kept: dict[str, Any] = torch.load(last, weights_only=True)
    assert kept["epoch"] == (0 if stop else 1)
    return kept


def differing(one: Any, other: Any, where: str = "") -> list[str]:
    """Where two nested structures of tensors are not the same, bit for bit."""
    if isinstance(one, Tensor):
        return [] if isinstance(other, Tensor) and torch.equal(one, other) else [where]
    if isinstance(one, dict):
        keys = one.keys() | other.keys()
        return [at for key in keys for at in differing(one.get(key), other.get(key), f"{where}/{key}")]
    if isinstance(one, list | tuple):
        pairs = zip(one, other, strict=True)
        return [at for index, pair in enumerate(pairs) for at in differing(*pair, f"{where}/{index}")]
    return [] if one == other else [where]


def compare(words: list[str], folder: Path) -> dict[str, Any]:
    """Train in one go and in two; return the checkpoint, after it was found to be the same."""
    whole = trained([*words, *SMALL], folder / "whole")
    trained([*words, *SMALL], folder / "halves", stop=True)
    halves = trained([*words, *SMALL], folder / "halves", resume=True)
    assert differing(*({key: kept.get(key) for key in CHECKED} for kept in (whole, halves))) == []
    return whole


def regimes() -> list[str]:
    return sorted(path.stem for path in (CONFIGS / "regimes").glob("*.yaml"))


pytestmark = pytest.mark.filterwarnings("ignore:.*Checkpoint directory")


@pytest.mark.slow
@pytest.mark.parametrize("regime", regimes())
def test_every_regime_is_resumed_bit_for_bit(regime: str, tmp_path: Path) -> None:
    compare([f"--config={CONFIGS / 'regimes' / regime}.yaml"], tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("net", ["SmallCNN", "ResNet20"])
def test_with_averages_batch_norm_and_augmentation_too(net: str, tmp_path: Path) -> None:
    words = [f"--config={CONFIGS / 'regimes' / 'adversarial.yaml'}", "--ema.decay=0.9", f"--model.net={net}"]
    kept = compare(
        [*words, "--data.init_args.augment={class_path: CropFlip, init_args: {padding: 1}}"], tmp_path
    )
    current, average = kept["current_model_state"], kept["state_dict"]
    assert differing(current, average)
    assert int(kept["averaging_state"]["n_averaged"]) == 6


def work(words: list[str]) -> None:
    """One process of a run: where to, how far, and what else."""
    out, part, *rest = words
    command = Command([f"--config={CONFIGS / 'quickstart.yaml'}", *rest, *SMALL, f"--out={out}"], "fit")
    last = str(Path(out) / "checkpoints" / "last.ckpt")
    if part == "stop":
        command.trainer.callbacks.append(Halt())
    command.trainer.fit(command.model, command.datamodule, ckpt_path=last if part == "resume" else None)


class Halt(L.Callback):
    """Ends a run after its first epoch."""

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        trainer.should_stop = True


@pytest.mark.slow
def test_two_processes_are_resumed_bit_for_bit(tmp_path: Path) -> None:
    regime = "free" if "free" in regimes() else "adversarial"
    words = [f"--config={CONFIGS / 'regimes' / regime}.yaml", "--ema.decay=0.9"]
    words += ["--model.net=ResNet20", "--trainer.devices=2", "--trainer.strategy=ddp"]
    for out, part in (("whole", "all"), ("halves", "stop"), ("halves", "resume")):
        done = subprocess.run(
            [sys.executable, __file__, str(tmp_path / out), part, *words],
            capture_output=True,
            text=True,
            cwd=ROOT,
            env={**os.environ, "OMP_NUM_THREADS": "1"},
            timeout=200,
        )
        assert done.returncode == 0, done.stderr
    kept = [
        torch.load(tmp_path / out / "checkpoints" / "last.ckpt", weights_only=True)
        for out in ("whole", "halves")
    ]
    assert [one["epoch"] for one in kept] == [1, 1]
    assert differing(*({key: one.get(key) for key in CHECKED} for one in kept)) == []


if __name__ == "__main__":
    work(sys.argv[1:])
