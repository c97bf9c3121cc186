"""The page of numbers: its schema, its intervals, and what it says of an evaluation that is not complete."""

import json
from pathlib import Path

import pytest
from digits_net import EPSILON, held_out, trained
from scipy.stats import binomtest

from lit_xai.attacks import FGSM, LinfPGD
from lit_xai.attacks.autoattack import Members
from lit_xai.evaluation import Evaluation, Progress, conclude, unfinished, wilson
from lit_xai.evaluation.summary import fraction

IDS = list(range(30))
SUITE = Members(8 / 255, {"fgsm": FGSM(8 / 255), "pgd": LinfPGD(8 / 255, 5)})


@pytest.mark.parametrize(("successes", "count"), [(0, 1), (1, 1), (0, 50), (50, 50), (7, 20), (9876, 10_000)])
def test_intervals_are_those_of_scipy(successes: int, count: int):
    expected = binomtest(successes, count).proportion_ci(0.95, "wilson")
    assert wilson(successes, count) == pytest.approx((expected.low, expected.high), abs=1e-12)


def test_no_images_say_nothing():
    assert wilson(0, 0) == (0.0, 1.0)


@pytest.mark.parametrize(
    ("epsilon", "text"),
    [
        (8 / 255, "8/255"),
        (128 / 255, "128/255"),
        (0.5, "0.5"),
        (0.3, "0.3"),
        (0.2, "0.2"),
        (1.0, "1"),
        (12.0, "12"),
        (0.0123456, "0.0123456"),
        (0.0001, "0.0001"),
        (1.23456e-9, "1.23456e-09"),
    ],
)
def test_a_budget_reads_as_people_write_it(epsilon: float, text: str):
    assert fraction(epsilon) == text


def test_the_summary_has_the_agreed_shape(tmp_path: Path):
    evaluation = Evaluation(SUITE, probe=10, seed=7, name="quick", split="val")
    evaluation(trained(), held_out, IDS, tmp_path, described="digits")
    summary = conclude(tmp_path)
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert list(summary) == [
        *(
            "name",
            "suite",
            "norm",
            "epsilon",
            "epsilon_text",
            "split",
            "images",
            "seed",
            "precision",
            "model",
        ),
        *("clean", "members", "robust", "gates", "suspicious", "curve", "provenance"),
    ]
    assert {name: summary[name] for name in list(summary)[:10]} == {
        "name": "quick",
        "suite": repr(SUITE),
        "norm": "Linf()",
        "epsilon": 8 / 255,
        "epsilon_text": "8/255",
        "split": "val",
        "images": 30,
        "seed": 7,
        "precision": "float32",
        "model": "digits",
    }
    assert list(summary["clean"]) == list(summary["robust"]) == ["accuracy", "low", "high"]
    for member in summary["members"]:
        assert list(member) == [
            *("name", "attack", "attacked", "fooled", "accuracy", "low", "high"),
            *("seconds", "forwards", "backwards"),
        ]
        right = round(member["accuracy"] * 30)
        assert (member["low"], member["high"]) == wilson(right, 30)
    assert all(list(gate) == ["name", "passed", "said"] for gate in summary["gates"])
    assert summary["curve"] is None
    assert summary["provenance"]["seed"] == 7


def test_what_is_missing_is_said_in_one_line(tmp_path: Path):
    with pytest.raises(ValueError, match="holds no evaluation"):
        conclude(tmp_path)
    Evaluation(SUITE, probe=0)(trained(), held_out, IDS, tmp_path, share=(1, 3))
    assert unfinished(tmp_path) == {"gates": 1, "clean": 20}
    with pytest.raises(
        ValueError, match=r"images that wait: gates: 1, clean: 20\): run the same command again"
    ) as caught:
        conclude(tmp_path)
    assert "\n" not in str(caught.value)
    assert not (tmp_path / "summary.json").exists()
    seen: list[Progress] = []
    Evaluation(SUITE, probe=0, batch_size=4)(trained(), held_out, IDS, tmp_path, (0, 3), seen.append)
    assert [p.stage for p in seen] == [*["gates"], *["clean"] * 3, *["fgsm"] * 3, *["pgd"] * 3]
    assert [(p.done, p.total) for p in seen[1:4]] == [(4, 10), (8, 10), (10, 10)]
    assert [p.standing for p in seen[1:]] == sorted((p.standing for p in seen[1:]), reverse=True)
    Evaluation(SUITE, probe=0)(trained(), held_out, IDS, tmp_path, share=(2, 3))
    assert not unfinished(tmp_path)
    assert conclude(tmp_path)["images"] == 30


def test_ranks_without_images_have_nothing_to_do(tmp_path: Path):
    Evaluation(SUITE, probe=0)(trained(), held_out, [4], tmp_path, share=(1, 2))
    Evaluation(SUITE, probe=0)(trained(), held_out, [4], tmp_path, share=(0, 2))
    assert conclude(tmp_path)["images"] == 1


@pytest.mark.parametrize("share", [(2, 2), (-1, 2), (0, 0)])
def test_shares_that_are_none(tmp_path: Path, share: tuple[int, int]):
    with pytest.raises(ValueError, match="`share` must be"):
        Evaluation(SUITE)(trained(), held_out, IDS, tmp_path, share=share)


@pytest.mark.parametrize("ids", [[], [1, 1]])
def test_every_image_once(tmp_path: Path, ids: list[int]):
    with pytest.raises(ValueError, match="`ids` must name"):
        Evaluation(SUITE)(trained(), held_out, ids, tmp_path)
    assert EPSILON > 0
