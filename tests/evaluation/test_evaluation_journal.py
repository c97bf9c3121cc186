"""The journal survives a kill at any byte, and never mixes what does not belong together."""

import dataclasses
import resource
from pathlib import Path

import pytest

from lit_xai.evaluation.gates import Gate
from lit_xai.evaluation.journal import (
    GATES,
    Plan,
    Row,
    append,
    journal,
    keep_gates,
    read,
    read_gates,
    read_plan,
    settle,
)

ROWS = [
    Row("clean", 3, 1, 1, False, True, 0.0, 0.0, 0.001, 1, 0),
    Row("pgd", 3, 1, -1, True, True, 0.0313725, 0.4, 12.5, 11, 10),
    Row("pgd", 14, 7, 2, True, False, 1.0, 1e-9, 3e-5, 11, 10),
]
PLAN = Plan(
    name="attack",
    suite="S()",
    norm="Linf()",
    epsilon=0.1,
    members={"pgd": "P()"},
    black_box=[],
    search=None,
    split="test",
    seed=0,
    weights="ab",
    specimen=0,
    data="cd",
    precision="float32",
    model="Net",
    batch_size=2,
    ids=[3, 14],
    searched=[],
    probed=[],
)


def by_key(rows: list[Row]) -> dict[tuple[str, int], Row]:
    return {(row.member, row.index): row for row in rows}


def test_what_is_written_is_read(tmp_path: Path):
    path = journal(tmp_path, 0, 1)
    append(path, ROWS[:1])
    append(path, ROWS[1:])
    assert read(tmp_path) == by_key(ROWS)
    assert path.name == "journal_0of1.tsv"
    assert path.read_text().count("idx") == 1


def test_a_kill_at_any_byte_costs_at_most_the_line_it_hits(tmp_path: Path):
    path = journal(tmp_path, 0, 1)
    append(path, ROWS)
    whole = path.read_bytes()
    for size in range(len(whole) + 1):
        path.write_bytes(whole[:size])
        complete = max(0, whole[:size].count(b"\n") - 1)
        assert read(tmp_path) == by_key(ROWS[:complete])
        assert path.read_bytes() == whole[:size]  # reading mends nothing: the file may be another process's
        append(journal(tmp_path, 0, 1), ROWS[complete:])
        assert path.read_bytes() == whole


def test_all_journals_are_read_and_the_first_of_two_lines_counts(tmp_path: Path):
    append(journal(tmp_path, 0, 2), ROWS[:1])
    append(journal(tmp_path, 1, 2), ROWS[1:2])
    append(journal(tmp_path, 0, 3), [dataclasses.replace(ROWS[0], seconds=7.0), ROWS[2]])
    assert read(tmp_path) == by_key(ROWS)


@pytest.mark.parametrize(
    "line", [b"\0" * 40, b"pgd\t1\t2", b"pgd\tx\t1\t1\t1\t1\t0\t0\t0\t1\t1", b"\xff\tpgd"]
)
def test_what_a_crash_leaves_is_no_line(tmp_path: Path, line: bytes):
    path = journal(tmp_path, 0, 1)
    append(path, ROWS)
    path.write_bytes(path.read_bytes() + line + b"\n")
    assert read(tmp_path) == by_key(ROWS)


def test_a_plan_comes_back(tmp_path: Path):
    settle(tmp_path / "new", PLAN)
    assert read_plan(tmp_path / "new") == PLAN
    with pytest.raises(ValueError, match="holds no evaluation"):
        read_plan(tmp_path)


@pytest.mark.parametrize(
    "term", ["suite", "norm", "epsilon", "search", "split", "seed", "weights", "data", "precision"]
)
def test_other_terms_are_refused_in_one_line(tmp_path: Path, term: str):
    settle(tmp_path, PLAN)
    other = dataclasses.replace(PLAN, **{term: 5 if term in ("epsilon", "seed") else "other"})
    settle(tmp_path, other)  # nothing was evaluated yet
    settle(tmp_path, PLAN)
    append(journal(tmp_path, 0, 1), ROWS)
    with pytest.raises(ValueError, match=rf"other terms \({term}\): move it away first\.$") as caught:
        settle(tmp_path, other)
    assert "\n" not in str(caught.value)
    assert read_plan(tmp_path) == PLAN


def test_more_images_are_no_other_terms(tmp_path: Path):
    settle(tmp_path, PLAN)
    append(journal(tmp_path, 0, 1), ROWS)
    more = dataclasses.replace(PLAN, ids=[3, 14, 15], batch_size=1)
    settle(tmp_path, more)
    assert read_plan(tmp_path) == more


def test_journals_of_unknown_terms_are_refused(tmp_path: Path):
    append(journal(tmp_path, 0, 1), ROWS)
    with pytest.raises(ValueError, match=r"no plan\.json: move it away first"):
        settle(tmp_path, PLAN)


@pytest.mark.parametrize("text", ["", "{", "[1]", '{"name": "attack"}', '{"stranger": 1}'])
def test_a_plan_that_cannot_be_read_is_named(tmp_path: Path, text: str):
    (tmp_path / "plan.json").write_text(text)
    with pytest.raises(ValueError, match=r"plan\.json is no plan of this version: move .* away first\.$"):
        read_plan(tmp_path)


def test_a_full_disk_raises_and_what_is_missing_is_written_later(tmp_path: Path):
    """A write that stops in the middle must not look like one that did not."""
    path = journal(tmp_path, 0, 1)
    append(path, ROWS[:1])
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 20, before[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            append(path, ROWS[1:])
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert read(tmp_path) == by_key(ROWS[:1])
    append(journal(tmp_path, 0, 1), ROWS[1:])
    assert read(tmp_path) == by_key(ROWS)


def test_gates_belong_to_the_images_and_terms_they_were_measured_on(tmp_path: Path):
    gate = Gate("box", True, "Good.")
    plan = dataclasses.replace(PLAN, probed=[3, 14])
    assert read_gates(tmp_path, plan) is None
    keep_gates(tmp_path, plan, 10, [gate])
    kept = read_gates(tmp_path, dataclasses.replace(plan, name="other", batch_size=7))
    assert kept is not None
    assert (kept["classes"], kept["gates"]) == (10, [dataclasses.asdict(gate)])
    for change in ({"probed": [3]}, {"split": "val"}, {"data": "x"}, {"precision": "float64"}, {"seed": 1}):
        assert read_gates(tmp_path, dataclasses.replace(plan, **change)) is None
    (tmp_path / GATES).write_text("{}")
    assert read_gates(tmp_path, plan) is None
