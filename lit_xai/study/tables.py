"""Numbers of many runs: columns, mean ± standard deviation over seeds, the headline table, the CSV."""

import csv
import io
import math
import re
import statistics
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Literal

from lit_xai.study.labels import family, label, place, words
from lit_xai.study.record import ENDED, Curve, Fact, Record, in_order

CONTROL = "random_map"  # the map that knows nothing: what it scores is what chance scores
ASIDE = ("control/", "lead/")  # keys of controls, and of leads over them: they stand beside scores
PRIMARY = (  # chosen before any run was seen
    *("srg/gain", "perturbation/difference", "stability_attacked/overlap", "grid/share", "closeness/cosine"),
)
LOWER = Fact("lower", 0.0)
COMMON = {  # what every run logs
    "/accuracy": Fact("higher", 0.0, 1.0),
    "/loss": Fact("lower"),
    "/residual": LOWER,
    "/orthogonality": LOWER,
    "/boundedness": LOWER,
}
CERTIFIED = re.compile(r"certified/([0-9.e+-]*[0-9])")  # at a radius in pixels
AT = re.compile(r"robust/.+/at_([0-9.e+-]*[0-9])")  # a point of `RobustnessCurve`


@dataclass(frozen=True)
class Column:
    """A log key, or how far it leads over the random-map control.

    Args:
        key: The log key.
        lead: Read it as the value minus the control's value, signed so that more is better.
    """

    key: str
    lead: bool = False

    @property
    def final(self) -> str:
        """The final evaluation the key is about, or nothing."""
        return self.key.split("/")[1] if self.key.startswith("attack/") else ""

    @property
    def attribution(self) -> str:
        """The attribution the key is about, or nothing."""
        head, *rest = self.key.split("/", 2)
        return rest[0] if head == "explain" and len(rest) > 1 else ""

    @property
    def metric(self) -> str:
        """The key without its attribution."""
        return self.key.split("/", 2)[-1] if self.attribution else self.key

    @property
    def family(self) -> str:
        """The family of metrics that it belongs to."""
        return family(self.metric)

    def chance(self, record: Record) -> "Column":
        """The same metric of the random map, a control of the run or else one of its attributions."""
        keys = [f"{kind}/{CONTROL}/{self.metric}" for kind in ("control", "explain")]
        return Column(next((key for key in keys if key in record.curves), keys[0]))

    @property
    def label(self) -> str:
        """The metric in words."""
        if self.final:
            return f"Final robust accuracy ({words(self.final).lower()})"
        if found := CERTIFIED.fullmatch(self.key):
            return f"Certified accuracy at {found[1]}"
        return label(self.metric) + (", lead over random map" if self.lead else "")

    @property
    def percent(self) -> bool:
        """Whether it is a share that reads best in percent."""
        return (
            self.metric.endswith("accuracy")
            or (self.metric.startswith(("flag/", "robust/flag/")) and self.metric != "flag/accepted")
            or self.metric.endswith("/found")
            or self.metric == "certified/abstained"
            or bool(CERTIFIED.fullmatch(self.key))
            or self.curved is not None
        )

    @property
    def curved(self) -> float | None:
        """The epsilon of a point on a curve of accuracy over epsilon, or None."""
        found = AT.fullmatch(self.key)
        return float(found[1]) if found else None

    def fact(self, records: Iterable[Record]) -> Fact:
        """What the runs know about it."""
        if self.lead:
            return Fact(better="higher")
        common = next((fact for end, fact in COMMON.items() if self.key.endswith(end)), Fact())
        return next((record.facts[self.key] for record in records if self.key in record.facts), common)

    def curve(self, record: Record) -> Curve:
        """Its value by epoch, in one run."""
        own = record.curves.get(self.key, {})
        if not self.lead:
            return own
        logged = record.curves.get(f"lead/{self.attribution}/{self.metric}")
        if logged is not None:  # image by image, on those that the random map was scored on
            return logged
        control = record.curves.get(self.chance(record).key, {})
        fact = record.facts.get(self.key, Fact())
        sign = -1.0 if fact.better == "lower" else 1.0
        return {epoch: sign * (value - control[epoch]) for epoch, value in own.items() if epoch in control}

    def at(self, record: Record, when: Literal["last", "best"] = "last") -> float | None:
        """Its value at the last epoch that has one, or at the best epoch; None where there is none.

        A final evaluation belongs to no epoch: it is the same for both.
        """
        if self.final:
            return record.finals.get(self.key)
        curve = self.curve(record)
        if when == "best":
            return curve.get(record.best) if record.best is not None else None
        return curve[max(curve)] if curve else None

    def show(self, value: float) -> str:
        """The value as text."""
        if not math.isfinite(value):
            return str(value)
        return f"{100 * value:.1f} %" if self.percent else significant(value)


