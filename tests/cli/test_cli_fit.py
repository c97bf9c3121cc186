"""The command line on real digits: train, look again, explain, resume; and what it refuses."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from lightning.pytorch.utilities import rank_zero_only
from PIL import Image
from small_runs import ROOT, WORDS

from lit_xai.cli import main
from lit_xai.cli.trainer import Command, guarded, prepare


def metrics(folder: Path) -> dict[str, float]:
    """Last value of each key."""
    values: dict[str, float] = {}
    with (folder / "metrics.csv").open(newline="") as file:
        for row in csv.DictReader(file):
            values |= {key: float(value) for key, value in row.items() if value}
    return values


def observed(values: dict[str, float]) -> dict[str, float]:
    return {key: value for key, value in values.items() if key.startswith(("explain/", "robust/", "val/"))}


def test_a_run_leaves_its_record(run: Path) -> None:
    there = {path.name for path in run.iterdir()}
    assert {
        "config.yaml",
        "metrics.csv",
        "checkpoints",
        "explanations",
        "provenance.json",
        "quantities.json",
        "status.json",
        "report.html",
    } <= there
    assert json.loads((run / "status.json").read_text())["state"] == "finished"
    facts = json.loads((run / "quantities.json").read_text())
    logged = {key for key in metrics(run) if key.startswith(("explain/", "robust/", "control/", "lead/"))}
    assert logged == set(facts)
    assert facts["explain/saliency/perturbation/deletion"]["better"] == "lower"


def test_maps_and_scores_of_every_image_are_kept(run: Path) -> None:
    with np.load(run / "explanations" / "epoch_001.npz") as kept:
        assert kept["probe_ids"].shape == (7,)
        assert kept["maps/boundary_saliency"].shape == kept["inputs"].shape == (6, 1, 8, 8)
        scores = kept["scores/explain/saliency/perturbation/difference"]
    logged = metrics(run)["explain/saliency/perturbation/difference"]
    assert scores.mean() == pytest.approx(logged, rel=1e-5)
    with Image.open(run / "explanations" / "epoch_001.png") as picture:
        assert picture.width > 400


def test_checkpoints_are_plain_data_and_load_by_themselves(run: Path) -> None:
    import lit_xai

    path = run / "checkpoints" / "last.ckpt"
    torch.load(path, weights_only=True)
    module = lit_xai.Classifier.load_from_checkpoint(path)
    assert module(torch.rand(2, 1, 8, 8)).shape == (2, 10)


def test_validate_repeats_the_last_epoch(run: Path) -> None:
    assert main(["validate", "--run", str(run)]) == 0
    again = observed(json.loads((run / "validate.json").read_text()))
    assert again == pytest.approx({key: metrics(run)[key] for key in again}, rel=1e-6, nan_ok=True)
    assert "explain/boundary_integrated_gradients/closeness/cosine" in again


def test_test_measures_other_images(run: Path) -> None:
    assert main(["test", "--run", str(run)]) == 0
    assert "test/accuracy" in json.loads((run / "test.json").read_text())


def test_predict_writes_the_class_of_every_image(run: Path) -> None:
    assert main(["predict", "--run", str(run)]) == 0
    with (run / "predictions.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [int(row["image"]) for row in rows] == list(range(300))
    assert main(["test", "--run", str(run)]) == 0
    labels = Command([*WORDS, "--out", str(run)], "predict").datamodule.splits.test.labels.tolist()
    share = sum(int(row["class"]) == label for row, label in zip(rows, labels, strict=True)) / len(rows)
    assert share == pytest.approx(json.loads((run / "test.json").read_text())["test/accuracy"])


def test_explain_writes_maps_of_validation_images(run: Path, tmp_path: Path) -> None:
    assert main(["explain", "--run", str(run), "--samples", "3", "--output", str(tmp_path)]) == 0
    with np.load(tmp_path / "maps.npz") as maps:
        assert maps["maps/integrated_gradients"].shape == (3, 1, 8, 8)
    assert (tmp_path / "maps_000.png").exists()


def test_explain_takes_image_files(run: Path, tmp_path: Path) -> None:
    photo = tmp_path / "photo.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (30, 40, 3), np.uint8)).save(photo)
    words = ["explain", "--run", str(run), "--images", str(photo), "--output", str(tmp_path / "maps")]
    assert main(words) == 0
    with np.load(tmp_path / "maps" / "maps.npz") as maps:
        assert list(maps["names"]) == [str(photo)]
        assert maps["target"] == maps["prediction"]


def test_resuming_gives_the_weights_of_one_go(tmp_path: Path, run: Path) -> None:
    half = tmp_path / "half"
    assert main(["fit", *WORDS, "--out", str(half), "--trainer.limit_val_batches=1"]) == 0
    stopped = tmp_path / "stopped"
    one = [*WORDS, "--out", str(stopped), "--trainer.limit_val_batches=1"]
    done = subprocess.run(
        [sys.executable, "-c", _STOP_AFTER_ONE_EPOCH, *one], capture_output=True, text=True, cwd=ROOT
    )
    assert done.returncode == 130, done.stderr
    assert json.loads((stopped / "status.json").read_text())["state"] == "interrupted"
    (stopped / "attack" / "quick").mkdir(parents=True)  # measured on weights that will be no more
    assert main(["fit", *one, "--resume=true"]) == 0
    (stopped / "attack_before_1").rename(stopped / "attack")
    assert main(["fit", *one, "--resume=true"]) == 0  # nothing is left to train
    assert (stopped / "attack" / "quick").is_dir()
    first, second = (
        torch.load(folder / "checkpoints" / "last.ckpt", weights_only=True)["state_dict"]
        for folder in (half, stopped)
    )
    assert all(torch.equal(first[key], second[key]) for key in first)
    assert observed(metrics(half)) == pytest.approx(observed(metrics(stopped)), nan_ok=True)
    with (stopped / "metrics.csv").open() as file:
        assert {row["epoch"] for row in csv.DictReader(file)} >= {"0", "1"}


_STOP_AFTER_ONE_EPOCH = """
import sys
from lightning.pytorch.callbacks import Callback
import lit_xai.cli.trainer as trainer

