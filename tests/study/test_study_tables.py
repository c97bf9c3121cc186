import csv
import io
import json
import math
import statistics

import fake_runs
import numpy as np
import pytest
import scipy.stats
from hypothesis import given, settings
from hypothesis import strategies as st
from rich.console import Console

from lit_xai.study import find_runs, print_table, read_run
from lit_xai.study.findings import flags, sentences
from lit_xai.study.relation import relate, spearman
from lit_xai.study.tables import Cell, Column, Study, clear_winner, decimals, table_csv

LEAD = Column("explain/saliency/perturbation/difference", lead=True)


def run_folder(folder, metrics, state="finished", facts=None, seed=None, regime=None):
    folder.mkdir(parents=True)
    (folder / "metrics.csv").write_text(metrics)
    (folder / "status.json").write_text(json.dumps({"state": state, "epoch": 2, "epochs": 2, "error": None}))
    (folder / "quantities.json").write_text(json.dumps(facts or {}))
    (folder / "provenance.json").write_text("{}")
    (folder / "config.yaml").write_text("a: 1\n")
    if regime:
        (folder / "study.json").write_text(json.dumps({"regime": regime, "seed": seed}))
    return folder


def two_by_two(tmp_path, robust=((0.2, 0.3), (0.8, 0.6)), quality=((0.1, 0.2), (0.5, 0.3))):
    """Two regimes, two seeds, one epoch: robust accuracy and a deletion score, its control at 0.6."""
    facts = {"explain/saliency/deletion": {"better": "lower", "low": 0, "high": 1, "median": False}}
    facts["robust/pgd/accuracy"] = {"better": "higher", "low": 0, "high": 1, "median": False}
    folders = []
    for regime, xs, ys in zip("ab", robust, quality, strict=True):
        for seed, (x, y) in enumerate(zip(xs, ys, strict=True)):
            head = "epoch,step,robust/pgd/accuracy,explain/saliency/deletion,explain/random_map/deletion\n"
            folder = tmp_path / f"{regime}-seed{seed}"
            folders.append(run_folder(folder, f"{head}0,9,{x},{0.6 - y},0.6\n", facts=facts))
    return Study(tuple(map(read_run, folders)))


def test_the_last_value_of_an_epoch_counts_and_empty_cells_do_not(tmp_path):
    text = (
        "epoch,step,train/loss,val/accuracy\n"
        "0,10,2.0,\n0,10,,0.5\n1,20,1.0,\n1,20,,0.6\n"  # first attempt
        "1,20,0.9,\n1,20,,0.7\n2,30,0.5,\n2,30,,nan\n"  # resumed from epoch 1
    )
    record = read_run(run_folder(tmp_path / "a-seed3", text))
    assert record.curves["train/loss"] == {0: 2.0, 1: 0.9, 2: 0.5}
    assert {k: v for k, v in record.curves["val/accuracy"].items() if k < 2} == {0: 0.5, 1: 0.7}
    assert math.isnan(record.curves["val/accuracy"][2])
    assert (record.regime, record.seed, record.last, record.best) == ("a", 3, 2, 1)
    assert record.problems == ()


def test_a_header_written_again_and_a_torn_line_do_no_harm(tmp_path):
    text = "epoch,step,val/accuracy\n0,1,0.5\nepoch,step,val/accuracy\n1,2,0.6\n2,3\n"
    record = read_run(run_folder(tmp_path / "a-seed0", text))
    assert record.curves == {"val/accuracy": {0: 0.5, 1: 0.6}}
    assert record.problems == ("metrics.csv: line 5 has 2 cells, not 3: left out",)


@pytest.mark.parametrize(
    ("file", "content", "problem"),
    [
        ("metrics.csv", b"", "metrics.csv cannot be read"),
        ("metrics.csv", b"\xff\xfe\x00", "metrics.csv cannot be read"),
        ("metrics.csv", b"epoch,step,a\nx,1,2\n", "line 2 has no epoch"),
        ("metrics.csv", b"epoch,step,a\n0,1,high\n", "line 2, `a` is not a number: 'high'"),
        ("metrics.csv", None, "metrics.csv is missing"),
        ("status.json", b"{", "status.json cannot be read"),
        ("status.json", b"[]", "status.json cannot be read: it does not hold a JSON object"),
        ("status.json", b'{"state": "odd"}', "unknown state 'odd'"),
        ("quantities.json", b'{"a": 3}', "quantities.json cannot be read"),
        ("provenance.json", None, "provenance.json is missing"),
        (
            "certificates.tsv",
            b"idx\tradius\n",
            "certificates.tsv cannot be read: it lacks the column `correct`",
        ),
    ],
)
def test_broken_files_are_noted_and_nothing_crashes(tmp_path, file, content, problem):
    folder = run_folder(tmp_path / "a-seed0", "epoch,step,val/accuracy\n0,1,0.5\n")
    (folder / file).unlink(missing_ok=True)
    if content is not None:
        (folder / file).write_bytes(content)
    record = read_run(folder)
    assert any(problem in note for note in record.problems)
    study = Study((record, read_run(tmp_path / "none-seed0")))
    assert study.records[1].state == "missing"
    flags(study), sentences(study), table_csv(study)


