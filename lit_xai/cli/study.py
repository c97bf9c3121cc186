"""`lit-xai study`: many trainings from one plan, and one report on them."""

from collections.abc import Sequence
from pathlib import Path

from lit_xai import study
from lit_xai.cli.options import Options


def main(words: Sequence[str]) -> int:
    """`run PLAN` trains what is not done yet and reports; `report PLAN` reports on what is there."""
    parser = Options("study", "Train from a plan, or report on what is done.")
    parser.add_argument(
        "verb",
        choices=("run", "report"),
        help="run: train what is not done yet, each run as its own process, then report; "
        "report: report on the runs that are there",
    )
    parser.add_argument("plan", type=Path, help="YAML of the plan")
    known = parser.parse_args(list(words))
    plan = study.load_plan(known.plan)
    if known.verb == "run":
        return study.run_plan(plan)
    study.report_plan(plan)
    return 0
