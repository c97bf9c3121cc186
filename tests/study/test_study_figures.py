import json
import math

import pytest

from lit_xai.study import figures, read_run
from lit_xai.study.relation import relate
from lit_xai.study.tables import Column, Study


@pytest.fixture(scope="module")
def study(study_folders):
    return Study(tuple(map(read_run, study_folders)))


def lines(figure):
    return [trace for trace in figure.data if trace.showlegend is not False]


def test_curves_show_mean_band_and_seeds(study):
    column = Column("robust/pgd/accuracy")
    figure = figures.curves(study, column)
    standard = [trace for trace in figure.data if trace.legendgroup == "Standard"]
    band, points, line, ring = standard
    first, second = (record.curves[column.key] for record in study.of("standard"))
    mean = [(first[e] + second[e]) / 2 for e in range(5)]
    sd = [abs(first[e] - second[e]) / math.sqrt(2) for e in range(5)]
    assert list(line.x) == [0, 1, 2, 3, 4]
    assert list(line.y) == pytest.approx(mean)
    assert list(band.y[:5]) == pytest.approx([m + s for m, s in zip(mean, sd, strict=True)])
    assert list(band.y[5:]) == pytest.approx([m - s for m, s in zip(mean, sd, strict=True)][::-1])
    assert sorted(points.y) == pytest.approx(sorted([*first.values(), *second.values()]))
    assert list(ring.x) == [record.best for record in study.of("standard")]
    assert list(ring.y) == [record.curves[column.key][record.best] for record in study.of("standard")]
    assert line.customdata[4][0] == f"{100 * mean[4]:.1f} ± {100 * sd[4]:.1f} % (2 seeds)"


def test_one_legend_entry_per_regime_toggles_all_its_traces(study):
    figure = figures.curves(study, Column("explain/saliency/perturbation/insertion"))
    assert [trace.name for trace in lines(figure)] == ["Standard", "Adversarial", "Smoothed", "Bort"]
    assert {trace.legendgroup for trace in figure.data} == {"Standard", "Adversarial", "Smoothed", "Bort"}
    controls = [trace for trace in figure.data if trace.name.endswith("random map")]
    assert len(controls) == 4
    assert all(trace.line.dash == "dot" for trace in controls)


def test_a_regime_has_one_colour_everywhere(study):
    columns = Column("val/accuracy"), Column("explain/saliency/perturbation/difference", lead=True)
    for regime in study.regimes:
        wanted = figures.colour(study, regime)
        name = regime.capitalize()
        for figure in (figures.curves(study, columns[0]), figures.curves(study, columns[1])):
            assert next(trace for trace in lines(figure) if trace.name == name).line.color == wanted
        scatter = figures.against(study, columns[1], Column("robust/pgd/accuracy"))
        assert next(trace for trace in lines(scatter) if trace.name == name).marker.color == wanted
    assert len({figures.colour(study, regime) for regime in study.regimes}) == 4


def test_scatter_shows_each_run_at_its_last_epoch(study):
    quality, robustness = Column("explain/saliency/perturbation/difference", lead=True), study.robustness()
    figure = figures.against(study, quality, robustness)
    ends = [(x, y) for trace in lines(figure) for x, y in zip(trace.x, trace.y, strict=True)]
    assert ends == [
        (robustness.at(record), quality.at(record)) for regime in study.regimes for record in study.of(regime)
    ]
    assert relate(study, quality, robustness).n == len(ends)
    assert "standard-seed0, last epoch (4)" in lines(figure)[0].text


def test_residuals_have_a_line_per_layer_for_bort_alone(study):
    made = figures.residuals(study)
    assert list(made) == ["bort"]
    figure = made["bort"]
    low, high = figure.layout.yaxis.range
    assert all(low < value < high for trace in lines(figure) for value in trace.y)
    assert [trace.name for trace in lines(figure)] == ["0", "3", "6", "head"]


def test_a_gap_or_a_nan_leaves_the_rest_standing(study_folders, tmp_path):
    (tmp_path / "a-seed0").mkdir()
    (tmp_path / "a-seed0/metrics.csv").write_text("epoch,step,val/accuracy\n0,1,0.5\n1,2,nan\n3,4,0.7\n")
    (tmp_path / "a-seed0/status.json").write_text(json.dumps({"state": "finished"}))
    line, ring = figures.curves(Study((read_run(tmp_path / "a-seed0"),)), Column("val/accuracy")).data
    assert (list(ring.x), list(ring.y)) == ([3], [0.7])
    assert (list(line.x), list(line.y)) == ([0, 3], [0.5, 0.7])
    assert line.customdata[1][0] == "70.0 % (1 seed)"
