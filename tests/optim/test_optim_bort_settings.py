"""What Bort refuses, and when its constraint is due."""

import copy

import pytest
import torch
from bort_twins import fresh, slow_correction, steps
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

from lit_xai.optim import Bort, BortAdamW, BortSGD, bort
from lit_xai.optim.constraint import pulls, ready


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"gamma": -0.1}, "`gamma` must be at least 0, got -0.1"),
        ({"gamma": 0.1, "amplitude": 0.0}, "`amplitude` must be greater than 0 or 'ada', got 0.0"),
        (
            {"gamma": 10.0, "lr": 0.1},
            r"`gamma` must be less than .* = 10 or the constraint diverges, got 10.0",
        ),
        ({"gamma": 2.5, "lr": 0.1, "amplitude": 4.0}, "diverges"),
        ({"gamma": 10.0, "lr": 0.1, "amplitude": "ada", "penalty": "l1"}, "diverges"),
        ({"gamma": float("nan")}, "`gamma` must be at least 0"),
    ],
)
def test_settings_out_of_range_are_refused(bort, settings, message):
    with pytest.raises(ValueError, match=message):
        bort(fresh(), **settings)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ({"penalty": "l3"}, "`penalty` must be 'l2' or 'l1', got 'l3'"),
        ({"amplitude": "own"}, "or 'ada', got 'own'"),
    ],
)
def test_names_that_do_not_exist_are_refused(setting, message):
    with pytest.raises(ValueError, match=message):
        BortSGD([{"params": fresh(), **setting}], gamma=0.1)


def test_momentum_counts_in_the_limit_of_gamma():
    BortSGD(fresh(), lr=0.1, momentum=0.9, gamma=0.99)
    with pytest.raises(ValueError, match="= 1 or the constraint diverges"):
        BortSGD(fresh(), lr=0.1, momentum=0.9, gamma=1.01)
    with pytest.raises(ValueError, match="`momentum` must be less than 1"):
        BortSGD(fresh(), lr=0.1, momentum=1.0, gamma=0.1)


def test_a_learning_rate_of_zero_is_a_start_of_a_warm_up():
    parameters = fresh()
    before = [p.data.clone() for p in parameters]
    steps(BortAdamW(parameters, lr=0.0, gamma=5.0), parameters, 1)
    assert all(torch.equal(a, b) for a, b in zip(parameters, before, strict=True))


def test_momentum_counts_only_where_the_constraint_passes_through_it():
    bort(torch.optim.SGD)(fresh(), lr=0.1, momentum=0.9, gamma=9.9)
    with pytest.raises(ValueError, match=r"less than 1 / \(lr \* every_k \* amplitude\) = 10 or"):
        bort(torch.optim.SGD)(fresh(), lr=0.1, momentum=0.9, gamma=10.0)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW])
def test_a_constraint_at_every_k_th_step_counts_k_times(kind):
    kind(fresh(), lr=0.1, gamma=2.4, every_k=4)
    with pytest.raises(ValueError, match=r"= 2\.5 or the constraint diverges, got 2.5"):
        kind(fresh(), lr=0.1, gamma=2.5, every_k=4)
    with pytest.raises(ValueError, match="`every_k` must be at least 1, got 0"):
        kind(fresh(), lr=0.1, gamma=0.1, every_k=0)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW])
def test_every_k_applies_k_times_the_constraint_at_each_k_th_step(kind):
    rare, hand = fresh(), fresh()
    settings = {"lr": 0.01, "weight_decay": 0.1, "amplitude": "ada"}
    settings |= {"momentum": 0.5} if kind is BortSGD else {}
    often = kind(hand, **settings, gamma=0.9)
    steps(kind(rare, **settings, gamma=0.3, every_k=3), rare, 7)
    draws = torch.Generator().manual_seed(0)
    for step in range(1, 8):
        often.param_groups[0]["gamma"] = 0.9 if step % 3 == 0 else 0.0
        for parameter in hand:
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        often.step()
    for ours, theirs in zip(rare, hand, strict=True):
        torch.testing.assert_close(ours.data, theirs.data, rtol=1e-13, atol=1e-13)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW, bort(torch.optim.RMSprop)])
@pytest.mark.parametrize("stop", [1, 2, 3, 4])
def test_a_resumed_run_keeps_the_beat_of_every_k(kind, stop):
    whole, broken = fresh(), fresh()
    settings = {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.5, "every_k": 3}
    optimizer = kind(whole, **settings)
    steps(optimizer, whole, stop, seed=0)
    steps(optimizer, whole, 4, seed=1)
    first = kind(broken, **settings)
    steps(first, broken, stop, seed=0)
    second = kind(broken, **settings)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, broken, 4, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, broken, strict=True))


def test_a_schedule_that_goes_above_the_limit_is_refused_at_that_step():
    parameters = fresh()
    optimizer = BortAdamW(parameters, lr=0.1, gamma=5.0)
    climbing = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: 1.0 + step)
    steps(optimizer, parameters, 1)
    climbing.step()
    with pytest.raises(ValueError, match=r"= 5 or the constraint diverges, got 5\.0"):
        steps(optimizer, parameters, 1)


@pytest.mark.parametrize(("shape", "longest"), [((2, 4), "0.25"), ((4, 2), "0.25")])
def test_the_adaptive_amplitude_is_looked_up_in_the_weights_at_the_first_step(shape, longest):
    weight = nn.Parameter(2 * torch.eye(*shape))
    row = nn.Parameter(torch.full((1, 9), 100.0))  # a single row is free
    for rate in (0.1, 1e-9):  # the warm-up of a schedule hides the learning rate that will come
        optimizer = BortAdamW([weight, row], lr=1.0, gamma=0.25, amplitude="ada")
        optimizer.param_groups[0].update(initial_lr=1.0, lr=rate)
        with pytest.raises(ValueError, match=f"= {longest} or the constraint diverges, got 0.25"):
            steps(optimizer, [weight, row], 1)
    optimizer = BortAdamW([weight, row], lr=1.0, gamma=0.24, amplitude="ada")
    steps(optimizer, [weight, row], 1)
    with torch.no_grad():
        weight.mul_(100)
    steps(optimizer, [weight, row], 1)  # no look, no wait for the device


