"""What an evaluation shows while it runs and when it is done: progress, a table, gates, pictures."""

import csv
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.progress import Progress as Bars
from rich.table import Table

from lit_xai.cli.subject import Subject
from lit_xai.evaluation import Evaluation, Progress
from lit_xai.evaluation.journal import SEARCH
from lit_xai.evaluation.summary import TABLE
from lit_xai.observe import observing
from lit_xai.pictures import PALETTE, photograph, shades
from lit_xai.randomness import keyed

MARKS = {True: "[green]✓[/]", False: "[bold red]✗[/]", None: "[dim]\N{EN DASH}[/]"}
SHOWN = 6  # fooled images in the picture
Summary = Mapping[str, Any]


class Display:
    """A bar per stage on a terminal; elsewhere a line when a stage is through.

    Args:
        speaks: Whether this process says anything.
        begun: Called once, before the first news.
    """

    def __init__(self, speaks: bool, begun: Callable[[], object]) -> None:
        self.console = Console(stderr=True, quiet=not speaks)
        self.begun = begun
        self.bars = Bars(
            TextColumn("{task.description:<12}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("stand: {task.fields[standing]}"),
            TimeElapsedColumn(),
            TimeRemainingColumn(),
            console=self.console,
            disable=not self.console.is_terminal,
        )
        self.fresh = True
        self.tasks: dict[str, Any] = {}

    def __enter__(self) -> "Display":
        self.bars.start()
        self.tasks["gates"] = self.bars.add_task("gates", total=None, standing="")  # nothing is known before
        return self

    def __exit__(self, *_: object) -> None:
        self.bars.stop()

    def __call__(self, news: Progress) -> None:
        if self.fresh:
            self.fresh = False
            self.begun()
        if news.stage not in self.tasks:
            self.tasks[news.stage] = self.bars.add_task(news.stage, total=news.total, standing=news.standing)
        self.bars.update(
            self.tasks[news.stage], completed=news.done, total=news.total, standing=news.standing
        )
        if self.bars.disable and news.done == news.total:
            said = {"gates": "measured", SEARCH: f"{news.total} images"}
            told = said.get(news.stage, f"{news.total} images, {news.standing} stand")
            self.console.print(f"{news.stage}: {told}", highlight=False)

    def wait(self, images: int) -> None:
        """Say, once, what the first process waits for."""
        if "waiting" not in self.tasks:
            self.tasks["waiting"] = None
            self.console.print(
                f"waiting for other processes: {images} images (if one has failed, stop and give the same "
                "command again)",
                highlight=False,
                soft_wrap=True,
            )


def show(summary: Summary, console: Console) -> None:
    """Print the numbers, the gates, and whether to believe them."""
    table = Table(
        title=titled(summary), title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0)
    )
    table.add_column("member", style="cyan")
    for column in ("attacked", "fooled", "accuracy", "95%", "seconds"):
        table.add_column(column, justify="right")
    count, clean = summary["images"], summary["clean"]
    wrong = count - round(clean["accuracy"] * count)
    table.add_row("clean", str(count), str(wrong), *share(clean), "")
    for member in summary["members"]:
        counts = (str(member["attacked"]), str(member["fooled"]))
        table.add_row(member["name"], *counts, *share(member), f"{member['seconds']:.1f}")
    console.print(table)
    print_curve(summary["curve"], console)
    for gate in summary["gates"]:
        console.print(
            f"{MARKS[gate['passed']]} {gate['name']}: {gate['said']}", highlight=False, soft_wrap=True
        )
    if summary["suspicious"]:
        console.print(
            "[bold red]SUSPICIOUS[/]: a gate failed; the number below may tell more of the attacks than of "
            "the network (docs/robustness.md).",
            highlight=False,
            soft_wrap=True,
        )
    number, interval = share(summary["robust"])
    console.print(f"robust accuracy {number} {interval}", highlight=False, markup=False, style="bold")


def titled(summary: Summary) -> str:
    """What was evaluated, in a line."""
    norm = summary["norm"].partition("(")[0]
    return (
        f"{summary['name']}: {summary['model']}, {norm} {summary['epsilon_text']}, "
        f"{summary['images']} {summary['split']} images"
    )


def share(part: Summary) -> tuple[str, str]:
    """A share of images in percent, and its interval."""
    return f"{100 * part['accuracy']:.1f}%", f"[{100 * part['low']:.1f}, {100 * part['high']:.1f}]"


