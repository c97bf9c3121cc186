"""Laws of every objective: named scalar terms that can be minimised, and a model that stays in its mode."""

import copy

import pytest
import torch
from rows import OBJECTIVES, Row
from subjects import Recorder, tiny_net
from torch import nn

every_row = pytest.mark.parametrize("row", OBJECTIVES, ids=str)


def training_batch(dtype=torch.float32):
    net = tiny_net(nn.ReLU, dtype).train()
    net[1].eval()  # a submodule that somebody froze
    return net, torch.rand(5, 2, 8, 8, dtype=dtype), torch.tensor([0, 1, 2, 3, 0])


def modes(model):
    return [module.training for module in model.modules()]


@every_row
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_terms_are_finite_scalars_that_reach_every_parameter(row: Row, dtype):
    net, inputs, target = training_batch(dtype)
    terms = row.instance(net, inputs, target)
    assert terms
    for name, term in terms.items():
        assert name.isidentifier()
        assert term.shape == ()
        assert term.dtype == dtype
        assert term.isfinite()
    sum(terms.values()).backward()
    assert all(parameter.grad.isfinite().all() for parameter in net.parameters())
    assert all(parameter.grad.abs().sum() > 0 for parameter in net.parameters())


@every_row
def test_the_batch_and_the_gradients_at_hand_stay_untouched(row: Row):
    net, inputs, target = training_batch()
    for parameter in net.parameters():
        parameter.grad = torch.ones_like(parameter)
    before = inputs.clone(), target.clone()
    row.instance(net, inputs, target)
    assert torch.equal(inputs, before[0])
    assert torch.equal(target, before[1])
    assert not inputs.requires_grad
    assert all((parameter.grad == 1).all() for parameter in net.parameters())
    assert all(parameter.requires_grad for parameter in net.parameters())


@every_row
@pytest.mark.parametrize("fail", [None, 1, -1], ids=["passing", "failing first", "failing last"])
def test_every_submodule_keeps_its_mode(row: Row, fail):
    net, inputs, target = training_batch()
    counted = Recorder(net)
    row.instance(counted, inputs, target)
    model = Recorder(net, fail_at=len(counted.calls) if fail == -1 else fail)
    before = modes(model)
    if fail is None:
        row.instance(model, inputs, target)
    else:
        with pytest.raises(RuntimeError, match="fails on purpose"):
            row.instance(model, inputs, target)
    assert modes(model) == before


@every_row
def test_same_seed_same_loss(row: Row):
    net, inputs, target = training_batch()

    def loss(seed):
        torch.manual_seed(seed)
        return sum(row.instance(net, inputs, target).values())

    assert torch.equal(loss(1), loss(1))
    net.eval()  # without dropout, draws are the objective's own
    assert torch.equal(loss(1), loss(2)) is not row.draws


@every_row
def test_a_few_steps_lower_it(row: Row):
    net, inputs, target = training_batch()
    net.eval()

    def loss():
        torch.manual_seed(0)
        objective = copy.deepcopy(row.instance)  # one that carries perturbations along starts with none
        return sum(objective(net, inputs, target).values())

    optimizer = torch.optim.SGD(net.parameters(), lr=1e-3)
    first = loss()
    for _ in range(5):
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert loss() < first
