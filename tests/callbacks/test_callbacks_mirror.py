"""The Weights & Biases policy: never a prompt, offline without credentials, never the end of a run."""

import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from lit_xai.callbacks import mirror
from lit_xai.callbacks.mirror import WandbMirror


@pytest.fixture(autouse=True)
def _no_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_MODE", "WANDB_API_KEY"):
        monkeypatch.delenv(name, raising=False)


def fake_wandb(monkeypatch: pytest.MonkeyPatch, **parts: Any) -> SimpleNamespace:
    module = SimpleNamespace(
        Settings=lambda **_: None, login=lambda **_: False, Image=lambda image: image, **parts
    )
    monkeypatch.setitem(sys.modules, "wandb", module)
    return module


class Run:
    dir = "run/files"

    def __init__(self) -> None:
        self.rows: list[dict[str, Any]] = []
        self.finished: int | None = None

    def log(self, row: dict[str, Any]) -> None:
        self.rows.append(row)

    def finish(self, exit_code: int) -> None:
        self.finished = exit_code


def test_auto_respects_the_environment_then_credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    fake_wandb(monkeypatch)
    assert mirror.resolve("auto") == "offline"
    monkeypatch.setattr(sys.modules["wandb"], "login", lambda **_: True)
    assert mirror.resolve("auto") == "online"
    monkeypatch.setenv("WANDB_MODE", "disabled")
    assert mirror.resolve("auto") == "disabled"
    assert mirror.resolve("offline") == "offline"


def test_looking_for_credentials_never_asks(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[dict[str, Any]] = []
    fake_wandb(monkeypatch).login = lambda **given: asked.append(given)
    assert mirror.has_credentials() is False
    assert asked == [{"prompt": False, "verify": False}]


def test_a_failing_start_warns_once_and_training_goes_on(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    calls = []

    def init(**given: Any) -> Run:
        calls.append(given)
        raise RuntimeError("no room on the device")

    fake_wandb(monkeypatch, init=init)
    log = WandbMirror(tmp_path, "offline")
    with pytest.warns(UserWarning, match="Weights & Biases failed and is off.*no room"):
        log.log_metrics({"a": 1.0}, step=0)
    log.log_metrics({"a": 2.0}, step=1)
    log.finalize("success")
    assert len(calls) == 1


def test_online_that_cannot_be_reached_goes_on_offline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run, modes = Run(), []

    def init(**given: Any) -> Run:
        modes.append(given["mode"])
        if given["mode"] == "online":
            raise TimeoutError("no network")
        return run

    fake_wandb(monkeypatch, init=init)
    log = WandbMirror(tmp_path, "online")
    with pytest.warns(UserWarning, match="going on offline"):
        log.log_metrics({"a": 1.0}, step=3)
    log.finalize("success")
    assert modes == ["online", "offline"]
    assert run.rows == [{"a": 1.0, "trainer/global_step": 3}]
    assert run.finished == 0


def test_a_failure_in_the_middle_keeps_the_run_going(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run()
    fake_wandb(monkeypatch, init=lambda **_: run)
    log = WandbMirror(tmp_path, "offline")
    log.log_metrics({"a": 1.0}, step=0)
    monkeypatch.setattr(run, "log", lambda row: 1 / 0)
    with pytest.warns(UserWarning, match="division by zero"):
        log.log_metrics({"a": 2.0}, step=1)
    log.log_metrics({"a": 3.0}, step=2)
    assert [row["a"] for row in run.rows] == [1.0]


def test_images_go_as_lists_of_uint8(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    run = Run()
    fake_wandb(monkeypatch, init=lambda **_: run)
    picture = np.full((4, 4, 3), 200, np.uint8)
    WandbMirror(tmp_path, "offline").log_images({"saliency": [picture]}, step=5)
    assert run.rows[0]["maps/saliency"][0].dtype == np.uint8
    assert run.rows[0]["maps/saliency"][0].max() == 200


@pytest.mark.slow
def test_a_real_offline_run_is_readable_without_an_account(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("WANDB_SILENT", "true")
    log = WandbMirror(tmp_path / "run", "auto")
    log.log_metrics({"val/accuracy": 0.5}, step=1)
    log.log_images({"saliency": [np.full((8, 8, 3), 200, np.uint8)]}, step=1)
    log.finalize("success")
    (offline,) = (tmp_path / "run" / "wandb").glob("offline-run-*")
    (image,) = offline.glob("files/media/images/maps/*.png")
    from PIL import Image

    assert np.asarray(Image.open(image)).max() == 200
