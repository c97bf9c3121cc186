"""Perturbed weights, against the published procedure: a proxy, and weights written in place and back."""

import copy
from collections.abc import Callable

import pytest
import torch
from subjects import Recorder, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F
from units import units

from lit_xai.attacks import L2PGD
from lit_xai.attacks.neighbour import RandomNeighbour
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.attributions import GradCam, Saliency
from lit_xai.evaluation.passes import Counted
from lit_xai.models.substitution import copied, substituting
from lit_xai.objectives import AdversarialTraining, CrossEntropy, Objective
from lit_xai.objectives.explanation import AttributionAlignment, GradientPenalty
from lit_xai.objectives.fast import FastAdversarial, GradAlign
from lit_xai.objectives.tradeoff import Trades
from lit_xai.objectives.weight_perturbation import WeightPerturbed

TARGET = torch.tensor([0, 1, 2, 3, 0])
GAMMA = 0.05


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 2, 8, 8, dtype=torch.float64)


def net() -> nn.Module:
    return tiny_net(nn.ReLU, torch.float64).train()


def published(model: nn.Module, objective: Objective, images: Tensor) -> None:
    """Gradients at the perturbed weights, left in `.grad`; statistics move as they do there."""
    views = objective.views(model, images, TARGET)
    proxy = copy.deepcopy(model)
    optimizer = torch.optim.SGD(proxy.parameters(), lr=0.01)
    (-sum(objective.terms(proxy, views, TARGET).values())).backward()
    optimizer.step()
    differences = {}
    after = dict(proxy.named_parameters())
    for name, weight in model.named_parameters():
        if weight.ndim > 1 and "weight" in name:
            step = after[name].detach() - weight.detach()
            differences[name] = GAMMA * weight.detach().norm() / (step.norm() + 1e-20) * step
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.add_(differences.get(name, 0))
    sum(objective.terms(model, views, TARGET).values()).backward()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            weight.sub_(differences.get(name, 0))


@pytest.mark.parametrize(
    "objective",
    [
        CrossEntropy(),
        AdversarialTraining(L2PGD(0.5, steps=2)),
        Trades(NudgedPGD(0.1, steps=2)),
        FastAdversarial(0.1),
        GradAlign(0.1),
        GradientPenalty(0.01),
        AttributionAlignment(Saliency(), RandomNeighbour(0.1)),
        AttributionAlignment(GradCam(layer="3"), RandomNeighbour(0.1)),
    ],
    ids=repr,
)
def test_it_is_the_published_procedure_without_its_proxy(objective, images):
    """With batch norm and dropout: both draw their masks in the same order."""
    model, twin = net(), net()
    before = {name: weight.clone() for name, weight in model.named_parameters()}
    slots = [id(parameter) for parameter in model.parameters()]
    torch.manual_seed(3)
    sum(WeightPerturbed(objective, GAMMA)(model, images, TARGET).values()).backward()
    torch.manual_seed(3)
    published(twin, objective, images)
    for (name, ours), theirs in zip(model.named_parameters(), twin.parameters(), strict=True):
        torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-10, atol=1e-10)
        assert torch.equal(ours, before[name])
    assert [id(parameter) for parameter in model.parameters()] == slots
    for ours, theirs in zip(model.buffers(), twin.buffers(), strict=True):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-10)


def test_the_perturbation_has_its_length_and_raises_the_loss(images):
    model = net().eval()
    plain = CrossEntropy()(model, images, TARGET)["cross_entropy"]
    raised = [
        WeightPerturbed(CrossEntropy(), gamma)(model, images, TARGET)["cross_entropy"]
        for gamma in (1e-9, 0.01, 0.05)
    ]
    torch.testing.assert_close(raised[0], plain, rtol=1e-6, atol=1e-6)
    assert plain < raised[1] < raised[2]
    slopes = torch.autograd.grad(plain, [w for w in model.parameters() if w.ndim > 1])
    weights = [w for w in model.parameters() if w.ndim > 1]
    first_order = sum(w.norm() * g.norm() for w, g in zip(weights, slopes, strict=True))
    small = WeightPerturbed(CrossEntropy(), 1e-5)(model, images, TARGET)["cross_entropy"]
    torch.testing.assert_close((small - plain) / 1e-5, first_order, rtol=1e-2, atol=0)


