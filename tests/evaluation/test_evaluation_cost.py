"""What a regime costs is found out on copies: the counts are right, the clock is scripted, nothing moves."""

import copy
import itertools
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from lit_xai.attacks import L2PGD
from lit_xai.evaluation import cost as room
from lit_xai.evaluation.cost import Regime, cost
from lit_xai.objectives import AdversarialTraining, CrossEntropy, GaussianAugmentation, Objective
from lit_xai.objectives.base import Terms, Views
from lit_xai.optim import BortSGD
from lit_xai.types import Images, Labels


class Twice(Objective):
    """Two steps on halves of a batch, with a tensor that is carried on."""

    updates = 2

    def __init__(self) -> None:
        super().__init__()
        self.carried = torch.zeros(3)
        self.seen: list[float] = []

    def share(self, inputs: Images, target: Labels, update: int) -> tuple[Images, Labels]:
        rows = slice(update * len(inputs) // 2, (update + 1) * len(inputs) // 2)
        return inputs[rows], target[rows]

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        self.carried += torch.rand(3)
        self.seen.append(self.progress)
        return {"loss": nn.functional.cross_entropy(model(views[0]), target)}


def subject(objective: Objective, **words: Any) -> tuple[Regime, Tensor, Tensor]:
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.Dropout(), nn.Flatten(), nn.Linear(144, 3))
    optimizer = BortSGD(net.parameters(), lr=0.1, momentum=0.9, gamma=words.pop("gamma", 0.1))
    return Regime(net, objective, optimizer, **words), torch.rand(6, 1, 8, 8), torch.arange(6) % 3


def same(one: dict[str, Any], other: dict[str, Any]) -> bool:
    return one.keys() == other.keys() and all(torch.equal(one[key], other[key]) for key in one)


def test_nothing_of_the_run_moves() -> None:
    regime, inputs, target = subject(Twice())
    regime.step(inputs, target)  # momentum is at hand, and gradients
    weights = copy.deepcopy(regime.model.state_dict())
    memory = copy.deepcopy(regime.optimizer.state_dict())
    gradients = [parameter.grad.clone() for parameter in regime.model.parameters()]
    carried, state = regime.objective.carried.clone(), torch.random.get_rng_state()
    regime.objective.progress = 0.25
    cost(regime, inputs, target, seconds=0.0)
    assert same(regime.model.state_dict(), weights)
    kept = regime.optimizer.state_dict()["state"]
    assert all(
        torch.equal(kept[k]["momentum_buffer"], v["momentum_buffer"]) for k, v in memory["state"].items()
    )
    assert all(torch.equal(p.grad, g) for p, g in zip(regime.model.parameters(), gradients, strict=True))
    assert torch.equal(regime.objective.carried, carried)
    assert torch.equal(torch.random.get_rng_state(), state)
    assert (regime.objective.progress, len(regime.objective.seen)) == (0.25, 2)
    assert all(module.training for module in regime.model.modules())


def test_a_copy_takes_the_step_of_the_run_fully_warmed_up() -> None:
    regime, inputs, target = subject(Twice())
    mine = regime.copy()
    for one in (regime, mine):
        torch.manual_seed(1)
        one.step(inputs, target)
    assert same(regime.model.state_dict(), mine.model.state_dict())
    assert mine.objective.seen == [1.0, 1.0]


def test_standard_training_is_the_same_without_objective_and_constraint() -> None:
    regime, inputs, target = subject(GaussianAugmentation(0.5))
    plain = regime.standard()
    weights = [parameter.detach().clone().requires_grad_() for parameter in regime.model.parameters()]
    torch.manual_seed(1)
    twin = copy.deepcopy(regime.model)
    nn.functional.cross_entropy(twin(inputs), target).backward()
    torch.manual_seed(1)
    plain.step(inputs, target)
    for ours, theirs, before in zip(plain.model.parameters(), twin.parameters(), weights, strict=True):
        torch.testing.assert_close(ours, before - 0.1 * theirs.grad)
    assert regime.optimizer.param_groups[0]["gamma"] == 0.1


@pytest.mark.filterwarnings("ignore:`gamma` is 0")
def test_what_is_standard_needs_no_comparison() -> None:
    assert subject(CrossEntropy(0.1), gamma=0.0)[0].is_standard()
    assert not subject(CrossEntropy())[0].is_standard()
    assert not subject(GaussianAugmentation(0.5), gamma=0.0)[0].is_standard()


def test_passes_are_those_of_the_method() -> None:
    found = cost(*subject(AdversarialTraining(L2PGD(epsilon=0.5, steps=3))), seconds=0.0)
    assert (found.forwards, found.backwards) == (4, 4)
    found = cost(*subject(Twice()), seconds=0.0)
    assert (found.forwards, found.backwards) == (1, 1)


def test_medians_are_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    regime, inputs, target = subject(GaussianAugmentation(0.5))
    standard, mine = itertools.cycle((1.0, 9.0, 1.0, 1.0, 1.0)), itertools.cycle((3.0, 3.0, 3.0, 3.0, 40.0))

    def scripted(one: Regime, inputs: Images, target: Labels) -> float:
        return next(standard if isinstance(one.objective, CrossEntropy) else mine)

    monkeypatch.setattr(room, "timed", scripted)
    found = cost(regime, inputs, target, seconds=50.0)
    assert (found.relative, found.standard) == (3.0, 1.0)


def test_the_regime_is_tried_under_its_precision() -> None:
    regime, inputs, target = subject(
        GaussianAugmentation(0.5), precision=lambda: torch.autocast("cpu", torch.bfloat16)
    )
    seen: list[torch.dtype] = []
    regime.model[4].register_forward_hook(lambda *parts: seen.append(parts[2].dtype))
    cost(regime, inputs, target, seconds=0.0)
    assert seen
    assert set(seen) == {torch.bfloat16}
