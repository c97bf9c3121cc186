"""Certificates in the report: curves, bounds, the best of several sigmas, and the table of averages."""

import json
import math

import pytest
from fake_runs import fake_run

from lit_xai.evaluation.certification import at_least
from lit_xai.evaluation.intervals import wilson
from lit_xai.study import certificates, page, read_run, write_report
from lit_xai.study.tables import Study

RADII = {"sigma-0.25": [0.0, 0.2, 0.4, 0.4, 0.8], "sigma-1": [0.0, 0.0, 0.1, 0.1, 2.0]}


@pytest.fixture(scope="module")
def study(study_folders):
    return Study(tuple(map(read_run, study_folders)))


@pytest.fixture
def folder(tmp_path):
    """A run that was certified with two noises; the last image is certified to be of a wrong class."""
    made = fake_run(tmp_path / "standard-seed0", "standard", 0)
    for name, radii in RADII.items():
        place = made / "certify" / name
        place.mkdir(parents=True)
        lines = [
            f"{k}\t7\t{7 if radius else -1}\t{radius!r}\t{int(radius > 0 and k < 4)}\t0.1\t90\t100"
            for k, radius in enumerate(radii)
        ]
        head = "idx\tlabel\tpredict\tradius\tcorrect\ttime\tcount\tsamples"
        (place / "certificates.tsv").write_text("\n".join([head, *lines]) + "\n")
        said = {"sigma": float(name[6:]), "alpha": 0.001, "votes": 400.0, "samples": 1000}
        (place / "certificates.json").write_text(json.dumps(said))
    return made


def lines(figure):
    return [trace for trace in figure.data if trace.showlegend is not False]


def test_certified_accuracy_counts_right_images_with_the_radius(study):
    figure = certificates.figure(study)
    (line,) = lines(figure)
    assert line.name == "Smoothed"
    at = list(line.x)[40]
    found = [record.certificates["certificates"].found for record in study.of("smoothed")]
    shares = [(one.correct & (one.radius >= at)).mean() for one in found]
    assert list(line.y)[40] == pytest.approx(sum(shares) / 2)
    assert all(a >= b for a, b in zip(line.y, line.y[1:], strict=False))
    assert certificates.figure(Study(study.records[:1])) is None
    assert certificates.rows(Study(study.records[:1])) == []


def test_several_sigmas_give_their_best_at_each_radius(folder):
    study = Study((read_run(folder),))
    assert study.records[0].problems == ()
    (line,) = lines(certificates.figure(study))
    curve = dict(zip(line.x, line.y, strict=True))
    assert max(curve) == pytest.approx(0.4)  # the largest radius of an image that is right
    assert curve[0.0] == pytest.approx(3 / 5)
    assert len(certificates.figure(study).data) == 1  # no bound, no interval of a choice among several
    first, second = certificates.rows(study)
    assert (first["name"], first["sigma"], first["votes"]) == ("sigma-0.25", "0.25", "400 (40 %)")
    assert first["accuracy"] == "60.0 %"
    assert first["abstained"] == "20.0 %"
    assert first["radius"].startswith("0.200 ± ")
    assert second["abstained"] == "40.0 %"


def test_one_certification_has_its_bound_and_its_intervals(folder):
    for name in ("certificates.tsv", "certificates.json"):
        (folder / "certify" / "sigma-1" / name).unlink()
    record = read_run(folder)
    assert record.problems == ("certify/sigma-1/certificates.tsv is missing: certifying has not ended",)
    band, line, dotted = certificates.figure(Study((record,))).data
    assert line.y[0] == pytest.approx(0.6)
    assert dotted.y[0] == at_least(0.6, 5, 0.001)
    low, high = wilson(3, 5)
    assert (band.y[0], band.y[-1]) == (pytest.approx(high), pytest.approx(low))


def test_what_the_probe_saw_while_training_is_drawn_over_epochs(folder):
    text = "epoch,step,val/accuracy,certified/0.25\n0,1,0.5,0.1\n1,2,0.6,0.3\n"
    (folder / "metrics.csv").write_text(text)
    study = Study((read_run(folder),))
    drawn = page.drawn(study)["certified"]
    assert [key for key, _, _ in drawn] == ["certified", "certified/0.25"]
    html = write_report([folder], folder / "report.html", title="one").read_text()
    assert 'data-figure="certified/0.25"' in html
    assert "sigma-0.25" in html


def test_what_is_broken_is_noted(folder):
    (folder / "certify" / "sigma-1" / "certificates.tsv").write_text("idx\tradius\n")
    record = read_run(folder)
    assert list(record.certificates) == ["sigma-0.25"]
    assert "sigma-1/certificates.tsv cannot be read: it lacks the column `correct`" in record.problems[0]
    assert math.isclose(record.certificates["sigma-0.25"].found.sigma, 0.25)
