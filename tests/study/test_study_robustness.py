"""The report's section on final evaluations: read, drawn, said aloud; broken files are noted."""

import csv
import io
import json
import re

import fake_evaluations as fake
import fake_runs
import pytest
import torch
from rich.console import Console
from test_study_report import data, outline
from torch import nn

from lit_xai.attacks import DDN, FGSM, LinfPGD
from lit_xai.attacks.autoattack import Members
from lit_xai.evaluation import Evaluation, conclude
from lit_xai.study import find_runs, print_table, read_run, write_report
from lit_xai.study import robustness as section
from lit_xai.study.findings import flags, sentences
from lit_xai.study.page import numbers
from lit_xai.study.tables import Column, Study, table_csv

FINAL = Column("attack/standard/accuracy")


def folders(tmp_path, suspicious=(), regimes=("standard", "adversarial"), **run):
    made = fake_runs.fake_study(tmp_path, regimes=regimes, epochs=3, images=1, **run)
    for folder in made:
        regime, _, seed = folder.name.partition("-seed")
        fake.fake_evaluation(folder, regime=regime, seed=int(seed), suspicious=folder.name in suspicious)
    return made


def read(made):
    return Study(tuple(map(read_run, made)))


def lines(figure):
    return [trace for trace in figure.data if trace.showlegend is not False]


def test_a_summary_full_of_holes_is_a_page_too(tmp_path):
    holes = dict.fromkeys(("robust", "clean", "members", "curve", "norm", "epsilon", "images"))
    made = folders(tmp_path, seeds=(0,))
    for folder in made:
        fake.fake_evaluation(folder, content=fake.summary() | holes)
    for chosen in (made, made[:1]):
        page = write_report(chosen, tmp_path / "r.html", "x").read_text()
        assert outline(page).open == []
        assert "attack/standard/summary.json: `robust` is missing" in page


def test_the_final_number_is_a_column_beside_the_others(tmp_path):
    study = read(folders(tmp_path))
    assert FINAL in study.headline()
    cell = study.cell(FINAL, "adversarial")
    assert list(cell.values) == [fake.summary("adversarial", seed)["robust"]["accuracy"] for seed in (0, 1)]
    assert study.cell(FINAL, "adversarial", "best") == cell
    assert FINAL.label == "Final robust accuracy (standard)"
    rows = [row for row in csv.DictReader(io.StringIO(table_csv(study))) if row["key"] == FINAL.key]
    assert [(row["regime"], row["at"]) for row in rows] == [
        (regime, at) for regime in ("standard", "adversarial") for at in ("last", "best")
    ]
    assert sentences(study)[0].startswith(
        "Adversarial training has the highest final robust accuracy (standard)"
    )
    out = io.StringIO()
    print_table([record.folder for record in study.records], Console(file=out, width=200))
    assert cell.show(FINAL) in out.getvalue()


def test_one_run_is_drawn_with_its_intervals(tmp_path):
    study = read(folders(tmp_path)[:1])
    one = study.records[0].evaluations[0]
    (bars,) = section.ladder(study, "standard").data
    assert list(bars.y) == [one.clean.value, *(member.standing.value for member in one.members)]
    last = one.members[-1].standing
    assert bars.y[-1] + bars.error_y.array[-1] == pytest.approx(last.high)
    assert bars.y[-1] - bars.error_y.arrayminus[-1] == pytest.approx(last.low)
    band, line = section.over_epsilon(study, "standard").data
    assert (line.x[0], line.y[0]) == (0.0, one.distances.accuracy[0.0].value)
    assert band.y[0] == one.distances.accuracy[0.0].high
    assert sentences(study)[1] == (
        f"Final robust accuracy, standard: {one.robust.text} (95 % interval {one.robust.interval}), "
        f"of {one.clean.text} clean; l∞ within 8/255, 1,000 images of test."
    )


def test_many_runs_are_drawn_by_regime(tmp_path):
    study = read(folders(tmp_path))
    figure = section.ladder(study, "standard")
    assert [trace.name for trace in lines(figure)] == ["Standard", "Adversarial"]
    assert list(figure.layout.xaxis.ticktext) == ["clean", *fake.MEMBERS]
    mean = study.cell(FINAL, "standard").mean
    assert lines(figure)[0].y[-1] == pytest.approx(mean)
    curve = lines(section.over_epsilon(study, "standard"))[1]
    ones = [record.evaluations[0].distances for record in study.of("adversarial")]
    at = list(curve.x)[40]
    assert curve.y[40] == pytest.approx(sum(one.at(at) for one in ones) / 2)
    (first, second) = section.rows(study, "standard")
    assert (first["seeds"], first["failed"], first["checks"]) == ("2 of 2", 0, 8)
    assert second["robust"] == study.cell(FINAL, "adversarial").show(FINAL)


