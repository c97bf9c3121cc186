"""Adversarial training: its loss, the mode that the attack meets, the warm-up, and what it costs."""

from dataclasses import dataclass
from itertools import pairwise

import pytest
import torch
from jaxtyping import TypeCheckError
from subjects import tiny_net
from torch import Tensor, nn
from torch.testing import assert_close

from lit_xai.attacks import L2, L2PGD, DeepFool, Linf, LinfPGD, MomentumPGD
from lit_xai.attacks.base import Attack
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.evaluation.passes import Counted
from lit_xai.models.modes import evaluating
from lit_xai.objectives.adversarial import AdversarialTraining, warmed
from lit_xai.types import Images, Labels

SEEN: list[list[bool]] = []


@dataclass(frozen=True)
class SignStep(Attack):
    """One signed gradient step; notes the modes that it meets."""

    epsilon: float
    fails: bool = False

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        SEEN.append([module.training for module in model.modules()])
        if self.fails:
            raise RuntimeError("no neighbour")
        images = inputs.detach().requires_grad_()
        loss = nn.functional.cross_entropy(model(images), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, images, retain_graph=True)
        return images + (self.epsilon + 0.01 * loss) * gradient.sign()  # careless: attached to the model


@pytest.fixture
def model() -> nn.Module:
    """With batch norm and dropout, of which one part is frozen in eval mode."""
    net = nn.Sequential(
        nn.Conv2d(2, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(36, 3)
    ).double()
    net[3].eval()
    return net


@pytest.fixture
def data() -> tuple[Tensor, Tensor]:
    SEEN.clear()
    return torch.rand(6, 2, 5, 5, dtype=torch.float64), torch.tensor([0, 1, 2, 0, 1, 2])


def by_hand(logits: Tensor, target: Tensor, smoothing: float = 0.0) -> Tensor:
    log = logits - logits.exp().sum(1, keepdim=True).log()
    right = log[range(len(target)), target]
    return -((1 - smoothing) * right + smoothing * log.mean(1)).mean()


def state(model: nn.Module) -> dict[str, Tensor]:
    return {name: value.clone() for name, value in model.state_dict().items()}


@pytest.mark.parametrize("smoothing", [0.0, 0.2])
def test_it_is_the_loss_at_the_attacked_images(model, data, smoothing):
    with evaluating(model):
        attacked = SignStep(0.1)(model, *data).detach()
    before = state(model)
    expected = by_hand(model(attacked), data[1], smoothing)
    model.load_state_dict(before)
    terms = AdversarialTraining(SignStep(0.1), label_smoothing=smoothing)(model, *data)
    assert list(terms) == ["adversarial_cross_entropy"]
    assert_close(terms["adversarial_cross_entropy"], expected)
    assert int(model[1].num_batches_tracked) == 1
    assert terms["adversarial_cross_entropy"] > by_hand(model(data[0]), data[1], smoothing)


@pytest.mark.parametrize(("batch_norm", "batches"), [("eval", 1), ("train", 2), ("frozen", 1)])
def test_the_attack_meets_the_mode_asked_for_and_leaves_modes_as_they_were(model, data, batch_norm, batches):
    modes = [module.training for module in model.modules()]
    assert len(set(modes)) == 2
    AdversarialTraining(SignStep(0.1), batch_norm=batch_norm)(model, *data)
    (seen,) = SEEN
    assert seen == ([False] * len(modes) if batch_norm == "eval" else modes)
    assert [module.training for module in model.modules()] == modes
    assert int(model[1].num_batches_tracked) == batches
    assert model[1].track_running_stats


def test_frozen_statistics_are_those_of_the_batch_and_leave_no_trace(model, data):
    before = state(model)

    def views(batch_norm: str) -> Tensor:
        model.load_state_dict(before)
        (attacked,) = AdversarialTraining(SignStep(0.1), batch_norm=batch_norm).views(model, *data)
        return attacked

    evaluated, frozen = views("eval"), views("frozen")
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())
    trained = views("train")
    assert torch.equal(frozen, trained)
    assert not torch.equal(frozen, evaluated)
    assert int(model[1].num_batches_tracked) == 1
    assert not torch.equal(model[1].running_mean, before["1.running_mean"])


@pytest.mark.parametrize("batch_norm", ["eval", "frozen"])
def test_modes_return_after_a_failure(model, data, batch_norm):
    modes = [module.training for module in model.modules()]
    with pytest.raises(RuntimeError, match="no neighbour"):
        AdversarialTraining(SignStep(0.1, fails=True), batch_norm)(model, *data)
    assert [module.training for module in model.modules()] == modes
    assert model[1].track_running_stats