def test_lead_is_signed_so_that_more_is_better(tmp_path):
    study = two_by_two(tmp_path)
    column = Column("explain/saliency/deletion", lead=True)
    assert column.at(study.records[0]) == pytest.approx(0.1)  # deletion 0.5 against 0.6: lower is better
    assert column.fact(study.used).better == "higher"
    assert study.qualities() == [column, Column("explain/saliency/deletion")]


def test_mean_and_spread_are_over_seeds(tmp_path):
    study = two_by_two(tmp_path)
    cell = study.cell(Column("robust/pgd/accuracy"), "b")
    assert (cell.mean, cell.sd) == (pytest.approx(0.7), pytest.approx(statistics.stdev([0.8, 0.6])))
    assert cell.show(Column("robust/pgd/accuracy")) == "70.0 ± 14.1 %"
    assert Cell((0.5,)).show(LEAD) == "0.500"
    assert Cell((0.5, math.nan)).finite == [0.5]
    assert Cell(()).show(LEAD) == "—"
    assert Cell((math.nan,)).show(LEAD) == "nan"


def test_a_winner_needs_every_seed(tmp_path):
    column = Column("robust/pgd/accuracy")
    assert clear_winner(two_by_two(tmp_path / "1"), column, ["a", "b"]) == "b"
    overlapping = two_by_two(tmp_path / "2", robust=((0.2, 0.7), (0.8, 0.6)))
    assert clear_winner(overlapping, column, ["a", "b"]) is None
    lower = two_by_two(tmp_path / "3", quality=((0.1, 0.2), (0.5, 0.3)))
    assert clear_winner(lower, Column("explain/saliency/deletion"), ["a", "b"]) == "b"


def test_only_finished_runs_count(tmp_path):
    folders = fake_runs.fake_study(tmp_path, regimes=("standard", "bort"), epochs=3, images=1)
    fake_runs.fake_run(folders[3], "bort", 1, epochs=3, state="failed", stop=1, images=1)
    study = Study(tuple(map(read_run, folders)))
    assert [record.name for record in study.of("bort")] == ["bort-seed0"]
    raised = [flag.what for flag in flags(study)]
    assert "Bort: 1 of 2 runs count, without bort-seed1 (failed)" in raised
    assert "One seed only: Bort" in raised
    unfinished = Study(tuple(read_run(folder) for folder in folders[3:]))
    assert len(unfinished.used) == 1
    assert flags(unfinished)[0].what == "No run has finished"


@given(
    st.lists(st.tuples(st.integers(0, 6), st.integers(0, 6)), min_size=3, max_size=12).filter(
        lambda pairs: all(len(set(column)) > 1 for column in zip(*pairs, strict=True))
    )
)
@settings(max_examples=60, deadline=None)
def test_spearman_agrees_with_scipy(pairs):
    x, y = np.array(pairs, dtype=float).T
    assert float(spearman(x, y)) == pytest.approx(float(scipy.stats.spearmanr(x, y).statistic), abs=1e-12)


def test_spearman_without_variation_is_nan():
    assert np.isnan(spearman(np.ones((2, 4)), np.arange(8.0).reshape(2, 4))).all()


def test_relation_of_four_runs_by_hand(tmp_path):
    # Ranks of robust accuracy 1 2 4 3, of the lead 1 2 4 3: rho = 1. Draws keep one run of each regime at
    # least, and all of b lie above all of a: whatever is drawn, the ranks agree.
    relation = relate(
        two_by_two(tmp_path), Column("explain/saliency/deletion", lead=True), Column("robust/pgd/accuracy")
    )
    assert (relation.rho, relation.low, relation.high, relation.n) == (1.0, 1.0, 1.0, 4)
    assert relation.descriptive
    assert "Descriptive only: fewer than 10 runs" in relation.show()
    plain = relate(
        two_by_two(tmp_path / "x"), Column("explain/saliency/deletion"), Column("robust/pgd/accuracy")
    )
    assert plain.rho == 1.0  # lower deletion is better: the sign follows the direction, not the number


def test_bootstrap_draws_inside_regimes(tmp_path):
    # Within each regime quality falls with robustness, between the regimes it rises. Of the draws 1/16 have
    # four different-looking shapes; the enumeration over all 16 equally likely draws gives the quantiles.
    study = two_by_two(tmp_path, robust=((0.1, 0.2), (0.5, 0.6)), quality=((0.2, 0.1), (0.4, 0.3)))
    relation = relate(study, Column("explain/saliency/deletion", lead=True), Column("robust/pgd/accuracy"))
    points = np.array([[0.1, 0.2], [0.2, 0.1], [0.5, 0.4], [0.6, 0.3]])
    every = [[i, j, k, m] for i in (0, 1) for j in (0, 1) for k in (2, 3) for m in (2, 3)]
    rhos = [scipy.stats.spearmanr(points[draw]).statistic for draw in every]
    assert relation.rho == pytest.approx(0.6)
    assert (relation.low, relation.high) == (pytest.approx(min(rhos)), pytest.approx(max(rhos)))
    assert sentences(study)[0].startswith(
        "B training has the highest robust accuracy, 55.0 ± 7.1 %, every seed above"
    )