def test_a_suspicious_result_is_said_first_and_aloud(tmp_path):
    made = folders(tmp_path, suspicious=("adversarial-seed0",), seeds=(0,))
    study = read(made)
    first = flags(study)[0]
    doubt = "no gradient masking: Square, which sees no gradient, fools 4.1 points more."
    assert first.what == f"adversarial-seed0: the evaluation standard is suspicious ({doubt})"
    assert first.concerns("adversarial", FINAL)
    assert not first.concerns("standard", FINAL)
    page = write_report(made, tmp_path / "report.html", "x").read_text()
    assert page.index("Not to be believed as it stands") < page.index('class="lead"')
    assert f"<li>adversarial-seed0, standard: {doubt}</li>" in page
    assert "<b>✗</b>" in page
    assert section.alarms(read(made[:1])) == []
    assert sentences(study)[0].endswith(" Not to be believed yet: an evaluation among them is suspicious.")
    assert sentences(read(made[1:]))[1].endswith(" Not to be believed yet: the evaluation is suspicious.")
    out = io.StringIO()
    print_table(made, Console(file=out, width=200))
    assert "! adversarial-seed0: the evaluation standard is suspicious" in out.getvalue()


def test_a_failed_check_is_a_flag_even_where_nothing_else_says_so(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1)
    gates = [{"name": "norms", "passed": False, "said": "One is 0.2."}]
    fake.fake_evaluation(folder, content=fake.summary() | {"gates": gates})
    (flag,) = flags(read([folder]))
    assert (
        flag.what
        == "standard-seed0: the evaluation standard did not pass all its checks (norms: One is 0.2.)"
    )
    fake.fake_evaluation(folder, content=fake.summary() | {"gates": [], "suspicious": True})
    assert "(marked as suspicious)" in flags(read([folder]))[0].what


@pytest.mark.parametrize("count", [1, 2])
def test_the_section_is_whole(tmp_path, count):
    made = folders(tmp_path, seeds=(0,))[:count]
    fake.fake_evaluation(made[0], "quick")
    page = write_report(made, tmp_path / "r.html", "x").read_text()
    seen = outline(page)
    assert seen.open == []
    assert seen.ids.index("accuracy") < seen.ids.index("robustness") < seen.ids.index("explanations")
    drawn = re.findall(r'data-figure="([^"]+)"', page)
    wanted = {f"{kind}:{name}" for kind in ("ladder", "distance") for name in ("standard", "quick")}
    assert wanted <= set(drawn) <= set(data(page, "figures"))
    assert page.count("<h3>Checks</h3>") == page.count("<h3>Settings</h3>") == count + 1


def test_a_network_of_ones_own_has_a_page_without_a_run(tmp_path):
    folder = tmp_path / "net"
    fake.fake_evaluation(folder)
    assert find_runs(folder) == find_runs(tmp_path) == [folder]
    record = read_run(folder)
    assert (record.state, record.problems) == ("evaluated", ())
    assert flags(Study((record,))) == []
    page = write_report([folder], tmp_path / "r.html", "net").read_text()
    assert outline(page).open == []
    assert {"accuracy", "gallery", "explanations"}.isdisjoint(outline(page).ids)
    assert record.evaluations[0].robust.text in page


def test_text_of_a_summary_cannot_become_markup(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1)
    evil = "</td><script>alert(1)</script>"
    content = fake.summary(suspicious=True) | {"model": evil, "split": evil}
    content["gates"][2] |= {"name": evil, "said": evil}
    content["members"][0] |= {"name": evil, "attack": evil}
    fake.fake_evaluation(folder, content=content)
    page = write_report([folder], tmp_path / "r.html", "x").read_text()
    assert "<script>alert" not in page
    assert outline(page).open == []


def test_accuracy_over_epsilon_while_training_is_one_figure(tmp_path):
    (tmp_path / "a-seed0").mkdir()
    head = "epoch,step,val/accuracy,robust/curve/at_0.25,robust/curve/at_1,robust/curve/at_1e-05\n"
    (tmp_path / "a-seed0/metrics.csv").write_text(f"{head}0,1,0.9,0.8,0.5,0.9\n1,2,0.7,0.6,0.2,0.7\n")
    (tmp_path / "a-seed0/status.json").write_text(json.dumps({"state": "finished"}))
    study = read([tmp_path / "a-seed0"])
    ((name, _, figure),) = section.levels(study)
    assert name == "levels:robust/curve"
    last, best = lines(figure)
    assert (list(last.x), list(last.y)) == ([1e-05, 0.25, 1.0], [0.7, 0.6, 0.2])
    assert (list(best.y), best.line.dash) == ([0.9, 0.8, 0.5], "dash")
    assert Column("robust/curve/at_0.25").percent
    page = write_report([tmp_path / "a-seed0"], tmp_path / "r.html", "x").read_text()
    drawn = re.findall(r'data-figure="([^"]+)"', page)
    assert "levels:robust/curve" in drawn
    assert not any(id.startswith("robust/curve") for id in drawn)


