"""`lit-xai study`: many trainings from one plan, and one report on them."""

import argparse
from collections.abc import Sequence
from pathlib import Path

from lit_xai import study


def main(words: Sequence[str]) -> int:
    """`run PLAN` trains what is not done yet and reports; `report PLAN` reports on what is there."""
    parser = argparse.ArgumentParser(
        prog="lit-xai study", description="Train from a plan, report on what is done."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in (
        ("run", "train what is not done yet, each run as its own process; then report"),
        ("report", "report on the runs that are there"),
    ):
        verbs.add_parser(verb, help=text).add_argument("plan", type=Path, help="YAML of the plan")
    known = parser.parse_args(list(words))
    plan = study.load_plan(known.plan)
    if known.verb == "run":
        return study.run_plan(plan)
    study.report_plan(plan)
    return 0
