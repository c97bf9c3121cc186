"""What a run folder says, read without loading a model; what is missing or broken is noted, never fatal."""

import csv
import json
import math
import re
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, TypeVar

from lit_xai.study.assessment import Assessment, parse
from lit_xai.study.plan import read_yaml
from lit_xai.study.samples import Sampled, read_samples

if TYPE_CHECKING:
    from lit_xai.evaluation.certification import Certified

Curve = dict[int, float]  # value by epoch
Json = dict[str, Any]
STATES = ("finished", "running", "interrupted", "failed", "missing", "evaluated")
ENDED = ("finished", "evaluated")  # states whose numbers are final
FOLDER = re.compile(r"(?P<regime>.+)-seed(?P<seed>\d+)")
CHOOSES = "val/accuracy"  # what makes an epoch the best one, where the configuration does not say
T = TypeVar("T")


@dataclass(frozen=True)
class Fact:
    """What `quantities.json` says about a log key.

    Args:
        better: Which direction is better, or None.
        low: Smallest possible value, or None.
        high: Largest possible value, or None.
        median: Whether the number is a median over images instead of a mean.
    """

    better: Literal["higher", "lower"] | None = None
    low: float | None = None
    high: float | None = None
    median: bool = False


@dataclass(frozen=True)
class Certificates:
    """Certificates of some images of a run, and what they cost.

    Args:
        found: The certificates.
        votes: Votes for the bound that were taken per image, on average, or None.
        limit: The most there could be, or None.
    """

    found: "Certified"
    votes: float | None = None
    limit: float | None = None


@dataclass(frozen=True)
class Record:
    """One run, as its folder tells it.

    Args:
        folder: The run folder.
        regime: Name of the regime.
        seed: Its seed, or None where nothing says it.
        state: One of `STATES`; "missing" where there is no status, "evaluated" where there is an evaluation
            alone, of a network that was trained elsewhere.
        error: What ended it, or None.
        epochs: Epochs it was to do, or None.
        seconds: Wall time, or None.
        curves: Value by epoch, by log key.
        facts: What is known of each log key.
        provenance: Versions, machine, command, dates.
        config: The configuration as run, as text.
        settings: The same by dotted key; empty where it cannot be read.
        certificates: What was certified, by name.
        pictures: File of maps by epoch.
        samples: What stands behind the scores of the last epoch that says so, by log key.
        evaluations: Final robustness evaluations.
        notes: What callbacks did to the run, in words.
        problems: What could not be read, in words.
    """

    folder: Path
    regime: str
    seed: int | None = None
    state: str = "missing"
    error: str | None = None
    epochs: int | None = None
    seconds: float | None = None
    curves: Mapping[str, Curve] = field(default_factory=dict)
    facts: Mapping[str, Fact] = field(default_factory=dict)
    provenance: Mapping[str, Any] = field(default_factory=dict)
    config: str = ""
    settings: Mapping[str, Any] = field(default_factory=dict)
    certificates: Mapping[str, Certificates] = field(default_factory=dict)
    pictures: Mapping[int, Path] = field(default_factory=dict)
    samples: Mapping[str, Sampled] = field(default_factory=dict)
    evaluations: tuple[Assessment, ...] = ()
    notes: tuple[str, ...] = ()
    problems: tuple[str, ...] = ()

    @property
    def finals(self) -> dict[str, float]:
        """Numbers of the final evaluations, which belong to no epoch, by key."""
        known = ((f"attack/{one.name}/accuracy", one.robust) for one in self.evaluations)
        return {key: robust.value for key, robust in known if robust is not None}

    @property
    def name(self) -> str:
        """Regime and seed in one word."""
        return self.regime if self.seed is None else f"{self.regime}-seed{self.seed}"

    @property
    def last(self) -> int | None:
        """The last epoch that left a number, or None."""
        return max((epoch for curve in self.curves.values() for epoch in curve), default=None)

    @property
    def best(self) -> int | None:
        """The epoch of `best.ckpt`, the first best one of what the checkpoint monitors, or None."""
        curve = {e: v for e, v in self.curves.get(self.monitor, {}).items() if math.isfinite(v)}
        sign = 1.0 if self.settings.get("checkpoint.mode") == "min" else -1.0
        return min(curve, key=lambda epoch: (sign * curve[epoch], epoch), default=None)

    @property
    def monitor(self) -> str:
        """The log key that chooses the best checkpoint."""
        return str(self.settings.get("checkpoint.monitor") or CHOOSES)


