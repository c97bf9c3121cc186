"""Bort against golden numbers, a slow twin, its own dynamics and autograd."""

import copy
import itertools

import pytest
import torch
from bort_twins import G, W, fresh, slow_correction, steps
from torch import Tensor, nn

from lit_xai.optim import BortAdamW, BortSGD, correction, residual

SETTINGS = list(itertools.product([1.0, 0.3, "ada"], ["l2", "l1"]))


@pytest.mark.parametrize(
    ("build", "count", "expected"),
    [
        (
            lambda p: BortSGD(p, lr=0.1, gamma=0.5),
            1,
            [[0.5073500, -0.2072000, 0.1238000], [0.3006000, 0.4179000, -0.6417500]],
        ),
        (
            lambda p: BortSGD(p, lr=0.1, momentum=0.9, weight_decay=5e-4, gamma=0.1),
            3,
            [[0.4633631149, -0.2075956171, 0.2163804753], [0.2779630553, 0.4638500115, -0.7802066329]],
        ),
        (
            lambda p: BortAdamW(p, lr=0.01, weight_decay=0.05, gamma=0.5),
            3,
            [[0.4744950215, -0.2017779661, 0.1309368415], [0.2712462987, 0.4316654330, -0.6324969030]],
        ),
        (
            lambda p: BortAdamW(p, lr=0.01, weight_decay=0.0, gamma=1.0, penalty="l1", amplitude="ada"),
            1,
            [[0.4920000010, -0.2060000000, 0.1169999995], [0.2820000020, 0.4079999990, -0.6049999997]],
        ),
    ],
    ids=["sgd", "sgd-momentum", "adamw", "adamw-l1-ada"],
)
def test_golden_numbers_of_the_released_code(build, count, expected):
    weight = nn.Parameter(torch.tensor(W, dtype=torch.float64))
    optimizer = build([weight])
    for _ in range(count):
        weight.grad = torch.tensor(G, dtype=torch.float64)
        optimizer.step()
    torch.testing.assert_close(weight.data, torch.tensor(expected, dtype=torch.float64), rtol=0, atol=5.1e-11)


