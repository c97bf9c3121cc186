"""`lit-xai attack`: how robust a network is, and whether that number can be believed."""

import sys
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from jsonargparse import Namespace
from rich.console import Console

from lit_xai.cli import processes, verdict
from lit_xai.cli.options import Options
from lit_xai.cli.subject import Subject, add_subject_options, network_in, read_subject
from lit_xai.cli.trainer import Parser, Section, prepare
from lit_xai.evaluation import Evaluation, conclude, journal, unfinished
from lit_xai.evaluation.summary import SUMMARY, TABLE
from lit_xai.types import Eps, require, require_at_least

PGD = {"Linf": "LinfPGD", "L2": "L2PGD", "L1": "MomentumPGD"}  # of each norm
FIELDS = ("split", "batch_size", "seed", "name")  # of the evaluation that have an option of their own


def main(words: Sequence[str]) -> int:
    """Evaluate what is not evaluated yet; print the numbers, and how far they can be believed."""
    options, more = _options().split(words)
    require_at_least(1, images=options.images, devices=options.devices)
    if options.devices > 1 and processes.place() == (0, 1):
        return processes.launch(["attack", *words], options.devices)
    rank, ranks = processes.place()
    named = any(word.split("=")[0] == "--config" or word.startswith("--attack.suite") for word in more)
    require(named, "`attack` needs a suite of attacks: e.g. `--config configs/attacks/quick.yaml`.")
    given = [f"--attack.{key}={value}" for key in FIELDS if (value := getattr(options, key)) is not None]

    if options.epsilon is not None:
        Eps(options.epsilon)  # refused here, in its own words
    subject = read_subject("attack", options, [*more, *given], section(options), options.split or "test")
    evaluation: Evaluation = subject.config.attack
    folder = subject.folder("attack", evaluation.name)
    try:
        _evaluate(subject, evaluation, folder, options.images, rank, ranks)
        if rank == 0:
            _conclude(subject, evaluation, folder)
    except KeyboardInterrupt:
        if rank == 0:
            print(
                f"lit-xai: stopped by Ctrl-C; {folder} keeps what is finished, the same command goes on.",
                file=sys.stderr,
            )
        return 130
    return 0


def section(options: Any) -> Section:
    """The part `attack:` of a configuration, with the norm and the budget of the options in all of it."""

    def add(parser: Parser) -> None:
        parser.add_class_arguments(Evaluation, "attack", sub_configs=True)
        parser.amend = lambda config: _rebudget(config, options)

    return add


def _evaluate(
    subject: Subject, evaluation: Evaluation, folder: Path, images: int, rank: int, ranks: int
) -> None:
    _agree(folder, subject.yaml)
    pool = subject.pool(evaluation.split)
    ids = pool.spaced(images)

    def fetch(positions: Sequence[int]) -> Any:
        return pool.batch(positions, subject.channels, subject.classes)

    with verdict.Display(rank == 0, begun=lambda: prepare(folder, subject.yaml)) as display:
        evaluation(subject.model, fetch, ids, folder, (rank, ranks), display, subject.name)
    while rank == 0 and ranks > 1 and (waiting := unfinished(folder)):
        display.wait(sum(waiting.values()))
        time.sleep(0.2)


def _agree(folder: Path, yaml: str) -> None:
    """Refuse a network made otherwise than that of the lines there: weights may not tell them apart."""
    if journal.begun(folder) and (folder / "config.yaml").exists():
        before, now = network_in((folder / "config.yaml").read_text()), network_in(yaml)
        differ = sorted(key for key in before | now if before.get(key) != now.get(key))
        require(
            not differ,
            f"{folder} holds an evaluation of a network made otherwise (model: {', '.join(differ)}): "
            "give another `--name`.",
        )


def _conclude(subject: Subject, evaluation: Evaluation, folder: Path) -> None:
    """The summary, its pictures, what is printed, and the report of the run, if there is one."""
    prepare(folder, subject.yaml)
    summary = conclude(folder)
    verdict.draw_curve(folder / "curve.png", summary)
    verdict.draw_examples(folder / "examples.png", subject, evaluation, folder)
    verdict.show(summary, Console())
    kept = (TABLE, SUMMARY, "examples.png", "curve.png")
    print(f"{folder}: {', '.join(name for name in kept if (folder / name).exists())}")
    subject.renew_report()


def _rebudget(config: Namespace, options: Any) -> None:
    """Give `--epsilon` and `--norm` to all attacks of the suite, and the evaluation a name that says so."""
    for node in _nodes(config.attack.suite):
        if options.epsilon is not None and "epsilon" in node:
            node["epsilon"] = Eps(options.epsilon)
        before = _norm_of(node)
        require(
            not options.norm or before in (None, options.norm) or not node.get("init_args.step_size"),
            f"`--norm` {options.norm} would misread the `step_size` of the suite, a length in {before}: "
            "write the norm into the file.",
        )
        if options.norm and "norm" in node:
            node["norm"] = _norm(options.norm)
        if options.norm and _name(node) in ("LinfPGD", "L2PGD"):
            node["class_path"] = f"lit_xai.attacks.pgd.{PGD[options.norm]}"
            if options.norm == "L1":
                node["init_args"]["norm"], node["init_args"]["momentum"] = _norm("L1"), 0.0
    said = [options.norm or "", (options.epsilon or "").replace("/", "of")]
    if any(said) and options.name is None:
        config.attack.name = "-".join([config.attack.name, *filter(None, said)]).lower()


def _nodes(tree: Any) -> Iterator[Namespace]:
    """Every namespace of a parsed configuration."""
    if isinstance(tree, Namespace):
        yield tree
    branches = vars(tree) if isinstance(tree, Namespace) else tree
    for branch in branches.values() if isinstance(branches, dict) else ():
        yield from _nodes(branch)


def _name(node: Namespace) -> str:
    return str(node.get("class_path")).rpartition(".")[2]


def _norm_of(node: Namespace) -> str | None:
    """The norm of an attack, which has it in its name or among its arguments."""
    given = node.get("init_args.norm")
    return {"LinfPGD": "Linf", "L2PGD": "L2"}.get(_name(node)) or (
        _name(given) if isinstance(given, Namespace) else None
    )


def _norm(name: str) -> Namespace:
    return Namespace(  # type: ignore[no-untyped-call]
        class_path=f"lit_xai.attacks.norms.{name}",
        init_args=Namespace(),  # type: ignore[no-untyped-call]
    )


def _options() -> Options:
    parser = Options(
        "attack",
        "Evaluate how robust a network is: a suite of attacks, each on the images that still stand, sanity "
        "gates, and accuracy over epsilon. The same command goes on where it stopped; images can be added. "
        "Further options override the configuration.",
    )
    add_subject_options(parser)
    parser.add_argument(
        "--epsilon", metavar="EPS", help="budget of all attacks, e.g. 8/255 (default: the file's)"
    )
    parser.add_argument("--norm", choices=tuple(PGD), help="ball of all attacks (default: the file's)")
    parser.add_argument("--images", type=int, default=1000, help="images, evenly spaced (default: 1000)")
    parser.add_argument("--split", choices=("val", "test"), help="which images (default: test)")
    parser.add_argument("--batch_size", type=int, help="images attacked at once (default: the file's)")
    parser.add_argument("--seed", type=int, help="fixes all random draws (default: the file's)")
    parser.add_argument(
        "--name", help="folder below attack/ (default: the file's, with --norm and --epsilon)"
    )
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine, one per device (default: 1)",
    )
    return parser
