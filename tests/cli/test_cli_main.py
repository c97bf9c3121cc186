"""The dispatcher: help, unknown commands, and what it does not import."""

import subprocess
import sys

import pytest

from lit_xai import __version__
from lit_xai.cli import COMMANDS, main


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--help"]) == 0
    said = capsys.readouterr().out
    assert all(f"  {name}" in said for name in COMMANDS)


def test_help_and_version_load_neither_torch_nor_lightning() -> None:
    code = (
        "import sys; from lit_xai.cli import main; status = main([sys.argv[1]]);"
        "heavy = {'torch', 'lightning', 'wandb', 'matplotlib'} & set(sys.modules);"
        "sys.exit(f'{heavy}' if heavy else status)"
    )
    for word in ("--help", "--version"):
        done = subprocess.run([sys.executable, "-c", code, word], capture_output=True, text=True)
        assert done.returncode == 0, done.stderr


def test_version(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--version"]) == 0
    assert capsys.readouterr().out == f"lit-xai {__version__}\n"


def test_a_misspelt_command_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fti"]) == 2
    assert capsys.readouterr().err == "lit-xai: there is no command 'fti': did you mean 'fit'?\n"


def test_python_dash_m_is_the_same_command() -> None:
    done = subprocess.run([sys.executable, "-m", "lit_xai", "--version"], capture_output=True, text=True)
    assert done.stdout == f"lit-xai {__version__}\n"


def test_methods_gives_one_line_and_a_source(capsys: pytest.CaptureFixture[str]) -> None:
    from lit_xai.cli.methods import described

    rows = {name: (text, source) for name, text, source in described("attributions")}
    text, source = rows["BoundaryIntegratedGradients"]
    assert text
    assert "2103.11257" in source
    assert main(["methods", "attributions"]) == 0
    assert "BoundaryIntegratedGradients" in capsys.readouterr().out


def test_doctor_reports_versions_and_folders(capsys: pytest.CaptureFixture[str]) -> None:
    status = main(["doctor"])
    said = capsys.readouterr().out
    assert status == 0, said
    assert "torch" in said
    assert "can be written" in said


def test_doctor_names_the_extra_of_an_absent_package(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    from lit_xai.cli import doctor

    there = doctor.installed
    monkeypatch.setattr(doctor, "installed", lambda name: None if name == "mlxtend" else there(name))
    assert main(["doctor"]) == 0
    assert 'pip install "lit-xai[quickstart]"' in capsys.readouterr().out


def test_an_unknown_room_is_refused_with_the_nearest_name(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["methods", "atacks"]) == 2
    assert capsys.readouterr().err == "lit-xai: there is no room 'atacks': did you mean 'attacks'?\n"


def test_doctor_fails_on_a_folder_that_cannot_be_written(
    tmp_path: object, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["doctor", "--out", "/proc/nowhere"]) == 1
    assert "cannot be written" in capsys.readouterr().out
