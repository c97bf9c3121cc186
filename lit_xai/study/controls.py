"""Methods beside maps that know nothing: which of these does each of them beat, metric by metric."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

from lit_xai.study.findings import Flag
from lit_xai.study.labels import label, words
from lit_xai.study.record import Record, in_order
from lit_xai.study.samples import Sampled
from lit_xai.study.tables import CONTROL, Cell, Column, Study, arrow, decimals

ERRORS = 2.0  # standard errors that a mean must be ahead by
BARS = (
    "Faithfulness",
    "Localisation",
    "Randomisation",
)  # families where knowing nothing should not pay
SHORT = {"edge_map": "edges", "random_map": "random", "other_image": "other image", "untrained": "untrained"}


@dataclass(frozen=True)
class Duel:
    """A method's score beside that of a control, run by run.

    Args:
        control: Name of the control.
        cell: The control's score over seeds.
        beaten: Whether the method is ahead in every run; None where neither direction is better.
    """

    control: str
    cell: Cell
    beaten: bool | None

    @property
    def short(self) -> str:
        """The control in a word or two."""
        return SHORT.get(self.control, self.control.replace("_", " "))


def names(study: Study) -> list[str]:
    """The controls of the runs, the random map first."""
    keys = study.log_keys
    found = in_order(key.split("/")[1] for key in keys if key.startswith("control/"))
    if any(key.startswith(f"explain/{CONTROL}/") for key in keys):
        found = in_order([CONTROL, *found])
    return sorted(found, key=lambda name: name != CONTROL)


def beside(column: Column, control: str, record: Record) -> Column | None:
    """The control's score of the same metric: made of this method, or else standing alone."""
    keys = [f"control/{control}/{column.attribution}/{column.metric}", f"control/{control}/{column.metric}"]
    if control == CONTROL:
        keys.append(column.chance(record).key)
    return next((Column(key) for key in keys if key in record.curves), None)


def ahead(column: Column, control: Column, record: Record, name: str) -> bool | None:
    """Whether a run's mean is better than the control's by more than two standard errors of their difference.

    The difference to the random map is taken image by image where the run tells it. For other controls the
    error is that of two independent means; where the samples are not known there is none, and a median has
    none.
    """
    fact = column.fact([record])
    value, other = column.at(record), control.at(record)
    if fact.better is None or value is None or other is None or not math.isfinite(value + other):
        return None
    mine, theirs = record.samples.get(column.key), record.samples.get(control.key)
    ahead_by = other - value if fact.better == "lower" else value - other
    error = math.hypot(mine.se, theirs.se) if mine and theirs else math.nan
    if mine and name == CONTROL and math.isfinite(mine.lead):
        ahead_by, error = mine.lead, mine.lead_se
    return ahead_by > (0.0 if fact.median or not math.isfinite(error) else ERRORS * error)


def duels(study: Study, column: Column, regime: str) -> list[Duel]:
    """A method's score beside that of every control that has the metric."""
    made = []
    for name in names(study):
        pairs = [(record, beside(column, name, record)) for record in study.of(regime)]
        known = [(record, control) for record, control in pairs if control is not None]
        values = [(control.at(record), ahead(column, control, record, name)) for record, control in known]
        judged = [won for _, won in values if won is not None]
        cell = Cell(tuple(value for value, _ in values if value is not None))
        if cell.values:
            made.append(Duel(name, cell, all(judged) if judged else None))
    return made


@dataclass(frozen=True)
class Scale:
    """From the worst score of a row to the best one, and how its numbers are written.

    Args:
        column: One of its columns.
        low: Lowest score.
        high: Highest score.
        flipped: Whether lower is better.
    """

    column: Column
    low: float
    high: float
    flipped: bool

    def place(self, score: float) -> float | None:
        """Where a score stands, 0 to 100, the best on the right."""
        if not math.isfinite(score):
            return None
        share = (score - self.low) / (self.high - self.low) if self.high > self.low else 0.5
        return round(100 * (1 - share if self.flipped else share), 1)

    def show(self, score: float) -> str:
        """A score with as many decimals as the largest one of the row."""
        if self.column.percent or not math.isfinite(score):
            return self.column.show(score)
        return f"{score:.{decimals(max(abs(self.low), abs(self.high)))}f}"


def section(study: Study, raised: list[Flag]) -> dict[str, Any] | None:
    """The tables of the page, one per regime; None where no control was scored."""
    columns = [c for c in study.qualities() if not c.lead and c.fact(study.used).better]
    if not columns or not names(study):
        return None
    methods = in_order(column.attribution for column in columns)
    own = tuple(f"control/{name}/{method}/" for name in names(study) for method in methods)
    tables = {regime: table(study, raised, columns, methods, regime) for regime in study.regimes}
    return {
        "methods": methods,
        "controls": [words(name) for name in names(study)],
        "borrowed": any(key.startswith(own) for key in study.log_keys),
        "bars": f"{', '.join(BARS[:-1])} and {BARS[-1]}".lower(),
        "tables": {regime: made for regime, made in tables.items() if made["families"]},
    }