def print_curve(curve: Summary | None, console: Console) -> None:
    """A few points of accuracy over epsilon."""
    if curve is None:
        return
    last = len(curve["epsilons"]) - 1
    points = sorted({round(last * k / 5) for k in range(6)})
    said = ", ".join(f"{curve['epsilons'][k]:.3g}: {100 * curve['accuracy'][k]:.0f}%" for k in points)
    median = "none: most were never fooled" if curve["median"] is None else f"{curve['median']:.3g}"
    console.print(
        f"closest boundary ({curve['images']} images, {curve['norm']}): median distance {median}; "
        f"accuracy over epsilon {said}",
        highlight=False,
        soft_wrap=True,
    )


def draw_curve(path: Path, summary: Summary) -> None:
    """Accuracy over epsilon with its band, if distances were measured."""
    curve = summary["curve"]
    if curve is None:
        path.unlink(missing_ok=True)
        return
    figure = Figure(figsize=(5.2, 3.4), dpi=130, facecolor="white")
    axis = figure.subplots()
    axis.fill_between(
        curve["epsilons"], curve["low"], curve["high"], step="post", color="#2156a5", alpha=0.15
    )
    axis.step(curve["epsilons"], curve["accuracy"], where="post", color="#2156a5")
    if curve["median"] is not None:
        axis.axvline(curve["median"], color="#999999", linewidth=0.8, linestyle="--")
        axis.text(
            curve["median"], 1.0, f" median {curve['median']:.3g}", fontsize=7, color="#666666", va="top"
        )
    axis.set(xlabel=f"{curve['norm']} epsilon, in pixels", ylabel="accuracy", ylim=(0, 1.02), xlim=(0, None))
    axis.spines[["top", "right"]].set_visible(False)
    axis.grid(alpha=0.25)
    axis.set_title(f"{summary['model']}: {curve['images']} {summary['split']} images", fontsize=8)
    figure.tight_layout()
    figure.savefig(path)


def draw_examples(path: Path, subject: Subject, evaluation: Evaluation, folder: Path) -> None:
    """Images, what the member that fooled most made of them, the difference; and an image that stands."""
    with (folder / TABLE).open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    members = evaluation.suite.members
    fooled = {name: [int(row["idx"]) for row in rows if row["first_attack"] == name] for name in members}
    name = max(members, key=lambda member: len(fooled[member]))
    ids = fooled[name][:: max(1, len(fooled[name]) // SHOWN)][:SHOWN]
    ids += [int(row["idx"]) for row in rows if row["robust"] == "1"][:1]
    if not ids:
        path.unlink(missing_ok=True)
        return
    inputs, target = subject.pool(evaluation.split).batch(ids, subject.channels, subject.classes)
    inputs, target = inputs.to(subject.device), target.to(subject.device)
    seed = evaluation.seed
    with observing(subject.model, seed), keyed(seed, torch.tensor(ids, device=inputs.device)):
        points = members[name](subject.model, inputs, target).detach().clamp(0, 1)
        with torch.no_grad():
            before, after = (subject.model(images).argmax(1).tolist() for images in (inputs, points))
    words = dict(enumerate(getattr(subject.data, "names", None) or ()))
    columns = zip(
        ids, inputs.cpu().numpy(), points.cpu().numpy(), target.tolist(), before, after, strict=True
    )
    figure = Figure(figsize=(1.5 * len(ids) + 0.4, 5.2), dpi=130, facecolor="white")
    axes = figure.subplots(3, len(ids), squeeze=False)
    for column, (index, image, point, label, first, last) in enumerate(columns):
        delta = (point - image).astype(np.float32)
        indices, scale = shades(delta / len(delta))  # the mean over channels is within the budget
        own, seen, taken = (words.get(class_, class_) for class_ in (label, first, last))
        said = f"image {index}: {own}" if first == label else f"image {index}: {own}, taken for {seen}"
        _draw(axes[0, column], photograph(image), said)
        _draw(axes[1, column], photograph(point), f"still {taken}" if last == label else f"taken for {taken}")
        _draw(axes[2, column], PALETTE[indices], f"±{scale:.2g}, l2 {np.linalg.norm(delta):.2g}")
    for axis, text in zip(axes[:, 0], ("image", name, "difference"), strict=True):
        axis.set_ylabel(text, fontsize=8)
    figure.tight_layout(pad=0.5)
    figure.savefig(path)


def _draw(axis: Any, picture: Any, note: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set(xticks=[], yticks=[])
    axis.set_xlabel(note, fontsize=6.5)
    for spine in axis.spines.values():
        spine.set_edgecolor("#cccccc")
