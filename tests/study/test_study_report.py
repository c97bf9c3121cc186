import html.parser
import json
import re
import shutil

import fake_runs
import pytest

from lit_xai.study import read_run, write_report
from lit_xai.study.tables import Study

SKIP = re.compile(r"<script>.*?</script>", re.DOTALL)  # plotly.js itself


class Outline(html.parser.HTMLParser):
    """Ids, outside references, and whether every tag is closed."""

    VOID = ("meta", "link", "img", "br", "input")

    def __init__(self):
        super().__init__()
        self.ids, self.links, self.open = [], [], []

    def handle_starttag(self, tag, attrs):
        attrs = dict(attrs)
        if "id" in attrs:
            self.ids.append(attrs["id"])
        self.links += [attrs[name] for name in ("src", "href", "srcset", "action") if attrs.get(name)]
        if tag not in self.VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag


def outline(page):
    parser = Outline()
    parser.feed(SKIP.sub("", page))
    return parser


def data(page, name):
    return json.loads(re.search(rf'id="{name}">(.*?)</script>', page, re.DOTALL)[1])


@pytest.fixture(scope="module")
def page(study_folders, tmp_path_factory):
    out = tmp_path_factory.mktemp("page") / "report.html"
    assert write_report(study_folders, out, "digits") == out
    assert [path.name for path in sorted(out.parent.iterdir())] == ["report.html", "table.csv"]
    return out.read_text()


def test_the_page_is_whole_and_asks_for_nothing(page):
    seen = outline(page)
    assert seen.open == []
    assert len(seen.ids) == len(set(seen.ids))
    assert all(link.startswith(("data:", "#")) for link in seen.links)
    assert all(link[1:] in seen.ids for link in seen.links if link.startswith("#"))
    assert "default-src 'none'" in page
    assert "http" not in SKIP.sub("", page).replace("http-equiv", "")
    assert page.count("plotly.js v") == 1


def test_every_section_is_there(page):
    wanted = ["numbers", "accuracy", "explanations", "relation", "gallery", "certified", "bort", "flags"]
    wanted += ["runs", "provenance"]
    assert [name for name in outline(page).ids if name in wanted] == wanted
    assert "Adversarial training has the highest robust accuracy" in page
    assert "1 of 2" not in page
    assert page.count("model.objective.class_path") == 1
    assert page.count("<pre>seed_everything") == 8


def test_every_metric_and_attribution_can_be_chosen(page, study_folders):
    entries, figures = data(page, "entries"), data(page, "figures")
    study = Study(tuple(map(read_run, study_folders)))
    keys = {
        key
        for key in study.log_keys
        if key.startswith("explain/") and "/flag/" not in key and "/random_map/" not in key
    }
    assert {entry["key"] for entry in entries} == keys
    assert (entries[0]["key"], entries[0]["lead"]) == ("explain/saliency/perturbation/difference", True)
    for entry in entries:
        assert f"curve:{entry['id']}" in figures
        assert f"against:{entry['id']}" in figures
        assert "Descriptive only" in entry["note"]
    drawn = re.findall(r'data-figure="([^"]+)"', page)
    assert set(drawn) <= set(figures)
    shown = re.findall(r'data-show="([^"]+)"', page)
    assert set(shown) <= {entry["id"] for entry in entries}


def test_figures_are_valid_json_without_nan(page):
    text = re.search(r'id="figures">(.*?)</script>', page, re.DOTALL)[1]
    json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} is no JSON"))


def test_text_from_files_cannot_become_markup(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "a-seed0", "standard", epochs=2, state="failed", images=1)
    status = json.loads((folder / "status.json").read_text())
    (folder / "status.json").write_text(json.dumps(status | {"error": "</td><script>alert(1)</script>"}))
    (folder / "config.yaml").write_text("a: </pre><script>alert(2)</script>\n")
    (folder / "metrics.csv").write_text("epoch,step,explain/</script><b>/gini\n0,1,0.5\n")
    page = write_report([folder], tmp_path / "r.html", "<i>title</i>").read_text()
    assert "<script>alert" not in page
    assert "<i>title" not in page
    assert "</script><b>" not in page
    assert outline(page).open == []


def test_a_single_run_has_a_report_of_its_own(study_folders, tmp_path):
    page = write_report([study_folders[1]], tmp_path / "report.html", "one").read_text()
    assert "One run: there is no spread over seeds." in page
    assert 'id="relation"' not in page
    assert 'id="gallery"' in page
    assert not (tmp_path / "table.csv").exists()
    assert outline(page).open == []


def test_failed_missing_and_broken_runs_are_listed(study_folders, tmp_path):
    folders = [shutil.copytree(folder, tmp_path / folder.name) for folder in study_folders]
    fake_runs.fake_run(folders[0], "standard", 0, epochs=5, state="failed", stop=2, images=4)
    shutil.rmtree(folders[1])
    (folders[2] / "metrics.csv").write_text("nonsense")
    (folders[3] / "quantities.json").unlink()
    page = write_report(folders, tmp_path / "report.html", "broken").read_text()
    assert "RuntimeError: the loss is not finite (nan) in epoch 3" in page
    assert "adversarial-seed0 (missing)" in page
    assert "metrics.csv cannot be read" in page
    assert "bort-seed0: quantities.json is missing" in page
    assert outline(page).open == []


@pytest.mark.parametrize("count", [1, 3])
def test_nothing_at_all_is_a_page_too(tmp_path, count):
    page = write_report(
        [tmp_path / f"a-seed{k}" for k in range(count)], tmp_path / "r.html", "empty"
    ).read_text()
    assert "There are no numbers yet." in page
    assert outline(page).open == []


def test_the_report_is_replaced_in_one_piece(study_folders, tmp_path, monkeypatch):
    out = tmp_path / "report.html"
    out.write_text("the old one")

    def fail(*args):
        raise RuntimeError("in the middle")

    monkeypatch.setattr("lit_xai.study.report.gallery.gallery", fail)
    with pytest.raises(RuntimeError, match="in the middle"):
        write_report(study_folders[:1], out, "x")
    assert out.read_text() == "the old one"
