"""The README is true to the letter: its commands run as they stand, on a smaller quickstart."""

import os
import re
import shlex
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image

from lit_xai.cli import main

ROOT = Path(__file__).resolve().parents[1]
README = (ROOT / "README.md").read_text()
SETS_UP = (". .venv/", "bash scripts/")  # run by whoever runs this test


def fences(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", README, re.S)


def commands() -> list[str]:
    lines = "\n".join(fences("bash")).replace("\\\n", " ").splitlines()
    plain = [line.partition("  #")[0].strip() for line in lines]
    return [line for line in plain if line and not line.startswith(SETS_UP)]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A working directory with the project's files, the README's own files, and a quickstart of seconds."""
    here = tmp_path_factory.mktemp("readme")
    shutil.copytree(ROOT / "configs", here / "configs")
    (here / "docs").symlink_to(ROOT / "docs")
    quickstart = here / "configs" / "quickstart.yaml"
    config = yaml.safe_load(quickstart.read_text())
    config["trainer"] |= {"max_epochs": 1, "limit_train_batches": 2, "limit_val_batches": 1}
    config["explain"] |= {"samples": 4}
    config["robustness"] |= {"samples": 4}
    config["wandb"] = "disabled"
    quickstart.write_text(yaml.safe_dump(config))
    for path in (here / "configs" / "attacks").glob("*.yaml"):
        attack = yaml.safe_load(path.read_text())
        attack["attack"] |= {"searched": 4, "probe": 4}
        path.write_text(yaml.safe_dump(attack))
    for text in [*fences("yaml"), *fences("python")]:
        named = re.match(r"# (\S+\.\w+)\n", text)
        if named:
            (here / named.group(1)).write_text(text)
    names: dict[str, Any] = {}
    exec((here / "mynet.py").read_text(), names)
    torch.save(names["tiny"](1, 10).state_dict(), here / "tiny.pt")
    for split in ("train", "val"):
        for kind in range(17):
            place = here / "flowers" / split / f"kind{kind:02d}"
            place.mkdir(parents=True)
            Image.new("RGB", (70, 64), (kind * 15, 80, 120)).save(place / "flower.png")
    return here


@pytest.mark.slow
def test_every_command_runs(
    folder: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture
) -> None:
    """One test for all, in order: a command looks at what an earlier one made."""
    monkeypatch.chdir(folder)
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    failed = {}
    for command in commands():
        words = shlex.split(command)
        if words[0] == "lit-xai" and "ddp" not in words:
            status = main(words[1:])
        else:
            status = subprocess.run(["bash", "-c", command], env={**os.environ, "PATH": path}).returncode
        said = capfd.readouterr().err
        if status:
            failed[command] = said
    assert not failed


def test_the_commands_are_found() -> None:
    found = " ".join(commands())
    for verb in (
        "fit",
        "validate",
        "test",
        "explain",
        "certify",
        "attack",
        "study run",
        "study report",
        "methods",
        "doctor",
    ):
        assert f"lit-xai {verb}" in found


def test_the_python_examples_run_one_after_the_other(capsys: pytest.CaptureFixture[str]) -> None:
    names: dict[str, object] = {}
    for example in fences("python"):
        if not example.startswith("#"):
            exec(compile(example, "README.md", "exec"), names)
    said = capsys.readouterr().out
    assert "tensor" in said
    assert "conv1" in said


def test_what_the_readme_points_to_exists() -> None:
    links = re.findall(r"\]\(((?!https?:)[^)]+)\)", README) + re.findall(
        r"(?:configs|docs|tests)/[\w/.]+\w", README
    )
    assert len(links) > 8
    assert [link for link in links if not (ROOT / link).exists()] == []
