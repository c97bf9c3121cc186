"""Suites: what still stands is attacked next, and the released code is fenced in."""

import sys
from dataclasses import dataclass, replace
from typing import Any

import pyautoattack
import pytest
import torch
from digits_net import EPSILON, held_out, trained
from subjects import Recorder, tiny_net, unchanged
from torch import Tensor, nn

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.autoattack import AutoAttack, Members
from lit_xai.attacks.base import Attack
from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.fab import FAB
from lit_xai.attacks.losses import CE, DLR, LogitMargin
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.attacks.pgd import FGSM, LinfPGD
from lit_xai.attacks.released import PyAutoAttack, PyAutoAttackMember
from lit_xai.attacks.square import Square
from lit_xai.randomness import keyed
from lit_xai.types import Images, Labels

IDS = list(range(40))
NAMES = ("apgd-ce", "apgd-dlr", "apgd-t", "fab", "fab-t", "square")


@dataclass(frozen=True)
class Watched(Attack):
    """Notes the images it is given."""

    attack: Attack
    seen: list[Images]

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        self.seen.append(inputs)
        return self.attack(model, inputs, target)


def stands(points: Images, target: Labels) -> Tensor:
    return trained()(points).argmax(1) == target


def test_each_member_sees_what_still_stands_and_the_first_success_is_kept():
    inputs, target = held_out(IDS)
    target = target.clone()
    target[3] = (target[3] + 1) % 10  # wrong as it is
    first, second = Watched(FGSM(EPSILON), []), Watched(LinfPGD(EPSILON, 20, random_start=False), [])
    found = Members(EPSILON, {"first": first, "second": second})(trained(), inputs, target)
    one, two = FGSM(EPSILON)(trained(), inputs, target), second.attack(trained(), inputs, target)
    clean, fell = stands(inputs, target), stands(one, target)
    left = clean & fell
    torch.testing.assert_close(first.seen, [inputs[clean]])
    torch.testing.assert_close(second.seen, [inputs[left]])
    expected = torch.where((clean & ~fell)[:, None, None, None], one, inputs)
    expected = torch.where((left & ~stands(two, target))[:, None, None, None], two, expected)
    assert (clean & ~fell).any()
    assert (left & ~stands(two, target)).any()
    assert (left & stands(two, target)).any()
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)
    torch.testing.assert_close(found[3], inputs[3])


def test_a_member_beyond_the_budget_does_not_count():
    inputs, target = held_out(IDS)
    suite = Members(0.3, {"ddn": DDN()}, L2())
    found = suite(trained(), inputs, target)
    distance = DDN().search(trained(), inputs, target).distance
    moved = (found != inputs).flatten(1).any(dim=1)
    assert torch.equal(moved, (distance <= 0.3) & (distance > 0))
    assert 0 < moved.sum() < len(IDS)
    assert suite.admits(inputs, found).all()
    assert not suite.admits(inputs, inputs * torch.nan).any()
    assert not suite.admits(inputs, inputs - 0.001).any()


def test_images_draw_the_same_in_every_batch():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    suite = Members(
        0.03, {"pgd": LinfPGD(0.03, 2), "apgd": APGD(0.03, steps=4), "square": Square(0.03, queries=9)}
    )
    with keyed(4, torch.arange(6)):
        together = suite(net, inputs, target)
    for part in (torch.tensor([5, 2]), torch.tensor([0, 3, 4])):
        with keyed(4, part):
            torch.testing.assert_close(suite(net, inputs[part], target[part]), together[part])


def test_a_suite_among_the_members_stands_for_its_own():
    inner = AutoAttack(0.1)
    suite = Members(0.1, {"pgd": LinfPGD(0.1, 20), "autoattack": inner})
    assert list(suite.members) == ["pgd", "apgd-ce", "apgd-t", "fab-t", "square"]
    assert list(suite.members.values())[1:] == list(inner.members.values())
    with pytest.raises(ValueError, match="got square twice"):
        Members(0.1, {"square": Square(0.1), "autoattack": inner})


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Members(0.1, {}), "at least one attack, got none"),
        (lambda: Members(0.0, {"a": DDN()}), "`epsilon` must be greater than 0"),
        (lambda: Members(0.1, {"a": FGSM(0.2)}), r"must share `epsilon` 0.1 .* `a` has 0.2"),
        (lambda: Members(0.1, {"a": LinfPGD(0.1)}, L2()), r"must share .* `norm` L2.* `a` has 0.1 and Linf"),
        (lambda: Members(0.1, {"a": FGSM(0.1, L2())}), r"`a` has 0.1 and L2\(\)"),
        (lambda: AutoAttack(0.1, steps=0), "`steps` must be at least 1"),
        (lambda: AutoAttack(0.1, targets=0), "`targets` must be at least 1"),
        (lambda: PyAutoAttack(-1.0), "`epsilon` must be greater than 0"),
        (lambda: PyAutoAttack(0.1, version="fast"), "one of standard, plus, rand, got 'fast'"),
        (lambda: PyAutoAttackMember(0.1, name="pgd"), "`name` must be one of apgd-ce"),
        (lambda: PyAutoAttackMember(0.1, steps=0), "`steps` must be at least 1"),
        (lambda: PyAutoAttackMember(0.1, larger=True), "`larger` must be False but for `apgd` in l1"),
    ],
)
def test_arguments_that_make_no_suite(make: Any, message: str):
    with pytest.raises(ValueError, match=message):
        make()


