"""What an evaluation found: one table with a line per image, one page of numbers with their intervals."""

import dataclasses
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from lit_xai.evaluation import journal
from lit_xai.evaluation.curve import curve
from lit_xai.evaluation.gates import Gate, judge
from lit_xai.evaluation.intervals import wilson
from lit_xai.evaluation.journal import CLEAN, SEARCH, Plan, Row, Rows
from lit_xai.provenance import provenance
from lit_xai.types import require

TABLE, SUMMARY = "robustness.tsv", "summary.json"
COLUMNS = ("idx", "label", "pred", "robust", "first_attack", "linf", "l2")


def conclude(folder: Path) -> dict[str, Any]:
    """Write `robustness.tsv` and `summary.json` of a complete evaluation; return the latter's content.

    Any process may call it, also several at once: they write the same.

    Raises:
        ValueError: Something is not evaluated yet; the message says what.
    """
    waiting = unfinished(folder)
    listed = ", ".join(f"{stage}: {count}" for stage, count in waiting.items())
    require(
        not waiting, f"{folder} is not complete (images that wait: {listed}): run the same command again."
    )
    plan, rows = journal.read_plan(folder), journal.read(folder)
    lines = ["\t".join(COLUMNS), *("\t".join(cells) for cells in _table(plan, rows))]
    journal.replace(folder / TABLE, "\n".join(lines) + "\n")
    summary = _summary(plan, rows, journal.read_gates(folder, plan) or {})
    journal.write(folder / SUMMARY, summary)
    return summary


def unfinished(folder: Path) -> dict[str, int]:
    """Images that still wait, by stage, and `gates`; empty when the evaluation is complete.

    Raises:
        ValueError: No evaluation was ever begun there.
    """
    plan, rows = journal.read_plan(folder), journal.read(folder)
    waiting = {"gates": int(journal.read_gates(folder, plan) is None)}
    standing = plan.ids
    for stage in (CLEAN, *plan.members):
        # An image whose lines end here waits for this stage; it will wait for later ones only if it stands.
        here = [index for index in standing if (stage, index) in rows]
        waiting[stage] = len(standing) - len(here)
        standing = [index for index in here if not rows[stage, index].fooled]
    waiting[SEARCH] = sum((SEARCH, index) not in rows for index in plan.searched)
    return {stage: count for stage, count in waiting.items() if count}


def fraction(epsilon: float) -> str:
    """A budget as people write it: 8/255, or 0.5."""
    grey = round(255 * epsilon)
    if float(f"{epsilon:.3g}") != epsilon and grey > 0 and abs(255 * epsilon - grey) < 1e-6:
        return f"{grey}/255"
    return f"{epsilon:.6g}"


def _summary(plan: Plan, rows: Rows, measured: dict[str, Any]) -> dict[str, Any]:
    standing, count = len(plan.ids), len(plan.ids)
    shares = []
    members: list[dict[str, Any]] = []
    for stage in (CLEAN, *plan.members):
        own = [rows[stage, index] for index in plan.ids if (stage, index) in rows]
        fooled = sum(row.fooled for row in own)
        standing -= fooled
        shares.append(_share(standing, count))
        if stage != CLEAN:
            members.append(
                {
                    "name": stage,
                    "attack": plan.members[stage],
                    "attacked": len(own),
                    "fooled": fooled,
                    **shares[-1],
                    "seconds": round(sum(row.seconds for row in own), 3),
                    "forwards": sum(row.forwards for row in own),
                    "backwards": sum(row.backwards for row in own),
                }
            )
    gates = [Gate(**gate) for gate in measured["gates"]] + judge(plan, rows, measured["classes"])
    return {
        "name": plan.name,
        "suite": plan.suite,
        "norm": plan.norm,
        "epsilon": plan.epsilon,
        "epsilon_text": fraction(plan.epsilon),
        "split": plan.split,
        "images": count,
        "seed": plan.seed,
        "precision": plan.precision,
        "model": plan.model,
        "clean": shares[0],
        "members": members,
        "robust": shares[-1],
        "gates": [dataclasses.asdict(gate) for gate in gates],
        "suspicious": any(gate.passed is False for gate in gates),
        "curve": _curve(plan, rows),
        "provenance": provenance(plan.seed),
    }


def _share(successes: int, count: int) -> dict[str, float]:
    low, high = wilson(successes, count)
    return {"accuracy": successes / count, "low": low, "high": high}


def _curve(plan: Plan, rows: Rows) -> dict[str, Any] | None:
    if plan.search is None:
        return None
    found = [rows[SEARCH, index] for index in plan.searched]
    drawn = dataclasses.asdict(curve([row.l2 if row.fooled else math.inf for row in found]))
    if math.isinf(drawn["median"]):
        drawn["median"] = None  # JSON knows no infinity
    return {"search": plan.search, "norm": "l2", **drawn}


def _table(plan: Plan, rows: Rows) -> Iterable[tuple[str, ...]]:
    """An image that is misclassified as it is falls to `clean`; one that stands, to `-`."""
    for index in plan.ids:
        every = [rows[stage, index] for stage in (CLEAN, *plan.members) if (stage, index) in rows]
        first: Row | None = next((row for row in every if row.fooled), None)
        fell = (
            ("-", "nan", "nan") if first is None else (first.member, f"{first.linf:.7g}", f"{first.l2:.7g}")
        )
        yield (
            str(index),
            str(every[0].label),
            str(every[0].prediction),
            str(int(first is None)),
            *fell,
        )
