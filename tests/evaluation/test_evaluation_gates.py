"""Gates catch a model whose robustness is not to be believed, and let an honest one pass."""

import dataclasses
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from digits_net import EPSILON, held_out, trained
from subjects import unchanged
from torch import Tensor, nn

from lit_xai.attacks import FGSM, L2, Attack, Linf, LinfPGD, Norm
from lit_xai.attacks.autoattack import Members
from lit_xai.attacks.norms import L1
from lit_xai.attacks.square import Square
from lit_xai.evaluation import Evaluation, conclude, unfinished
from lit_xai.evaluation.gates import Probe, examine, judge
from lit_xai.evaluation.journal import Plan, Row
from lit_xai.types import Images, Labels

IDS = list(range(60))
MEASURED = (
    "logits",
    "deterministic",
    "static",
    "classes",
    "gradients",
    "monotone",
    "box",
    "steps",
    "white_box",
)


class Changed(nn.Module):
    """The trained network, with something done to its input or output."""

    def __init__(self, before: Callable[[Tensor], Tensor], after: Callable[[Tensor], Tensor]) -> None:
        super().__init__()
        self.net, self.before, self.after = trained(), before, after

    def forward(self, inputs: Tensor) -> Tensor:
        return self.after(self.net(self.before(inputs)))


def same(x: Tensor) -> Tensor:
    return x


def quantised(x: Tensor) -> Tensor:
    return (8 * x).round() / 8


def purified(x: Tensor) -> Tensor:
    """A defence that moves its input along a gradient of its own."""
    with torch.enable_grad():
        points = x.detach().requires_grad_()
        (slope,) = torch.autograd.grad(trained()(points).logsumexp(1).sum(), points)
    return x + 0.01 * slope.sign()


def shattered(x: Tensor) -> Tensor:
    """The image, but for a fine sawtooth that turns all gradients round and changes no pixel by 0.01."""
    return x - 2 * (torch.remainder(x, 0.005))


def examined(
    model: nn.Module, epsilon: float = EPSILON, norm: Norm | None = None, images: int = 60
) -> dict[str, Any]:
    inputs, target = held_out(IDS[:images])
    probe = Probe(model, inputs, target, torch.tensor(IDS[:images]), 0, 30)
    with unchanged(model, inputs, target):
        return {gate.name: gate for gate in examine(probe, epsilon, norm or Linf())}


@pytest.mark.parametrize(("epsilon", "norm"), [(EPSILON, Linf()), (0.6, L2()), (1.2, L1())], ids=str)
def test_an_honest_model_passes_every_gate(epsilon: float, norm: Norm):
    gates = examined(trained(), epsilon, norm)
    assert tuple(gates) == MEASURED
    assert {name: gate.said for name, gate in gates.items() if gate.passed is not True} == {}
    assert all(gate.said.endswith(".") and "\n" not in gate.said for gate in gates.values())


@pytest.mark.parametrize(
    ("model", "caught"),
    [
        (Changed(same, lambda z: z.softmax(1)), {"logits"}),
        (Changed(same, lambda z: z + 0.1 * torch.randn_like(z)), {"deterministic"}),
        (Changed(lambda x: x + 0.05 * torch.rand_like(x), same), {"deterministic"}),
        (Changed(purified, same), {"static"}),
        (Changed(quantised, same), {"gradients", "white_box", "box"}),
        (Changed(same, lambda z: 1e4 * z), {"gradients"}),
        (Changed(shattered, same), {"white_box"}),
    ],
    ids=["softmax", "noisy logits", "noisy pixels", "dynamic", "quantised", "scaled", "shattered"],
)
def test_a_model_that_hides_something_is_caught(model: nn.Module, caught: set[str]):
    gates = examined(model)
    assert caught <= {name for name, gate in gates.items() if gate.passed is False}


def test_few_images_raise_doubts_but_settle_nothing():
    gates = examined(trained(), images=5)
    compared = {
        name: gate for name, gate in gates.items() if name in ("monotone", "box", "steps", "white_box")
    }
    assert [gate.passed for gate in compared.values()] == [None] * 4
    assert all(gate.said.endswith("too few images to say more.") for gate in compared.values())
    assert examined(Changed(quantised, same), images=19)["box"].passed is False


def test_logits_that_are_not_finite_are_not_taken_for_random_ones():
    holes = torch.tensor([torch.nan, torch.inf, -torch.inf, *[0.0] * 7])
    gates = examined(Changed(same, lambda z: z + holes), images=4)
    assert list(gates) == list(MEASURED[:4])
    assert gates["deterministic"].passed is True


def test_a_model_without_gradients_is_flagged():
    gates = examined(Changed(lambda x: x.detach(), same), images=6)
    assert list(gates) == list(MEASURED[:5])
    assert gates["gradients"].passed is False
    assert "constant around" in gates["gradients"].said


def test_reasons_are_told_apart():
    flat = examined(Changed(quantised, same), images=5)
    sure = examined(Changed(same, lambda z: 1e4 * z), images=5)
    assert "the model is constant around them" in flat["gradients"].said
    assert "the model is sure beyond rounding" in sure["gradients"].said


@pytest.mark.parametrize(
    "differentiate",
    [
        lambda x: torch.autograd.grad(x.square().sum(), x),
        lambda x: x.square().sum().backward(),
        lambda x: torch.autograd.backward(x.square().sum()),
        lambda x: torch.func.grad(lambda z: z.square().sum())(x),
        lambda x: torch.func.vjp(lambda z: z.square().sum(), x)[1](torch.tensor(1.0)),
    ],
)
def test_every_way_to_differentiate_inside_is_seen(differentiate: Callable[[Tensor], Any]):
    def before(inputs: Tensor) -> Tensor:
        with torch.enable_grad():
            differentiate(inputs.detach().requires_grad_())
        return inputs

    assert examined(Changed(before, same), images=2)["static"].passed is False


