import csv
import json
import re

import fake_runs
import pytest

from lit_xai.study import read_run, write_report
from lit_xai.study.controls import ERRORS, duels, names, section
from lit_xai.study.findings import flags
from lit_xai.study.labels import family, inline, label
from lit_xai.study.samples import read_samples
from lit_xai.study.tables import Column, Study, table_csv

HEADER = (
    *("kind", "attribution", "control", "metric", "quantity", "better", "mean", "sd", "se", "count"),
    *("missing", "mean_correct", "count_correct", "lead", "lead_se", "control_mean"),
)
HIGHER = {"better": "higher", "low": 0, "high": 1, "median": False}
SRG = Column("explain/saliency/srg/gain")


def run(folder, numbers, samples=(), facts=HIGHER, name="a-seed0"):
    """A finished run of one epoch: its numbers by log key, and rows of its table of samples."""
    folder = folder / name
    (folder / "explanations").mkdir(parents=True)
    for file in ("provenance.json", "study.json"):
        (folder / file).write_text("{}")
    (folder / "status.json").write_text(json.dumps({"state": "finished", "epoch": 1, "epochs": 1}))
    (folder / "config.yaml").write_text("a: 1\n")
    (folder / "quantities.json").write_text(json.dumps(dict.fromkeys(numbers, facts)))
    with (folder / "metrics.csv").open("w", newline="") as stream:
        csv.writer(stream).writerows([["epoch", "step", *numbers], [0, 1, *numbers.values()]])
    with (folder / "explanations/epoch_000.csv").open("w", newline="") as stream:
        rows = [dict.fromkeys(HEADER, "") | row for row in samples]
        writer = csv.DictWriter(stream, HEADER)
        writer.writeheader()
        writer.writerows(rows)
    return read_run(folder)


def row(se, control="", attribution="saliency", missing=0, **more):
    named = {"attribution": attribution, "control": control, "metric": "srg", "quantity": "gain"}
    return named | {"se": se, "count": 50, "missing": missing} | more


def controls(random=0.1, edge=0.3, other=0.2, untrained=0.15):
    return {
        "control/random_map/srg/gain": random,
        "control/edge_map/srg/gain": edge,
        "control/other_image/saliency/srg/gain": other,
        "control/untrained/saliency/srg/gain": untrained,
    }


def test_the_random_map_is_a_control_before_it_is_an_attribution(tmp_path):
    listed = {SRG.key: 0.5, "explain/random_map/srg/gain": 0.4}
    lead = Column(SRG.key, lead=True)
    assert lead.at(run(tmp_path / "1", listed)) == pytest.approx(0.1)  # where it is the only one
    both = run(tmp_path / "2", listed | controls())
    assert lead.at(both) == pytest.approx(0.4)
    assert Study((both,)).qualities() == [lead, SRG]
    assert names(Study((both,))) == ["random_map", "edge_map", "other_image", "untrained"]


def test_a_lead_taken_image_by_image_comes_before_the_difference_of_means(tmp_path):
    record = run(tmp_path, {SRG.key: 0.5, "lead/saliency/srg/gain": 0.37} | controls())
    study = Study((record,))
    assert Column(SRG.key, lead=True).at(record) == 0.37
    assert study.qualities() == [Column(SRG.key, lead=True), SRG]


def test_controls_and_leads_are_no_columns(tmp_path):
    record = run(tmp_path, {SRG.key: 0.5, "lead/saliency/srg/gain": 0.4, "explain/samples": 64} | controls())
    study = Study((record,))
    assert {column.key for column in (*study.qualities(), *study.headline())} == {SRG.key}
    rows = list(csv.DictReader(table_csv(study).splitlines()))
    assert {row["key"] for row in rows} == {SRG.key, "explain/samples", *controls()}
    assert [row["mean"] for row in rows if row["lead_over_control"] == "1"] == ["0.4"]


def test_what_is_beaten_is_ahead_by_two_standard_errors(tmp_path):
    # 0.5 against 0.30 of the edges: ahead by 0.2, with errors 0.08 and 0.06 that make 0.1 together.
    def verdicts(name, own, edge, **more):
        samples = [row(own, **more), row(edge, "edge_map", "")]
        samples += [row(own, control) for control in ("other_image", "untrained")]
        record = run(tmp_path / name, {SRG.key: 0.5} | controls(), samples)
        return {duel.control: duel.beaten for duel in duels(Study((record,)), SRG, "a")}

    assert ERRORS == 2.0
    assert verdicts("1", 0.08, 0.0599)["edge_map"] is True
    assert verdicts("2", 0.08, 0.0601)["edge_map"] is False
    assert verdicts("3", 0.0, 0.0) == dict.fromkeys(verdicts("4", 0.0, 0.0), True)
    # Of the random map the lead of each image is known: its error counts, however far the maps spread.
    assert verdicts("5", 9.0, 0.0, lead=0.4, lead_se=0.19)["random_map"] is True
    assert verdicts("6", 0.0, 0.0, lead=0.4, lead_se=0.21)["random_map"] is False


def test_lower_can_be_better_and_a_median_needs_no_error(tmp_path):
    facts = {"better": "lower", "median": True}
    samples = [row(9.0), row(9.0, "edge_map", "")]
    record = run(tmp_path, {SRG.key: 0.25} | controls(), samples, facts)
    study = Study((record,))
    assert {duel.control: duel.beaten for duel in duels(study, SRG, "a")} == {
        "random_map": False,
        "edge_map": True,
        "other_image": False,
        "untrained": False,
    }
    [(_, [line])] = section(study, [])["tables"]["a"]["families"]
    assert line["cells"][0]["place"] == pytest.approx(25.0)  # from 0.3, the worst, to 0.1: right is better
    assert line["cells"][0]["unbeaten"] == ["random", "other image", "untrained"]


