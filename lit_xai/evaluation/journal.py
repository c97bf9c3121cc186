"""What an evaluation writes while it runs: one line per member and image, in one file per process.

A process appends the lines of a whole batch at once, to its own file. It may be killed at any byte: a line
that was cut off is dropped, and the batch it belongs to is done again. Whoever goes on reads the files of all
processes there ever were, however many there are now.
"""

import dataclasses
import json
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from lit_xai.types import require

CLEAN = "clean"  # the stage before the first member: the images as they are
SEARCH = "search"  # the stage after the last one: distances to the boundary, of some images

P = TypeVar("P")
PLAN = "plan.json"
GATES = "gates.json"
_COLUMNS = (
    "member",
    "idx",
    "label",
    "pred",
    "fooled",
    "within",
    "linf",
    "l2",
    "seconds",
    "forwards",
    "backwards",
)


@dataclass(frozen=True)
class Row:
    """What came of one image in one stage.

    Args:
        member: The stage: the name of a member, `CLEAN` or `SEARCH`.
        index: Names the image.
        label: Its class.
        prediction: Class that the model sees in the point that was returned; -1 where logits are not finite.
        fooled: Whether the point counts: not of class `label`, inside the box and, but for a search, within
            the budget.
        within: Whether the point keeps to box and budget.
        linf: Largest change of a pixel.
        l2: Euclidean length of the change.
        seconds: Its share of the time of its batch.
        forwards: Its share of the images that were passed forward for the batch, the check of its points
            included; shares add up exactly.
        backwards: The same for input gradients.
    """

    member: str
    index: int
    label: int
    prediction: int
    fooled: bool
    within: bool
    linf: float
    l2: float
    seconds: float
    forwards: int
    backwards: int


Rows = Mapping[tuple[str, int], Row]


@dataclass(frozen=True)
class Plan:
    """What is evaluated, kept beside the journals.

    The terms, on which every line of the journals depends, may not change between two runs in one folder:
    suite and members, norm, epsilon, search, split, seed, weights, data and precision. The rest may: more
    images are added to those that are done.

    Args:
        name: Of the evaluation.
        suite: `repr` of the suite.
        norm: `repr` of its norm.
        epsilon: Its budget, in pixel units.
        members: `repr` of its members, by name, in order.
        black_box: Names of the members that see no gradient.
        search: `repr` of the search that measures distances, if any.
        split: Where the images come from.
        seed: Of all draws.
        weights: Fingerprint of the model.
        specimen: An image that is looked at, whether the data are the same.
        data: Fingerprint of this image and its label.
        precision: Number format of the images.
        model: What the model is, in words.
        batch_size: Images attacked at once.
        ids: The images, in order.
        searched: Those of them whose distance is measured.
        probed: Those of them on which the sanity gates are measured.
    """

    name: str
    suite: str
    norm: str
    epsilon: float
    members: dict[str, str]
    black_box: list[str]
    search: str | None
    split: str
    seed: int
    weights: str
    specimen: int
    data: str
    precision: str
    model: str
    batch_size: int
    ids: list[int]
    searched: list[int]
    probed: list[int]


_TERMS = (
    *("suite", "norm", "epsilon", "members", "search", "split", "seed", "weights", "specimen", "data"),
    "precision",
)
_OF_GATES = (
    "suite",
    "norm",
    "epsilon",
    "split",
    "seed",
    "weights",
    "specimen",
    "data",
    "precision",
    "probed",
)


def settle(folder: Path, plan: Plan) -> None:
    """Write the plan of a folder; refuse one whose terms differ from those of the lines already there.

    Raises:
        ValueError: The folder holds lines that were made with other terms, or with unknown ones.
    """
    folder.mkdir(parents=True, exist_ok=True)
    before = begun(folder)
    if before is not None:
        differ = [term for term in _TERMS if getattr(before, term) != getattr(plan, term)]
        require(
            not differ,
            f"{folder} holds an evaluation with other terms ({', '.join(differ)}): move it away first.",
        )
    write(folder / PLAN, dataclasses.asdict(plan))


def begun(folder: Path) -> Plan | None:
    """The plan of the lines that a folder holds; none if it holds no line."""
    if not any(path.stat().st_size for path in _journals(folder)):
        return None
    require((folder / PLAN).exists(), f"{folder} holds journals but no {PLAN}: move it away first.")
    return read_plan(folder)


