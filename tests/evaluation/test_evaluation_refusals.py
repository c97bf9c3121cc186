"""An evaluation refuses, before anything is attacked, what cannot be evaluated; and takes what can."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_net import EPSILON, held_out, trained
from subjects import Recorder
from torch import Tensor, nn

from lit_xai.attacks import (
    APGD,
    DDN,
    DLR,
    FAB,
    FGSM,
    Attack,
    AutoAttack,
    FixedClass,
    LinfPGD,
    LogitMargin,
    Members,
    PyAutoAttackMember,
    Square,
)
from lit_xai.evaluation import Evaluation, conclude
from lit_xai.types import Images, Labels

IDS = list(range(2, 90, 2))


def evaluation(**changes: Any) -> Evaluation:
    return Evaluation(
        **{"suite": Members(EPSILON, {"fgsm": FGSM(EPSILON)}), "probe": 0, "batch_size": 12} | changes
    )


@dataclass(frozen=True)
class Idle(Attack):
    """An attack of someone's own, which needs no gradient."""

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return inputs


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (lambda x, y: (2 * x, y), r"pixels must lie in \[0, 1\]"),
        (lambda x, y: (x - 0.1, y), r"pixels must lie in \[0, 1\]"),
        (lambda x, y: (x, y + 1), r"labels must lie in 0\.\.9"),
    ],
)
def test_bad_data_are_refused_in_one_line(tmp_path: Path, spoil: Callable[..., Any], message: str):
    with pytest.raises(ValueError, match=message) as caught:
        evaluation()(trained(), lambda ids: spoil(*held_out(ids)), IDS, tmp_path)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("classes", "member"),
    [
        (3, APGD(EPSILON, targets=2, loss=DLR())),
        (2, APGD(EPSILON, loss=DLR())),
        (3, PyAutoAttackMember(EPSILON, name="apgd-t")),
    ],
)
def test_too_few_classes_are_refused_before_anything_is_attacked(
    tmp_path: Path, classes: int, member: Attack
):
    calls = Recorder(nn.Sequential(nn.Flatten(), nn.Linear(64, classes)))
    refusing = evaluation(suite=Members(EPSILON, {"pgd": LinfPGD(EPSILON), "last": member}))
    with pytest.raises(ValueError, match=f"needs at least {classes + 1} classes, got a model with {classes}"):
        refusing(calls, lambda ids: (held_out(ids)[0], held_out(ids)[1] % classes), IDS, tmp_path)
    assert calls.calls == [1]


def test_few_classes_with_a_loss_that_knows_them(tmp_path: Path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2))
    small = Members(EPSILON, {"apgd": APGD(EPSILON, steps=5, loss=LogitMargin(), targets=None)})
    evaluation(suite=small)(net, lambda ids: (held_out(ids)[0], held_out(ids)[1] % 2), IDS, tmp_path)
    assert conclude(tmp_path)["members"][0]["attacked"] > 0


def test_other_weights_are_refused(tmp_path: Path):
    evaluation()(trained(), held_out, IDS, tmp_path)
    other = nn.Sequential(nn.Flatten(), nn.Linear(64, 10))
    with pytest.raises(ValueError, match=r"other terms \(weights\): move it away first"):
        evaluation()(other, held_out, IDS, tmp_path)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"batch_size": 0}, "`batch_size` must be at least 1, got 0"),
        ({"probe": -1}, "`probe` must be at least 0"),
        ({"suite": Members(0.1, {"clean": FGSM(0.1)})}, "one word other than clean and search"),
    ],
)
def test_arguments_out_of_range(changes: dict[str, Any], message: str):
    with pytest.raises(ValueError, match=message):
        evaluation(**changes)


@pytest.mark.parametrize(
    ("member", "message"),
    [
        (APGD(EPSILON, targets=9), "`targets` must be at most 3 for a model with 4 classes, got 9"),
        (LinfPGD(EPSILON, aim=FixedClass(4)), "`label` must be at most 3 for a model with 4 classes, got 4"),
    ],
    ids=["targets", "aim"],
)
def test_too_many_targets_are_refused_before_anything_is_attacked(
    tmp_path: Path, member: Attack, message: str
):
    calls = Recorder(nn.Sequential(nn.Flatten(), nn.Linear(64, 4)))
    with pytest.raises(ValueError, match=message):
        evaluation(suite=Members(EPSILON, {"a": member}))(
            calls, lambda ids: (held_out(ids)[0], held_out(ids)[1] % 4), IDS, tmp_path
        )
    assert calls.calls == [1]


class Severed(nn.Module):
    """A network through which no gradient passes."""

    def __init__(self) -> None:
        super().__init__()
        self.net = trained()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.net(inputs.detach())


def test_a_model_without_gradients_is_refused_unless_none_are_asked_for(tmp_path: Path):
    for attack in (FGSM(EPSILON), FAB(EPSILON), DDN(), PyAutoAttackMember(EPSILON)):
        with pytest.raises(ValueError, match="the model passes no gradient on to its images"):
            evaluation(suite=Members(EPSILON, {"a": attack}))(Severed(), held_out, IDS, tmp_path)
    blind = Members(EPSILON, {"square": Square(EPSILON, queries=20), "mine": Idle()})
    evaluation(suite=blind, probe=5)(Severed(), held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    assert summary["members"][0]["fooled"] > 0
    assert [gate["name"] for gate in summary["gates"] if gate["passed"] is False] == ["gradients"]


def test_other_data_are_refused(tmp_path: Path):
    evaluation(search=None)(trained(), held_out, IDS, tmp_path)
    with pytest.raises(ValueError, match=r"other terms \(data\): move it away first"):
        evaluation(search=None)(trained(), lambda ids: held_out([i + 1 for i in ids]), IDS, tmp_path)
    evaluation(search=None)(trained(), held_out, [*IDS[::-1], 1], tmp_path)  # any order, and one more
    assert conclude(tmp_path)["images"] == len(IDS) + 1


def test_pixels_are_looked_at_before_the_model(tmp_path: Path):
    with pytest.raises(ValueError, match="pixels must be floats"):
        evaluation()(
            trained(), lambda ids: ((255 * held_out(ids)[0]).byte(), held_out(ids)[1]), IDS, tmp_path
        )


def test_double_precision_and_a_wide_image_and_nothing_right(tmp_path: Path):
    net = nn.Sequential(nn.Flatten(), nn.Linear(24, 3)).double()
    inputs = torch.rand(5, 1, 4, 6, dtype=torch.float64)
    target = (net(inputs).argmax(1) + 1) % 3
    ours = Members(0.0001, {"ours": AutoAttack(0.0001, steps=3, queries=5, loss=LogitMargin())})

    def fetch(ids: Any) -> tuple[Tensor, Tensor]:
        return inputs[list(ids)], target[list(ids)]

    evaluation(suite=ours, probe=5)(net, fetch, range(5), tmp_path / "wrong")
    summary = conclude(tmp_path / "wrong")
    assert (summary["precision"], summary["robust"]["accuracy"]) == ("float64", 0)
    assert [member["attacked"] for member in summary["members"]] == [0, 0, 0, 0]
    target = net(inputs).argmax(1)
    evaluation(suite=ours, probe=5)(net, fetch, range(1), tmp_path / "one")
    summary = conclude(tmp_path / "one")
    assert (summary["images"], summary["clean"]["accuracy"]) == (1, 1)
    assert not summary["suspicious"]
