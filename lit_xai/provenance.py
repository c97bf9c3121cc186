"""Where a number comes from: versions, machine, command, and state of the code."""

import os
import platform
import subprocess
import sys
from datetime import UTC, datetime
from importlib.metadata import PackageNotFoundError, version
from typing import Any

PACKAGES = ("lit-xai", "torch", "torchvision", "lightning", "torchmetrics", "jsonargparse", "wandb")


def provenance(seed: int | None) -> dict[str, Any]:
    """What is needed to run it again."""
    import torch  # late: `lit-xai doctor` looks at versions of a torch that may not import

    return {
        "started": now(),
        "seed": seed,
        "command": ["lit-xai", *sys.argv[1:]],
        "folder": os.getcwd(),
        "python": platform.python_version(),
        "versions": {name: installed(name) for name in PACKAGES},
        "machine": {
            "system": platform.platform(),
            "processor": platform.machine(),
            "cores": os.cpu_count(),
            "threads": torch.get_num_threads(),
            "devices": [torch.cuda.get_device_name(k) for k in range(torch.cuda.device_count())],
        },
        "git": _git_state(),
    }


def now() -> str:
    """The time in UTC, to the second."""
    return datetime.now(UTC).isoformat(timespec="seconds")


def installed(package: str) -> str | None:
    """Version of an installed package; None where it is absent."""
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _git_state() -> dict[str, Any] | None:
    def ask(*words: str) -> str:
        done = subprocess.run(["git", *words], capture_output=True, text=True, check=True, timeout=10)
        return done.stdout.strip()

    try:
        return {"commit": ask("rev-parse", "HEAD"), "changed": bool(ask("status", "--porcelain"))}
    except (OSError, subprocess.SubprocessError):
        return None