def test_the_standard_ensemble():
    epsilon = 8 / 255
    assert AutoAttack(epsilon).members == {
        "apgd-ce": APGD(epsilon, Linf(), 100, restarts=1, loss=CE()),
        "apgd-t": APGD(epsilon, Linf(), 100, loss=DLR(), targets=None),
        "fab-t": FAB(epsilon, Linf(), 100, targets=9),
        "square": Square(epsilon, Linf(), 5000),
    }
    sparse = AutoAttack(12.0, L1()).members
    assert (sparse["apgd-ce"].restarts, sparse["apgd-t"].targets, sparse["fab-t"].targets) == (5, None, 9)
    assert AutoAttack(epsilon, loss=LogitMargin()).members["apgd-t"].loss == LogitMargin()


@pytest.mark.parametrize("version", ["standard", "plus", "rand"])
@pytest.mark.parametrize("norm", [Linf(), L2(), L1()], ids=str)
def test_settings_are_those_of_the_released_ensemble(version: str, norm: Norm):
    net = trained()
    alone = pyautoattack.AutoAttack(net, eps=0.3, norm=repr(norm)[:-2], seed=5, version=version)
    members = PyAutoAttack(0.3, norm, version, seed=5).members
    assert list(members) == alone.attacks_to_run
    for name, member in members.items():
        assert isinstance(member, PyAutoAttackMember)
        ours = member._released(net, torch.device("cpu"), 10)
        if name == "fab-t":
            alone.fab.targeted, alone.fab.n_restarts = True, 1  # as it does before the run
        theirs = {"apgd-t": alone.apgd_targeted, "square": alone.square}.get(name)
        theirs = theirs or (alone.fab if name.startswith("fab") else alone.apgd)
        if name in ("apgd-ce", "apgd-dlr"):
            alone.apgd.loss = name.removeprefix("apgd-")
        hidden = {"model", "predict", "device", "logger"}
        assert {k: v for k, v in vars(ours).items() if k not in hidden} == {
            k: v for k, v in vars(theirs).items() if k not in hidden
        }


@pytest.mark.parametrize("name", NAMES)
def test_the_released_code_leaves_no_trace(name: str, monkeypatch: pytest.MonkeyPatch):
    """Gradients of weights, random state, modes and inputs; also when the model fails."""

    def trace(*args: Any) -> None:
        raise AssertionError("a trace function was installed")

    monkeypatch.setattr(sys, "settrace", trace)
    net = tiny_net(nn.ReLU)
    net[3].weight.requires_grad_(False)
    inputs = torch.rand(4, 2, 8, 8)
    batch = inputs, net(inputs).argmax(1)
    attack = PyAutoAttackMember(0.02, name=name, steps=3)
    counted = Recorder(net)
    with unchanged(net, *batch):
        before = torch.get_rng_state()
        attack(counted, *batch)
        assert torch.equal(torch.get_rng_state(), before)
    failing = Recorder(net, fail_at=len(counted.calls))
    with unchanged(failing, *batch):
        before = torch.get_rng_state()
        with pytest.raises(RuntimeError, match="on purpose"):
            attack(failing, *batch)
        assert torch.equal(torch.get_rng_state(), before)


def test_the_released_code_leaves_no_seed_for_a_device_that_is_not_up_yet(monkeypatch: pytest.MonkeyPatch):
    if torch.cuda.is_initialized():
        pytest.skip("CUDA is up")
    waiting: list[int] = []
    monkeypatch.setattr(torch.cuda, "manual_seed_all", waiting.append)
    monkeypatch.setattr(torch.cuda.random, "manual_seed", waiting.append)
    inputs, target = held_out(IDS[:2])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(1234)
        PyAutoAttackMember(EPSILON, steps=1, seed=77)(trained(), inputs, target)
    assert 77 in waiting
    assert waiting[-1] == 1234


