"""Interactive figures: curves with their spread, quality against robustness, residuals."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, TypeVar

from lit_xai.study.labels import inline, words
from lit_xai.study.record import Record
from lit_xai.study.tables import CONTROL, Cell, Column, Study, arrow

Figure: TypeAlias = Any  # plotly.graph_objects.Figure: plotly is imported when a figure is made

Position = TypeVar("Position", bound=float)  # an epoch or a radius

# Okabe and Ito, 2008, Color universal design: told apart with every common colour vision. Its yellow and
# black are left out: one vanishes on paper, the other on a dark screen.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#8C6D31", "#7F7F7F")
SYMBOLS = ("circle", "square", "diamond", "triangle-up", "cross", "x", "star", "triangle-down")
GRID = "rgba(128,128,128,0.20)"
RADII = 101


def colour(study: Study, regime: str) -> str:
    """The one colour of a regime, in every figure and table."""
    return COLOURS[study.regimes.index(regime) % len(COLOURS)]


def symbol(study: Study, regime: str) -> str:
    """The one marker of a regime."""
    return SYMBOLS[study.regimes.index(regime) % len(SYMBOLS)]


def faint(hue: str, alpha: float) -> str:
    """A colour, made translucent."""
    red, green, blue = (int(hue[i : i + 2], 16) for i in (1, 3, 5))
    return f"rgba({red},{green},{blue},{alpha})"


def blank(x: str, y: str) -> Figure:
    """An empty figure in the style of the report: no frame, quiet grid, legend on top."""
    import plotly.graph_objects as go

    axis = {"gridcolor": GRID, "zeroline": False, "ticks": "", "automargin": True}
    return go.Figure(
        layout={
            "template": go.layout.Template(),
            "paper_bgcolor": "rgba(0,0,0,0)",
            "plot_bgcolor": "rgba(0,0,0,0)",
            "font": {"size": 12.5, "color": "#5c6470"},
            "margin": {"l": 8, "r": 12, "t": 8, "b": 8},
            "hovermode": "x unified",
            "hoverlabel": {"font": {"size": 12.5}},
            "legend": {"orientation": "h", "x": 0, "y": 1.02, "yanchor": "bottom", "itemwidth": 30},
            "modebar": {"orientation": "v"},
            "xaxis": axis | {"title": {"text": x, "standoff": 8}},
            "yaxis": axis | {"title": {"text": "<br>".join(textwrap.wrap(y, 30)), "standoff": 8}},
        }
    )


def over_seeds(curves: Sequence[Mapping[Position, float]]) -> dict[Position, Cell]:
    """Values over seeds, by position."""
    positions = sorted({position for curve in curves for position in curve})
    return {x: Cell(tuple(curve[x] for curve in curves if x in curve)) for x in positions}


def add_spread(
    figure: Figure,
    name: str,
    hue: str,
    mark: str,
    curves: Sequence[Mapping[Position, float]],
    column: Column,
    dash: str = "solid",
    points: bool = True,
) -> None:
    """Add a group of traces: band of ± one standard deviation, line of the mean, a point per seed.

    Args:
        figure: Gets the traces.
        name: Of the group in the legend; a click there toggles all of it.
        hue: Colour.
        mark: Marker symbol.
        curves: Value by position, of each run.
        column: Writes the values.
        dash: Style of the line.
        points: Whether each run's values are drawn as points.
    """
    import plotly.graph_objects as go

    cells = {x: cell for x, cell in over_seeds(curves).items() if cell.finite}
    if not cells:
        return
    group = {"legendgroup": name, "name": name}
    spread = {x: cell for x, cell in cells.items() if not math.isnan(cell.sd)}
    if spread:
        top = [cell.mean + cell.sd for cell in spread.values()]
        bottom = [cell.mean - cell.sd for cell in spread.values()]
        figure.add_trace(
            go.Scatter(
                x=[*spread, *reversed(spread)],
                y=[*top, *reversed(bottom)],
                fill="toself",
                fillcolor=faint(hue, 0.14),
                line={"width": 0},
                mode="lines",
                hoverinfo="skip",
                showlegend=False,
                **group,
            )
        )
    if points and len(curves) > 1:
        pairs = [(x, curve[x]) for curve in curves for x in curve if math.isfinite(curve[x])]
        figure.add_trace(
            go.Scatter(
                x=[x for x, _ in pairs],
                y=[y for _, y in pairs],
                mode="markers",
                marker={"size": 4, "color": faint(hue, 0.45), "symbol": mark},
                hoverinfo="skip",
                showlegend=False,
                **group,
            )
        )
    figure.add_trace(
        go.Scatter(
            x=list(cells),
            y=[cell.mean for cell in cells.values()],
            mode="lines+markers" if len(cells) == 1 or points else "lines",
            line={"color": hue, "width": 2.25, "dash": dash},
            marker={"size": 7 if len(cells) == 1 else 5, "color": hue, "symbol": mark},
            customdata=[[hover(cell, column)] for cell in cells.values()],
            hovertemplate="%{customdata[0]}",
            **group,
        )
    )


def hover(cell: Cell, column: Column) -> str:
    """Mean ± standard deviation and the number of seeds."""
    count = len(cell.finite)
    return f"{cell.show(column)} ({count} seed{'s' if count > 1 else ''})"


def curves(study: Study, column: Column) -> Figure:
    """A column over epochs: mean, spread and seeds of each regime; its control dotted, where it has one."""
    figure = blank("epoch", f"{column.label} {arrow(column.fact(study.used).better)}".strip())
    for regime in study.regimes:
        own = [column.curve(record) for record in study.of(regime)]
        style = (colour(study, regime), symbol(study, regime))
        add_spread(figure, words(regime), *style, own, column)
        chance = [column.chance(record).curve(record) for record in study.of(regime)]
        if column.attribution and not column.lead and any(chance):
            add_control(figure, words(regime), style[0], column, chance)
        if column.key.startswith(("robust/", "val/")):
            add_chosen(figure, words(regime), style[0], column, study.of(regime))
    if column.percent:
        figure.update_yaxes(tickformat=".0%")
    if column.lead:
        figure.add_hline(y=0, line={"color": "rgba(128,128,128,0.7)", "width": 1, "dash": "dot"})
    return whole_epochs(figure, study)


def add_control(
    figure: Figure, regime: str, hue: str, column: Column, control: Sequence[Mapping[int, float]]
) -> None:
    """Add the mean of the column's random map as a thin dotted line that comes and goes with its regime."""
    import plotly.graph_objects as go

    cells = {epoch: cell for epoch, cell in over_seeds(control).items() if cell.finite}
    figure.add_trace(
        go.Scatter(
            x=list(cells),
            y=[cell.mean for cell in cells.values()],
            mode="lines",
            line={"color": faint(hue, 0.75), "width": 1.25, "dash": "dot"},
            name=f"{regime}, {words(CONTROL).lower()}",
            legendgroup=regime,
            showlegend=False,
            customdata=[[hover(cell, column)] for cell in cells.values()],
            hovertemplate="%{customdata[0]}",
        )
    )


