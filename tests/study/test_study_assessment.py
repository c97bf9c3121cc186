"""What is read of a summary, and what is noted where it is broken."""

import math

import fake_evaluations as fake
import fake_runs
import pytest

from lit_xai.study import read_run
from lit_xai.study import robustness as section
from lit_xai.study.assessment import Distances, Share, parse
from lit_xai.study.tables import Study


def test_a_summary_is_read_whole(tmp_path):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1)
    fake.fake_evaluation(folder)
    record = read_run(folder)
    (one,), content = record.evaluations, fake.summary("standard", 0)
    assert record.problems == ()
    assert (one.name, one.norm, one.budget) == ("standard", "l∞", "8/255")
    assert one.epsilon == pytest.approx(8 / 255)
    assert one.robust == Share(*(content["robust"][key] for key in ("accuracy", "low", "high")))
    assert [member.name for member in one.members] == list(fake.MEMBERS)
    assert one.members[2].counts["fooled"] == content["members"][2]["fooled"]
    assert [gate.mark for gate in one.gates] == ["✓", "✓", "✓", "✓", "\N{EN DASH}"]
    assert one.distances.accuracy[0.0].value == content["curve"]["accuracy"][0]
    assert one.what == "l∞ within 8/255, 1,000 images of test"
    assert record.finals == {"attack/standard/accuracy": content["robust"]["accuracy"]}


@pytest.mark.parametrize(
    ("change", "problem"),
    [
        ({"robust": None}, "`robust` is missing"),
        ({"robust": {"accuracy": 1.5}}, "`robust` cannot be read: \"{'accuracy': 1.5}\""),
        ({"robust": {"accuracy": math.nan}}, "`robust` cannot be read"),
        ({"clean": 0.9}, "`clean` cannot be read: '0.9'"),
        ({"members": [{"name": "pgd"}]}, "`members` cannot be read"),
        ({"members": 3}, "`members` cannot be read: '3'"),
        ({"gates": [{"name": "a", "passed": "yes"}]}, "`gates` cannot be read"),
        ({"suspicious": "no"}, "`suspicious` cannot be read: 'no'"),
        ({"epsilon": "8/255"}, "`epsilon` cannot be read"),
        ({"curve": {"epsilons": [0, 1], "accuracy": [1.0]}}, "`curve` cannot be read"),
        ({"curve": {"epsilons": [], "accuracy": []}}, "`curve` cannot be read"),
        ({"epsilon": 10**400}, "`epsilon` cannot be read"),
    ],
)
def test_a_broken_part_is_noted_and_the_rest_stays(tmp_path, change, problem):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1)
    fake.fake_evaluation(folder, content=fake.summary() | change)
    record = read_run(folder)
    (said,) = record.problems
    assert said.startswith(f"attack/standard/summary.json: {problem}")
    assert len(record.evaluations) == 1


@pytest.mark.parametrize("text", [None, "", "{", "[]", "\x00"])
def test_a_file_that_is_none_is_noted(tmp_path, text):
    folder = fake_runs.fake_run(tmp_path / "standard-seed0", epochs=2, images=1)
    place = fake.fake_evaluation(folder)
    (place / "summary.json").unlink()
    if text is not None:
        (place / "summary.json").write_text(text)
    record = read_run(folder)
    assert record.evaluations == ()
    (said,) = record.problems
    wanted = "is missing: the evaluation has not ended" if text is None else "cannot be read"
    assert said.startswith(f"attack/standard/summary.json {wanted}")
    assert section.section(Study((record,))) == []


def test_the_rest_may_be_left_out():
    one, problems = parse("a", {"robust": {"accuracy": 0.5}})
    assert (one.robust.text, one.robust.interval, one.what, one.doubts) == ("50.0 %", "", "", [])
    missing = ("epsilon", "norm", "clean", "members", "gates", "suspicious")
    assert problems == [f"`{key}` is missing" for key in missing]


def test_a_curve_is_read_between_its_points():
    at = {0.0: Share(1.0), 1.0: Share(0.5), 2.0: Share(0.1)}
    found = Distances("", "l2", at, 1.0, 0, 10)
    assert [found.at(e) for e in (0.0, 0.5, 1.0, 1.5, 2.0, 9.0)] == pytest.approx(
        [1, 0.75, 0.5, 0.3, 0.1, 0.1]
    )
    unknown, problems = parse("a", {"curve": {"epsilons": [0.0], "accuracy": [1.0], "median": None}})
    assert unknown.distances.median == math.inf
    assert section.distance(math.inf) == "beyond the search"
    assert not any("curve" in problem for problem in problems)
