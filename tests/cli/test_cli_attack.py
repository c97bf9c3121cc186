"""`lit-xai attack`: numbers, gates and pictures; stopped and resumed; in one process and in two."""

import csv
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml
from PIL import Image
from small_runs import CONFIGS

from lit_xai.cli import main, processes, verdict
from lit_xai.evaluation import Progress

QUICK = ["--config", str(CONFIGS / "attacks" / "quick.yaml"), "--epsilon", "16/255"]
MINE = ["--model", "mine.plain", "--weights", "net.pt", "--data", "mine.Digits"]
ODD = ["--model", "mine.Odd", "--weights", "odd.pt", "--model.init_args.kind"]
FEW = ["--images", "24", "--batch_size", "5", "--attack.searched", "6", "--attack.probe", "6"]
PGD = ["--attack.suite.init_args.attacks.pgd-20.init_args.step_size"]
NAME = "quick-16of255"


def attack(out: Path, *words: str) -> int:
    return main(["attack", *MINE, *QUICK, *FEW, "--out", str(out), *words])


def table(folder: Path, name: str = NAME) -> list[dict[str, str]]:
    with (folder / "attack" / name / "robustness.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def summary(folder: Path, name: str = NAME) -> dict:
    return json.loads((folder / "attack" / name / "summary.json").read_text())


@pytest.fixture(scope="module")
def whole(workshop: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation in one go."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(workshop)
        assert attack(folder) == 0
    return folder


def test_the_numbers_are_those_of_the_table(whole: Path) -> None:
    rows, said = table(whole), summary(whole)
    assert len(rows) == said["images"] == 24
    assert said["epsilon_text"] == "16/255"
    assert [member["name"] for member in said["members"]] == ["pgd-20", "apgd-ce", "apgd-t"]
    assert said["robust"]["accuracy"] == pytest.approx(sum(row["robust"] == "1" for row in rows) / 24)
    assert 0 < said["robust"]["accuracy"] < said["clean"]["accuracy"]
    fallen = [row for row in rows if row["first_attack"] not in ("-", "clean")]
    assert max(float(row["linf"]) for row in fallen) == pytest.approx(16 / 255, abs=2e-6)
    assert said["curve"]["images"] == 6
    assert not said["suspicious"]


def test_pictures_and_the_configuration_stand_beside_the_table(whole: Path) -> None:
    folder = whole / "attack" / NAME
    with Image.open(folder / "examples.png") as picture:
        assert picture.width > 400
    with Image.open(folder / "curve.png") as picture:
        assert picture.width > 400
    said = yaml.safe_load((folder / "config.yaml").read_text())
    members = said["attack"]["suite"]["init_args"]["attacks"]
    assert {member["init_args"]["epsilon"] for member in members.values()} == {16 / 255}
    assert said["model"]["class_path"] == "mine.plain"


def test_an_evaluation_that_was_stopped_goes_on_and_ends_the_same(
    whole: Path,
    at_work: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    class Stopped(verdict.Display):
        def __call__(self, news: Progress) -> None:
            super().__call__(news)
            if news.stage == "pgd-20" and news.done > 8:
                raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(verdict, "Display", Stopped)
        assert attack(tmp_path) == 130
    assert "the same command goes on" in capsys.readouterr().err
    journal = tmp_path / "attack" / NAME / "journal_0of1.tsv"
    text = journal.read_text()
    journal.write_text(text[:-7])  # and the last line was cut off
    assert attack(tmp_path) == 0
    assert table(tmp_path) == table(whole)
    assert "config.yaml" in os.listdir(journal.parent)


def test_two_processes_give_the_table_of_one(
    whole: Path, at_work: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WORLD_SIZE", "2")
    for rank in ("1", "0"):
        monkeypatch.setenv("RANK", rank)
        assert attack(tmp_path) == 0
    assert {path.name for path in (tmp_path / "attack" / NAME).glob("journal*")} == {
        "journal_0of2.tsv",
        "journal_1of2.tsv",
    }
    assert table(tmp_path) == table(whole)


@pytest.mark.slow
def test_devices_start_processes_that_share_the_work(whole: Path, at_work: Path, tmp_path: Path) -> None:
    words = ["attack", *MINE, *QUICK, *FEW, "--out", str(tmp_path), "--devices", "2"]
    done = subprocess.run(
        [sys.executable, "-m", "lit_xai", *words],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr
    assert "robust accuracy" in done.stdout
    assert table(tmp_path) == table(whole)


def test_images_can_be_added(whole: Path, at_work: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    assert attack(tmp_path, "--images", "48") == 0
    before = {row["idx"]: row for row in table(whole)}
    after = {row["idx"]: row for row in table(tmp_path)}
    assert len(after) == 48
    assert before.items() <= after.items()


def test_a_run_is_attacked_and_its_report_made_anew(
    run: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    copy = shutil.copytree(run, tmp_path / "copy")
    (copy / "report.html").write_text("old")
    words = ["attack", "--run", str(copy), *QUICK, *FEW, "--norm", "L2", "--epsilon", "0.5", "--split", "val"]
    assert main(words) == 0
    said = summary(copy, "quick-l2-0.5")
    assert said["norm"] == "L2()"
    assert said["split"] == "val"
    assert "L2PGD" in said["members"][0]["attack"]
    assert len((copy / "report.html").read_text()) > 10_000
    printed = capsys.readouterr().out
    assert "quick-l2-0.5: copy, last.ckpt, L2 0.5, 24 val images" in printed
    assert "apgd-t" in printed
    assert "✓ clean" in printed


def test_the_norm_and_the_budget_reach_every_attack(at_work: Path, tmp_path: Path) -> None:
    assert attack(tmp_path, "--norm", "L1", "--epsilon", "2", "--images", "4", "--name", "sparse") == 0
    said = summary(tmp_path, "sparse")
    assert said["norm"] == "L1()"
    for member in said["members"]:
        assert "epsilon=2.0" in member["attack"]
        assert "L1()" in member["attack"]
    assert [gate["passed"] for gate in said["gates"] if gate["name"] == "budget"] == [True]


@pytest.mark.parametrize(
    ("kind", "gate"), [("probabilities", "return logits"), ("random", 'PyAutoAttack(version="rand")')]
)
def test_a_network_that_hides_is_called_suspicious(
    kind: str, gate: str, at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert attack(tmp_path, *ODD, kind, "--images", "6") == 0
    said = capsys.readouterr().out
    assert gate in said
    assert "SUSPICIOUS" in said
    assert summary(tmp_path)["suspicious"]


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--data.init_args.scale", "255"], "pixels must lie in [0, 1], got"),
        (["--data.init_args.shift", "7"], "labels must lie in 0..9, got"),
        ([*ODD, "few"], "model with 3"),
        (["--split", "val"], "there are no val images of Digits"),
        (["--epsilon", "8/x"], "expected a number or a fraction such as 8/255, got '8/x'"),
        (["--epsilon", "0"], "`epsilon` must be greater than 0"),
        (["--images", "0"], "`images` must be at least 1"),
        (["--epsilno", "1"], "did you mean '--epsilon'?"),
        (["--attack.batchsize", "3"], "did you mean 'attack.batch_size'?"),
        (["--attack.suite.init_args.attacks.more", "LinfPDG"], "did you mean 'LinfPGD'?"),
        (["--norm", "L3"], "invalid choice: 'L3'"),
        (["--name", ""], "must be the name of one folder, got ''"),
        (["--name", "a/b"], "must be the name of one folder, got 'a/b'"),
        (["--device", "gpu"], "there is no device 'gpu' here"),
        (["--mean", "127", "--std", "60"], "divide both by 255"),
        (["--atack.seed", "3"], "did you mean 'attack.seed'?"),
        ([*PGD, "0.01", "--norm", "L2"], "a length in Linf: write the norm into the file"),
    ],
)
def test_what_cannot_be_attacked_is_told_before_anything_is(
    words: list[str],
    expected: str,
    at_work: Path,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    few = ["--data.init_args.classes", "3"] if "few" in words else []
    assert attack(tmp_path, *few, *words) == 2
    said = [line for line in capsys.readouterr().err.splitlines() if "is given pixels" not in line]
    assert len(said) == 1
    assert expected in said[0]


def test_a_suite_must_be_named(at_work: Path, refused: Callable[[list[str]], str]) -> None:
    assert "needs a suite of attacks" in refused(["attack", *MINE])


def test_the_norm_reaches_attacks_that_have_it_as_an_argument(at_work: Path, tmp_path: Path) -> None:
    members = {name: {"class_path": name, "init_args": {"epsilon": 0.1}} for name in ("FGSM", "MomentumPGD")}
    suite = {"class_path": "Members", "init_args": {"epsilon": 0.1, "attacks": members}}
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump({"attack": {"name": "mine", "suite": suite}}))
    words = ["--config", str(tmp_path / "mine.yaml"), "--images", "4", "--attack.probe", "0", "--norm", "L2"]
    assert main(["attack", *MINE, *words, "--out", str(tmp_path)]) == 0
    said = [member["attack"].split("step")[0] for member in summary(tmp_path, "mine-l2")["members"]]
    assert said[0].startswith("FGSM(epsilon=0.1, norm=L2()")
    assert said[1].startswith("MomentumPGD(epsilon=0.1, norm=L2()")


def test_weights_alone_do_not_tell_networks_apart(
    whole: Path, at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--images", "4", "--attack.probe", "0", "--attack.search", "null"]
    assert attack(tmp_path, *ODD, "random", *few) == 0
    assert attack(tmp_path, *ODD, "probabilities", *few) == 2
    assert "a network made otherwise (model: init_args)" in capsys.readouterr().err


def test_other_terms_are_not_mixed(whole: Path, at_work: Path, tmp_path: Path) -> None:
    shutil.copytree(whole, tmp_path, dirs_exist_ok=True)
    before = (tmp_path / "attack" / NAME / "config.yaml").read_text()
    assert attack(tmp_path, "--seed", "3") == 2
    assert (tmp_path / "attack" / NAME / "config.yaml").read_text() == before
    assert table(tmp_path) == table(whole)


def test_the_place_of_a_process_is_what_its_launcher_says() -> None:
    assert processes.place({}) == (0, 1)
    assert processes.place({"RANK": "2", "WORLD_SIZE": "4"}) == (2, 4)
    assert processes.place({"SLURM_PROCID": "1", "SLURM_STEP_NUM_TASKS": "3", "SLURM_NTASKS": "3"}) == (1, 3)
    assert processes.place({"SLURM_PROCID": "0", "SLURM_NTASKS": "3"}) == (0, 1)  # no step: a batch script


@pytest.mark.slow
def test_a_process_that_fails_ends_the_others(capfd: pytest.CaptureFixture[str]) -> None:
    assert processes.launch(["attack"], 2) == 2
    said = capfd.readouterr().err.splitlines()
    assert [line.partition(" needs")[0] for line in said] == ["lit-xai: `attack`"]  # said once


def test_a_log_sees_a_line_per_stage(capsys: pytest.CaptureFixture[str]) -> None:
    begun: list[int] = []
    with verdict.Display(True, lambda: begun.append(1)) as display:
        for done in (1, 2):
            display(Progress("pgd", done, 2, 1))
        display.wait(3)
        display.wait(3)
    said = capsys.readouterr().err
    assert said.splitlines()[0] == "pgd: 2 images, 1 stand"
    assert said.count("waiting for other processes: 3 images") == 1
    assert begun == [1]