def test_relation_without_seeds_has_no_interval(tmp_path):
    study = two_by_two(tmp_path)
    one_each = Study(tuple(record for record in study.records if record.seed == 0))
    relation = relate(one_each, Column("explain/saliency/deletion"), Column("robust/pgd/accuracy"))
    assert relation.n == 2
    assert math.isnan(relation.rho)
    assert "No rank correlation: 2 runs" in relation.show()


def test_flags_of_numbers(tmp_path):
    study = two_by_two(tmp_path, robust=((0.2, math.nan), (1.4, 0.6)))
    raised = {flag.what: flag for flag in flags(study)}
    lost = raised["`robust/pgd/accuracy` is no finite number in a-seed1"]
    assert "`robust/pgd/accuracy` lies outside 0 to 1 in b-seed0" in raised
    assert lost.concerns("a", Column("robust/pgd/accuracy"))
    assert not lost.concerns("b", Column("robust/pgd/accuracy"))


def test_an_attack_that_does_nothing_is_flagged(tmp_path):
    head = "epoch,step,val/accuracy,robust/pgd/accuracy\n"
    strange = read_run(run_folder(tmp_path / "a-seed0", head + "0,1,0.90,0.95\n"))
    sound = read_run(run_folder(tmp_path / "b-seed0", head + "0,1,0.90,0.91\n"))
    what = [flag.what for flag in flags(Study((strange, sound)))]
    assert [line for line in what if "above clean" in line] == [
        "a-seed0: robust accuracy 95.0 % lies above clean 90.0 %"
    ]


def test_flags_of_maps_and_versions(study_folders, tmp_path):
    study = Study(tuple(map(read_run, study_folders)))
    what = [flag.what for flag in flags(study)]
    assert what == [
        "Adversarial, boundary saliency: 8.0 % of the images got no boundary point",
        "Adversarial, boundary integrated gradients: 8.0 % of the images got no boundary point",
    ]
    folder = fake_runs.fake_run(tmp_path / "standard-seed9", "standard", 9, epochs=5, images=1)
    provenance = json.loads((folder / "provenance.json").read_text())
    provenance["versions"]["torch"] = "2.11.0"
    (folder / "provenance.json").write_text(json.dumps(provenance))
    mixed = Study((*study.records, read_run(folder)))
    assert "Runs differ in versions (torch)" in [flag.what for flag in flags(mixed)]


def test_csv_holds_every_number(study_folders):
    study = Study(tuple(map(read_run, study_folders)))
    rows = list(csv.DictReader(io.StringIO(table_csv(study))))
    row = next(r for r in rows if (r["regime"], r["key"], r["at"]) == ("bort", "robust/pgd/accuracy", "last"))
    values = [record.curves["robust/pgd/accuracy"][4] for record in study.of("bort")]
    assert (row["n"], row["better"]) == ("2", "higher")
    assert float(row["mean"]) == pytest.approx(statistics.fmean(values), rel=1e-8)
    assert float(row["sd"]) == pytest.approx(statistics.stdev(values), rel=1e-8)
    keys = {key for record in study.used for key in record.curves}
    assert keys <= {r["key"] for r in rows}


@pytest.mark.parametrize("width", [70, 200])
def test_table_fits_the_terminal_and_marks_flags(study_folders, width):
    console = Console(file=io.StringIO(), width=width, force_terminal=True, color_system=None)
    print_table(study_folders, console)
    text = console.file.getvalue()
    assert all(word in text for word in ("Standard", "Adversarial", "Smoothed", "Bort", "2 of 2"))
    assert "0.8" in text
    assert "…" not in text
    assert " !" in text


def test_table_is_never_cut_without_a_terminal(study_folders):
    console = Console(file=io.StringIO(), width=40)
    print_table(study_folders, console)
    lines = console.file.getvalue().splitlines()
    row = next(line for line in lines if line.startswith("Adversarial "))
    assert row.count("±") == 5
    assert "…" not in row


def test_find_runs_keeps_the_order_of_the_plan(tmp_path):
    for order, name in enumerate(["b-seed0", "a-seed0"]):
        folder = run_folder(tmp_path / name, "epoch,step,val/accuracy\n0,1,0.5\n")
        (folder / "study.json").write_text(json.dumps({"order": order, "regime": name[0], "seed": 0}))
    run_folder(tmp_path / "0-seed0", "epoch,step,val/accuracy\n0,1,0.5\n")
    assert [folder.name for folder in find_runs(tmp_path)] == ["b-seed0", "a-seed0", "0-seed0"]
    assert find_runs(tmp_path / "a-seed0") == [tmp_path / "a-seed0"]


@pytest.mark.parametrize(
    ("mean", "sd", "digits"),
    [(0.612, 0.0123, 3), (12.3, 0.05, 1), (0.6, 0.2, 2), (0.001, 0.5, 2), (0.0, 0.0, 2)],
)
def test_decimals(mean, sd, digits):
    assert decimals(mean, sd) == digits
