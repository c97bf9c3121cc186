"""What the page of the report shows, section by section, as plain data for its template."""

import json
import math
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import Any, Literal

from lit_xai.study import certificates, figures, robustness
from lit_xai.study.findings import Flag
from lit_xai.study.labels import label, place, words
from lit_xai.study.progress import duration
from lit_xai.study.record import Record, flat, in_order
from lit_xai.study.relation import Relation, relate
from lit_xai.study.tables import PRIMARY, Column, Study, arrow, clear_winner

ASIDE = ("val/loss", "explain/samples")  # drawn among the loss terms
RUN_ONLY = ("seed_everything", "out", "resume", "config", "ckpt_path")  # differ from run to run anyway


@dataclass(frozen=True)
class Entry:
    """One cell of the headline table.

    Args:
        text: Mean ± standard deviation.
        best: Whether each seed beats each seed of all other regimes.
        dots: Places of the seeds on the column's range, 0 to 100.
        flags: Numbers of the flags that concern it.
        values: The seeds' values, as text.
    """

    text: str
    best: bool
    dots: list[float]
    flags: list[int]
    values: str


def plain(figure: Any) -> Any:
    """A figure as JSON data, numbers to six digits."""
    return json.loads(figure.to_json(), parse_float=lambda text: float(f"{float(text):.6g}"))


def numbers(study: Study) -> list[tuple[str, str]]:
    """The facts on top of the page: (what, how many); of training where there was any."""
    trained = [record for record in study.records if record.state != "evaluated"]
    seeds = {record.seed for record in study.records if record.seed is not None}
    many = len(study.records) > 1
    facts = [("regimes", str(len(study.regimes)))] if many else []
    if many and seeds:
        facts.append(("seeds", str(len(seeds))))
    if many and trained:
        finished = sum(record.state == "finished" for record in trained)
        facts.append(("runs finished", f"{finished} of {len(trained)}"))
    if trained:
        lasts = {record.last + 1 for record in study.used if record.last is not None} or {0}
        span = f"{min(lasts)}—{max(lasts)}" if len(lasts) > 1 else str(max(lasts))
        seconds = sum(record.seconds or 0 for record in trained)
        facts += [("epochs", span), ("training time, summed" if many else "wall time", duration(seconds))]
    if not many:
        record = study.records[0]
        facts += [("seed", "—" if record.seed is None else str(record.seed)), ("state", record.state)]
    return facts


def chosen_by(study: Study) -> str:
    """What chooses the best checkpoints."""
    return ", ".join(in_order(record.monitor for record in study.used))


def headed(column: Column, study: Study) -> dict[str, str]:
    """A column's title, for the page."""
    fact = column.fact(study.used)
    return {
        "label": column.label,
        "arrow": arrow(fact.better),
        "of": words(column.attribution) if column.attribution else ("median" if fact.median else ""),
        "key": column.key,
    }


def headline(study: Study, raised: Sequence[Flag], when: Literal["last", "best"]) -> list[dict[str, Any]]:
    """Rows of the headline table."""
    columns = study.headline()
    rows = []
    for regime in study.regimes:
        planned = [record for record in study.records if record.regime == regime]
        entries = [entry(study, raised, regime, column, when) for column in columns]
        row = {"regime": regime, "seeds": f"{len(study.of(regime))} of {len(planned)}", "cells": entries}
        rows.append(row | {"short": len(study.of(regime)) < len(planned)})
    return rows


def entry(
    study: Study, raised: Sequence[Flag], regime: str, column: Column, when: Literal["last", "best"]
) -> Entry:
    """One cell of the headline table."""
    cell = study.cell(column, regime, when)
    everything = [v for other in study.regimes for v in study.cell(column, other, when).finite]
    low, high = min(everything, default=0.0), max(everything, default=0.0)
    dots = [round(100 * (v - low) / (high - low), 1) if high > low else 50.0 for v in cell.finite]
    return Entry(
        text=cell.show(column),
        best=when == "last" and clear_winner(study, column, study.regimes) == regime,
        dots=dots,
        flags=[number for number, flag in enumerate(raised, 1) if flag.concerns(regime, column)],
        values=", ".join(column.show(value) for value in cell.values),
    )


def drawn(study: Study) -> dict[str, list[tuple[str, Column | str, Any]]]:
    """Figures of the model itself by section: (id, what, figure)."""
    keys = study.log_keys
    main = [column.key for column in study.headline() if not column.attribution and not column.final]
    own = [key for key in keys if key.startswith(("train/", "robust/")) or key in ASIDE]
    rest = [key for key in own if key not in main and Column(key).curved is None]
    sections: dict[str, list[tuple[str, Column | str, Any]]] = {}
    for name, chosen in (("accuracy", main), ("training", rest)):
        columns = [Column(key) for key in chosen]
        sections[name] = [(column.key, column, figures.curves(study, column)) for column in columns]
    sections["accuracy"] += robustness.levels(study)
    layered = figures.residuals(study)
    sections["bort"] = [(f"bort:{regime}", words(regime), figure) for regime, figure in layered.items()]
    certified = certificates.figure(study)
    sections["certified"] = [("certified", "Certified accuracy", certified)] if certified else []
    observed = [Column(key) for key in keys if key.startswith("certified/")]
    sections["certified"] += [(column.key, column, figures.curves(study, column)) for column in observed]
    return sections