def add_chosen(figure: Figure, regime: str, hue: str, column: Column, records: Sequence[Record]) -> None:
    """Add a ring at the epoch of each run's best checkpoint."""
    import plotly.graph_objects as go

    values = [(record.best, column.at(record, "best")) for record in records]
    found = [(epoch, value) for epoch, value in values if value is not None and math.isfinite(value)]
    if not found:
        return
    figure.add_trace(
        go.Scatter(
            x=[epoch for epoch, _ in found],
            y=[value for _, value in found],
            mode="markers",
            marker={"size": 13, "color": hue, "symbol": "circle-open", "line": {"width": 2}},
            name=f"{regime}, best checkpoint",
            legendgroup=regime,
            showlegend=False,
            hoverinfo="skip",
        )
    )


def against(study: Study, quality: Column, robustness: Column) -> Figure:
    """Explanation quality against robustness: a run's last epoch is a point, its way there a faint line."""
    import plotly.graph_objects as go

    facts = (robustness.fact(study.used), quality.fact(study.used))
    labels = [
        f"{c.label} {arrow(f.better)}".strip() for c, f in zip((robustness, quality), facts, strict=True)
    ]
    figure = blank(*labels)
    for regime in study.regimes:
        hue, mark, name = colour(study, regime), symbol(study, regime), words(regime)
        ends = []
        for record in study.of(regime):
            x, y = robustness.curve(record), quality.curve(record)
            epochs = [e for e in x if e in y and math.isfinite(x[e] + y[e])]
            if not epochs:
                continue
            ends.append((record, epochs[-1]))
            figure.add_trace(
                go.Scatter(
                    x=[x[epoch] for epoch in epochs],
                    y=[y[epoch] for epoch in epochs],
                    mode="lines+markers",
                    line={"color": faint(hue, 0.32), "width": 1.25, "shape": "spline", "smoothing": 0.6},
                    marker={"size": 3.5, "color": faint(hue, 0.5)},
                    text=[f"{record.name}, epoch {epoch}" for epoch in epochs],
                    customdata=[[robustness.show(x[e]), quality.show(y[e])] for e in epochs],
                    hovertemplate=point_text(robustness, quality),
                    legendgroup=name,
                    showlegend=False,
                )
            )
        if ends:
            xs = [robustness.curve(record)[epoch] for record, epoch in ends]
            ys = [quality.curve(record)[epoch] for record, epoch in ends]
            figure.add_trace(
                go.Scatter(
                    x=xs,
                    y=ys,
                    mode="markers",
                    marker={
                        "size": 12,
                        "color": hue,
                        "symbol": mark,
                        "line": {"width": 1.5, "color": "#fff"},
                    },
                    text=[f"{record.name}, last epoch ({epoch})" for record, epoch in ends],
                    customdata=[[robustness.show(a), quality.show(b)] for a, b in zip(xs, ys, strict=True)],
                    hovertemplate=point_text(robustness, quality),
                    name=name,
                    legendgroup=name,
                )
            )
    figure.update_layout(hovermode="closest")
    if robustness.percent:
        figure.update_xaxes(tickformat=".0%")
    if quality.percent:
        figure.update_yaxes(tickformat=".0%")
    return figure


