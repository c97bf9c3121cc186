"""Weights & Biases as a mirror of the run folder: the only file that knows it.

The folder is the record. The mirror never asks a question, and no failure of it ends a training run.
"""

import os
from argparse import Namespace
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, Literal

import lightning as L
import numpy as np
from lightning.pytorch.loggers import Logger
from lightning.pytorch.utilities import rank_zero_info, rank_zero_only, rank_zero_warn
from numpy.typing import NDArray

Mode = Literal["auto", "online", "offline", "disabled"]


class WandbMirror(Logger):
    """Sends what is logged to Weights & Biases, as long as that works.

    Args:
        folder: The run folder; files of Weights & Biases go to `wandb/` inside.
        mode: "auto" takes `WANDB_MODE` if set, else "online" where credentials exist, else "offline".
        project: Project in Weights & Biases.
    """

    def __init__(self, folder: Path, mode: Mode = "auto", project: str = "lit_xai") -> None:
        super().__init__()
        self.folder, self.mode, self._project = folder, mode, project
        self._run: Any = None
        self._alive = mode != "disabled"

    @property
    def name(self) -> str:
        return self._project

    @property
    def version(self) -> str:
        return self.folder.name

    @rank_zero_only
    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        # The step travels as a value: Weights & Biases drops rows that are older than the last one.
        self._try(lambda run: run.log({**metrics, "trainer/global_step": step}))

    @rank_zero_only
    def log_hyperparams(self, params: dict[str, Any] | Namespace, *_: Any, **__: Any) -> None:
        plain = vars(params) if isinstance(params, Namespace) else params
        self._try(lambda run: run.config.update(plain, allow_val_change=True))

    @rank_zero_only
    def log_images(self, sheets: Mapping[str, list[NDArray[np.uint8]]], step: int) -> None:
        """Pictures by name, as lists of uint8 images: floats would turn black, tables lose them offline."""

        def send(run: Any) -> None:
            import wandb

            shown = {
                f"maps/{name}": [wandb.Image(image) for image in images] for name, images in sheets.items()
            }
            run.log({**shown, "trainer/global_step": step})

        self._try(send)

    @rank_zero_only
    def finalize(self, status: str) -> None:
        if self._run is not None:
            self._try(lambda run: run.finish(exit_code=0 if status == "success" else 1))
            self._run, self._alive = None, False

    def _try(self, action: Callable[[Any], object]) -> None:
        if not self._alive:
            return
        try:
            action(self._start())
        except Exception as error:  # whatever it is, training goes on without the mirror
            self._alive = False
            rank_zero_warn(f"Weights & Biases failed and is off for the rest of this run: {error}")

    def _start(self) -> Any:
        if self._run is None:
            mode = resolve(self.mode)
            try:
                self._run = self._open(mode)
            except Exception as error:
                if mode != "online":
                    raise
                rank_zero_warn(f"Weights & Biases cannot be reached, going on offline: {error}")
                mode, self._run = "offline", self._open("offline")
            if mode == "offline":
                rank_zero_info(
                    f"Weights & Biases is offline; to send this run: wandb sync {self._run.dir}/.."
                )
        return self._run

    def _open(self, mode: Any) -> Any:
        import wandb

        self.folder.mkdir(parents=True, exist_ok=True)
        # Staged files stay with the run instead of going to the user's home.
        os.environ.setdefault("WANDB_DATA_DIR", str(self.folder / "wandb"))
        settings = wandb.Settings(silent=True, init_timeout=30)
        folder = str(self.folder)
        return wandb.init(
            project=self._project, name=self.folder.name, dir=folder, mode=mode, settings=settings
        )


def images(trainer: L.Trainer, sheets: Mapping[str, list[NDArray[np.uint8]]]) -> None:
    """Show pictures in the mirror, if the trainer has one."""
    for logger in trainer.loggers:
        if isinstance(logger, WandbMirror):
            logger.log_images(sheets, trainer.global_step)


def resolve(mode: Mode) -> str:
    """The mode in force: never a question, never a wait for the network."""
    if mode != "auto":
        return mode
    wanted = os.environ.get("WANDB_MODE", "")
    if wanted:
        return {"dryrun": "offline", "run": "online"}.get(wanted, wanted)
    return "online" if has_credentials() else "offline"


def has_credentials() -> bool:
    """Whether Weights & Biases finds a key, looked up without a prompt and without the network."""
    try:
        import wandb

        return bool(wandb.login(prompt=False, verify=False))
    except Exception:  # a release without `prompt`, or a broken installation: offline is always right
        return bool(os.environ.get("WANDB_API_KEY"))
