"""Bort around other optimizers: what it leaves to them, and what it adds."""

import copy
import functools

import pytest
import torch
from bort_twins import fresh, slow_correction, steps
from torch import Tensor, nn
from torch.optim import SGD, Adafactor, Adamax, AdamW, Muon, NAdam, Optimizer, RAdam, RMSprop
from torch.optim.optimizer import register_optimizer_step_post_hook

from lit_xai.optim import Bort, BortAdamW, BortSGD, bort, constrain_linear_maps, correction


class Lamb(Optimizer):
    """Layer-wise adaptive rates in their shortest form: the length of the weight sets that of the step."""

    def __init__(self, params, lr=1e-3, betas=(0.9, 0.999), weight_decay=0.0) -> None:
        super().__init__(params, {"lr": lr, "betas": betas, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self, closure=None) -> None:
        for group in self.param_groups:
            for p in group["params"]:
                if p.grad is None:
                    continue
                state = self.state[p]
                if not state:
                    state.update(m=torch.zeros_like(p), v=torch.zeros_like(p))
                (b1, b2), m, v = group["betas"], state["m"], state["v"]
                m.mul_(b1).add_((1 - b1) * p.grad)
                v.mul_(b2).add_((1 - b2) * p.grad**2)
                update = m / (v.sqrt() + 1e-6) + group["weight_decay"] * p
                p.sub_(group["lr"] * p.norm() / update.norm().clamp(min=1e-12) * update)


BASES = [
    functools.partial(RMSprop, lr=0.01, momentum=0.9),
    functools.partial(Adamax, lr=0.01),
    functools.partial(NAdam, lr=0.01),
    functools.partial(RAdam, lr=0.01, weight_decay=0.1),
    functools.partial(Adafactor, lr=0.01),
    functools.partial(SGD, lr=0.01, momentum=0.9, nesterov=True),
    functools.partial(Lamb, lr=0.01, weight_decay=0.1),
]
every_base = pytest.mark.parametrize("base", BASES, ids=lambda base: base.func.__name__)


@every_base
@pytest.mark.parametrize("amplitude", [1.0, "ada"])
def test_each_step_is_that_of_the_base_minus_the_correction_of_the_weights_before(base, amplitude) -> None:
    ours = fresh()
    optimizer = Bort(ours, base, gamma=0.7, amplitude=amplitude)
    draws = torch.Generator().manual_seed(3)
    for _ in range(4):
        for parameter in ours:
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        theirs = [nn.Parameter(p.detach().clone()) for p in ours]
        plain = base(theirs)  # with the state of the moment
        state = copy.deepcopy(optimizer.state_dict()["state"])
        plain.load_state_dict({**plain.state_dict(), "state": state})
        for mine, other in zip(ours, theirs, strict=True):
            other.grad = mine.grad.clone()
        before = [p.detach().clone() for p in ours]
        plain.step()
        optimizer.step()
        for mine, other, was in zip(ours, theirs, before, strict=True):
            pull = slow_correction(was, amplitude, "l2") if was.ndim > 1 else 0.0
            torch.testing.assert_close(mine.data, other.data - 0.007 * pull, rtol=1e-10, atol=1e-10)


@every_base
def test_without_gamma_it_is_the_base_to_the_bit(base) -> None:
    ours, theirs = fresh(), fresh()
    with pytest.warns(UserWarning, match="`gamma` is 0: Bort constrains nothing"):
        optimizer = Bort(ours, base)
    steps(optimizer, ours, 4)
    steps(base(theirs), theirs, 4)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_muon_and_the_lamb_of_timm_carry_it_too() -> None:
    lamb = pytest.importorskip("timm.optim").Lamb
    for base in (Muon, functools.partial(lamb, weight_decay=0.01)):
        weight = nn.Parameter(torch.randn(4, 6))
        optimizer = Bort([weight], base, gamma=100.0, amplitude=1.0)
        for _ in range(200):
            weight.grad = torch.zeros_like(weight)
            optimizer.step()
        assert correction(weight.detach()[None]).abs().max() < 1e-2


def test_around_adamw_it_is_bort_adamw_and_around_sgd_it_is_not_bort_sgd() -> None:
    one, two = fresh(), fresh()
    settings = {"lr": 0.05, "betas": (0.8, 0.95), "weight_decay": 0.3, "gamma": 0.7, "amplitude": "ada"}
    steps(BortAdamW(one, **settings), one, 4)
    steps(bort(AdamW)(two, **settings), two, 4)
    assert all(torch.equal(a, b) for a, b in zip(one, two, strict=True))
    one, two, three = fresh(), fresh(), fresh()
    settings = {"lr": 0.05, "gamma": 0.7, "weight_decay": 0.1}
    steps(BortSGD(one, **settings), one, 1)
    steps(bort(SGD)(two, **settings), two, 1)
    for a, b in zip(one, two, strict=True):  # without momentum both say the same
        torch.testing.assert_close(a.data, b.data)
    steps(bort(SGD)(three, momentum=0.9, **settings), three, 3)
    two = fresh()
    steps(BortSGD(two, momentum=0.9, **settings), two, 3)
    assert not torch.allclose(two[0], three[0])


@every_base
def test_groups_and_state_are_those_of_the_optimizer_inside_and_survive_a_restart(base) -> None:
    # In single precision: torch casts NAdam's running product to that of the weights when it is loaded.
    whole, broken = fresh(torch.float32), fresh(torch.float32)
    optimizer = Bort(whole, base, gamma=0.5)
    steps(optimizer, whole, 2)
    steps(optimizer, whole, 2, seed=1)
    assert optimizer.state is optimizer.inside.state
    assert optimizer.param_groups is optimizer.inside.param_groups
    first = Bort(broken, base, gamma=0.5)
    steps(first, broken, 2)
    kept = copy.deepcopy(first.state_dict())
    names = set(first.param_groups[0]) - set(base(broken).param_groups[0])
    names -= {"differentiable"}  # torch gives it to all
    assert names == {"gamma", "amplitude", "penalty", "every_k", "coupled", "since", "seen"}
    second = Bort(broken, base, gamma=0.5)
    second.load_state_dict(kept)
    assert second.state is second.inside.state
    steps(second, broken, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, broken, strict=True))


