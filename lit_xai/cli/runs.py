"""Reading a run folder: its configuration, and its weights."""

import pickle
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import nn

from lit_xai.cli.options import Options
from lit_xai.types import require


def chosen_run(command: str, words: Sequence[str]) -> tuple[Path, Path, list[str]]:
    """The run folder, the checkpoint, and the words that are left: overrides of the configuration."""
    parser = Options(command, "")
    add_run_options(parser)
    known, rest = parser.parse_known_args(list(words))
    return known.run, checkpoint_of(known.run, known.checkpoint), rest


def add_run_options(parser: Options) -> None:
    """`--run` and `--checkpoint`, alike in every command that reads a run."""
    parser.add_argument(
        "--run", type=Path, required=True, metavar="DIR", help="run folder, as `fit --out` made it"
    )
    parser.add_argument(
        "--checkpoint", default="last", metavar="last|best|FILE", help="weights to take (default: last)"
    )


def config_of(run: Path) -> Path:
    """The configuration of a run."""
    require(run.is_dir(), f"`--run` {run} is not a folder: give the one that `fit --out` made.")
    path = run / "config.yaml"
    require(path.is_file(), f"`--run` {run} holds no config.yaml: it is not a run folder of `lit-xai fit`.")
    return path


def checkpoint_of(run: Path, which: str) -> Path:
    """The file of a run's weights: `last`, `best`, or a path."""
    config_of(run)
    path = run / "checkpoints" / f"{which}.ckpt" if which in ("last", "best") else Path(which)
    there = sorted(file.name for file in (run / "checkpoints").glob("*.ckpt"))
    require(
        path.is_file(),
        f"checkpoint {path} does not exist: {f'there are {there}' if there else 'no epoch is done'}.",
    )
    return path


def load_weights(module: nn.Module, path: Path) -> None:
    """Load a checkpoint's weights, all of them and nothing else.

    Raises:
        ValueError: The file is no checkpoint of plain data, or belongs to another network.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, KeyError, ValueError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ValueError(f"{path} cannot be read as a checkpoint of plain tensors: {said[:160]}") from None
    require(
        isinstance(content, dict) and isinstance(content.get("state_dict"), dict),
        f"{path} is not a checkpoint of `lit-xai fit`: it has no `state_dict`.",
    )
    try:
        module.load_state_dict(content["state_dict"])
    except RuntimeError as error:
        lines = [line.strip() for line in str(error).splitlines()[1:] if line.strip()]
        raise ValueError(
            f"{path} belongs to another network than the configuration describes: {lines[0][:200]}"
            f"{f' (and {len(lines) - 1} more)' if len(lines) > 1 else ''}"
        ) from None