def explanations(study: Study) -> list[dict[str, Any]]:
    """One entry per metric and attribution: names, figures, relation; the primary one first."""
    robust = study.robustness()
    entries = []
    for column in sorted(study.qualities(), key=lambda column: (rank(column), not column.lead)):
        key = f"{'lead:' if column.lead else ''}{column.key}"
        made = {f"curve:{key}": figures.curves(study, column)}
        if robust:
            made[f"against:{key}"] = figures.against(study, column, robust)
        relation = relate(study, column, robust) if robust and len(study.regimes) > 1 else None
        entries.append(
            {
                "id": key,
                "group": column.metric,
                "label": label(column.metric),
                "family": column.family,
                "attribution": column.attribution,
                "key": column.key,
                "lead": column.lead,
                "note": relation.show() if relation else "",
                "figures": made,
            }
        )
    return entries


def rank(column: Column) -> int:
    """Place of a metric among the primary ones; all others share the last."""
    return PRIMARY.index(column.metric) if column.metric in PRIMARY else len(PRIMARY)


def matrix(study: Study) -> dict[str, Any] | None:
    """Rank correlation of every explanation quality with robust accuracy: metrics by attributions."""
    robust = study.robustness()
    if robust is None or len(study.used) < 3 or len(study.regimes) < 2:
        return None
    columns = study.qualities()
    led = {column.key for column in columns if column.lead}
    columns = [column for column in columns if column.lead or column.key not in led]
    related = {column: relate(study, column, robust) for column in columns}
    attributions = in_order(column.attribution for column in columns)
    families: dict[str, list[dict[str, Any]]] = {}
    for metric in in_order(column.metric for column in sorted(columns, key=lambda one: place(one.metric))):
        of = {column.attribution: column for column in columns if column.metric == metric}
        first = next(iter(of.values()))
        directed = all(column.fact(study.used).better for column in of.values())
        cells = [shade(of[name], related[of[name]]) if name in of else None for name in attributions]
        row = {"label": label(metric), "lead": first.lead, "directed": directed, "cells": cells}
        families.setdefault(first.family, []).append(row)
    return {"attributions": attributions, "families": list(families.items()), "n": len(study.used)}


def shade(column: Column, relation: Relation) -> dict[str, Any]:
    """One cell of the matrix: text, interval, colour."""
    known = not math.isnan(relation.rho)
    hue = "1,133,113" if known and relation.rho > 0 else "166,97,26"
    return {
        "id": f"{'lead:' if column.lead else ''}{column.key}",
        "text": f"{relation.rho:+.2f}" if known else "—",
        "title": relation.show(),
        "bold": known and relation.clear and not relation.descriptive,
        "fill": f"rgba({hue},{0.5 * abs(relation.rho):.2f})" if known else "transparent",
    }


def run_row(record: Record) -> dict[str, Any]:
    """A run, for the table of runs."""
    command = record.provenance.get("command", "")
    return {
        "record": record,
        "time": duration(record.seconds) if record.seconds is not None else "—",
        "epochs": f"{(record.last if record.last is not None else -1) + 1} of {record.epochs or '?'}",
        "started": date(record.provenance.get("started")),
        "finished": date(record.provenance.get("finished") or ended(record)),
        "command": " ".join(map(str, command)) if isinstance(command, list) else str(command),
    }


def date(value: Any) -> str:
    """A date and time, to the second, as its own clock said."""
    try:
        return datetime.fromisoformat(str(value)).strftime("%Y-%m-%d %H:%M:%S")
    except ValueError:
        return str(value or "—")


def ended(record: Record) -> datetime | None:
    """When the last attempt at a run ended, by its start and its seconds; None where it goes on."""
    try:
        start = datetime.fromisoformat(str(record.provenance.get("started")))
    except ValueError:
        return None
    over = record.seconds is not None and record.state != "running"
    return start + timedelta(seconds=record.seconds or 0) if over else None


def shared(study: Study, part: str) -> list[tuple[str, list[tuple[str, str]]]]:
    """A part of the provenance: each key with its values, and the runs of each value where they differ."""
    seen: dict[str, dict[str, list[str]]] = {}
    for record in study.records:
        content = record.provenance.get(part)
        if part == "versions" and "python" in record.provenance:
            content = {"python": record.provenance["python"], **(content or {})}
        for key, value in flat(content).items() if content else ():
            seen.setdefault(key or part, {}).setdefault(str(value), []).append(record.name)
    return [
        (key, [(value, "" if len(values) == 1 else ", ".join(names)) for value, names in values.items()])
        for key, values in seen.items()
    ]


def differences(study: Study) -> list[tuple[str, dict[str, str]]]:
    """Settings in which the regimes differ: (key, value by regime)."""
    by_regime, folders = {}, {}
    for regime in study.regimes:
        records = [record for record in study.records if record.regime == regime and record.config]
        if records:
            by_regime[regime] = records[0].settings
            folders[regime] = records[0].folder.name
    keys = in_order(key for content in by_regime.values() for key in content)
    rows = []
    for key in keys:
        values = {regime: str(content.get(key, "—")) for regime, content in by_regime.items()}
        place = any(folders[regime] in value for regime, value in values.items())
        if key.partition(".")[0] not in RUN_ONLY and not place and len(set(values.values())) > 1:
            rows.append((key, values))
    return rows
