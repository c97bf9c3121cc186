"""`lit-xai certify`: l2 certificates of a smoothed classifier, image by image."""

import math
import sys
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from lit_xai.cli import processes
from lit_xai.cli.options import Options
from lit_xai.cli.subject import Subject, add_subject_options, network_in, read_subject
from lit_xai.cli.trainer import prepare
from lit_xai.evaluation.certification import Certified, certified, envelope, read_table
from lit_xai.evaluation.certify import SUMMARY, TABLE, Certification, conclude, read_plan, unfinished
from lit_xai.evaluation.intervals import wilson
from lit_xai.types import require, require_at_least

FIXED, SEQUENTIAL = 10_000, 100_000  # votes where the options do not say how many
FOLDER, PICTURE = "certify", "certificates.png"


def main(words: Sequence[str]) -> int:
    """Certify what is not certified yet; print what the certificates say of all images."""
    options, more = _options().split(words)
    require_at_least(1, images=options.images, devices=options.devices)
    if options.devices > 1 and processes.place() == (0, 1):
        return processes.launch(["certify", *words], options.devices)
    rank, ranks = processes.place()
    subject = read_subject("certify", options, more, split=options.split)
    sigma = subject.sigma if options.sigma is None else options.sigma
    if sigma is None:
        raise ValueError("`--sigma` is needed: nothing says with how much noise this network was trained.")
    certification = _certification(options, sigma)
    folder = subject.folder(FOLDER, certification.name)
    try:
        _certify(subject, certification, folder, options.images, rank, ranks)
        if rank == 0:
            _conclude(subject, folder)
    except KeyboardInterrupt:
        if rank == 0:
            print(
                f"lit-xai: stopped by Ctrl-C; {folder} keeps what is finished, the same command goes on.",
                file=sys.stderr,
            )
        return 130
    return 0


def _certification(options: Any, sigma: float) -> Certification:
    sequential = options.sequential or options.tolerance is not None or bool(options.radii)
    require(
        options.tolerance is None or not options.radii,
        "`--tolerance` and `--radii` are two ways to say when to stop: give one.",
    )
    name = f"sigma-{sigma:g}{'-sequential' if sequential else ''}"
    return Certification(
        sigma=sigma,
        samples=(SEQUENTIAL if sequential else FIXED) if options.samples is None else options.samples,
        selection=options.selection,
        alpha=options.alpha,
        sequential=sequential,
        tolerance=0.1 if options.tolerance is None else options.tolerance,
        radii=tuple(options.radii or ()),
        seed=options.seed,
        batch_size=options.batch_size,
        chunk=options.chunk,
        name=name if options.name is None else options.name,
        split=options.split,
    )


def _certify(
    subject: Subject, certification: Certification, folder: Path, images: int, rank: int, ranks: int
) -> None:
    pool = subject.pool(certification.split)
    console = Console(stderr=True, quiet=rank > 0)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as bars:
        bar = bars.add_task("certifying", total=None)
        certification(
            subject.model,
            lambda ids: pool.batch(ids, subject.channels, subject.classes),
            pool.spaced(images),
            folder,
            (rank, ranks),
            lambda done, total: bars.update(bar, completed=done, total=total),
            subject.name,
            network_in(subject.yaml),
        )
    waiting = unfinished(folder) if rank == 0 and ranks > 1 else 0
    if waiting:
        console.print(f"waiting for other processes: {waiting} images", highlight=False)
    while waiting:
        time.sleep(0.2)
        waiting = unfinished(folder)


def _conclude(subject: Subject, folder: Path) -> None:
    """The summary, its picture, what is printed, and the report of the run, if there is one."""
    prepare(folder, subject.yaml)
    summary = conclude(folder)
    others = _others(folder)
    draw(folder / PICTURE, summary, _read(folder), others)
    show(summary, Console(), others)
    print(f"{folder}: {TABLE}, {SUMMARY}, {PICTURE}")
    subject.renew_report()


def _read(folder: Path) -> Certified:
    plan = read_plan(folder)
    return certified(read_table(folder / TABLE), plan.sigma, plan.alpha)


def _others(folder: Path) -> dict[str, Certified]:
    """Certificates beside these, of the same images and weights: with another sigma, mostly."""
    mine, found = read_plan(folder), {}
    for path in sorted(folder.parent.glob(f"*/{TABLE}")):
        if path.parent != folder:
            plan = read_plan(path.parent)
            if (plan.weights, plan.split, plan.ids) == (mine.weights, mine.split, mine.ids):
                found[path.parent.name] = _read(path.parent)
    return found