@pytest.mark.parametrize(("classes", "passed"), [(2, None), (3, None), (4, True)])
def test_few_classes_are_named(classes: int, passed: bool | None):
    inputs, target = held_out(IDS[:9])
    net = Changed(same, lambda z: z[:, :classes])
    probe = Probe(net, inputs, target % classes, torch.arange(9), 0, 4)
    gate = next(gate for gate in examine(probe, EPSILON, Linf()) if gate.name == "classes")
    assert gate.passed is passed
    assert str(classes) in gate.said


def test_a_model_that_is_always_wrong_has_no_gates_on_attacks():
    inputs, _ = held_out(IDS)
    wrong = (trained()(inputs).argmax(1) + 1) % 10
    probe = Probe(trained(), inputs, wrong, torch.tensor(IDS), 0, 25)
    assert [gate.name for gate in examine(probe, EPSILON, Linf())] == list(MEASURED[:4])


PLAN = Plan(
    name="attack",
    suite="",
    norm="",
    epsilon=0.1,
    members={"pgd": "", "square": ""},
    black_box=["square"],
    search=None,
    split="test",
    seed=0,
    weights="",
    specimen=0,
    data="cd",
    precision="float32",
    model="",
    batch_size=1,
    ids=list(range(1000)),
    searched=[],
    probed=[],
)


def judged(wrong: int, pgd: int, square: int, within: bool = True, **changes: Any) -> dict[str, Any]:
    """Gates of an evaluation in which so many images fell to each stage."""
    rows, first = {}, 0
    for name, fallen in (("clean", wrong), ("pgd", pgd), ("square", square)):
        for index in range(first, 1000):
            fooled = index < first + fallen
            rows[name, index] = Row(name, index, 0, int(fooled), fooled, within, 0.1, 0.1, 0.0, 1, 1)
        first += fallen
    return {gate.name: gate for gate in judge(dataclasses.replace(PLAN, **changes), rows, 10)}


def test_gates_of_a_finished_evaluation():
    assert all(gate.passed for gate in judged(100, 300, 2).values())
    masked = judged(100, 300, 3)
    assert masked["masking"].passed is False
    assert "0.30%" in masked["masking"].said
    assert judged(0, 30, 1, ids=IDS)["masking"].passed is True  # one image is chance
    assert judged(0, 30, 2, ids=IDS)["masking"].passed is False
    assert judged(800, 50, 0)["clean"].passed is False
    assert "normalisation" in judged(800, 50, 0)["clean"].said
    assert judged(100, 300, 0, within=False)["budget"].passed is False
    assert judged(100, 300, 50, black_box=[])["masking"].passed is None
    assert judged(100, 300, 50, black_box=["pgd", "square"])["masking"].passed is None
    assert judged(100, 900, 0)["masking"].passed is None  # nothing stood when Square came


@dataclass(frozen=True)
class Idle(Attack):
    """An attack that sees no gradient where there is one."""

    epsilon: float

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return inputs


def test_what_square_finds_after_a_blind_attack_is_suspicious(tmp_path: Path):
    suite = Members(EPSILON, {"idle": Idle(EPSILON), "square": Square(EPSILON, queries=200)})
    Evaluation(suite, probe=0)(trained(), held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    assert summary["suspicious"]
    assert [gate["name"] for gate in summary["gates"] if gate["passed"] is False] == ["masking"]


def test_an_honest_evaluation_is_not_suspicious(tmp_path: Path):
    suite = Members(
        EPSILON, {"fgsm": FGSM(EPSILON), "pgd": LinfPGD(EPSILON, 50), "square": Square(EPSILON, queries=50)}
    )
    Evaluation(suite, probe=60)(trained(), held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    assert [gate["name"] for gate in summary["gates"]] == [*MEASURED, "clean", "budget", "masking"]
    assert not summary["suspicious"]


def test_a_model_without_its_normalisation_is_near_chance(tmp_path: Path):
    blind = Changed(lambda x: 1 - x, same)
    Evaluation(Members(EPSILON, {"fgsm": FGSM(EPSILON)}), probe=0)(blind, held_out, IDS, tmp_path)
    summary = conclude(tmp_path)
    assert [gate["name"] for gate in summary["gates"] if gate["passed"] is False] == ["clean"]


def test_gates_are_measured_once_for_the_same_images(tmp_path: Path):
    evaluation = Evaluation(Members(EPSILON, {"fgsm": FGSM(EPSILON)}), probe=20)
    written = []
    for ids in (IDS[:20], IDS[:20], IDS):
        evaluation(trained(), held_out, ids, tmp_path)
        written.append((tmp_path / "gates.json").stat().st_mtime_ns)
    assert written[0] == written[1] < written[2]
    (tmp_path / "gates.json").write_text("{}")
    assert unfinished(tmp_path) == {"gates": 1}


def test_labels_are_int64(tmp_path: Path):
    suite = Members(EPSILON, {"fgsm": FGSM(EPSILON)})

    def fetch(ids: Any) -> tuple[Tensor, Labels]:
        inputs, target = held_out(ids)
        return inputs, target.int()

    with pytest.raises(ValueError, match="labels must be int64"):
        Evaluation(suite)(trained(), fetch, IDS, tmp_path)
