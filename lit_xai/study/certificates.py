"""What the page says about certificates: accuracy by radius with its bound, averages, abstentions, votes."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from lit_xai.study import figures
from lit_xai.study.labels import words
from lit_xai.study.record import Certificates, Record, in_order
from lit_xai.study.tables import Cell, Column, Study

SHARE, RADIUS = Column("certified/accuracy"), Column("certified/average_radius")


def figure(study: Study) -> Any:
    """Certified accuracy against radius, or None: share of images that are right and certified that far.

    A run with certificates of several names, as a rule of several sigmas, has the best of them at each
    radius. Dotted: the bound, mean over seeds. For one run alone, a band of 95 % Wilson intervals.
    """
    every = [one.found for record in study.used for one in record.certificates.values()]
    top = max((float(found.radius[found.correct].max(initial=0)) for found in every), default=0.0)
    if top <= 0:
        return None
    drawn = figures.blank("radius, l2, in pixel units", "Certified accuracy ↑")
    grid = [top * step / (figures.RADII - 1) for step in range(figures.RADII)]
    for regime in study.regimes:
        records = [record for record in study.of(regime) if record.certificates]
        hue, mark, name = figures.colour(study, regime), figures.symbol(study, regime), words(regime)
        own = [curve(record, grid) for record in records]
        if len(study.records) == 1 and len(every) == 1:
            add_interval(drawn, hue, own[0], len(every[0].radius))
        figures.add_spread(drawn, name, hue, mark, own, SHARE, points=False)
        add_bound(drawn, name, hue, [bound(record, grid) for record in records])
    drawn.update_traces(line_shape="vh", selector=lambda trace: trace.fill is None)  # steps, not slopes
    drawn.update_yaxes(tickformat=".0%", rangemode="tozero")
    return drawn.update_xaxes(hoverformat=".3f")


def curve(record: Record, grid: Sequence[float]) -> dict[float, float]:
    """Certified accuracy at each radius, of the best of the run's classifiers there."""
    from lit_xai.evaluation.certification import envelope

    best = envelope([one.found for one in record.certificates.values()], grid)
    return dict(zip(grid, best.tolist(), strict=True))


def bound(record: Record, grid: Sequence[float]) -> dict[float, float]:
    """What the certified accuracy is at least; empty where the terms are not known, or there are several."""
    if len(record.certificates) > 1:
        return {}
    (found,) = (one.found for one in record.certificates.values())
    return {} if np.isnan(found.alpha) else dict(zip(grid, found.bound(grid).tolist(), strict=True))


def add_bound(drawn: Any, name: str, hue: str, bounds: Sequence[Mapping[float, float]]) -> None:
    """Add the mean bound as a thin dotted line that comes and goes with its regime."""
    import plotly.graph_objects as go

    cells = figures.over_seeds(bounds)
    if not cells:
        return
    drawn.add_trace(
        go.Scatter(
            x=list(cells),
            y=[cell.mean for cell in cells.values()],
            mode="lines",
            line={"color": figures.faint(hue, 0.75), "width": 1.25, "dash": "dot"},
            name=f"{name}, at least",
            legendgroup=name,
            showlegend=False,
            customdata=[[figures.hover(cell, SHARE)] for cell in cells.values()],
            hovertemplate="%{customdata[0]}",
        )
    )


def add_interval(drawn: Any, hue: str, shares: Mapping[float, float], images: int) -> None:
    """Add the band of 95 % intervals around a curve, over images."""
    import plotly.graph_objects as go

    from lit_xai.evaluation.intervals import wilson

    at = list(shares)
    low, high = zip(*(wilson(round(share * images), images) for share in shares.values()), strict=True)
    style = {"fill": "toself", "fillcolor": figures.faint(hue, 0.16), "line": {"width": 0}, "mode": "lines"}
    band = go.Scatter(x=[*at, *reversed(at)], y=[*high, *reversed(low)], **style)
    drawn.add_trace(band.update(hoverinfo="skip", showlegend=False))


def rows(study: Study) -> list[dict[str, Any]]:
    """Regimes and names by averages over images: mean ± deviation over seeds."""
    made = []
    for regime in study.regimes:
        records = study.of(regime)
        for name in in_order(name for record in records for name in record.certificates):
            ones = [record.certificates[name] for record in records if name in record.certificates]
            cell = {"accuracy": Cell(tuple(float(one.found.accuracy(0.0)) for one in ones)).show(SHARE)}
            cell["abstained"] = Cell(tuple(one.found.abstention for one in ones)).show(SHARE)
            cell["radius"] = Cell(tuple(one.found.average_radius for one in ones)).show(RADIUS)
            if len(ones) == 1:
                cell["radius"] += f" ± {ones[0].found.average_radius_error:.2g}"
            sigmas = in_order(f"{one.found.sigma:g}" for one in ones)
            row = {"regime": regime, "name": name, "seeds": f"{len(ones)} of {len(records)}", **cell}
            made.append(
                row
                | {
                    "sigma": ", ".join(sigma for sigma in sigmas if sigma != "nan") or "—",
                    "images": ", ".join(in_order(str(len(one.found.radius)) for one in ones)),
                    "votes": spent(ones),
                }
            )
    return made


def spent(ones: Sequence[Certificates]) -> str:
    """Votes per image, and their share of the most there could be, where that is another number."""
    known = [(one.votes, one.limit) for one in ones if one.votes and one.limit]
    if not known:
        return "—"
    votes, limit = (sum(column) / len(known) for column in zip(*known, strict=True))
    return f"{votes:,.0f}" + (f" ({100 * votes / limit:.0f} %)" if votes < limit else "")
