import pytest
import torch
from subjects import tiny_net
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_xai.attacks.losses import (
    CE,
    DLR,
    FixedClass,
    LeastLikely,
    LogitMargin,
    RandomClass,
    RunnerUp,
    holds,
    ranking,
)
from lit_xai.randomness import keyed

LOSSES = [CE(), DLR(), LogitMargin()]
AIMS = [RunnerUp(), RunnerUp(rank=3), LeastLikely(), RandomClass(), FixedClass(label=2)]
LOGITS = torch.tensor([[3, 1, 0.5, -2], [0.2, 0.9, 0.4, 0.1]], dtype=torch.float64)
TARGET = torch.tensor([0, 1])


@pytest.mark.parametrize("thing", LOSSES + AIMS, ids=repr)
def test_repr_builds_it_again(thing):
    assert eval(repr(thing)) == thing


def test_golden_values_of_dlr():
    assert_close(DLR()(LOGITS, TARGET), torch.tensor([-0.8, -5 / 7], dtype=torch.float64))
    aim = RunnerUp()(LOGITS, TARGET)
    assert aim.tolist() == [1, 2]
    expected = torch.tensor([-8 / 15, -2 / 3], dtype=torch.float64)
    assert_close(DLR()(LOGITS, TARGET, aim), expected)


def test_dlr_is_that_of_its_authors(float64):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    logits, target = 5 * torch.randn(40, 6), torch.randint(6, (40,))
    assert_close(DLR()(logits, target), APGDAttack.dlr_loss(None, logits, target))
    peer = APGDAttack_targeted(nn.Identity(), eps=1.0)
    peer.y_target = RunnerUp(rank=2)(logits, target)
    assert_close(DLR()(logits, target, peer.y_target), peer.dlr_loss_targeted(logits, target))


@pytest.mark.parametrize("aimed", [False, True])
def test_scaling_and_shifting_all_logits_does_not_change_dlr(aimed):
    aim = RunnerUp()(LOGITS, TARGET) if aimed else None
    assert_close(DLR()(7 * LOGITS - 3, TARGET, aim), DLR()(LOGITS, TARGET, aim))


def test_ce_rises_with_the_cross_entropy_in_the_direction_of_its_gradient(float64):
    logits, target = torch.randn(30, 5).requires_grad_(), torch.randint(5, (30,))
    usual = cross_entropy(logits, target, reduction="none")
    ours = CE()(logits, target)
    assert_close(torch.nn.functional.softplus(ours), usual)
    (expected,) = torch.autograd.grad(usual.sum(), logits)
    (seen,) = torch.autograd.grad(ours.sum(), logits)
    assert_close(torch.cosine_similarity(seen, expected), torch.ones(30))


def test_aimed_ce_falls_with_the_cross_entropy_of_the_aim(float64):
    logits, aim = torch.randn(30, 5), torch.randint(5, (30,))
    expected = cross_entropy(logits, aim, reduction="none")
    assert_close(torch.nn.functional.softplus(-CE()(logits, (aim + 1) % 5, aim)), expected)


def test_margin_changes_its_sign_with_the_decision():
    logits, target = torch.randn(200, 5), torch.randint(5, (200,))
    margin = LogitMargin()(logits, target)
    assert torch.equal(margin > 0, logits.argmax(1) != target)
    assert torch.equal(margin, LogitMargin()(logits, target, RunnerUp()(logits, target)))


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("aimed", [False, True])
def test_a_confident_model_and_a_tie_leave_losses_and_gradients_finite(loss, aimed):
    logits = torch.stack([torch.eye(5)[0] * 1e4, torch.zeros(5), torch.eye(5)[1] * 1e4]).requires_grad_()
    target = torch.zeros(3, dtype=torch.int64)
    value = loss(logits, target, torch.ones_like(target) if aimed else None)
    gradient = loss.slope(logits, target, torch.ones_like(target) if aimed else None)
    assert value.isfinite().all()
    assert gradient.isfinite().all()
    assert (gradient[[0, 2], 0] <= 0).all()
    if loss == CE():
        assert (gradient[0] != 0).any()