def test_every_seed_has_to_be_ahead(tmp_path):
    records = [
        run(tmp_path, {SRG.key: value} | controls(), name=f"a-seed{seed}")
        for seed, value in enumerate((0.5, 0.25))
    ]
    assert [duel.control for duel in duels(Study(tuple(records)), SRG, "a") if not duel.beaten] == [
        "edge_map"
    ]


def test_a_control_that_is_lacking_or_no_number_is_not_judged(tmp_path):
    record = run(tmp_path, {SRG.key: 0.5} | controls(edge="nan") | {"explain/saliency/gini": 0.7})
    study = Study((record,))
    assert {duel.control: duel.beaten for duel in duels(study, SRG, "a")}["edge_map"] is None
    assert duels(study, Column("explain/saliency/gini"), "a") == []
    table = section(study, [])["tables"]["a"]
    assert [name for name, _ in table["families"]] == ["Faithfulness"]  # nothing stands beside the Gini index
    assert table["won"] == [(1, 1)]
    assert section(Study((run(tmp_path / "none", {SRG.key: 0.5}),)), []) is None


def test_what_has_no_score_is_flagged_once_per_metric(tmp_path):
    other = "explain/smooth_grad/srg/gain"
    samples = [row(0.1, missing=3), row(0.1, attribution="smooth_grad", missing=2)]
    record = run(tmp_path, {SRG.key: 0.5, other: 0.4} | controls(), samples)
    raised = [flag for flag in flags(Study((record,))) if "no score" in flag.what]
    assert [flag.what for flag in raised] == ["`srg` has no score for 6.0 % of the images (saliency)"]
    assert raised[0].concerns("a", SRG)
    assert not raised[0].concerns("a", Column(other))
    [(_, [line])] = section(Study((record,)), raised)["tables"]["a"]["families"]
    assert [(cell["lost"], cell["flags"]) for cell in line["cells"]] == [
        ("6 % unscored", [1]),
        ("4 % unscored", []),
    ]


def test_the_table_of_samples_is_read_from_the_last_epoch_and_may_be_broken(tmp_path):
    record = run(tmp_path, {SRG.key: 0.5}, [row(0.1, missing=5), row("", "random_map", "")])
    assert record.samples[SRG.key].lost == 0.1
    assert set(record.samples) == {SRG.key, "control/random_map/srg/gain"}
    folder = record.folder / "explanations"
    (folder / "epoch_001.csv").write_text("kind,attribution\nscore,saliency\n")
    assert read_samples(folder) == ({}, ["explanations/epoch_001.csv cannot be read: 'control'"])
    assert any("epoch_001.csv cannot be read" in problem for problem in read_run(record.folder).problems)
    assert read_samples(tmp_path / "nowhere") == ({}, [])


@pytest.mark.parametrize(
    ("metric", "wanted", "of"),
    [
        ("srg/gain", "SRG", "Faithfulness"),
        ("srg_blur/gain", "SRG (blur)", "Faithfulness"),
        ("perturbation_mean/difference", "Difference game (mean)", "Faithfulness"),
        ("stability_near/max", "Max-sensitivity (near)", "Stability"),
        ("stability_attacked/kept", "Stability under attack, kept", "Stability"),
        ("sensitivity_n/mean", "Sensitivity-n, mean", "Faithfulness"),
        ("pointing_game/chance", "Pointing game, chance", "Localisation"),
        ("gini", "Gini index", "Complexity"),
        ("random_logit/ssim", "Map of another class, SSIM", "Randomisation"),
        ("closeness/cosine", "Closeness to its plain twin, cosine", "Alignment"),
        ("polarity/dark", "Polarity, dark", "Input bias"),
        ("of_my_own/score", "Of my own, score", "Other"),
        ("robust/gradient_norm/l2", "Input gradient, l2", "Other"),
        ("energy_mean/chance", "Energy game (mean), chance", "Localisation"),
        ("robust/of_my_own/accuracy", "Robust, of my own, accuracy", "Other"),
    ],
)
def test_labels_and_families(metric, wanted, of):
    assert label(metric) == wanted
    assert family(metric) == of


def test_abbreviations_keep_their_capitals_in_a_sentence():
    assert [inline(text) for text in ("SRG, lead", "Difference game", "")] == [
        "SRG, lead",
        "difference game",
        "",
    ]


def test_the_page_shows_a_full_menu_by_family(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1, full=True)
    page = write_report([folder], tmp_path / "report.html", "full").read_text()
    section = re.search(r'<section id="controls">.*?</section>', page, re.DOTALL)[0]
    families = ["Faithfulness", "Stability", "Complexity", "Localisation", "Randomisation", "Input bias"]
    assert re.findall(r'scope="rowgroup"[^>]*><span>([^<]+)<', section) == families
    assert section.count('<tr><th scope="row">') == sum(bool(fact[0]) for fact in fake_runs.MENU.values()) + 3
    assert "12 % unscored" in section
    assert 'href="#controls"' in page
    entries = json.loads(re.search(r'id="entries">(.*?)</script>', page, re.DOTALL)[1])
    assert {entry["family"] for entry in entries} == {*families, "Alignment"}
    assert (entries[0]["key"], entries[0]["lead"]) == ("explain/saliency/srg/gain", True)
    assert not any(entry["key"].startswith(("control/", "lead/")) for entry in entries)
