"""Reading a run folder: its configuration, and the file of its weights."""

from collections.abc import Sequence
from pathlib import Path

from lit_xai.cli.options import Options
from lit_xai.types import require


def chosen_run(command: str, words: Sequence[str]) -> tuple[Path, Path, list[str]]:
    """The run folder, the checkpoint, and the words that are left: overrides of the configuration."""
    parser = Options(command, "")
    add_run_options(parser)
    known, rest = parser.split(words)
    return known.run, checkpoint_of(known.run, known.checkpoint), rest


def add_run_options(parser: Options, required: bool = True) -> None:
    """`--run` and `--checkpoint`, alike in every command that reads a run."""
    parser.add_argument(
        "--run", type=Path, required=required, metavar="DIR", help="run folder, as `fit --out` made it"
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
