"""What `attack`, `explain` and `certify` look at: the network of a run or one's own, and its images."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch import nn
from yaml import safe_load

from lit_xai.cli import own
from lit_xai.cli.images import Pool, pool
from lit_xai.cli.options import Options
from lit_xai.cli.refusal import register_types
from lit_xai.cli.runs import add_run_options, checkpoint_of, config_of
from lit_xai.cli.trainer import Command, Section, add_explain, quiet
from lit_xai.cli.weights import load_weights
from lit_xai.evaluation import fingerprint
from lit_xai.models import Normalized
from lit_xai.models.modes import evaluating
from lit_xai.objectives.noise import Noisy
from lit_xai.study import write_report
from lit_xai.types import require


@dataclass(frozen=True)
class Subject:
    """A network that speaks pixels, and the images it is looked at with.

    Args:
        model: On its device, in eval mode.
        data: Its images.
        channels: Channels of an image.
        classes: Number of classes.
        name: What it is called, in words.
        out: Folder that results are written below.
        device: Where it computes.
        config: The parts of the configuration, built.
        yaml: The configuration, as text.
        weights: Name of the file of the weights; empty if there is none.
        of_run: Whether it is that of a run.
        sigma: The noise it was trained with, where that is known.
    """

    model: nn.Module
    data: L.LightningDataModule
    channels: int
    classes: int
    name: str
    out: Path
    device: torch.device
    config: Any
    yaml: str
    weights: str
    of_run: bool = False
    sigma: float | None = None

    def pool(self, split: str) -> Pool:
        """The images of a split, "val" or "test"."""
        return pool(self.data, split)

    @cached_property
    def fingerprint(self) -> str:
        """Tells these weights from others."""
        return fingerprint(self.model)

    def folder(self, kind: str, name: str) -> Path:
        """Where results of a kind are kept under a name.

        Raises:
            ValueError: It is not the name of one folder.
        """
        require(
            name not in ("", "..") and Path(name).name == name,
            f"`--name` must be the name of one folder, got {name!r}.",
        )
        return self.out / kind / name

    def renew_report(self) -> None:
        """Make the report of the run anew, if there is one."""
        page = self.out / "report.html"
        if self.of_run and page.exists():
            write_report([self.out], page, title=self.out.name)
            print(f"report: {page}")


def network_in(yaml: str) -> dict[str, Any]:
    """What a configuration says of how its network is made: weights alone do not tell."""
    content = safe_load(yaml)["model"]
    return {key: content[key] for key in ("class_path", "init_args", "net", "mean", "std") if key in content}


def add_subject_options(parser: Options) -> None:
    """`--run`, or `--model`, `--weights` and `--data`: alike in every command that looks at a network."""
    add_run_options(parser, required=False)
    mine = parser.add_argument_group("a network of your own, in place of --run")
    mine.add_argument(
        "--model",
        "--model.class_path",
        metavar="my.Net",
        help="class or function that makes it, in this folder, in PYTHONPATH or installed; "
        "what it is called with: --model.init_args.NAME VALUE",
    )
    mine.add_argument("--weights", type=Path, metavar="FILE", help="its state dict, as torch.save wrote it")
    mine.add_argument(
        "--data",
        "--data.class_path",
        metavar="FILE|my.Data",
        help="a file of configs/data, or a LightningDataModule and its --data.init_args.NAME VALUE",
    )
    mine.add_argument(
        "--mean", type=float, nargs="+", metavar="M", help="its normalisation, per channel, in pixels"
    )
    mine.add_argument(
        "--std", type=float, nargs="+", metavar="S", help="likewise; by default it is given pixels in [0, 1]"
    )
    mine.add_argument(
        "--normalize", action="store_true", help="normalise with mean and std of the file of data"
    )
    mine.add_argument("--out", type=Path, metavar="DIR", help="where results go (default: runs/NET)")
    parser.add_argument("--device", default="auto", help="auto, cpu, cuda, cuda:1, ... (default: auto)")


def read_subject(
    command: str, options: Any, words: Sequence[str], section: Section | None = None, split: str = "val"
) -> Subject:
    """Build what the options name.

    Args:
        command: The command that asks.
        options: As `add_subject_options` has them.
        words: The words that are left: options of the configuration.
        section: Adds the command's own part of the configuration to a parser; that of `explain` by default.
        split: Where an image can be found to try the network on.
    """
    quiet()
    require(
        bool(options.run or options.model),
        f"`{command}` needs a network: `--run DIR`, or `--model my.Net --weights FILE --data FILE`.",
    )
    if options.run:
        return _of_run(command, options, words, section)
    register_types()
    built = own.build(command, options, words, section or add_explain)
    device = pick_device(options.device)
    model = built.model.to(device).eval()
    inputs = pool(built.data, split).first()
    if isinstance(built.model, Normalized):
        count, channels = built.model.mean.numel(), inputs.shape[1]
        require(
            count in (1, channels),
            f"`--mean` and `--std` must have one number, or one per channel, {channels}; got {count}.",
        )
    classes = _classes(model, inputs.to(device), getattr(built.data, "classes", None))
    for note in built.notes:
        own.say(note)
    return Subject(
        model=model,
        data=built.data,
        channels=inputs.shape[1],
        classes=classes,
        name=built.name,
        out=options.out or Path("runs") / built.name,
        device=device,
        config=built.config,
        yaml=built.yaml,
        weights=options.weights.name if options.weights else "",
    )


def pick_device(name: str) -> torch.device:
    """The device of that name; `auto` takes the accelerator that belongs to this process, if there is one.

    Raises:
        ValueError: There is no such device here.
    """
    if name != "auto" or not torch.cuda.is_available():
        device_name = "cpu" if name == "auto" else name
        try:
            return torch.empty(0, device=device_name).device
        except (RuntimeError, AssertionError, NotImplementedError):
            raise ValueError(
                f"there is no device {name!r} here: take auto or cpu, and ask `lit-xai doctor`."
            ) from None
    local = os.environ.get("LOCAL_RANK") or os.environ.get("SLURM_LOCALID") or "0"
    return torch.device("cuda", int(local) % torch.cuda.device_count())


def _of_run(command: str, options: Any, words: Sequence[str], section: Section | None) -> Subject:
    for name in ("model", "weights", "mean", "std", "normalize", "out"):
        require(
            not getattr(options, name),
            f"`--{name}` is for a network of one's own: it does not go with `--run`.",
        )
    run = options.run
    weights = checkpoint_of(run, options.checkpoint)
    given = (
        ["--config" if options.data.endswith((".yaml", ".yml")) else "--data", options.data]
        if options.data
        else []
    )
    parsed = Command(["--config", str(config_of(run)), *given, *words, "--out", str(run)], command, section)
    classifier = parsed.model.to(pick_device(options.device))
    load_weights(classifier, weights)
    return Subject(
        model=classifier.model.eval(),
        data=parsed.datamodule,
        channels=classifier.channels,
        classes=classifier.classes,
        name=f"{run.name}, {weights.name}",
        out=run,
        device=classifier.device,
        config=parsed.config_init,
        yaml=parsed.yaml,
        weights=weights.name,
        of_run=True,
        sigma=next((part.sigma for part in classifier.objective.modules() if isinstance(part, Noisy)), None),
    )


def _classes(model: nn.Module, inputs: torch.Tensor, offered: object) -> int:
    """How many classes the network knows, tried on an image."""
    with evaluating(model), torch.no_grad():
        try:
            logits = model(inputs)
        except RuntimeError as error:
            said = str(error).splitlines()[0][:200]
            raise ValueError(
                f"the network does not take images of shape {tuple(inputs.shape)}: {said}"
            ) from None
    shape = tuple(logits.shape) if isinstance(logits, torch.Tensor) else type(logits).__name__
    require(
        isinstance(logits, torch.Tensor) and logits.ndim == 2 and len(logits) == 1 and logits.shape[1] > 1,
        f"the network must answer logits of shape (batch, classes), got {shape}.",
    )
    classes = int(logits.shape[1])
    require(
        not isinstance(offered, int) or offered == classes,
        f"the network must have as many logits as the data have classes, {offered}, got {classes}.",
    )
    return classes
