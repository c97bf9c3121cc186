"""The report: one HTML file that needs no network, from one run or from many."""

import textwrap
from collections.abc import Sequence
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING

from lit_xai import __version__
from lit_xai.pictures import PERCENTILE
from lit_xai.study import certificates, controls, figures, gallery, page, robustness
from lit_xai.study.findings import flags, sentences
from lit_xai.study.labels import words
from lit_xai.study.plan import Plan
from lit_xai.study.record import read_run
from lit_xai.study.relation import DRAWS, FEW_RUNS
from lit_xai.study.tables import Column, Study, arrow, clear_winner, table_csv, write_whole

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text


def write_report(folders: Sequence[Path], out: Path, title: str) -> Path:
    """Write the report of some runs, whatever state they are in.

    Args:
        folders: Run folders; one that is missing or broken is listed as such.
        out: The HTML file, replaced in one piece.
        title: Headline of the page.

    Returns:
        `out`.
    """
    study = Study(tuple(read_run(Path(folder)) for folder in folders))
    return write_study(study, Path(out), title)


def write_study(study: Study, out: Path, title: str) -> Path:
    """Write the report of a study, and beside it `table.csv` with all its numbers if it has many runs."""
    if len(study.records) > 1:
        write_whole(out.with_name("table.csv"), table_csv(study))
    return write_whole(out, render(study, title))


def report_plan(plan: Plan, console: "Console | None" = None) -> Path:
    """Write `report.html` and `table.csv` into the folder of a plan, and print where they lie and the table.

    Args:
        plan: Its runs may be finished or not.
        console: Where to print; standard output by default.

    Returns:
        The path of the report.
    """
    study = Study(tuple(read_run(run.folder) for run in plan.runs()))
    path = write_study(study, plan.out / "report.html", plan.name)
    show_table(study, console)
    from rich.console import Console

    (console or Console()).print(f"Report: {path}", highlight=False, markup=False, soft_wrap=True)
    return path


def print_table(folders: Sequence[Path], console: "Console | None" = None) -> None:
    """Print the headline table of some runs."""
    show_table(Study(tuple(read_run(Path(folder)) for folder in folders)), console)


def show_table(study: Study, console: "Console | None" = None) -> None:
    """Print the headline table: mean ± standard deviation over seeds at the last epoch, and the flags.

    A row per regime; where the terminal is too narrow for that, a column per regime.
    """
    from rich.console import Console
    from rich.text import Text

    console = console or Console()
    columns, raised = study.headline(), flags(study)
    winners = {column: clear_winner(study, column, study.regimes) for column in columns}
    grid = [[Text("Regime"), Text("Runs"), *(Text(heading(column, study)) for column in columns)]]
    for regime in study.regimes:
        planned = sum(record.regime == regime for record in study.records)
        row = [Text(words(regime)), Text(f"{len(study.of(regime))} of {planned}")]
        for column in columns:
            mark = " !" if any(flag.concerns(regime, column) for flag in raised) else ""
            style = "bold" if winners[column] == regime else ""
            row.append(Text(study.cell(column, regime).show(column) + mark, style=style))
        grid.append(row)
    table = as_table(grid)
    needed = console.measure(table, options=console.options.update(max_width=1000)).maximum
    if needed <= console.width:
        console.print(table)
    elif console.is_terminal:
        console.print(as_table([list(row) for row in zip(*grid, strict=True)]))
    else:
        Console(file=console.file, width=needed).print(table)
    if raised:
        console.print(
            Text(f"{len(raised)} flags (! beside a number); the report explains them:", style="dim")
        )
        for flag in raised[:5]:
            console.print(Text(f"  ! {flag.what}", style="yellow"), soft_wrap=True)
    for sentence in sentences(study):
        console.print(Text(sentence), soft_wrap=True)


def as_table(grid: "list[list[Text]]") -> "Table":
    """A table for the terminal, the first row its header."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False, header_style="bold")
    for index, title in enumerate(grid[0]):
        table.add_column(title, justify="right" if index else "left", overflow="fold", vertical="bottom")
    for row in grid[1:]:
        table.add_row(*row)
    return table


def heading(column: Column, study: Study) -> str:
    """Title of a column, in short lines, with its direction and its attribution."""
    title = f"{column.label}\N{NO-BREAK SPACE}{arrow(column.fact(study.used).better)}".strip()
    return "\n".join(textwrap.wrap(title, 17) + textwrap.wrap(words(column.attribution).lower(), 17))


def render(study: Study, title: str) -> str:
    """The page."""
    import jinja2
    import plotly.offline

    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        trim_blocks=True,
        lstrip_blocks=True,
        undefined=jinja2.StrictUndefined,
    )
    raised = flags(study)
    explain = page.explanations(study)
    sections = page.drawn(study)
    evaluations = robustness.section(study)
    html = environment.get_template("report.html.j2").render(
        title=title,
        single=len(study.records) == 1,
        version=__version__,
        written=datetime.now().astimezone().strftime("%Y-%m-%d %H:%M %Z"),
        sentences=sentences(study),
        tiles=page.numbers(study),
        regimes=[(regime, words(regime), figures.colour(study, regime)) for regime in study.regimes],
        tables={when: page.headline(study, raised, when) for when in ("last", "best")},
        headings=[page.headed(column, study) for column in study.headline()],
        sections=sections,
        evaluations=evaluations,
        certificates=certificates.rows(study),
        alarms=robustness.alarms(study),
        chosen_by=page.chosen_by(study),
        explain=explain,
        matrix=page.matrix(study),
        controls=controls.section(study, raised),
        errors=controls.ERRORS,
        few=FEW_RUNS,
        draws=DRAWS,
        gallery=gallery.gallery(study),
        percentile=PERCENTILE,
        flags=raised,
        runs=[page.run_row(record) for record in study.records],
        versions=page.shared(study, "versions"),
        machines=page.shared(study, "machine") + page.shared(study, "git"),
        differences=page.differences(study),
        words=words,
        entries=[{key: value for key, value in entry.items() if key != "figures"} for entry in explain],
        figures={key: page.plain(figure) for section in sections.values() for key, _, figure in section}
        | {key: page.plain(figure) for block in evaluations for key, figure in block["figures"].items()}
        | {key: page.plain(figure) for entry in explain for key, figure in entry["figures"].items()},
        plotly=plotly.offline.get_plotlyjs(),
    )
    return str(html)