def test_frozen_weights_stay_and_tied_ones_move_together(images):
    class Tied(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first = nn.Linear(128, 128, dtype=torch.float64)
            self.second = nn.Linear(128, 128, dtype=torch.float64)
            self.second.weight = self.first.weight
            self.last = nn.Linear(128, 4, dtype=torch.float64)
            self.last.requires_grad_(False)

        def forward(self, inputs: Tensor) -> Tensor:
            return self.last(self.second(self.first(inputs.flatten(1)).relu()))

    model = Tied()
    loss = F.cross_entropy(model(images), TARGET)
    (slope,) = torch.autograd.grad(loss, model.first.weight)
    sum(WeightPerturbed(CrossEntropy(), GAMMA)(model, images, TARGET).values()).backward()
    twin = copy.deepcopy(model)
    twin.zero_grad()
    with torch.no_grad():
        twin.first.weight += GAMMA * model.first.weight.norm() / slope.norm() * slope
    F.cross_entropy(twin(images), TARGET).backward()
    torch.testing.assert_close(model.first.weight.grad, twin.first.weight.grad, rtol=1e-10, atol=1e-10)
    assert model.last.weight.grad is None
    assert model.second.weight is model.first.weight


def test_it_waits_for_its_share_of_the_run(images):
    model, objective = net().eval(), WeightPerturbed(CrossEntropy(), GAMMA, warmup=0.5)
    plain = CrossEntropy()(model, images, TARGET)["cross_entropy"]
    objective.progress = 0.49
    assert torch.equal(objective(model, images, TARGET)["cross_entropy"], plain)
    objective.progress = 0.5
    assert objective(model, images, TARGET)["cross_entropy"] > plain


@pytest.mark.parametrize("fail_at", [1, 2])
def test_the_models_own_tensors_are_back_after_a_failure(fail_at, images):
    inner = net()
    model = Recorder(inner, fail_at=fail_at)
    before = [*model.parameters(), *model.buffers()]
    with pytest.raises(RuntimeError, match="fails on purpose"):
        WeightPerturbed(CrossEntropy())(model, images, TARGET)
    after = [*model.parameters(), *model.buffers()]
    assert all(a is b for a, b in zip(before, after, strict=True))
    assert int(inner[1].num_batches_tracked) == 0


@pytest.mark.parametrize(
    ("build", "passes", "cost"),
    [(CrossEntropy, 1, 3), (lambda: Trades(NudgedPGD(0.1, steps=2)), 2, 6)],
    ids=["cross entropy", "trades"],
)
def test_cost(build: Callable[[], Objective], passes, cost, images):
    counts = []
    for objective in (build(), WeightPerturbed(build())):
        model = Counted(net())
        sum(objective(model, images, TARGET).values()).backward()
        counts.append((model.forwards, model.backwards))
    assert counts[1] == (counts[0][0] + passes * 5, counts[0][1] + passes * 5)
    assert cost - 0.3 < units(WeightPerturbed(build())) - units(build()) <= cost


def test_copies_keep_second_derivatives_right(images):
    """Those of a graph that was built in eval mode, when a pass in train mode moves the statistics."""

    def second(keep: bool, follow: bool) -> Tensor:
        model = net().eval()
        points = images.clone().requires_grad_()
        with substituting(model, copied(model) if keep else {}):
            (first,) = torch.autograd.grad(model(points).square().sum(), points, create_graph=True)
        if follow:
            model.train()(images)
        return torch.autograd.grad(first.square().sum(), model[0].weight)[0]

    expected = second(keep=False, follow=False)
    torch.testing.assert_close(second(keep=True, follow=True), expected, rtol=1e-10, atol=1e-10)
    assert not torch.allclose(second(keep=False, follow=True), expected, rtol=1e-3)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: WeightPerturbed(CrossEntropy(), gamma=0.0), "`gamma` must be greater than 0, got 0.0"),
        (lambda: WeightPerturbed(CrossEntropy(), warmup=1.0), "`warmup` must be at least 0 and less than 1"),
        (
            lambda: WeightPerturbed(CrossEntropy())(
                nn.Sequential(nn.BatchNorm2d(4), nn.AdaptiveAvgPool2d(1), nn.Flatten()),
                torch.rand(2, 4, 3, 3),
                torch.tensor([0, 1]),
            ),
            "`model` has no weights of more than one dimension to perturb",
        ),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
