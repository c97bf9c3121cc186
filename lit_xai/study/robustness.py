"""What the page says about final robustness evaluations: numbers, figures, checks, settings."""

import math
from html import escape
from typing import Any

from lit_xai.study import figures
from lit_xai.study.assessment import Assessment, Distances, Share
from lit_xai.study.labels import words
from lit_xai.study.progress import duration
from lit_xai.study.record import Record, in_order
from lit_xai.study.tables import Cell, Column, Study, arrow, significant

CLEAN = "clean"
COUNTS = ("attacked", "fooled", "forwards", "backwards")
INK = "#8A919B"


def section(study: Study) -> list[dict[str, Any]]:
    """A block per name of an evaluation: the table of regimes, figures, and every run in detail."""
    every = [(record, one) for record in study.records for one in record.evaluations]
    blocks: list[dict[str, Any]] = []
    for name in in_order(one.name for _, one in every):
        made = {"ladder": ladder(study, name), "distance": over_epsilon(study, name)}
        cards = [card(record, one) for record, one in every if one.name == name]
        blocks.append(
            {
                "name": name,
                "cards": cards,
                "what": in_order(one["what"] for one in cards),
                "figures": {f"{kind}:{name}": figure for kind, figure in made.items() if figure is not None},
                "rows": rows(study, name) if len(study.records) > 1 else [],
            }
        )
    return blocks


def alarms(study: Study) -> list[str]:
    """What has to be said before all else: evaluations that are not to be believed as they stand."""
    return [
        f"{f'{record.name}, ' if len(study.records) > 1 else ''}{one.name}: {'; '.join(one.doubts)}"
        for record in study.records
        for one in record.evaluations
        if one.suspicious
    ]


def evaluated(study: Study, name: str) -> dict[str, list[Assessment]]:
    """The evaluations of a name by regime, one per run that has one."""
    return {
        regime: [one for record in study.of(regime) for one in record.evaluations if one.name == name]
        for regime in study.regimes
    }


def card(record: Record, one: Assessment) -> dict[str, Any]:
    """One evaluation of one run."""
    found = one.distances
    said = dict(one.settings)
    if found is not None:
        said["accuracy over epsilon"] = found.search
        said["images without a boundary"] = "not told" if found.missing is None else str(found.missing)
    return {
        "run": record.name,
        "regime": record.regime,
        "what": one.what,
        "robust": one.robust,
        "clean": one.clean,
        "median": f"{distance(found.median)} ({found.norm})" if found is not None else "",
        "suspicious": one.suspicious,
        "doubts": one.doubts,
        "gates": one.gates,
        "members": [
            {
                "name": member.name,
                "attack": member.attack,
                "standing": member.standing,
                **{key: count(member.counts.get(key)) for key in COUNTS},
                "seconds": duration(member.counts["seconds"]) if "seconds" in member.counts else "—",
            }
            for member in one.members
        ],
        "settings": list(said.items()),
    }


def count(value: float | None) -> str:
    """A number of things."""
    return "—" if value is None else f"{value:,.0f}"


def distance(value: float) -> str:
    """A median distance; beyond all that were found, where too few were."""
    if math.isnan(value):
        return "not known"
    return "beyond the search" if math.isinf(value) else significant(value)


def rows(study: Study, name: str) -> list[dict[str, Any]]:
    """Regimes by clean accuracy, final accuracy, median distance and checks: mean ± deviation over seeds."""
    made = []
    share = Column(f"attack/{name}/accuracy")
    for regime, ones in evaluated(study, name).items():
        if not ones:
            continue
        found = [one.distances.median for one in ones if one.distances is not None]
        made.append(
            {
                "regime": regime,
                "seeds": f"{len(ones)} of {len(study.of(regime))}",
                "clean": Cell(tuple(one.clean.value for one in ones if one.clean is not None)).show(share),
                "robust": Cell(tuple(one.robust.value for one in ones if one.robust is not None)).show(share),
                "median": medians([value for value in found if not math.isnan(value)]),
                "failed": sum(gate.passed is False for one in ones for gate in one.gates),
                "checks": sum(gate.passed is not None for one in ones for gate in one.gates),
                "suspicious": sum(one.suspicious for one in ones),
            }
        )
    return made


def medians(values: list[float]) -> str:
    """Median distances of some runs; infinite ones are counted, and have no mean."""
    known = Cell(tuple(value for value in values if math.isfinite(value)))
    beyond = len(values) - len(known.values)
    if not beyond or not known.values:
        return distance(math.inf) if beyond else known.show(Column("distance"))
    return f"{known.show(Column('distance'))}, {beyond} of {len(values)} {distance(math.inf)}"


def steps(one: Assessment) -> dict[str, Share]:
    """Accuracy as it is, and after each attack."""
    clean = {} if one.clean is None else {CLEAN: one.clean}
    return clean | {member.name: member.standing for member in one.members}


