"""How a training ends: well, cut off, or in trouble; what it says then, and what is kept."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from small_runs import ROOT, WORDS

from lit_xai.cli import main

LEAN = [*WORDS, "--explain.attributions={}", "--explain.metrics={}", "--robustness.samples=4"]
ACT = """
import os, signal, sys
import torch
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell ignores it in the background
from lightning.pytorch.callbacks import Callback
import lit_xai.cli.trainer as trainer

class Act(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if (trainer.current_epoch, index) == (EPOCH, 3):
            ACTION

trainer.EpochLines = Act
from lit_xai.cli import main
sys.exit(main(["fit", *sys.argv[1:]]))
"""
CTRL_C = "os.kill(os.getpid(), signal.SIGINT)"
SIGTERM = "os.kill(os.getpid(), signal.SIGTERM)"
BREAK = "torch.nn.init.constant_(module.model.net.linear.bias, float('nan'))"


def acted(out: Path, action: str, epoch: int, *words: str) -> tuple[int, list[str]]:
    """A training in which something happens in the middle of an epoch: its status, and its last words."""
    program = ACT.replace("EPOCH", str(epoch)).replace("ACTION", action)
    done = subprocess.run(
        [sys.executable, "-c", program, *LEAN, *words, f"--out={out}"],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    return done.returncode, [line for line in done.stderr.splitlines() if line.startswith("lit-xai: ")]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("action", "status", "how"), [(CTRL_C, 130, "stopped by Ctrl-C"), (SIGTERM, 143, "stopped by SIGTERM")]
)
def test_a_run_that_is_cut_off_says_where_it_goes_on(
    action: str, status: int, how: str, tmp_path: Path
) -> None:
    ended, said = acted(tmp_path, action, 1)
    last = tmp_path / "checkpoints" / "last.ckpt"
    assert (ended, said) == (
        status,
        [f"lit-xai: {how}; 1 of 2 epochs are kept in {last}: add `--resume true`."],
    )
    assert torch.load(last, weights_only=True)["epoch"] == 0
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["epoch"]) == ("interrupted", 1)
    assert main(["fit", *LEAN, f"--out={tmp_path}", "--resume=true"]) == 0


@pytest.mark.slow
def test_a_run_that_is_cut_off_before_its_first_epoch_has_nothing_to_go_on_with(tmp_path: Path) -> None:
    ended, said = acted(tmp_path, CTRL_C, 0)
    assert ended == 130
    assert said == ["lit-xai: stopped by Ctrl-C; no epoch was finished: the same command starts again."]
    assert main(["fit", *LEAN, f"--out={tmp_path}", "--trainer.max_epochs=1"]) == 0


@pytest.mark.slow
def test_a_loss_that_is_no_number_ends_the_run_with_what_to_do(tmp_path: Path) -> None:
    ended, said = acted(tmp_path, BREAK, 1)
    assert ended == 1
    assert said[0].startswith("lit-xai: the training loss is not finite in epoch 1: lower the learning rate")
    assert said[1].startswith("lit-xai: failed; 1 of 2 epochs are kept in ")
    assert "the training loss is not finite in epoch 1" in (tmp_path / "report.html").read_text()
    found = json.loads((tmp_path / "status.json").read_text())
    assert (found["state"], found["epoch"]) == ("failed", 1)
    assert main(["fit", *LEAN, f"--out={tmp_path}", "--resume=true"]) == 0  # it breaks no more
    assert json.loads((tmp_path / "status.json").read_text())["notes"] == []


@pytest.mark.slow
def test_a_run_that_is_only_flagged_goes_on_to_its_end(tmp_path: Path) -> None:
    ended, said = acted(tmp_path, BREAK, 0, "--divergence.on_nan=flag", "--explain.samples=2")
    assert ended == 0
    assert said[0].startswith("lit-xai: the training loss is not finite in epoch 0; class 0 is predicted for")


def test_an_average_is_what_every_command_reads(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "run"
    words = ["--ema.decay=0.8", "--model.objective.class_path=GaussianAugmentation"]
    assert main(["fit", *LEAN, *words, "--model.objective.init_args.sigma=0.1", f"--out={run}"]) == 0
    said = capsys.readouterr().out
    assert "regime: " in said
    kept = torch.load(run / "checkpoints" / "last.ckpt", weights_only=True)
    average, current = kept["state_dict"], kept["current_model_state"]
    assert not torch.equal(average["model.net.linear.weight"], current["model.net.linear.weight"])
    seen = last_of(run, "robust/pgd/accuracy"), last_of(run, "val/loss")
    assert main(["validate", "--run", str(run)]) == 0
    again = json.loads((run / "validate.json").read_text())
    assert (again["robust/pgd/accuracy"], again["val/loss"]) == pytest.approx(seen, rel=1e-6)
    assert main(["explain", "--run", str(run), "--samples=2", "--explain.attributions.s=Saliency"]) == 0


def last_of(run: Path, key: str) -> float:
    header, *rows = (line.split(",") for line in (run / "metrics.csv").read_text().splitlines())
    return [float(row[header.index(key)]) for row in rows if row[header.index(key)]][-1]


@pytest.mark.slow
def test_sigterm_from_outside_ends_with_143_and_keeps_the_last_epoch(tmp_path: Path) -> None:
    words = [*LEAN, f"--out={tmp_path}", "--trainer.max_epochs=2000"]
    with subprocess.Popen(
        [sys.executable, "-m", "lit_xai", "fit", *words], cwd=ROOT, stderr=subprocess.PIPE, text=True
    ) as child:
        deadline = time.time() + 120
        while not (tmp_path / "checkpoints" / "last.ckpt").exists() and time.time() < deadline:
            time.sleep(0.2)
        child.send_signal(signal.SIGTERM)
        assert child.wait(60) == 143
        assert child.stderr is not None
        said = child.stderr.read()
    assert "lit-xai: stopped by SIGTERM; " in said
    assert f"of 2000 epochs are kept in {tmp_path / 'checkpoints' / 'last.ckpt'}" in said
    assert json.loads((tmp_path / "status.json").read_text())["state"] == "interrupted"