@dataclass(frozen=True)
class Cell:
    """One number over seeds.

    Args:
        values: One value per run that has one, in the order of seeds.
    """

    values: tuple[float, ...]

    @property
    def finite(self) -> list[float]:
        """The values that are numbers."""
        return [value for value in self.values if math.isfinite(value)]

    @property
    def mean(self) -> float:
        """Mean over seeds; NaN without any."""
        return statistics.fmean(self.finite) if self.finite else math.nan

    @property
    def sd(self) -> float:
        """Sample standard deviation over seeds; NaN below two."""
        finite = self.finite
        if len(finite) < 2:
            return math.nan
        mean = statistics.fmean(finite)
        return math.sqrt(math.fsum((value - mean) ** 2 for value in finite) / (len(finite) - 1))

    def show(self, column: Column) -> str:
        """`mean ± sd`, the mean alone where there is no spread, a dash where there is nothing."""
        if not self.finite:
            return "nan" if self.values else "—"
        if math.isnan(self.sd):
            return column.show(self.mean)
        if column.percent:
            return f"{100 * self.mean:.1f} ± {100 * self.sd:.1f} %"
        if 0 < abs(self.mean) < 1e-3 and self.sd < 1e-3:
            return f"{self.mean:.1e} ± {self.sd:.0e}"
        digits = decimals(self.mean, self.sd)
        return f"{self.mean:.{digits}f} ± {self.sd:.{digits}f}"


@dataclass(frozen=True)
class Study:
    """The runs of a study, by regime.

    Args:
        records: Every planned run, read or not.
    """

    records: tuple[Record, ...]

    @cached_property
    def used(self) -> tuple[Record, ...]:
        """The finished runs; where none has finished, all that left a number."""
        left = tuple(record for record in self.records if record.curves or record.evaluations)
        return tuple(record for record in left if record.state in ENDED) or left

    @cached_property
    def regimes(self) -> list[str]:
        """Names of the regimes, in order."""
        return in_order(record.regime for record in self.records)

    def of(self, regime: str) -> list[Record]:
        """The used runs of a regime, by seed."""
        chosen = (record for record in self.used if record.regime == regime)
        return sorted(chosen, key=lambda record: (record.seed is None, record.seed or 0))

    @cached_property
    def log_keys(self) -> list[str]:
        """All log keys, in order of first appearance."""
        return in_order(key for record in self.used for key in record.curves)

    def cell(self, column: Column, regime: str, when: Literal["last", "best"] = "last") -> Cell:
        """A column's number for a regime."""
        values = (column.at(record, when) for record in self.of(regime))
        return Cell(tuple(value for value in values if value is not None))

    def robustness(self) -> Column | None:
        """The column that stands for robustness: PGD accuracy, or else the first robust accuracy."""
        keys = [key for key in self.log_keys if key.startswith("robust/") and key.endswith("/accuracy")]
        return Column(sorted(keys, key=lambda key: key != "robust/pgd/accuracy")[0]) if keys else None

    def finals(self) -> list[Column]:
        """The columns of final evaluations, in order of first appearance."""
        return [Column(key) for key in in_order(key for record in self.used for key in record.finals)]

    def qualities(self) -> list[Column]:
        """All columns about explanations, flags and controls apart; leads where there is a random map."""
        explain = [Column(key) for key in self.log_keys if key.startswith("explain/")]
        plain = [c for c in explain if c.attribution not in ("", CONTROL)]
        plain = [column for column in plain if not column.metric.startswith("flag/")]
        plain.sort(key=lambda column: place(column.metric))
        leads = [
            Column(column.key, lead=True)
            for column in plain
            if column.fact(self.used).better
            and any(column.chance(record).key in record.curves for record in self.used)
        ]
        return leads + plain

    def headline(self) -> list[Column]:
        """The columns of the headline table: accuracies, distances, primary explanation metrics."""
        keys = self.log_keys
        columns = [Column(key) for key in ("val/accuracy", "test/accuracy") if key in keys] + self.finals()
        ends = ("/accuracy", "/distance")
        robust = [Column(key) for key in keys if key.startswith("robust/") and key.endswith(ends)]
        columns += sorted(
            (column for column in robust if column.fact(self.used).better),
            key=lambda column: (column != self.robustness(), not column.percent),
        )
        for metric in PRIMARY:
            found = [column for column in self.qualities() if column.metric == metric]
            columns += found[:1]
        return columns