@pytest.mark.parametrize("aim", AIMS, ids=repr)
def test_an_aim_is_never_the_target(aim):
    logits, target = torch.randn(300, 5), torch.randint(5, (300,))
    chosen = aim(logits, target)
    assert (chosen != target).all()
    assert chosen.min() >= 0
    assert chosen.max() <= 4


def test_aims_are_ranks_of_the_other_classes():
    logits, target = torch.randn(50, 5), torch.randint(5, (50,))
    ranks = torch.tensor(
        [
            [k for k in row.argsort(descending=True).tolist() if k != own]
            for row, own in zip(logits, target, strict=True)
        ]
    )
    assert torch.equal(ranking(logits, target, rank=4), ranks)
    assert torch.equal(RunnerUp()(logits, target), ranks[:, 0])
    assert torch.equal(RunnerUp(rank=3)(logits, target), ranks[:, 2])
    assert torch.equal(LeastLikely()(logits, target), ranks[:, 3])
    fixed = FixedClass(label=2)(logits, target)
    assert torch.equal(fixed, torch.where(target == 2, ranks[:, 0], 2))


def test_a_random_aim_belongs_to_the_key_and_is_even():
    logits, target = torch.zeros(4000, 4), torch.full((4000,), 1)
    with keyed(0, torch.arange(4000)):
        chosen = RandomClass()(logits, target)
    with keyed(0, torch.tensor([7, 3])):
        assert torch.equal(RandomClass()(logits[:2], target[:2]), chosen[[7, 3]])
    share = chosen.bincount(minlength=4) / 4000
    assert_close(share, torch.tensor([1 / 3, 0, 1 / 3, 1 / 3]), atol=0.03, rtol=0)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
@pytest.mark.parametrize("aimed", [False, True])
def test_the_slope_is_the_gradient_of_the_loss(loss, aimed, float64):
    logits, target = torch.randn(20, 5).requires_grad_(), torch.randint(5, (20,))
    aim = (target + 1) % 5 if aimed else None
    (expected,) = torch.autograd.grad(loss(logits, target, aim).sum(), logits)
    assert_close(loss.slope(logits, target, aim), expected)


@pytest.mark.parametrize("loss", LOSSES, ids=repr)
def test_a_climb_is_one_pass_whose_images_do_not_see_each_other(loss):
    net, points = tiny_net(nn.Softplus, torch.float64), torch.rand(4, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1, 2, 3])
    logits, gradient = loss.climb(net, points, target)
    assert not any(tensor.requires_grad for tensor in (logits, gradient, points))
    assert_close(logits, net(points).detach())
    assert_close(gradient[2:3], loss.climb(net, points[2:3], target[2:3])[1])
    step = 1e-6 * torch.randn_like(points)
    rise = (loss(net(points + step), target) - loss(net(points - step), target)) / 2
    assert_close((gradient * step).flatten(1).sum(1), rise, rtol=1e-6, atol=1e-12)


def test_logits_that_are_not_finite_decide_nothing():
    logits = torch.tensor([[1.0, 0], [0, 1], [torch.inf, 0], [torch.nan, 0], [1, -torch.inf]])
    assert holds(logits, torch.zeros(5, dtype=torch.int64)).tolist() == [True, False, False, False, False]


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: DLR()(LOGITS[:, :2], TARGET), "DLR needs at least 3 classes, got a model with 2: take"),
        (lambda: DLR()(LOGITS[:, :3], TARGET, 1 - TARGET), "DLR with an aim needs at least 4 classes"),
        (lambda: RunnerUp(rank=0), "`rank` must be at least 1, got 0"),
        (
            lambda: RunnerUp(rank=4)(LOGITS, TARGET),
            "`rank` must be at most 3 for a model with 4 classes, got 4",
        ),
        (lambda: FixedClass(label=-1), "`label` must be at least 0, got -1"),
        (lambda: FixedClass(label=4)(LOGITS, TARGET), "`label` must be at most 3 for a model with 4 classes"),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
