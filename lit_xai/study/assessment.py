"""A final robustness evaluation, as its `summary.json` tells it; what is broken is noted, never fatal."""

import bisect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

NORMS = {"Linf()": "l∞", "L2()": "l2", "L1()": "l1"}
SAID = ("split", "images", "model", "suite", "precision", "seed")  # settings, as the page has them
T = TypeVar("T")


@dataclass(frozen=True)
class Share:
    """A share of images.

    Args:
        value: The share, in [0, 1].
        low: Lower end of its 95 % interval; NaN where none is told.
        high: Upper end.
    """

    value: float
    low: float = math.nan
    high: float = math.nan

    @property
    def interval(self) -> str:
        """The interval in percent, or nothing."""
        known = math.isfinite(self.low + self.high)
        return f"{100 * self.low:.1f} to {100 * self.high:.1f} %" if known else ""

    @property
    def text(self) -> str:
        """The share in percent."""
        return f"{100 * self.value:.1f} %"


@dataclass(frozen=True)
class Member:
    """One attack of a suite.

    Args:
        name: Its name in the suite.
        attack: The attack, with its settings.
        standing: Share of images that are right after it and all before it.
        counts: What it cost and did, by `attacked`, `fooled`, `seconds`, `forwards`, `backwards`.
    """

    name: str
    attack: str
    standing: Share
    counts: Mapping[str, float]


@dataclass(frozen=True)
class Gate:
    """One check of an evaluation.

    Args:
        name: Of the check.
        passed: Whether it passed; None where it could not be made.
        said: What was found, in a sentence.
    """

    name: str
    passed: bool | None
    said: str

    @property
    def mark(self) -> str:
        """A tick, a cross, or a dash."""
        return "\N{EN DASH}" if self.passed is None else "✓" if self.passed else "✗"


@dataclass(frozen=True)
class Distances:
    """Accuracy over epsilon, from distances to the boundary.

    Args:
        search: What measured them.
        norm: In which norm.
        accuracy: Share of images that are right within each distance, by distance.
        median: Median distance; infinite where too few boundaries were found.
        missing: Images without a boundary, or None where that is not told.
        images: Number of images, likewise.
    """

    search: str
    norm: str
    accuracy: Mapping[float, Share]
    median: float
    missing: int | None
    images: int | None

    def at(self, epsilon: float) -> float:
        """Accuracy at an epsilon: on the line between the two next to it, constant beyond the last."""
        known = list(self.accuracy)
        right = bisect.bisect_left(known, epsilon)
        if right in (0, len(known)):
            return self.accuracy[known[min(right, len(known) - 1)]].value
        (a, b), (c, d) = ((at, self.accuracy[at].value) for at in known[right - 1 : right + 1])
        return b + (d - b) * (epsilon - a) / (c - a)


@dataclass(frozen=True)
class Assessment:
    """A final evaluation of one run.

    Args:
        name: Its folder under `attack/`.
        norm: Norm of the budget, in short.
        epsilon: The budget, or None.
        budget: The budget as it was written.
        clean: Share of images that are right as they are.
        robust: Share of images that are right after all attacks; None where there is no such number.
        members: The attacks, in order.
        gates: The checks.
        suspicious: Whether the number is not to be believed.
        distances: Accuracy over epsilon, if measured.
        settings: What else is said about it, by name.
    """

    name: str
    norm: str = ""
    epsilon: float | None = None
    budget: str = ""
    clean: Share | None = None
    robust: Share | None = None
    members: tuple[Member, ...] = ()
    gates: tuple[Gate, ...] = ()
    suspicious: bool = False
    distances: Distances | None = None
    settings: Mapping[str, str] = field(default_factory=dict)

    @property
    def what(self) -> str:
        """Norm, budget and images, in a line."""
        images = self.settings.get("images", "")
        number = f"{int(images):,} images" if images.isdecimal() else ""
        of = f" of {self.settings['split']}" if number and "split" in self.settings else ""
        ball = f"{self.norm} within {self.budget}".strip() if self.budget else self.norm
        return ", ".join(filter(None, [ball, number + of]))

    @property
    def doubts(self) -> list[str]:
        """What the checks that failed say."""
        said = [f"{gate.name}: {gate.said}" for gate in self.gates if gate.passed is False]
        return said or (["marked as suspicious"] if self.suspicious else [])