@every_base
def test_a_copy_steps_alone(base) -> None:
    net = nn.Linear(4, 3)
    pair = net, Bort(net.parameters(), base, gamma=0.5)
    net(torch.ones(2, 4)).sum().backward()
    pair[1].step()
    twin, optimizer = copy.deepcopy(pair)
    assert optimizer.state is optimizer.inside.state
    assert optimizer.param_groups is optimizer.inside.param_groups
    assert optimizer.param_groups[0]["params"][0] is twin.weight
    before = net.weight.detach().clone()
    twin.weight.grad, twin.bias.grad = net.weight.grad.clone(), net.bias.grad.clone()
    optimizer.step()
    assert torch.equal(net.weight, before)
    pair[1].step()
    assert torch.equal(net.weight, twin.weight)


def test_a_schedule_and_the_kinds_of_layers_reach_the_optimizer_inside() -> None:
    net = nn.Sequential(nn.Conv2d(2, 4, 3, groups=2), nn.BatchNorm2d(4))
    optimizer = bort(RMSprop)(net.parameters(), lr=0.1, gamma=0.5)
    constrain_linear_maps(optimizer, net)
    assert [len(group["params"]) for group in optimizer.inside.param_groups] == [1, 3]
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, 1, 0.1)
    for parameter in net.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    schedule.step()
    assert [group["lr"] for group in optimizer.inside.param_groups] == [pytest.approx(0.01)] * 2


def test_hooks_run_once_and_a_closure_runs_first() -> None:
    weight, calls = nn.Parameter(torch.ones(2, 3)), []
    optimizer = bort(RMSprop)([weight], lr=0.1, gamma=0.5)
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))

    def closure() -> Tensor:
        calls.append("closure")
        assert torch.is_grad_enabled()
        weight.grad = None
        loss = weight.square().sum()
        loss.backward()
        return loss.detach()

    everywhere = register_optimizer_step_post_hook(lambda *_: calls.append("any"))
    try:
        assert float(optimizer.step(closure)) == 6.0
    finally:
        everywhere.remove()
    assert calls == ["pre", "closure", "post", "any"]


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW, bort(RMSprop)])
def test_weights_in_bfloat16_are_corrected_in_single_precision(kind) -> None:
    half, full = fresh(torch.bfloat16), fresh(torch.bfloat16)
    full = [nn.Parameter(p.detach().float()) for p in full]
    for parameters in (half, full):
        optimizer = kind(parameters, lr=0.1, gamma=1.0)
        for parameter in parameters:
            parameter.grad = torch.zeros_like(parameter)
        optimizer.step()
    for a, b in zip(half, full, strict=True):
        assert a.dtype == torch.bfloat16
        # Rounded where the step writes: twice with decay, once more for a gradient.
        torch.testing.assert_close(a.float(), b.data, rtol=0, atol=0.012 * float(b.data.abs().max()))