def test_the_attack_leaves_no_gradient_behind_and_none_flows_through_it(model, data):
    for parameter in model.parameters():
        parameter.grad = torch.full_like(parameter, 3.0)
    before = state(model)
    total = AdversarialTraining(SignStep(0.1))(model, *data)["adversarial_cross_entropy"]
    assert all((p.grad == 3.0).all() for p in model.parameters())
    gradients = torch.autograd.grad(total, list(model.parameters()))
    model.load_state_dict(before)
    with evaluating(model):
        attacked = SignStep(0.1)(model, *data).detach()
    expected = torch.autograd.grad(by_hand(model(attacked), data[1]), list(model.parameters()))
    for ours, theirs in zip(gradients, expected, strict=True):
        assert_close(ours, theirs)
    assert data[0].grad is None


def test_a_warm_up_scales_the_lengths_of_an_attack_and_nothing_else():
    attack = MomentumPGD(0.4, L2(), steps=3, step_size=0.2)
    assert warmed(attack, progress=0.125, warmup=0.25) == MomentumPGD(0.2, L2(), steps=3, step_size=0.1)
    assert warmed(LinfPGD(0.4), 0.25, 0.5) == LinfPGD(0.2)  # step_size stays left out
    assert warmed(attack, 0.25, 0.25) is attack
    assert warmed(attack, 1.0, 1.0) is attack
    assert warmed(attack, 0.0, 0.0) is attack
    assert warmed(attack, 0.0, 0.5) == MomentumPGD(0.4 * 0.01, L2(), steps=3, step_size=0.2 * 0.01)


@pytest.mark.parametrize(
    ("attack", "norm"), [(LinfPGD(0.2, steps=2), Linf()), (L2PGD(1.0, steps=2), L2())], ids=repr
)
def test_the_budget_warms_up_with_the_run(model, data, attack, norm):
    objective = AdversarialTraining(attack, warmup=0.5)
    lengths = []
    for progress in (0.0, 0.1, 0.3, 0.5, 0.9, 1.0):
        objective.progress = progress
        torch.manual_seed(0)
        (attacked,) = objective.views(model, *data)
        budget = attack.epsilon * max(0.01, min(1.0, progress / 0.5))
        lengths.append(float(norm.length(attacked - data[0]).max()))
        assert 0 < lengths[-1] <= budget + 1e-9
    assert all(a < b for a, b in pairwise(lengths[:4]))
    assert lengths[3] == lengths[4] == lengths[5]


@pytest.mark.parametrize("steps", [1, 4])
@pytest.mark.parametrize("attack", [LinfPGD, L2PGD, NudgedPGD])
def test_a_step_costs_two_passes_for_each_of_the_attack_and_three_for_the_loss(attack, steps):
    net = Counted(tiny_net(nn.ReLU)).train()
    inputs, target = torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    total = sum(AdversarialTraining(attack(0.1, steps=steps))(net, inputs, target).values())
    assert (net.forwards, net.backwards) == (5 * (steps + 1), 5 * steps)
    torch.autograd.grad(total, list(net.parameters()))
    assert net.forwards + net.backwards + 5 == 5 * (2 * steps + 3)  # a gradient of weights counts twice


def test_losses_are_in_the_precision_of_the_images_under_autocast():
    net = tiny_net(nn.ReLU).train()
    inputs, target = torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    with torch.autocast("cpu", torch.bfloat16):
        assert net(inputs).dtype == torch.bfloat16
        (term,) = AdversarialTraining(LinfPGD(0.1, steps=2))(net, inputs, target).values()
    assert term.dtype == torch.float32


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: AdversarialTraining(LinfPGD(0.1), warmup=-0.1), "`warmup` must be at least 0 and at most 1"),
        (lambda: AdversarialTraining(LinfPGD(0.1), warmup=1.1), "`warmup` must be at least 0 and at most 1"),
        (
            lambda: AdversarialTraining(DeepFool(), warmup=0.1),
            "`warmup` must be 0 for an attack without an `epsilon`, got 0.1 for DeepFool",
        ),
        (lambda: AdversarialTraining(LinfPGD(0.1), label_smoothing=1.0), "`label_smoothing` must be"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


def test_a_mode_that_there_is_not_is_refused():
    # By its value; where types are checked, by its type.
    with pytest.raises((ValueError, TypeCheckError), match=r"batch_norm[\s\S]*'off'"):
        AdversarialTraining(LinfPGD(0.1), batch_norm="off")


def test_it_says_what_it_was_built_with():
    objective = AdversarialTraining(SignStep(0.1), "frozen", 0.25, 0.1)
    assert objective.state_dict() == {}
    assert repr(objective) == (
        "AdversarialTraining(attack=SignStep(epsilon=0.1, fails=False), batch_norm='frozen', warmup=0.25, "
        "label_smoothing=0.1)"
    )
    assert repr(eval(repr(objective))) == repr(objective)