def show(summary: Mapping[str, Any], console: Console, others: Mapping[str, Certified] | None = None) -> None:
    """Print certified accuracies with their intervals, averages, and what was spent."""
    what = f"{summary['name']}: {summary['model']}, sigma {summary['sigma']:g}"
    said = f"{what}, {summary['images']} {summary['split']} images"
    console.print(said, style="bold", highlight=False, markup=False, soft_wrap=True)
    table = Table(box=None, padding=(0, 2, 0, 0))
    for column in ("radius", "certified", "95%", "at least"):
        table.add_column(column, justify="right")
    for point in summary["certified"]:
        interval = f"[{100 * point['low']:.1f}, {100 * point['high']:.1f}]"
        shares = (f"{100 * point['accuracy']:.1f}%", interval, f"{100 * point['bound']:.1f}%")
        table.add_row(f"{point['radius']:.3f}", *shares)
    console.print(table)
    error = summary["average_radius_error"]
    spread = "" if error is None else f" ± {error:.4f} (standard error)"
    votes, most = summary["votes"], summary["samples"]
    told = [
        "at least: of these images, with probability 0.999 over the noise",
        f"average certified radius {summary['average_radius']:.4f}{spread}",
        f"abstained {100 * summary['abstained']:.1f}%",
        f"{votes:.0f} votes an image, {100 * votes / most:.0f}% of {most}; alpha {summary['alpha']:g}",
    ]
    if others:
        told.append(f"the picture has the best of {len(others) + 1} at each radius: {', '.join(others)}")
    for line in told:
        console.print(line, highlight=False, soft_wrap=True)


def draw(
    path: Path, summary: Mapping[str, Any], found: Certified, others: Mapping[str, Certified] | None = None
) -> None:
    """Certified accuracy over the radius: interval, bound, and the best of all where there are several."""
    every = {summary["name"]: found, **(others or {})}
    top = max(float(one.radius.max()) for one in every.values()) or found.sigma
    grid = np.linspace(0, 1.02 * top, 300)
    count, accuracy = len(found.radius), found.accuracy(grid)
    low, high = zip(*(wilson(round(share * count), count) for share in accuracy), strict=True)
    figure = Figure(figsize=(5.2, 3.4), dpi=130, facecolor="white")
    axis = figure.subplots()
    axis.set_prop_cycle(color=("#d97706", "#0f766e", "#a21caf", "#65a30d", "#dc2626", "#78716c"))
    axis.step(grid, accuracy, where="pre", color="#2156a5", label=summary["name"])
    band = axis.fill_between(
        grid, low, high, accuracy > 0, step="pre", color="#2156a5", label="95 % interval"
    )
    band.set(alpha=0.15, linewidth=0)
    if not math.isnan(found.alpha):
        (dotted,) = axis.step(grid, found.bound(grid), ":", where="pre", color="#2156a5", label="at least")
        dotted.set_linewidth(0.8)
    for name, one in every.items():
        if one is not found:
            axis.step(grid, one.accuracy(grid), where="pre", linewidth=0.9, label=name)
    if len(every) > 1:
        best = envelope(every.values(), grid)
        axis.step(grid, best, "--", where="pre", color="#222222", linewidth=0.9, label="best of all")
    axis.legend(fontsize=7, frameon=False)
    axis.set(xlabel="l2 radius, in pixel units", ylabel="certified accuracy", ylim=(0, 1.02), xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    said = f"ACR {summary['average_radius']:.3f}, abstained {100 * summary['abstained']:.1f}%"
    axis.set_title(f"{summary['model']}: {count} {summary['split']} images, {said}", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def _options() -> Options:
    parser = Options(
        "certify",
        "Certify the smoothed classifier of a network (Cohen et al. 2019). The same command goes on where it "
        "stopped; images can be added. Further options override the configuration.",
    )
    add_subject_options(parser)
    parser.add_argument("--sigma", type=float, help="noise in pixel units (default: as trained with)")
    parser.add_argument(
        "--samples",
        type=int,
        help=f"votes for the bound (default: {FIXED}; sequentially, at most: {SEQUENTIAL})",
    )
    parser.add_argument(
        "--selection", type=int, default=100, help="votes that choose the class (default: 100)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="failure probability per image (default: 0.001)"
    )
    early = parser.add_argument_group("fewer votes, by a bound that holds at every number of them")
    early.add_argument(
        "--sequential", action="store_true", help="stop each image when more votes would tell little more"
    )
    early.add_argument(
        "--tolerance",
        type=float,
        metavar="SHARE",
        help="of the radius of all votes that may be given away (default: 0.1)",
    )
    early.add_argument(
        "--radii",
        type=float,
        nargs="+",
        metavar="R",
        help="or stop when it is decided which of these radii are reached",
    )
    parser.add_argument("--images", type=int, default=100, help="images, evenly spaced (default: 100)")
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="which images (default: test)"
    )
    parser.add_argument("--batch_size", type=int, default=10, help="images between two writes (default: 10)")
    parser.add_argument(
        "--chunk", type=int, default=1000, help="noisy copies that pass at once (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes the noise (default: 0)")
    parser.add_argument("--name", help=f"folder below {FOLDER}/ (default: sigma and mode)")
    parser.add_argument(
        "--devices",
        type=int,
        default=1,
        metavar="N",
        help="processes on this machine, one per device (default: 1)",
    )
    return parser