@pytest.mark.parametrize(("amplitude", "penalty"), SETTINGS)
@pytest.mark.parametrize("nesterov", [False, True])
def test_sgd_is_its_slow_twin(amplitude, penalty, nesterov):
    lr, momentum, decay, gamma = 0.05, 0.8, 0.01, 0.3
    batched, slow = fresh(), [p.data.clone() for p in fresh()]
    optimizer = BortSGD(batched, lr, momentum, 0.0, decay, nesterov, gamma, amplitude, penalty)
    steps(optimizer, batched, 4)
    draws = torch.Generator().manual_seed(0)
    buffers = [torch.zeros_like(w) for w in slow]
    for _ in range(4):
        for w, v in zip(slow, buffers, strict=True):
            g = torch.randn(w.shape, generator=draws, dtype=w.dtype)
            g += gamma * slow_correction(w, amplitude, penalty) if w.ndim > 1 else 0
            g += decay * w
            v.mul_(momentum).add_(g)
            w -= lr * (g + momentum * v if nesterov else v)
    for fast, w in zip(batched, slow, strict=True):
        torch.testing.assert_close(fast.data, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize(("amplitude", "penalty"), SETTINGS)
def test_adamw_is_its_slow_twin(amplitude, penalty):
    lr, (b1, b2), eps, decay, gamma = 0.05, (0.8, 0.95), 1e-6, 0.1, 0.7
    batched, slow = fresh(), [p.data.clone() for p in fresh()]
    steps(BortAdamW(batched, lr, (b1, b2), eps, decay, gamma, amplitude, penalty), batched, 4)
    draws = torch.Generator().manual_seed(0)
    moments = [(torch.zeros_like(w), torch.zeros_like(w)) for w in slow]
    for t in range(1, 5):
        for w, (m, v) in zip(slow, moments, strict=True):
            g = torch.randn(w.shape, generator=draws, dtype=w.dtype)
            w *= 1 - lr * decay
            if w.ndim > 1:
                w -= lr * gamma * slow_correction(w, amplitude, penalty)
            m.mul_(b1).add_((1 - b1) * g)
            v.mul_(b2).add_((1 - b2) * g**2)
            w -= lr / (1 - b1**t) * m / (v.sqrt() / (1 - b2**t) ** 0.5 + eps)
    for fast, w in zip(batched, slow, strict=True):
        torch.testing.assert_close(fast.data, w, rtol=1e-12, atol=1e-12)


@pytest.mark.parametrize("shape", [(3, 5), (5, 3), (4, 4)])
@pytest.mark.parametrize("penalty", ["l2", "l1"])
def test_the_correction_is_the_gradient_of_the_penalty(shape, penalty):
    weight = torch.randn(shape, dtype=torch.float64, requires_grad=True)
    w = weight if shape[0] <= shape[1] else weight.T
    excess = w @ w.T - 0.7 * torch.eye(len(w), dtype=torch.float64)
    value = excess.square().sum() / 4 if penalty == "l2" else excess.abs().sum() / 2
    (gradient,) = torch.autograd.grad(value, weight)
    torch.testing.assert_close(correction(weight.detach()[None], 0.7, penalty)[0], gradient)


@pytest.mark.parametrize("shape", [(3, 5), (6, 2)])
@pytest.mark.parametrize("amplitude", [1.0, 0.25])
def test_singular_values_follow_their_law_without_a_loss(shape, amplitude):
    weight = nn.Parameter(torch.randn(shape, dtype=torch.float64) / 2)
    optimizer = BortAdamW([weight], lr=0.1, weight_decay=0.0, gamma=2.0, amplitude=amplitude)
    law = torch.linalg.svdvals(weight.data)
    for _ in range(150):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
        law = law * (1 - 0.2 * (law**2 - amplitude))
        torch.testing.assert_close(torch.linalg.svdvals(weight.data), law.sort(descending=True).values)
    torch.testing.assert_close(law, torch.full_like(law, amplitude**0.5), rtol=1e-6, atol=0)
    assert residual(weight, amplitude) < 1e-6


@pytest.mark.parametrize("shape", [(3, 8), (8, 3)])
def test_the_adaptive_amplitude_keeps_the_scale_of_wide_and_tall_weights(shape):
    weight = nn.Parameter(3 * torch.randn(shape, dtype=torch.float64))
    lengths = weight.data.norm(dim=1 if shape[0] <= shape[1] else 0)
    optimizer = BortAdamW([weight], lr=1e-3, weight_decay=0.0, gamma=1.0, amplitude="ada")
    before = residual(weight, "ada")
    for _ in range(2000):
        weight.grad = torch.zeros_like(weight)
        optimizer.step()
    assert residual(weight, "ada") < 1e-3 < before
    assert lengths.min() * 0.5 < torch.linalg.svdvals(weight.data).min()


def test_without_gamma_it_warns_and_is_the_plain_optimizer():
    pairs = [
        (BortSGD, torch.optim.SGD, {"momentum": 0.9, "weight_decay": 0.01}),
        (BortAdamW, torch.optim.AdamW, {"weight_decay": 0.1}),
    ]
    for bort, plain, settings in pairs:
        ours, theirs = fresh(), fresh()
        with pytest.warns(UserWarning, match="`gamma` is 0"):
            optimizer = bort(ours, lr=0.1, **settings)
        steps(optimizer, ours, 3)
        steps(plain(theirs, lr=0.1, **settings), theirs, 3)
        assert all(torch.equal(a, b) for a, b in zip(ours, theirs, strict=True))


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_a_group_has_settings_of_its_own(bort):
    free, held, alone = fresh(), fresh(), fresh()
    optimizer = bort([{"params": held}, {"params": free, "gamma": 0.0}], lr=0.01, gamma=0.5)
    steps(optimizer, [*held, *free], 1)
    steps(bort(alone, lr=0.01, gamma=0.5), alone, 1)
    assert all(torch.equal(a, b) for a, b in zip(held, alone, strict=True))
    assert not torch.equal(held[0], free[0])


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_gradients_are_left_as_they_were_and_missing_ones_are_skipped(bort):
    parameters = fresh()
    optimizer = bort(parameters, lr=0.01, gamma=0.5)
    still = parameters[0].data.clone()
    gradients = [None, *(torch.randn_like(p) for p in parameters[1:])]
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    copies = [None if g is None else g.clone() for g in gradients]
    optimizer.step()
    assert torch.equal(parameters[0], still)
    for parameter, gradient, before in zip(parameters[1:], gradients[1:], copies[1:], strict=True):
        assert parameter.grad is gradient
        assert torch.equal(gradient, before)


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_memory_format_does_not_matter(bort):
    plain = nn.Parameter(torch.randn(4, 3, 3, 3, dtype=torch.float64))
    last = nn.Parameter(plain.data.clone(memory_format=torch.channels_last))
    for weight in (plain, last):
        optimizer = bort([weight], lr=0.01, gamma=0.5)
        optimizer.param_groups[0].update({"momentum": 0.9} if bort is BortSGD else {})
        for _ in range(2):
            weight.grad = torch.ones_like(weight)
            optimizer.step()
    torch.testing.assert_close(plain.data, last.data.contiguous())
    kept = [last, *(t for t in optimizer.state[last].values() if t.ndim == 4)]
    assert len(kept) > 1
    assert all(tensor.is_contiguous(memory_format=torch.channels_last) for tensor in kept)


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_a_resumed_run_ends_where_an_unbroken_one_does(bort):
    whole, broken = fresh(), fresh()
    settings = {"lr": 0.01, "weight_decay": 0.1, "gamma": 0.5, "amplitude": "ada"}
    settings |= {"momentum": 0.9} if bort is BortSGD else {}
    optimizer = bort(whole, **settings)
    steps(optimizer, whole, 2, seed=0)
    steps(optimizer, whole, 2, seed=1)
    first = bort(broken, **settings)
    steps(first, broken, 2, seed=0)
    second = bort(broken, lr=0.5, gamma=0.1)
    second.load_state_dict(copy.deepcopy(first.state_dict()))
    steps(second, broken, 2, seed=1)
    assert all(torch.equal(a, b) for a, b in zip(whole, broken, strict=True))


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_hooks_of_a_step_run_once_even_after_the_base_class_was_used(bort):
    bort.__base__(fresh(), lr=0.1)  # torch wraps the `step` of a class when it is first built
    parameters = fresh()
    optimizer = bort(parameters, lr=0.01, gamma=0.5)
    calls = []
    optimizer.register_step_post_hook(lambda *_: calls.append("post"))
    optimizer.register_step_pre_hook(lambda *_: calls.append("pre"))
    steps(optimizer, parameters, 1)
    assert calls == ["pre", "post"]


@pytest.mark.parametrize("bort", [BortSGD, BortAdamW])
def test_a_closure_is_evaluated_with_gradients_before_the_correction(bort):
    (given,), (closed,) = ([nn.Parameter(torch.tensor(W, dtype=torch.float64))] for _ in range(2))
    given.grad = torch.tensor(G, dtype=torch.float64)
    bort([given], lr=0.01, gamma=0.5).step()
    closed.grad = torch.full_like(closed, 9.0)

    def closure() -> Tensor:
        closed.grad = None
        loss = (closed * torch.tensor(G, dtype=torch.float64)).sum()
        loss.backward()
        return loss.detach()

    loss = bort([closed], lr=0.01, gamma=0.5).step(closure)
    assert torch.equal(given, closed)
    assert loss == (torch.tensor(W, dtype=torch.float64) * torch.tensor(G, dtype=torch.float64)).sum()
