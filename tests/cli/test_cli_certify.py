"""`lit-xai certify`: tables, summaries and pictures; stopped and resumed; in one process and in two."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from small_runs import CONFIGS

from lit_xai.cli import certify as command
from lit_xai.cli import main
from lit_xai.evaluation.certification import COLUMNS, unexplained
from lit_xai.models.certificates import anytime_lower_bound, radius_of

DIGITS = str(CONFIGS / "data" / "sklearn_digits.yaml")
PLAIN = ["--model", "mine.plain", "--weights", "net.pt", "--data", DIGITS]
FEW = ["--sigma", "0.2", "--samples", "300", "--images", "7", "--batch_size", "2"]
NAME = "sigma-0.2"


def certify(out: Path, *words: str) -> int:
    return main(["certify", *PLAIN, *FEW, "--out", str(out), *words])


def table(folder: Path, name: str = NAME) -> list[dict[str, str]]:
    with (folder / "certify" / name / "certificates.tsv").open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    for row in rows:
        del row["time"]
    return rows


def summary(folder: Path, name: str = NAME) -> dict:
    return json.loads((folder / "certify" / name / "certificates.json").read_text())


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Certificates in one go."""
    folder = tmp_path_factory.mktemp("certified")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        assert certify(folder) == 0
    return folder