def clear_winner(study: Study, column: Column, regimes: Sequence[str]) -> str | None:
    """The regime of which every seed beats every seed of all others, if it has at least two seeds."""
    better = column.fact(study.used).better
    cells = {regime: study.cell(column, regime).finite for regime in regimes}
    cells = {regime: values for regime, values in cells.items() if values}
    if better is None or len(cells) < 2:
        return None
    sign = -1.0 if better == "lower" else 1.0
    lowest = {regime: min(sign * value for value in values) for regime, values in cells.items()}
    best = max(lowest, key=lambda regime: lowest[regime])
    others = max(sign * value for regime, values in cells.items() if regime != best for value in values)
    return best if lowest[best] > others and len(cells[best]) > 1 else None


def table_csv(study: Study) -> str:
    """Every number of the study in long form: regime, key, epoch (last or best), n, mean, sd, values."""
    stream = io.StringIO()
    writer = csv.writer(stream, lineterminator="\n")
    writer.writerow(["regime", "key", "lead_over_control", "better", "at", "n", "mean", "sd", "values"])
    columns = [Column(key) for key in study.log_keys if not key.startswith("lead/")] + study.finals()
    columns += [column for column in study.qualities() if column.lead]
    for column in columns:
        better = column.fact(study.used).better or ""
        for regime in study.regimes:
            for when in ("last", "best"):
                cell = study.cell(column, regime, when)
                if cell.values:
                    values = " ".join(f"{value:.9g}" for value in cell.values)
                    sd = "" if math.isnan(cell.sd) else f"{cell.sd:.9g}"
                    row = [regime, column.key, int(column.lead), better, when, len(cell.finite)]
                    writer.writerow([*row, f"{cell.mean:.9g}", sd, values])
    return stream.getvalue()


def write_whole(path: Path, text: str) -> Path:
    """Write a text under another name, then rename it: readers see the old file or the new, never a half."""
    path.parent.mkdir(parents=True, exist_ok=True)
    draft = path.with_name(f".{path.name}.part")
    draft.write_text(text, encoding="utf-8", errors="replace")  # names of folders may be no text
    return draft.replace(path)


def arrow(better: str | None) -> str:
    """The direction in which more is better."""
    return {"higher": "↑", "lower": "↓"}.get(better or "", "")


def significant(value: float) -> str:
    """Three significant digits, without an exponent where that stays short."""
    if value == 0 or 1e-3 <= abs(value) < 1e5:
        return f"{value:.{decimals(value)}f}"
    return f"{value:.2e}"


def decimals(mean: float, sd: float = 0.0) -> int:
    """Decimals that show three digits of the mean, or two of a spread that is wider."""
    digits = 2 - math.floor(math.log10(abs(mean))) if mean else 2
    if sd > 0:
        of_spread = 1 - math.floor(math.log10(sd))
        digits = min(of_spread, digits) if mean else of_spread
    return min(max(digits, 0), 6)