def read_plan(folder: Path) -> Plan:
    """The plan of a folder.

    Raises:
        ValueError: No evaluation was ever begun there, or its plan cannot be read.
    """
    return plan_of(folder, Plan, "evaluation")


def plan_of(folder: Path, kind: Callable[..., P], name: str) -> P:
    """The plan of a folder, of a kind that goes by this name.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    path = folder / PLAN
    require(path.exists(), f"{folder} holds no {name}: there is no {PLAN} in it.")
    try:
        return kind(**json.loads(path.read_text()))
    except (TypeError, ValueError):
        raise ValueError(f"{path} is no plan of this version: move {folder} away first.") from None


def keep_gates(folder: Path, plan: Plan, classes: int, gates: Iterable[Any]) -> None:
    """Write the gates that were measured for a plan."""
    found = [dataclasses.asdict(gate) for gate in gates]
    write(folder / GATES, {"terms": _of_gates(plan), "classes": classes, "gates": found})


def read_gates(folder: Path, plan: Plan) -> dict[str, Any] | None:
    """The number of classes, and the gates that were measured for this plan; none if that was not done."""
    path = folder / GATES
    kept: dict[str, Any] = json.loads(path.read_text()) if path.exists() else {}
    return kept if kept.get("terms") == _of_gates(plan) else None


def _of_gates(plan: Plan) -> dict[str, Any]:
    return {term: getattr(plan, term) for term in _OF_GATES}


def journal(folder: Path, rank: int, ranks: int) -> Path:
    """The file of one process, with its last line removed if that was cut off: the next would be glued to it.

    Only the process that writes a file may ask for it: others read, and leave a cut line where it is.
    """
    path = folder / f"journal_{rank}of{ranks}.tsv"
    with path.open("ab+") as file:
        file.seek(0)
        text = file.read()
        file.truncate(text.rfind(b"\n") + 1)
    return path


def append(path: Path, rows: Iterable[Row]) -> None:
    """Add lines to a journal, all of them before it returns, or raise."""
    extend(path, _COLUMNS, map(_cells, rows))


def extend(path: Path, columns: Sequence[str], rows: Iterable[Iterable[str]]) -> None:
    """Add rows of cells to a journal, below a heading, all of them before it returns, or raise."""
    text = "".join("\t".join(cells) + "\n" for cells in rows)
    with path.open("ab") as file:  # buffered: a bare write may be a part of it, and say nothing
        if file.tell() == 0:
            text = "\t".join(columns) + "\n" + text
        file.write(text.encode())


def read(folder: Path) -> dict[tuple[str, int], Row]:
    """The lines of all journals of a folder, by (member, image); of two that say the same, the first."""
    found: dict[tuple[str, int], Row] = {}
    for cells in lines(folder):
        row = _row(cells)
        if row is not None:
            found.setdefault((row.member, row.index), row)
    return found


def lines(folder: Path) -> Iterator[list[str]]:
    """The cells of each whole line of all journals of a folder, headings included."""
    for path in _journals(folder):
        for line in path.read_bytes().split(b"\n")[:-1]:
            yield line.decode(errors="replace").split("\t")


def write(path: Path, content: Any) -> None:
    """Write a JSON file as a whole or not at all, also while another process writes it."""
    replace(path, json.dumps(content, indent=2) + "\n")


def replace(path: Path, text: str) -> None:
    """Write a text file as a whole or not at all."""
    draft = path.with_name(f".{path.name}.{uuid.uuid4().hex}")  # of no other process, on no other machine
    draft.write_text(text)
    draft.replace(path)


def _journals(folder: Path) -> list[Path]:
    return sorted(folder.glob("journal_*of*.tsv"))


def _cells(row: Row) -> Iterable[str]:
    for value in dataclasses.astuple(row):
        yield (
            f"{value:.7g}"
            if isinstance(value, float)
            else str(int(value) if isinstance(value, bool) else value)
        )


def _row(cells: Sequence[str]) -> Row | None:
    """A line as it was written; none for a heading, or for what is left of a line after a crash."""
    if len(cells) != len(_COLUMNS):
        return None
    member, *numbers = cells
    try:
        index, label, prediction, fooled, within = map(int, numbers[:5])
        linf, l2, seconds = map(float, numbers[5:8])
        forwards, backwards = map(int, numbers[8:])
    except ValueError:
        return None
    return Row(
        member, index, label, prediction, bool(fooled), bool(within), linf, l2, seconds, forwards, backwards
    )