def test_a_collapse_and_an_early_end_are_told(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=3, images=1)
    text = (folder / "metrics.csv").read_text().splitlines()
    (folder / "metrics.csv").write_text(
        "\n".join([f"{text[0]},guard/collapse", *(f"{row},{int(int(row[0]) > 0)}" for row in text[1:])])
    )
    assert flags(read([folder]))[0].what == "standard-seed0: robustness collapsed at epoch 1"
    notes = ["robustness collapsed at epoch 1: it fell; stopped", "stopped at epoch 1: <no> gain"]
    status = json.loads((folder / "status.json").read_text()) | {"notes": notes}
    (folder / "status.json").write_text(json.dumps(status))
    study = read([folder])
    (flag,) = flags(study)
    assert flag.what == f"standard-seed0: {notes[0]}"
    assert flag.concerns("standard", Column("robust/pgd/accuracy"))
    page = write_report([folder], tmp_path / "r.html", "x").read_text()
    assert "stopped at epoch 1: &lt;no&gt; gain" in page


def test_gradients_that_vanish_are_a_flag(tmp_path):
    for seed, share in enumerate((0.0, 0.25)):
        folder = tmp_path / f"a-seed{seed}"
        folder.mkdir()
        (folder / "metrics.csv").write_text(f"epoch,step,robust/masking/zero\n0,1,{share}\n")
        (folder / "status.json").write_text(json.dumps({"state": "finished"}))
    flag = flags(read([tmp_path / "a-seed0", tmp_path / "a-seed1"]))[0]
    assert flag.what == "`robust/masking/zero`: up to 25.0 % of the images have no input gradient in a-seed1"
    assert flag.concerns("a", Column("robust/pgd/accuracy"))
    assert not any("gradient" in flag.what for flag in flags(read([tmp_path / "a-seed0"])))


def test_what_an_evaluation_writes_is_what_the_page_reads(tmp_path):
    torch.manual_seed(0)
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 4)).eval()
    images = torch.rand(12, 1, 4, 4)
    labels = net(images).argmax(1)
    suite = Members(0.1, {"fgsm": FGSM(0.1), "pgd": LinfPGD(0.1, 3)})
    place = tmp_path / "attack" / "quick"
    evaluation = Evaluation(suite, search=DDN(steps=5), probe=4, name="quick")
    evaluation(net, lambda ids: (images[list(ids)], labels[list(ids)]), range(12), place)
    summary = conclude(place)
    record = read_run(tmp_path)
    assert record.problems == ()
    (one,) = record.evaluations
    assert (one.robust.value, one.suspicious) == (summary["robust"]["accuracy"], summary["suspicious"])
    assert [member.name for member in one.members] == ["fgsm", "pgd"]
    assert len(one.gates) == len(summary["gates"])
    assert one.distances.norm == "l2"
    assert outline(write_report([tmp_path], tmp_path / "r.html", "x").read_text()).open == []


NOWHERE = {"search": "DDN()", "norm": "l2", "epsilons": [0.0] * 3, "accuracy": [0.9] * 3, "median": None}


def test_a_search_that_found_nothing_has_no_curve_and_no_mean(tmp_path):
    made = folders(tmp_path, regimes=("standard",))
    fake.fake_evaluation(made[1], content=fake.summary() | {"curve": NOWHERE})
    study = read(made)
    near = study.records[0].evaluations[0].distances.median
    (row,) = section.rows(study, "standard")
    assert row["median"] == f"{section.distance(near)}, 1 of 2 beyond the search"
    assert section.over_epsilon(read(made[1:]), "standard") is None
    assert section.rows(read([made[1], made[1]]), "standard")[0]["median"] == "beyond the search"


def test_runs_of_one_name_all_count(tmp_path):
    made = [folders(tmp_path / place, seeds=(0,), regimes=("standard",))[0] for place in "ab"]
    fake.fake_evaluation(made[1], seed=7)
    study = read(made)
    (row,) = section.rows(study, "standard")
    assert row["seeds"] == "2 of 2"
    assert row["robust"] == study.cell(FINAL, "standard").show(FINAL)
    (line,) = lines(section.ladder(study, "standard"))
    assert line.y[-1] == pytest.approx(study.cell(FINAL, "standard").mean)


def test_networks_of_ones_own_are_not_said_to_train(tmp_path):
    made = [tmp_path / "one", tmp_path / "two"]
    for folder in made:
        fake.fake_evaluation(folder)
    assert numbers(read(made)) == [("regimes", "2")]
    assert (
        "All numbers are in <code>summary.json</code>"
        in write_report(made[:1], tmp_path / "r.html", "x").read_text()
    )


def test_odd_text_is_text(tmp_path):
    folder = tmp_path / "net"
    content = fake.summary() | {"images": "²", "model": "\ud800"}
    content["members"][0]["name"] = "<b>&</b>"
    fake.fake_evaluation(folder, content=content)
    study = read([folder])
    ticks = section.ladder(study, "standard").layout.xaxis.ticktext
    assert ticks[1].startswith("&lt;b&gt;&amp;&lt;/b&gt;<br><b>")
    assert study.records[0].evaluations[0].what == "l∞ within 8/255"
    assert outline(write_report([folder], tmp_path / "r.html", "x").read_text()).open == []