def point_text(robustness: Column, quality: Column) -> str:
    """What a point of `against` says when pointed at."""
    labels = (robustness.label.lower(), inline(quality.label))
    return f"%{{text}}<br>{labels[0]}: %{{customdata[0]}}<br>{labels[1]}: %{{customdata[1]}}<extra></extra>"


def residuals(study: Study) -> dict[str, Figure]:
    """Bort's residual of each layer over epochs, by regime, on one scale; early layers are pale."""
    keys = (key for key in study.log_keys if key.startswith("bort/") and key.endswith("/residual"))
    layers = [Column(key) for key in keys]
    values = [v for r in study.used for c in layers for v in c.curve(r).values() if math.isfinite(v)]
    wide = bool(values) and 0 < 20 * min(values) < max(values)
    made = {}
    for regime in study.regimes:
        figure = blank("epoch", "residual ↓")
        for index, column in enumerate(layers):
            own = [column.curve(record) for record in study.of(regime)]
            hue = blend(colour(study, regime), (index + 1) / len(layers))
            name = column.key.removeprefix("bort/").removesuffix("/residual")
            add_spread(figure, name, hue, SYMBOLS[index % len(SYMBOLS)], own, column)
        if wide:
            ends = [math.log10(min(values)) - 0.1, math.log10(max(values)) + 0.1]
            figure.update_yaxes(type="log", dtick="D2", range=ends)
        elif values:
            room = 0.06 * (max(values) - min(values)) or 0.01
            figure.update_yaxes(range=[min(values) - room, max(values) + room])
        if figure.data:
            made[regime] = whole_epochs(figure, study)
    return made


def blend(hue: str, share: float) -> str:
    """A colour between a pale grey and its own full tone."""
    parts = [int(hue[i : i + 2], 16) for i in (1, 3, 5)]
    return "#" + "".join(f"{round(205 + (part - 205) * share):02x}" for part in parts)


def whole_epochs(figure: Figure, study: Study) -> Figure:
    """Ticks at whole epochs."""
    last = max((record.last or 0 for record in study.used), default=0)
    figure.update_xaxes(tick0=0, dtick=max(1, math.ceil(last / 8)), hoverformat="d")
    return figure