def parse(name: str, content: Mapping[str, Any]) -> tuple[Assessment, list[str]]:
    """Read the content of a `summary.json`; parts that cannot be read are left out and named.

    Args:
        name: Folder of the evaluation.
        content: A JSON object.
    """
    problems = []

    def part(key: str, read: Callable[[Any], T], otherwise: T, needed: bool = True) -> T:
        if content.get(key) is None:
            if needed:
                problems.append(f"`{key}` is missing")
            return otherwise
        try:
            return read(content[key])
        except (KeyError, TypeError, ValueError, AttributeError, OverflowError):
            problems.append(f"`{key}` cannot be read: {str(content[key])[:60]!r}")
            return otherwise

    epsilon = part("epsilon", number, None)
    evaluation = Assessment(
        name=name,
        norm=part("norm", short, ""),
        epsilon=epsilon,
        budget=part("epsilon_text", str, "" if epsilon is None else f"{epsilon:g}", needed=False),
        clean=part("clean", share, None),
        robust=part("robust", share, None),
        members=part("members", lambda rows: tuple(map(member, rows)), ()),
        gates=part("gates", lambda rows: tuple(map(gate, rows)), ()),
        suspicious=part("suspicious", truth, False),
        distances=part("curve", distances, None, needed=False),
        settings={key: str(content[key]) for key in SAID if content.get(key) is not None},
    )
    return evaluation, problems


def number(value: Any) -> float:
    """A finite number."""
    if isinstance(value, bool | str) or not math.isfinite(value):
        raise ValueError(value)
    return float(value)


def truth(value: Any) -> bool:
    """True or false, and nothing that stands for them."""
    if not isinstance(value, bool):
        raise TypeError(value)
    return value


def short(norm: Any) -> str:
    """A norm in short."""
    return NORMS.get(str(norm), str(norm))


def share(content: Any) -> Share:
    """A share of images with its interval."""
    ends = (content.get(key) for key in ("low", "high"))
    return within(number(content["accuracy"]), *(math.nan if end is None else float(end) for end in ends))


def within(value: float, low: float, high: float) -> Share:
    """A share, which lies in [0, 1]."""
    if not 0 <= value <= 1:
        raise ValueError(value)
    return Share(value, low, high)


def member(content: Any) -> Member:
    """One attack of a suite."""
    keys = ("attacked", "fooled", "seconds", "forwards", "backwards")
    counts = {key: number(content[key]) for key in keys if content.get(key) is not None}
    return Member(str(content["name"]), str(content.get("attack", "")), share(content), counts)


def gate(content: Any) -> Gate:
    """One check."""
    passed = None if content["passed"] is None else truth(content["passed"])
    return Gate(str(content["name"]), passed, str(content.get("said", "")))


def distances(content: Any) -> Distances:
    """Accuracy over epsilon."""
    at, values = [number(value) for value in content["epsilons"]], content["accuracy"]
    none = [math.nan] * len(at)
    low, high = content.get("low") or none, content.get("high") or none
    rows = zip(at, values, low, high, strict=True)
    shares = {epsilon: within(number(value), float(a), float(b)) for epsilon, value, a, b in rows}
    if not shares:
        raise ValueError(at)
    median = content.get("median", math.nan)  # null: infinite
    return Distances(
        search=str(content.get("search", "")),
        norm=short(content.get("norm", "")),
        accuracy=dict(sorted(shares.items())),
        median=math.inf if median is None else float(median),
        missing=None if content.get("missing") is None else int(content["missing"]),
        images=None if content.get("images") is None else int(content["images"]),
    )