@pytest.mark.parametrize("name", NAMES)
def test_a_released_attack_is_its_own_random_state(name: str):
    inputs, target = held_out(IDS[:12])
    attack = PyAutoAttackMember(EPSILON, name=name, steps=10, seed=1)
    found = attack(trained(), inputs, target)
    torch.manual_seed(99)
    assert torch.equal(attack(trained(), inputs, target), found)
    assert ((found - inputs).abs() <= EPSILON + 1e-6).all()
    assert not torch.equal(found, inputs)


class Half(nn.Module):
    """A network that answers in half precision."""

    def forward(self, inputs: Tensor) -> Tensor:
        return trained()(inputs.float()).half()


@pytest.mark.parametrize("name", NAMES)
def test_logits_of_any_precision_are_read_in_single(name: str):
    inputs, target = held_out(IDS[:6])
    attack = PyAutoAttackMember(EPSILON, name=name, steps=5)
    assert attack(Half(), inputs, target).dtype == torch.float32
    double = attack(Half(), inputs.double(), target)
    assert double.dtype == torch.float64
    torch.testing.assert_close(double.float(), attack(Half(), inputs, target))


@pytest.mark.parametrize("name", ["apgd-t", "fab-t"])
def test_there_are_never_more_targets_than_other_classes(name: str):
    inputs, _ = held_out(IDS[:8])
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 4))
    calls = []
    for targets in (2, 3, 9):
        counted = Recorder(net)
        attack = PyAutoAttackMember(1e-6, name=name, steps=3, targets=targets)
        attack(counted, inputs, net(inputs).argmax(1))
        calls.append(len(counted.calls))
    assert calls[0] < calls[1] == calls[2]


def test_what_the_released_code_cannot_attack_is_refused():
    inputs, target = held_out(IDS[:2])
    three = nn.Sequential(nn.Flatten(), nn.Linear(64, 3))
    with pytest.raises(
        ValueError, match=r"`apgd-t` of pyautoattack needs at least 4 classes, got a model with 3"
    ):
        PyAutoAttackMember(EPSILON, name="apgd-t")(three, inputs, target % 3)
    wide = nn.Sequential(nn.Flatten(), nn.Linear(96, 5))
    with pytest.raises(ValueError, match=r"needs square images, got 8 x 12 pixels: take Square"):
        PyAutoAttackMember(EPSILON, name="square")(wide, torch.rand(2, 1, 8, 12), target % 5)
    assert PyAutoAttackMember(EPSILON)(three, inputs[:0], target[:0]).shape == (0, 1, 8, 8)


def test_without_the_package_there_is_a_remedy(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "pyautoattack.autopgd_base", None)
    suite = PyAutoAttack(EPSILON)  # the configuration can be read without it
    with pytest.raises(ImportError, match=r"pip install 'lit-xai\[autoattack\]', or take AutoAttack"):
        suite(trained(), *held_out(IDS[:2]))


@pytest.mark.parametrize(
    "suite",
    [AutoAttack(0.1, L2(), loss=CE()), PyAutoAttack(0.1, version="plus"), Members(0.1, {"a": FGSM(0.1)})],
    ids=str,
)
def test_suites_can_be_told_apart(suite: Any):
    again = eval(repr(suite))
    assert again == suite
    assert hash(again) == hash(suite)


@pytest.mark.slow
@pytest.mark.parametrize(("epsilon", "norm"), [(EPSILON, Linf()), (0.6, L2()), (1.2, L1())], ids=str)
def test_our_ensemble_and_the_released_one_agree(epsilon: float, norm: Norm):
    """About which images stand."""
    inputs, target = held_out(list(range(120)))
    net = trained()
    with keyed(0, torch.arange(120)):
        ours = AutoAttack(epsilon, norm, steps=50, queries=100, targets=3)(net, inputs, target)
    released = PyAutoAttack(epsilon, norm).members
    members = {
        name: replace(member, steps=50 if name != "square" else 100, targets=3)
        for name, member in released.items()
    }
    theirs = Members(epsilon, members, norm)(trained(), inputs, target)
    mine, other = stands(ours, target), stands(theirs, target)
    assert 0.2 < other.float().mean() < 0.9
    assert (mine == other).float().mean() >= 0.99
