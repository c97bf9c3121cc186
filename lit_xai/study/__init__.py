"""Studies: a plan of regimes by seeds, carried out run by run, and a report of what came out."""

from lit_xai.study.plan import Plan, Run, load_plan
from lit_xai.study.record import Record, find_runs, read_run
from lit_xai.study.report import print_table, report_plan, write_report
from lit_xai.study.run import LocalProcesses, Runner, run_plan

__all__ = [
    "LocalProcesses",
    "Plan",
    "Record",
    "Run",
    "Runner",
    "find_runs",
    "load_plan",
    "print_table",
    "read_run",
    "report_plan",
    "run_plan",
    "write_report",
]