class NoWaiting(TorchDispatchMode):
    """Fails where a number is read off a tensor: on a GPU, everything waits there."""

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        assert func is not torch.ops.aten._local_scalar_dense.default
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_no_step_but_the_first_waits_for_the_device(penalty):
    parameters = fresh()
    optimizer = BortAdamW(parameters, lr=0.01, gamma=0.5, amplitude="ada", penalty=penalty)
    steps(optimizer, parameters, 1)
    with NoWaiting(), torch.no_grad():
        ready(optimizer)
        assert len(pulls(optimizer.param_groups[0], decay=0.01, rate=0.1)) == 8
        with pytest.raises(AssertionError):
            float(parameters[0].sum())


def test_a_checkpoint_without_the_newer_settings_still_loads():
    ours, theirs = fresh(), fresh()
    optimizer, other = (BortAdamW(parameters, lr=0.01, gamma=0.5) for parameters in (ours, theirs))
    state = copy.deepcopy(optimizer.state_dict())
    for name in ("every_k", "since", "coupled", "seen"):
        del state["param_groups"][0][name]
    optimizer.load_state_dict(state)
    steps(optimizer, ours, 2)
    steps(other, theirs, 2)
    assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


def test_optimizers_that_cannot_be_wrapped_are_refused():
    with pytest.raises(ValueError, match="`optimizer` must step without a closure, LBFGS does not"):
        Bort(fresh(), torch.optim.LBFGS, gamma=0.1)

    def unhurried(params):
        inside = torch.optim.SGD(params, lr=0.1)
        del inside.param_groups[0]["lr"]
        return inside

    with pytest.raises(ValueError, match="must have a learning rate, `lr`; SGD got none"):
        Bort(fresh(), unhurried, gamma=0.1)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW, bort(torch.optim.AdamW)])
def test_a_checkpoint_of_the_plain_optimizer_loads_and_the_constraint_sets_in(kind):
    base = torch.optim.SGD if kind is BortSGD else torch.optim.AdamW
    ours, plain = fresh(), fresh()
    first = base(plain, lr=0.01, weight_decay=0.0)
    steps(first, plain, 1)
    optimizer = kind(ours, lr=0.5, gamma=0.7)
    optimizer.load_state_dict(copy.deepcopy(first.state_dict()))
    for parameter, start in zip(ours, plain, strict=True):
        parameter.data.copy_(start.data)
    before = [parameter.detach().clone() for parameter in ours]
    steps(optimizer, ours, 1, seed=1)
    steps(first, plain, 1, seed=1)
    for mine, other, was in zip(ours, plain, before, strict=True):
        pull = slow_correction(was, 1.0, "l2") if was.ndim > 1 else 0.0
        torch.testing.assert_close(mine.data, other.data - 0.007 * pull, rtol=1e-10, atol=1e-10)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW, bort(torch.optim.SGD)])
def test_weights_that_take_no_part_are_asked_for_nothing(kind):
    weight, frozen = nn.Parameter(torch.eye(2, 4)), nn.Parameter(100 * torch.eye(2, 4))
    optimizer = kind([weight, frozen], lr=0.1, gamma=0.5, amplitude="ada")
    weight.grad = torch.zeros_like(weight)
    optimizer.step()
    assert torch.equal(frozen, 100 * torch.eye(2, 4))
    frozen.grad = torch.zeros_like(frozen)
    with pytest.raises(ValueError, match="or the constraint diverges"):
        kind([weight, frozen], lr=0.1, gamma=0.5, amplitude="ada").step()


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW])
def test_the_constraint_is_never_maximised(kind):
    up, down = fresh(), fresh()
    for parameters, maximize in ((up, True), (down, False)):
        optimizer = kind([{"params": parameters, "maximize": maximize}], lr=0.01, gamma=0.5)
        for parameter in parameters:
            parameter.grad = torch.full_like(parameter, -0.3 if maximize else 0.3)
        optimizer.step()
    for a, b in zip(up, down, strict=True):
        torch.testing.assert_close(a.data, b.data)


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW])
def test_within_autocast_the_constraint_keeps_its_precision(kind):
    inside, outside = fresh(torch.float32), fresh(torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        steps(kind(inside, lr=0.1, gamma=0.5), inside, 2)
    steps(kind(outside, lr=0.1, gamma=0.5), outside, 2)
    assert all(torch.equal(a, b) for a, b in zip(inside, outside, strict=True))


@pytest.mark.parametrize("kind", [BortSGD, BortAdamW, bort(torch.optim.AdamW)])
def test_scaled_gradients_of_half_precision_are_unscaled_first_and_skipped_if_infinite(kind):
    scaled, plain = fresh(torch.float32), fresh(torch.float32)
    scaler = torch.amp.GradScaler("cpu", init_scale=1024.0)
    optimizer, other = (kind(parameters, lr=0.01, gamma=0.5, every_k=2) for parameters in (scaled, plain))
    for factor in (1.0, torch.inf, 1.0):
        for a, b in zip(scaled, plain, strict=True):
            scaler.scale(factor * a.square().sum()).backward()
            b.grad = (2 * factor * b).detach()
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        if factor == 1.0:
            other.step()
    assert all(torch.equal(a, b) for a, b in zip(scaled, plain, strict=True))