class Stop(Callback):
    def on_train_batch_start(self, trainer, module, batch, index):
        if trainer.current_epoch == 1 and index == 3:
            raise KeyboardInterrupt

trainer.EpochLines = Stop
from lit_xai.cli import main
sys.exit(main(["fit", *sys.argv[1:]]))
"""


def test_another_run_is_not_overwritten(run: Path, refused: Callable[[list[str]], str]) -> None:
    said = refused(["fit", *WORDS, "--out", str(run)])
    assert "already holds a run" in said
    assert "--resume true" in said


@pytest.mark.parametrize(
    ("word", "expected"),
    [
        ("--explain.sample=3", "samples"),
        ("--ema.decy=0.9", "ema.decay"),
        ("--model.optimiser=torch.optim.SGD", "optimizer"),
        ("--trainer.max_epoch=3", "max_epochs"),
        ("--explain.attributions.x.class_path=Salience", "Saliency"),
        ("--model.objective=CrossEntrpy", "CrossEntropy"),
    ],
)
def test_a_misspelt_name_is_refused_with_the_right_one(
    word: str, expected: str, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    said = refused(["fit", *WORDS, word, "--out", str(tmp_path)])
    assert expected in said
    assert len(said) < 300


def test_a_misspelt_key_in_a_file_is_refused(tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("explain:\n  sampels: 3\n")
    said = refused(["fit", *WORDS, "--config", str(file), "--out", str(tmp_path / "run")])
    assert "sampels" in said
    assert "samples" in said


def test_a_part_that_has_no_names_is_refused(tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("ema: 0.9\n")
    said = refused(["fit", *WORDS, "--config", str(file), "--out", str(tmp_path / "run")])
    assert "`ema` must be options by name, got 0.9." in said


def test_a_file_that_is_no_yaml_is_refused_with_the_place(
    tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    file = tmp_path / "mine.yaml"
    file.write_text("model: {net: [\n")
    said = refused(["fit", *WORDS, "--config", str(file), "--out", str(tmp_path / "run")])
    assert "no YAML" in said
    assert "line 2, column 1" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--model.classes=7"], "`model.classes` must be the number of classes of the data, 10, got 7"),
        (["--explain.samples=0"], "`samples` must be at least 1, got 0"),
        (
            ["--robustness.metrics.pgd.init_args.attack.init_args.epsilon=0"],
            "`epsilon` must be greater than 0",
        ),
        (["--model.channels=3"], "images must have shape (batch, 3, height, width)"),
        (["--data.init_args.batch_size=0"], "`batch_size` must be at least 1"),
        (["--config=nowhere.yaml"], "nowhere.yaml"),
        (["--trainer.accelerator=abacus"], "abacus"),
        pytest.param(
            ["--trainer.accelerator=gpu"],
            "No supported gpu",
            marks=pytest.mark.skipif(torch.cuda.is_available(), reason="there is one"),
        ),
        (["--checkpoint.monitor=val/acuracy", "--trainer.max_epochs=1"], "val/acuracy"),
        (["--trainer.max_epochs=-1", "--trainer.max_steps=-1"], "set `trainer.max_epochs`"),
        (["--ema.decay=1.5"], "`decay` must be at least 0 and less than 1, got 1.5"),
        (["--divergence.on_nan=explode"], "`divergence.on_nan` must be one of 'flag', 'stop', got 'explode'"),
        (["--certify.sigma=-1"], "`sigma` must be at least 0, got -1.0"),
    ],
)
def test_a_wrong_value_is_refused_in_one_line(
    words: list[str], expected: str, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    assert expected in refused(["fit", *WORDS, *words, "--out", str(tmp_path / "run")])


def test_a_fraction_is_a_number(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["--robustness.metrics.pgd.init_args.attack.init_args.epsilon=8/255", "--print_config"]
    assert main(["fit", *WORDS, *words]) == 0
    assert "epsilon: 0.0313725" in capsys.readouterr().out


def test_a_folder_that_cannot_be_written_is_refused(refused: Callable[[list[str]], str]) -> None:
    assert "cannot be written" in refused(["fit", *WORDS, "--out", "/proc/nowhere"])


def test_what_is_no_run_is_refused(tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    assert "is not a folder" in refused(["validate", "--run", str(tmp_path / "none")])
    assert "holds no config.yaml" in refused(["validate", "--run", str(tmp_path)])


def test_a_missing_or_foreign_checkpoint_is_refused(
    run: Path, tmp_path: Path, refused: Callable[[list[str]], str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    assert "does not exist" in refused(["validate", "--run", str(copy), "--checkpoint", "nowhere.ckpt"])
    foreign = tmp_path / "foreign.ckpt"
    torch.save({"state_dict": {"weight": torch.zeros(2)}}, foreign)
    said = refused(["validate", "--run", str(copy), "--checkpoint", str(foreign)])
    assert "belongs to another network" in said
    foreign.write_bytes(b"no checkpoint at all")
    assert "cannot be read as a checkpoint" in refused(
        ["validate", "--run", str(copy), "--checkpoint", str(foreign)]
    )
    shutil.copy(foreign, copy / "checkpoints" / "last.ckpt")
    said = refused(["fit", *WORDS, "--out", str(copy), "--resume=true"])
    assert "last.ckpt cannot be read as a checkpoint" in said
    assert json.loads((copy / "status.json").read_text())["state"] == "finished"


def test_other_processes_than_the_first_write_no_configuration(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(rank_zero_only, "rank", 1)
    prepare(tmp_path / "run", "out: here")
    assert not (tmp_path / "run").exists()


def test_a_logger_of_ones_own_stands_beside_the_record(tmp_path: Path) -> None:
    own = '--trainer.logger={class_path: lightning.pytorch.loggers.CSVLogger, init_args: {save_dir: "."}}'
    loggers = Command([*WORDS, own, "--out", str(tmp_path)], "fit").trainer.loggers
    assert [type(logger).__name__ for logger in loggers] == ["CsvLog", "WandbMirror", "CSVLogger"]


def test_the_last_epoch_is_kept_whenever_validation_runs(tmp_path: Path) -> None:
    words = [*WORDS, "--trainer.check_val_every_n_epoch=2", "--trainer.max_epochs=3", "--out", str(tmp_path)]
    command = Command(words, "fit")
    command.trainer.fit(command.model, command.datamodule)
    assert torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=True)["epoch"] == 2


def test_sigterm_that_no_loop_noticed_still_ends_with_143() -> None:
    assert guarded(SimpleNamespace(received_sigterm=True), lambda: None) == 143
    assert guarded(SimpleNamespace(received_sigterm=False), lambda: None) == 0


def test_a_broken_image_is_named(run: Path, tmp_path: Path, refused: Callable[[list[str]], str]) -> None:
    broken = tmp_path / "broken.png"
    broken.write_bytes(b"\x89PNG but not really")
    said = refused(["explain", "--run", str(run), "--images", str(broken)])
    assert "broken.png" in said
    assert "image" in said


@pytest.mark.slow
def test_two_processes_give_the_numbers_of_one(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    words = ["validate", "--run", str(copy), "--trainer.devices=2", "--trainer.strategy=ddp"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-m", "lit_xai", *words], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    two = observed(json.loads((copy / "validate.json").read_text()))
    one = {key: metrics(run)[key] for key in two}
    assert len(two) > 40
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6, nan_ok=True)


@pytest.mark.slow
def test_two_processes_train_with_unequal_shares_and_fewer_images_than_processes(tmp_path: Path) -> None:
    own = ["--data.init_args.val=301", "--data.init_args.eval_batch_size=75", "--explain.samples=1"]
    words = ["fit", *WORDS, *own, "--trainer.devices=2", "--trainer.strategy=ddp", "--trainer.max_epochs=1"]
    out = tmp_path / "run"
    done = subprocess.run(
        [sys.executable, "-m", "lit_xai", *words, "--out", str(out)],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=120,
    )
    assert done.returncode == 0, done.stderr
    assert "sync_dist" not in done.stderr
    assert json.loads((out / "status.json").read_text())["state"] == "finished"
    two = observed(metrics(out))
    assert main(["validate", "--run", str(out), "--trainer.devices=1", "--trainer.strategy=auto"]) == 0
    one = observed(json.loads((out / "validate.json").read_text()))
    assert two == pytest.approx(one, rel=1e-5, abs=1e-6, nan_ok=True)