def find_runs(folder: Path) -> list[Path]:
    """The run folders below a folder (or the folder itself), in the order of their plan."""
    marks = ("status.json", "metrics.csv", "provenance.json")
    if any((folder / mark).is_file() for mark in marks) or any(folder.glob("attack/*/summary.json")):
        return [folder]
    found = {path.parent for mark in marks for path in folder.glob(f"*/{mark}")}
    found |= {path.parents[2] for path in folder.glob("*/attack/*/summary.json")}
    return sorted(found, key=place_in_plan)


def place_in_plan(folder: Path) -> tuple[float, str]:
    """Sorts run folders as their plan has them; those without a plan come last, by name."""
    try:
        return float(read_json(folder / "study.json")["order"]), folder.name
    except (OSError, ValueError, KeyError, TypeError):
        return math.inf, folder.name


def read_run(folder: Path) -> Record:
    """Read one run folder.

    Args:
        folder: As `lit-xai fit` writes it; it may be unfinished, broken or absent.
    """
    problems: list[str] = []

    def attempt(name: str, read: Callable[[Path], T], needed: bool = True) -> T | None:
        path = folder / name
        if not path.is_file():
            if needed:
                problems.append(f"{name} is missing")
            return None
        try:
            return read(path)
        except (ValueError, OSError, KeyError, TypeError, AttributeError, csv.Error) as error:
            problems.append(f"{name} cannot be read: {' '.join(str(error).split())}")
            return None

    evaluations, doubtful = read_evaluations(folder)
    certificates, torn_off = read_certificates(folder)
    samples, unread = read_samples(folder / "explanations")
    trained = (folder / "metrics.csv").is_file()
    status = attempt("status.json", read_json, needed=trained or not evaluations) or {}
    started = bool(status) or trained
    study = attempt("study.json", read_json, needed=False) or {}
    provenance = attempt("provenance.json", read_json, needed=started) or {}
    named = FOLDER.fullmatch(folder.name)
    seed = study.get("seed", provenance.get("seed", named["seed"] if named else None))
    state = str(status.get("state", "running" if started else "evaluated" if evaluations else "missing"))
    if state not in STATES:
        problems.append(f"status.json has the unknown state {state!r}")
        state = "failed"
    curves, torn = attempt("metrics.csv", read_metrics, needed=started) or ({}, [])
    problems += [*torn, *doubtful, *torn_off, *unread]
    return Record(
        folder=folder,
        regime=str(study.get("regime", named["regime"] if named else folder.name)),
        seed=int(str(seed)) if str(seed).isdecimal() else None,
        state=state,
        error=str(status["error"]) if status.get("error") else None,
        epochs=as_number(status.get("epochs"), int),
        seconds=as_number(provenance.get("seconds") or status.get("seconds"), float),
        curves=curves,
        facts=attempt("quantities.json", read_facts, needed=started) or {},
        provenance=provenance,
        config=attempt("config.yaml", read_text, needed=started) or "",
        settings=attempt("config.yaml", lambda path: flat(read_yaml(path)), needed=False) or {},
        certificates=certificates,
        pictures=find_pictures(folder / "explanations"),
        samples=samples,
        evaluations=evaluations,
        notes=tuple(map(str, status["notes"])) if isinstance(status.get("notes"), list) else (),
        problems=tuple(problems) if folder.is_dir() else ("the run folder is missing",),
    )


def read_metrics(path: Path) -> tuple[dict[str, Curve], list[str]]:
    """The curves of a `metrics.csv`, and what in it is broken.

    A resumed run repeats epochs: the last non-empty value of an epoch and key counts. A row of other length
    than the header was cut off while it was written: it is left out. So are rows that belong to no epoch.
    """
    curves: dict[str, Curve] = {}
    problems = []
    with path.open(newline="", encoding="utf-8") as stream:
        rows = csv.reader(stream)
        header = next(rows, [])
        if "epoch" not in header:
            raise ValueError("its first line does not name a column `epoch`")
        for number, row in enumerate(rows, start=2):
            if not any(row) or row == header:
                continue
            if len(row) != len(header):
                problems.append(
                    f"metrics.csv: line {number} has {len(row)} cells, not {len(header)}: left out"
                )
                continue
            cells = dict(zip(header, row, strict=True))
            if not cells["epoch"].strip():
                continue
            try:
                epoch = int(float(cells.pop("epoch")))
            except (ValueError, OverflowError):
                problems.append(f"metrics.csv: line {number} has no epoch: left out")
                continue
            cells.pop("step", None)
            for key, cell in cells.items():
                if not cell.strip():
                    continue
                try:
                    curves.setdefault(key, {})[epoch] = float(cell)
                except ValueError:
                    problems.append(f"metrics.csv: line {number}, `{key}` is not a number: {cell[:40]!r}")
    return {key: dict(sorted(curve.items())) for key, curve in curves.items()}, problems