def table(
    study: Study, raised: list[Flag], columns: list[Column], methods: list[str], regime: str
) -> dict[str, Any]:
    """One regime's metrics by family, and in how many of them each method beats every control."""
    won: dict[str, list[bool]] = {method: [] for method in methods}
    families: dict[str, list[dict[str, Any]]] = {}
    for metric in in_order(column.metric for column in columns):
        of = {column.attribution: column for column in columns if column.metric == metric}
        fights = {method: duels(study, column, regime) for method, column in of.items()}
        if not any(fights.values()):
            continue
        family = next(iter(of.values())).family
        for method, fight in fights.items() if family in BARS else ():
            won[method] += [] if (all_beaten := beats_all(fight)) is None else [all_beaten]
        row = line(study, raised, of, fights, methods, regime)
        families.setdefault(family, []).append(row)
    return {
        "families": list(families.items()),  # in the order of the columns
        "won": [(sum(won[method]), len(won[method])) for method in methods],
        "flags": [concerning(raised, regime, whole(method)) for method in methods],
    }


def beats_all(fight: list[Duel]) -> bool | None:
    """Whether a method beats every control that it can be compared with; None where there is none."""
    judged = [duel.beaten for duel in fight if duel.beaten is not None]
    return all(judged) if judged else None


def line(
    study: Study,
    raised: list[Flag],
    of: dict[str, Column],
    fights: dict[str, list[Duel]],
    methods: list[str],
    regime: str,
) -> dict[str, Any]:
    """One metric: a cell per method, and what every control scores."""
    column = next(iter(of.values()))
    fact = column.fact(study.used)
    scores = [study.cell(own, regime).mean for own in of.values()]
    scores += [duel.cell.mean for fight in fights.values() for duel in fight]
    finite = [score for score in scores if math.isfinite(score)]
    low, high = min(finite, default=0.0), max(finite, default=0.0)
    scale = Scale(column, low, high, fact.better == "lower")
    return {
        "label": label(column.metric),
        "arrow": arrow(fact.better),
        "median": fact.median,
        "cells": [
            entry(study, raised, of[method], fights[method], scale, regime) if method in of else None
            for method in methods
        ],
        "controls": [ends(name, fights, scale) for name in names(study)],
    }


def entry(
    study: Study, raised: list[Flag], column: Column, fight: list[Duel], scale: Scale, regime: str
) -> dict[str, Any] | None:
    """One method's score of one metric; None where there is none."""
    cell = study.cell(column, regime)
    if not cell.values:
        return None
    behind = [record.samples[column.key] for record in study.of(regime) if column.key in record.samples]
    lost = max((sampled.lost for sampled in behind), default=0.0)
    above = concerning(raised, regime, whole(column.attribution))
    return {
        "text": scale.show(cell.mean),
        "place": scale.place(cell.mean),
        "ticks": [(scale.place(duel.cell.mean), duel.beaten is False) for duel in fight],
        "unbeaten": [duel.short for duel in fight if duel.beaten is False],
        "lost": f"{100 * lost:.0f} % unscored" if lost >= 0.005 else "",
        "flags": [number for number in concerning(raised, regime, column) if number not in above],
        "title": " · ".join(told(column, cell, fight, behind)),
    }


def told(column: Column, cell: Cell, fight: list[Duel], behind: list[Sampled]) -> Iterator[str]:
    """What a cell says when pointed at."""
    yield f"{words(column.attribution)} {cell.show(column)}"
    for duel in fight:
        yield f"{words(duel.control).lower()} {duel.cell.show(column)}"
    if behind:
        count, missing = sum(one.count for one in behind), sum(one.missing for one in behind)
        yield f"{count - missing:g} of {count:g} images"
    right = Cell(tuple(one.mean_right for one in behind))
    if right.finite:
        yield f"those classified right {right.show(column)}"


def ends(control: str, fights: dict[str, list[Duel]], scale: Scale) -> str:
    """What a control scores: its value, or lowest and highest where there is one of each method."""
    found = [duel.cell for fight in fights.values() for duel in fight if duel.control == control]
    means = sorted(cell.mean for cell in found if cell.finite)
    if not means:
        return "nan" if found else ""
    return " to ".join(in_order(map(scale.show, (means[0], means[-1]))))


def whole(attribution: str) -> Column:
    """What all columns of an attribution begin with."""
    return Column(f"explain/{attribution}/")


def concerning(raised: list[Flag], regime: str, column: Column) -> list[int]:
    """Numbers of the flags that concern a column."""
    return [number for number, flag in enumerate(raised, 1) if flag.concerns(regime, column)]