def ladder(study: Study, name: str) -> Any:
    """Accuracy after each attack: bars with intervals for one run, mean and spread per regime for many."""
    import plotly.graph_objects as go

    known = evaluated(study, name)
    alone = [(regime, one) for regime, ones in known.items() for one in ones]
    order = in_order(step for _, one in alone for step in steps(one))
    if not order:
        return None
    figure = figures.blank("after", f"Accuracy {arrow('higher')}")
    shown = Column(f"attack/{name}/accuracy")
    ticks = [escape(step, quote=False) for step in order]
    for regime, ones in known.items() if len(alone) > 1 else ():
        hue, mark = figures.colour(study, regime), figures.symbol(study, regime)
        lines = [{order.index(step): share.value for step, share in steps(one).items()} for one in ones]
        figures.add_spread(figure, words(regime), hue, mark, lines, shown)
    if len(alone) == 1:
        ((regime, one),) = alone
        shares, hue = [steps(one)[step] for step in order], figures.colour(study, regime)
        figure.add_trace(
            go.Bar(
                x=list(range(len(order))),
                y=[share.value for share in shares],
                width=0.56,
                marker={"color": [INK if step == CLEAN else hue for step in order]},
                error_y=ends(shares),
                customdata=[[share.text, share.interval or "not told"] for share in shares],
                hovertemplate="%{customdata[0]}, 95 %: %{customdata[1]}<extra></extra>",
                showlegend=False,
            )
        )
        figure.update_layout(hovermode="closest")
        ticks = [f"{tick}<br><b>{share.text}</b>" for tick, share in zip(ticks, shares, strict=True)]
    figure.update_xaxes(tickmode="array", tickvals=list(range(len(order))), ticktext=ticks, showgrid=False)
    figure.update_xaxes(range=[-0.5, len(order) - 0.5], ticklabeloverflow="allow")
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def ends(shares: list[Share]) -> dict[str, Any]:
    """The intervals, as error bars."""
    up, down = ([abs(end - s.value) for s, end in zip(shares, side, strict=True)] for side in sides(shares))
    bar = {"type": "data", "symmetric": False, "color": INK, "thickness": 1.4, "width": 5}
    return bar | {"array": up, "arrayminus": down}


def sides(shares: list[Share]) -> tuple[list[float], list[float]]:
    """Upper and lower ends of intervals; the share itself where there is none."""
    high = [share.high if share.interval else share.value for share in shares]
    return high, [share.low if share.interval else share.value for share in shares]


def over_epsilon(study: Study, name: str) -> Any:
    """Accuracy over epsilon: with its intervals for one run, mean and spread per regime for many."""
    known = evaluated(study, name)
    found = {
        regime: [one.distances for one in ones if one.distances is not None] for regime, ones in known.items()
    }
    every = [distances for ones in found.values() for distances in ones]
    widest = max((max(distances.accuracy) for distances in every), default=0.0)
    if not widest > 0:  # no boundary was found, or none was looked for
        return None
    grid = list(every[0].accuracy)
    if len(every) > 1:  # each run has radii of its own
        grid = [widest * step / (figures.RADII - 1) for step in range(figures.RADII)]
    norm = " or ".join(in_order(distances.norm for distances in every))
    figure = figures.blank(f"epsilon, {norm}, in pixel units", f"Accuracy {arrow('higher')}")
    for regime, ones in found.items():
        hue, mark = figures.colour(study, regime), figures.symbol(study, regime)
        if len(every) == 1 and ones:
            add_interval(figure, hue, every[0])
        lines = [{at: one.at(at) for at in grid} for one in ones]
        shown = Column(f"attack/{name}/accuracy")
        figures.add_spread(figure, words(regime), hue, mark, lines, shown, points=False)
    if len(every) == 1 and math.isfinite(every[0].median):
        note(figure, every[0].median, f"median {significant(every[0].median)}", "top right")
    budgets = {one.epsilon for ones in known.values() for one in ones if one.norm == norm}
    for epsilon in budgets - {None}:
        note(figure, epsilon, "budget of the attacks", "bottom left")
    figure.update_xaxes(hoverformat=".3f", rangemode="tozero")
    return figure.update_yaxes(tickformat=".0%", rangemode="tozero")


def add_interval(figure: Any, hue: str, found: Distances) -> None:
    """Add the band of intervals around a curve."""
    import plotly.graph_objects as go

    at, shares = list(found.accuracy), list(found.accuracy.values())
    high, low = sides(shares)
    style = {"fill": "toself", "fillcolor": figures.faint(hue, 0.16), "line": {"width": 0}, "mode": "lines"}
    band = go.Scatter(x=[*at, *reversed(at)], y=[*high, *reversed(low)], **style)
    figure.add_trace(band.update(hoverinfo="skip", showlegend=False))


def note(figure: Any, x: float | None, text: str, place: str) -> None:
    """A dotted vertical line with a word to it."""
    line = {"color": "rgba(128,128,128,0.8)", "width": 1.2, "dash": "dot"}
    figure.add_vline(
        x=x, line=line, annotation={"text": text, "font": {"size": 11.5}}, annotation_position=place
    )


def levels(study: Study) -> list[tuple[str, str, Any]]:
    """Accuracy over epsilon as measured while training: (id, what, figure) per metric, at the last epoch."""
    columns = [Column(key) for key in study.log_keys if Column(key).curved is not None]
    made = []
    for metric in in_order(column.key.rpartition("/")[0] for column in columns):
        own = [column for column in columns if column.key.rpartition("/")[0] == metric]
        figure = figures.blank("epsilon, l2, in pixel units", f"Accuracy {arrow('higher')}")
        for regime in study.regimes:
            style = (figures.colour(study, regime), figures.symbol(study, regime))
            last = [points(record, own, "last") for record in study.of(regime)]
            best = [points(record, own, "best") for record in study.of(regime)]
            figures.add_spread(figure, words(regime), *style, last, own[0])
            if best != last:
                name = f"{words(regime)}, best checkpoint"
                figures.add_spread(figure, name, *style, best, own[0], dash="dash", points=False)
        figure.update_xaxes(hoverformat=".3f", rangemode="tozero")
        figure.update_yaxes(tickformat=".0%", rangemode="tozero")
        made.append((f"levels:{metric}", f"Accuracy over epsilon on the probe, {metric}", figure))
    return made


def points(record: Record, columns: list[Column], when: Any) -> dict[float, float]:
    """Accuracy by epsilon, at the last epoch or that of the best checkpoint."""
    values = {column.curved: column.at(record, when) for column in columns}
    return {at: value for at, value in sorted(values.items()) if at is not None and value is not None}
