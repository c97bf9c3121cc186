"""What a look says: one column of scores per number, its summary, and its lead over a random map."""

import csv
import math
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from lit_xai.attributions.base import Attribution
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.observe import MODEL, Explanation, about_model, chosen, lead_key, log_key, made
from lit_xai.types import Scores

Table = Mapping[str, np.ndarray]

REFERENCE = "random_map"  # the control that leads are taken over
FAILED = ("flag", "failed")  # metric and quantity of what no metric scores: images on which something failed
HEADER = (
    *("kind", "attribution", "control", "metric", "quantity", "better", "mean", "sd", "se", "count"),
    *("missing", "mean_correct", "count_correct", "lead", "lead_se", "control_mean"),
)


@dataclass(frozen=True)
class Column:
    """One quantity of one metric, of a method, of a control, or of the model itself.

    Args:
        attribution: The method; `MODEL` for none.
        control: The control, if it is one.
        metric: Name of the metric.
        quantity: Name of the quantity.
        facts: What is known about it.
    """

    attribution: str
    control: str
    metric: str
    quantity: str
    facts: Quantity

    @property
    def key(self) -> str:
        """Its log key."""
        return log_key(self.attribution, self.metric, self.quantity, self.control)

    @property
    def lead(self) -> str:
        """The log key of its lead."""
        return lead_key(self.attribution, self.metric, self.quantity)

    @property
    def reference(self) -> str:
        """The log key of the same quantity of the control that leads are taken over."""
        return log_key(MODEL, self.metric, self.quantity, REFERENCE)

    def described(self) -> dict[str, Any]:
        """Facts about it, as `quantities.json` tells them."""
        low, high = self.facts.bounds
        kind = "control" if self.control else "score"
        return described(kind, self.facts.better, low, high, self.facts.median)


def described(
    kind: str, better: str | None, low: float = -math.inf, high: float = math.inf, median: bool = False
) -> dict[str, Any]:
    """Facts about a number that is logged."""
    bounds = {"low": low if math.isfinite(low) else None, "high": high if math.isfinite(high) else None}
    return {"kind": kind, "better": better, **bounds, "median": median}


def columns(
    attributions: Mapping[str, Attribution],
    metrics: Mapping[str, Metric],
    controls: Mapping[str, Attribution],
) -> list[Column]:
    """Everything that is scored: metrics of the model first, then methods, then controls."""
    own = [(MODEL, "", [name for name, metric in metrics.items() if about_model(metric)])]
    methods = [(name, "", chosen(metrics, attribution)) for name, attribution in attributions.items()]
    apart = [
        (of, name, chosen(metrics, map_, control=True))
        for name, map_, of in made(controls, attributions, None)
    ]
    return [
        Column(attribution, control, metric, name, quantity)
        for attribution, control, names in (*own, *methods, *apart)
        for metric in names
        for name, quantity in metrics[metric].quantities.items()
    ]


def failures(attribution: str) -> Column:
    """The share of images on which a method, or a metric of it, has failed."""
    return Column(attribution, "", *FAILED, Quantity("lower", (0.0, 1.0)))


def scores(seen: Explanation, columns: Iterable[Column]) -> dict[str, Scores]:
    """Every column for one batch; NaN where it was not scored on it, as controls are not on all batches."""
    flat = seen.flat()
    like = next(iter(seen.maps.values()), None)
    some = next(iter(flat.values())) if like is None else like.flatten(1)[:, 0]
    table = {}
    for column in columns:
        if (column.metric, column.quantity) == FAILED:
            own = (column.attribution, f"{column.attribution}/")
            table[column.key] = torch.full_like(
                some, any(name == own[0] or name.startswith(own[1]) for name in seen.failed)
            )
        else:
            table[column.key] = flat[column.key] if column.key in flat else torch.full_like(some, math.nan)
    return table


def leading(columns: Iterable[Column]) -> list[Column]:
    """Those that have a lead: more or less is better, and the same is known of a random map."""
    listed = list(columns)
    known = {column.key for column in listed}
    return [
        column
        for column in listed
        if column.attribution and not column.control and column.facts.better and column.reference in known
    ]


def lead(column: Column, table: Table) -> NDArray[np.floating[Any]]:
    """How much better an image is than its random map; NaN where one of the two has no score."""
    sign = 1.0 if column.facts.better == "higher" else -1.0
    reference = table[column.reference]
    # Nothing is known to lead over an infinite one: a random map is infinitely stable.
    reference = np.where(np.isfinite(reference), reference, np.nan)
    difference: NDArray[np.floating[Any]] = sign * (table[column.key] - reference)
    return difference


def average(quantity: Quantity, scores: NDArray[Any]) -> float:
    """Mean or median of the valid scores."""
    return float(quantity.average(torch.from_numpy(scores)))


def averages(columns: Iterable[Column], table: Table) -> dict[str, float]:
    """What is logged of a look: every quantity, and every lead."""
    listed = list(columns)
    own = {column.key: average(column.facts, table[column.key]) for column in listed}
    leads = {column.lead: average(column.facts, lead(column, table)) for column in leading(listed)}
    return own | leads


def rows(columns: Iterable[Column], table: Table) -> Iterator[dict[str, Any]]:
    """One row per quantity, with all that stands beside it; see `HEADER`.

    Args:
        columns: What was scored.
        table: Scores by log key; `correct`, whether the class was recognised; `controlled`, whether the
            controls were scored on the image.
    """
    listed = list(columns)
    led = {column.key for column in leading(listed)}
    correct, controlled = table["correct"].astype(bool), table["controlled"].astype(bool)
    for column in listed:
        scored = controlled if column.control else np.ones_like(correct)
        values, right = table[column.key][scored], table[column.key][scored & correct]
        spread, spread_right = _spread(column.facts, values), _spread(column.facts, right)
        row = {
            "kind": "control" if column.control else "score",
            "attribution": column.attribution,
            "control": column.control,
            "metric": column.metric,
            "quantity": column.quantity,
            "better": column.facts.better or "",
            "mean": average(column.facts, values),
            "sd": spread["sd"],
            "se": spread["se"],
            "count": int(spread["count"]),
            "missing": int(spread["missing"]),
            "mean_correct": average(column.facts, right),
            "count_correct": int(spread_right["count"] - spread_right["missing"]),
        }
        if column.key in led:
            leads = lead(column, table)[controlled]
            row |= {
                "lead": average(column.facts, leads),
                "lead_se": _spread(column.facts, leads)["se"],
                "control_mean": average(column.facts, table[column.reference][controlled]),
            }
        yield row


def write(path: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Write the rows of one look as a table."""
    draft = path.with_name(f".{path.name}")
    with draft.open("w", newline="") as file:
        writer = csv.DictWriter(file, HEADER, restval="")
        writer.writeheader()
        writer.writerows(rows)
    draft.replace(path)


def save(path: Path, arrays: Mapping[str, Any]) -> None:
    """Write arrays as one NPZ file: a reader never sees half of it."""
    draft = path.with_name(f".{path.name}")
    np.savez_compressed(draft, **arrays)
    draft.replace(path)


def _spread(quantity: Quantity, scores: NDArray[Any]) -> dict[str, float]:
    return quantity.spread(torch.from_numpy(scores))
