"""`lit-xai doctor`: whether this machine is fit for a run."""

import importlib
import os
import platform
import sys
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from rich.console import Console
from rich.markup import escape

from lit_xai.cli.options import Options
from lit_xai.provenance import PACKAGES, installed

MARKS = {"fine": "[green]ok  [/]", "note": "[yellow]note[/]", "bad": "[red]bad [/]"}
Finding = tuple[str, str, str]


def main(words: Sequence[str]) -> int:
    """Print what was found; the exit status is 1 if something must be mended."""
    parser = Options("doctor", "Check this machine.")
    parser.add_argument("--out", type=Path, default=Path("runs"), help="folder that runs will be written to")
    out = parser.parse_args(list(words)).out
    console, worst = Console(), 0
    for look in (versions, devices, mirror, lambda: folders(out)):
        for mark, subject, text in safely(look):
            worst |= mark == "bad"
            line = f"{MARKS[mark]}  {subject:<20} {escape(text)}"
            console.print(line, highlight=False, soft_wrap=True)
    return int(worst)


def safely(look: Callable[[], Iterator[Finding]]) -> Iterator[Finding]:
    """The findings of one look; a package that does not import is a finding too."""
    try:
        yield from look()
    except (ImportError, OSError, RuntimeError) as error:
        yield "bad", "import", " ".join(str(error).split())[:200]


def versions() -> Iterator[Finding]:
    """Versions, and combinations that are known not to work."""
    yield ("fine" if sys.version_info >= (3, 11) else "bad", "python", platform.python_version())
    found = {name: installed(name) for name in (*PACKAGES, "timm", "mlxtend")}
    for name, version in found.items():
        extra = {"timm": "timm", "mlxtend": "quickstart"}.get(name)
        absent = f'absent; optional: pip install "lit-xai[{extra}]"' if extra else "absent: install it"
        yield ("fine" if version else "note" if extra else "bad", name, version or absent)
    if found["lightning"] in ("2.6.2", "2.6.3"):
        yield "bad", "lightning", "2.6.2 and 2.6.3 were malicious uploads: remove them, change your keys"
    if (found["jsonargparse"] or "4").split(".")[0] >= "5":
        yield "bad", "jsonargparse", "5 drops calls that lightning 2.6 makes: install one below 5"
    try:
        importlib.import_module("torchvision.ops")  # fails where it was built for another torch
    except Exception as error:
        yield "bad", "torch + torchvision", f"do not belong together ({error}): install both in one command"


def devices() -> Iterator[Finding]:
    """What there is to compute on."""
    import torch

    yield "fine", "cores", f"{os.cpu_count()}, {torch.get_num_threads()} threads for torch"
    count = torch.cuda.device_count()
    for index in range(count):
        memory = torch.cuda.get_device_properties(index).total_memory / 2**30
        yield "fine", f"cuda:{index}", f"{torch.cuda.get_device_name(index)}, {memory:.0f} GiB"
    if not count:
        yield "note", "cuda", "no device: runs use the processor"


def mirror() -> Iterator[Finding]:
    """How Weights & Biases would be used."""
    from lit_xai.callbacks.mirror import resolve

    mode = resolve("auto")
    yield (
        "fine",
        "Weights & Biases",
        {
            "online": "online: credentials were found",
            "offline": "offline: kept in the run folder; `wandb sync` sends it later",
            "disabled": "disabled by WANDB_MODE",
        }.get(mode, mode),
    )


def folders(out: Path) -> Iterator[Finding]:
    """Whether runs and temporary files can be written."""
    for subject, folder in (("run folder", out), ("temporary files", Path(tempfile.gettempdir()))):
        nearest = next(path for path in (folder, *folder.resolve().parents) if path.exists())
        try:
            tempfile.TemporaryFile(dir=nearest).close()
            fits = True
        except OSError:
            fits = False
        yield "fine" if fits else "bad", subject, f"{folder} {'can' if fits else 'cannot'} be written"