def test_the_table_has_the_six_standard_columns_first_and_whole_radii(whole: Path) -> None:
    head = (whole / "certify" / NAME / "certificates.tsv").read_text().splitlines()[0]
    assert head.split("\t")[:6] == ["idx", "label", "predict", "radius", "correct", "time"]
    assert head.split("\t") == list(COLUMNS)
    rows = table(whole)
    assert [int(row["idx"]) for row in rows] == [k * 300 // 7 for k in range(7)]
    assert sum(row["correct"] == "1" for row in rows) > 3
    certain = [row["radius"] for row in rows if row["predict"] != "-1"]
    assert unexplained(certain, 300, 0.001, 0.2, form="") == []
    assert unexplained(certain, 301, 0.001, 0.2, form="") == certain


def test_the_summary_is_that_of_the_table(whole: Path) -> None:
    rows, said = table(whole), summary(whole)
    right = [float(row["radius"]) for row in rows if row["correct"] == "1"]
    assert said["images"] == 7
    assert said["mode"] == "fixed"
    assert said["votes"] == 300
    assert said["average_radius"] == pytest.approx(sum(right) / 7)
    assert said["abstained"] == pytest.approx(sum(row["predict"] == "-1" for row in rows) / 7)
    for point in said["certified"]:
        assert point["accuracy"] == pytest.approx(sum(radius >= point["radius"] for radius in right) / 7)
        assert point["bound"] <= point["accuracy"]
        assert point["low"] <= point["accuracy"] <= point["high"]
    with Image.open(whole / "certify" / NAME / "certificates.png") as picture:
        assert picture.width > 400


def test_certificates_that_were_stopped_go_on_and_end_the_same(
    whole: Path,
    at_work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    seen: list[list[int]] = []

    class Stopped(command.Certification):
        stop = True

        def _rows(self, smoothed, batch, inputs, target):
            if self.stop and batch[0] > 100:
                raise KeyboardInterrupt
            seen.append(batch)
            return super()._rows(smoothed, batch, inputs, target)

    monkeypatch.setattr(command, "Certification", Stopped)
    assert certify(tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err
    journal = tmp_path / "certify" / NAME / "journal_0of1.tsv"
    text = journal.read_text()
    assert len(text.splitlines()) == 5
    journal.write_text(text[:-5])  # and the last line was cut off
    monkeypatch.setattr(Stopped, "stop", False)
    assert certify(tmp_path) == 0
    assert table(tmp_path) == table(whole)
    every = [k * 300 // 7 for k in range(7)]
    assert seen == [every[:2], every[2:4], every[2:4], every[4:6], every[6:]]  # batches of an unbroken run


def test_two_processes_give_the_table_of_one_whatever_batch_and_chunk(
    whole: Path, at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank, more in (("1", ["--batch_size=3"]), ("0", ["--chunk=37"])):
        monkeypatch.setenv("RANK", rank)
        assert certify(tmp_path, *more) == 0
    found = {path.name for path in (tmp_path / "certify" / NAME).glob("journal*")}
    assert found == {"journal_0of2.tsv", "journal_1of2.tsv"}
    assert table(tmp_path) == table(whole)


@pytest.mark.slow
def test_devices_start_processes_that_share_the_work(whole: Path, at_work: Path, tmp_path: Path) -> None:
    words = ["certify", *PLAIN, *FEW, "--out", str(tmp_path), "--devices", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_xai", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "average certified radius" in done.stdout
    assert table(tmp_path) == table(whole)


def test_images_can_be_added_and_other_terms_are_not_mixed(
    whole: Path, at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert certify(tmp_path, "--images", "14") == 0
    before = {row["idx"]: row for row in table(whole)}
    after = {row["idx"]: row for row in table(tmp_path)}
    assert len(after) == 14
    assert before.items() <= after.items()
    for words, term in ((["--sigma=0.5"], "sigma"), (["--seed=1"], "seed"), (["--sequential"], "tolerance")):
        assert certify(tmp_path, *words, "--name", NAME) == 2
        assert f"of other terms ({term})" in capsys.readouterr().err
    assert len(table(tmp_path)) == 14


def test_weights_alone_do_not_tell_networks_apart(
    at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    odd = ["certify", "--model", "mine.Odd", "--weights", "odd.pt", "--data", DIGITS, *FEW]
    assert main([*odd, "--model.init_args.kind=random", "--out", str(tmp_path)]) == 0
    assert main([*odd, "--model.init_args.kind=probabilities", "--out", str(tmp_path)]) == 2
    assert "certificates of other terms (network)" in capsys.readouterr().err


def test_a_sequence_spends_less_and_says_how_much(
    whole: Path, at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert certify(tmp_path, "--sequential", "--samples", "3000") == 0
    said = capsys.readouterr().out
    assert f"the picture has the best of 2 at each radius: {NAME}" in said
    found, name = table(tmp_path, f"{NAME}-sequential"), f"{NAME}-sequential"
    counts, samples = (np.array([int(row[key]) for row in found]) for key in ("count", "samples"))
    assert samples.mean() < 1800
    assert summary(tmp_path, name)["votes"] == pytest.approx(samples.mean())
    assert summary(tmp_path, name)["tolerance"] == 0.1
    radius = radius_of(anytime_lower_bound(counts, samples, 0.001), 0.2)
    assert [float(row["radius"]) for row in found] == pytest.approx(radius.tolist(), abs=0)
    assert certify(tmp_path, "--radii", "0", "0.1", "--samples", "3000", "--name", "by-radii") == 0
    assert summary(tmp_path, "by-radii")["votes"] < samples.mean()
    assert [point["radius"] for point in summary(tmp_path, "by-radii")["certified"]] == [0, 0.1]


def test_a_run_is_certified_and_its_report_made_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.html").write_text("old")
    assert main(["certify", "--run", str(copy), *FEW, "--split", "val"]) == 0
    assert len((copy / "report.html").read_text()) > 10_000
    said = capsys.readouterr().out
    assert "sigma-0.2: copy, last.ckpt, sigma 0.2, 7 val images" in said
    assert "average certified radius" in said


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--alpha", "3"], "`alpha` must lie between 0 and 1"),
        (["--alpha", "0.7", "--sequential"], "must be at most 0.5 in the sequential mode"),
        (["--samples", "0"], "`samples` must be at least 1"),
        (["--devices", "0"], "`devices` must be at least 1"),
        (["--sigma", "-1"], "`sigma` must be greater than 0"),
        (["--sigma", "0"], "`sigma` must be greater than 0"),
        (["--tolerance", "1"], "`tolerance` must lie in [0, 1)"),
        (["--tolerance", "0.1", "--radii", "1"], "two ways to say when to stop"),
        (["--name", "a/b"], "must be the name of one folder, got 'a/b'"),
        (["--sequental"], "did you mean '--sequential'?"),
    ],
)
def test_what_is_wrong_is_told_in_one_line_and_binds_nobody(
    words: list[str],
    expected: str,
    at_work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert certify(tmp_path, *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "is given pixels" not in line]
    assert len(said) == 1
    assert expected in said[0]
    assert not list(tmp_path.rglob("journal*"))


def test_the_noise_of_training_is_found_inside_of_what_wraps_it(run: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    inner = "{class_path: GaussianAugmentation, init_args: {sigma: 0.3}}"
    wrapped = ["--model.objective=WeightPerturbed", f"--model.objective.init_args.objective={inner}"]
    assert main(["certify", "--run", str(copy), *FEW[2:], *wrapped]) == 0
    assert summary(copy, "sigma-0.3")["sigma"] == 0.3


def test_noise_must_be_known(at_work: Path, refused: Callable[[list[str]], str]) -> None:
    said = refused(["certify", *PLAIN, "--mean", "0", "--std", "1"])
    assert "`--sigma` is needed" in said