def read_facts(path: Path) -> dict[str, Fact]:
    """The facts of a `quantities.json`, by log key."""
    return {
        key: Fact(
            fact["better"] if fact.get("better") in ("higher", "lower") else None,
            as_number(fact.get("low"), float),
            as_number(fact.get("high"), float),
            bool(fact.get("median")),
        )
        for key, fact in read_json(path).items()
    }


def read_certificates(folder: Path) -> tuple[dict[str, Certificates], list[str]]:
    """The certificates of a run folder, by name, and what in them is broken or not done."""
    found, problems = {}, []
    places = [folder, *sorted(path for path in folder.glob("certify/*") if path.is_dir())]
    for place in places:
        path = place / "certificates.tsv"
        name = str(path.relative_to(folder))
        if not path.is_file():
            if place != folder:
                problems.append(f"{name} is missing: certifying has not ended")
            continue
        from lit_xai.evaluation.certification import certified, read_table  # takes torch, seconds

        try:
            said = read_json(path.with_suffix(".json")) if path.with_suffix(".json").is_file() else {}
            sigma, alpha, votes, limit = (
                as_number(said.get(key), float) for key in ("sigma", "alpha", "votes", "samples")
            )
            rows = certified(read_table(path), sigma or math.nan, alpha or math.nan)
            found[place.name if place != folder else "certificates"] = Certificates(rows, votes, limit)
        except (OSError, ValueError, KeyError, TypeError, AttributeError, csv.Error) as error:
            problems.append(f"{name} cannot be read: {' '.join(str(error).split())}")
    return found, problems


def read_evaluations(folder: Path) -> tuple[tuple[Assessment, ...], list[str]]:
    """The evaluations in `attack/` of a run folder, by name, and what in them is broken or not done."""
    found, problems = [], []
    for place in sorted(path for path in folder.glob("attack/*") if path.is_dir()):
        name = f"attack/{place.name}/summary.json"
        if not (place / "summary.json").is_file():
            problems.append(f"{name} is missing: the evaluation has not ended")
            continue
        try:
            evaluation, broken = parse(place.name, read_json(place / "summary.json"))
        except (OSError, ValueError) as error:
            problems.append(f"{name} cannot be read: {' '.join(str(error).split())}")
            continue
        found.append(evaluation)
        problems += [f"{name}: {problem}" for problem in broken]
    return tuple(found), problems


def find_pictures(folder: Path) -> dict[int, Path]:
    """The files of maps, by epoch."""
    found = ((re.fullmatch(r"epoch_(\d+)\.npz", path.name), path) for path in folder.glob("epoch_*.npz"))
    return dict(sorted((int(match[1]), path) for match, path in found if match))


def read_text(path: Path) -> str:
    """A text."""
    return path.read_text(encoding="utf-8")


def read_json(path: Path) -> Json:
    """A JSON object."""
    content = json.loads(read_text(path))
    if not isinstance(content, dict):
        raise ValueError("it does not hold a JSON object")
    return content


def flat(content: Any, prefix: str = "") -> dict[str, Any]:
    """The leaves of nested mappings, by dotted key."""
    if not isinstance(content, Mapping) or not content:
        return {prefix: content}
    return {
        key: leaf
        for name, value in content.items()
        for key, leaf in flat(value, f"{prefix}.{name}" if prefix else str(name)).items()
    }


def as_number(value: Any, number: Callable[[Any], T]) -> T | None:
    """The value as a number, or None where it is none."""
    try:
        return number(value) if math.isfinite(float(value)) else None
    except (TypeError, ValueError, OverflowError):
        return None


def in_order(names: Iterable[str]) -> list[str]:
    """Each name once, in order of first appearance."""
    return list(dict.fromkeys(names))
