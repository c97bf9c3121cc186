import pytest
import torch
from peers import foolbox, peer_model, returning
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_xai.attacks import FGSM, L2, L2PGD, Linf, LinfPGD
from lit_xai.attacks.losses import CE, DLR, FixedClass, LeastLikely, LogitMargin, RandomClass, RunnerUp
from lit_xai.attacks.norms import L1
from lit_xai.attacks.pgd import MomentumPGD
from lit_xai.randomness import keyed
from lit_xai.types import Eps

ATTACKS = [
    FGSM(epsilon=0.03),
    FGSM(epsilon=Eps("8/255"), step_size=Eps("10/255"), random_start=True),
    FGSM(epsilon=0.2, norm=L2()),
    LinfPGD(epsilon=0.03, steps=4),
    LinfPGD(epsilon=0.03, steps=3, step_size=0.02, random_start=False),
    L2PGD(epsilon=0.5, steps=4),
    L2PGD(epsilon=0.5, steps=3, step_size=0.3, random_start=False),
    MomentumPGD(epsilon=0.03, steps=4),
    MomentumPGD(epsilon=0.5, norm=L2(), steps=3, momentum=0.5, random_start=True),
]
DEARER = [
    LinfPGD(epsilon=0.03, steps=4, restarts=3),
    LinfPGD(epsilon=0.03, steps=4, best=True, loss=DLR()),
    LinfPGD(epsilon=0.03, steps=4, stop_early=True),
    LinfPGD(epsilon=0.03, steps=6, restarts=2, best=True, stop_early=True, loss=LogitMargin()),
    L2PGD(epsilon=0.5, steps=4, aim=RunnerUp()),
    L2PGD(epsilon=0.5, steps=4, restarts=2, loss=DLR(), aim=RandomClass(), random_start=True),
    MomentumPGD(epsilon=2.0, norm=L1(), steps=20, best=True),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS + DEARER, ids=repr)


def norm_of(attack):
    return getattr(attack, "norm", {LinfPGD: Linf(), L2PGD: L2()}.get(type(attack)))


@every_attack
def test_repr_builds_the_attack_again(attack):
    assert eval(repr(attack)) == attack


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_budget_and_box_hold_and_the_loss_rises(attack, dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(16, 2, 8, 8, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels on the box
    target = net(inputs).argmax(1)
    points = attack(net, inputs, target)
    assert points.dtype == dtype
    assert not points.requires_grad
    assert (norm_of(attack).length(points - inputs) <= attack.epsilon + 1e-6).all()
    assert points.min() >= 0
    assert points.max() <= 1
    loss = cross_entropy(net(inputs), target, reduction="none")
    assert (cross_entropy(net(points), target, reduction="none") > loss).float().mean() > 0.8


@pytest.mark.parametrize(
    "attack",
    [
        FGSM(epsilon=0.01),
        LinfPGD(epsilon=0.01, steps=7),
        FGSM(epsilon=0.3, norm=L2()),
        L2PGD(epsilon=0.3, steps=7),
    ],
    ids=repr,
)
def test_worst_margin_of_two_linear_classes_is_the_margin_less_epsilon_times_the_dual_norm(attack):
    case = linear_case(classes=2)
    logits = case.model(attack(case.model, case.inputs, case.target))
    own = torch.arange(6), case.target
    other = torch.arange(6), 1 - case.target
    clean = case.model(case.inputs)
    dual = 1 if norm_of(attack) == Linf() else 2
    loss = attack.epsilon * (case.weight[0] - case.weight[1]).norm(p=dual)
    # A random start is forgotten only in the corner of the cube, and nearly so on the sphere.
    tolerance = 0.03 if attack == L2PGD(epsilon=0.3, steps=7) else 1e-9
    assert_close(
        logits[own] - logits[other], clean[own] - clean[other] - loss, rtol=tolerance, atol=tolerance
    )


def test_fgsm_takes_one_signed_step_clipped_to_the_box():
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(4, 2, 8, 8).mul(1.2).sub(0.1).clamp(0, 1).requires_grad_()
    target = net(inputs).argmax(1)
    cross_entropy(net(inputs), target).backward()
    expected = (inputs + 0.05 * inputs.grad.sign()).clamp(0, 1)
    assert_close(FGSM(epsilon=0.05)(net, inputs, target), expected, atol=2e-7, rtol=0)


@pytest.mark.parametrize(
    ("attack", "peer"),
    [
        (LinfPGD(epsilon=0.1, steps=5, random_start=False), foolbox.attacks.LinfPGD),
        (L2PGD(epsilon=0.6, steps=5, random_start=False), foolbox.attacks.L2PGD),
    ],
    ids=["Linf", "L2"],
)
def test_iterates_are_those_of_foolbox(attack, peer):
    net = tiny_net(nn.Softplus)
    inputs = torch.rand(12, 2, 8, 8)
    target = net(inputs).argmax(1)
    other = peer(rel_stepsize=2.5 / 5, steps=5, random_start=False).run(
        peer_model(net), inputs, target, epsilon=attack.epsilon
    )
    assert_close(attack(net, inputs, target), other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("attack", ATTACKS, ids=repr)
def test_each_step_costs_one_forward_pass_and_one_input_gradient(attack):
    counted = Recorder(tiny_net(nn.ReLU))
    with returning(counted) as returned:
        attack(counted, torch.rand(5, 2, 8, 8), torch.zeros(5, dtype=torch.int64))
    assert counted.calls == returned == [5] * getattr(attack, "steps", 1)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({"best": True}, 7, 6),
        ({"restarts": 3}, 21, 18),
        ({"restarts": 3, "best": True}, 21, 18),
        ({"aim": FixedClass(label=1)}, 7, 6),
        ({"loss": DLR()}, 6, 6),
    ],
    ids=str,
)
def test_what_is_asked_for_costs_a_forward_pass_more(options, forwards, backwards):
    counted = Recorder(tiny_net(nn.ReLU))
    with returning(counted) as returned:
        LinfPGD(epsilon=1e-4, steps=6, **options)(counted, torch.rand(5, 2, 8, 8), torch.zeros(5).long())
    assert counted.calls == [5] * forwards
    assert returned == [5] * backwards


@every_attack
@pytest.mark.parametrize("frozen", [False, True])
def test_model_inputs_and_global_generator_stay_as_they_were(attack, frozen, relu_net, batch):
    relu_net.requires_grad_(not frozen)
    with unchanged(relu_net, *batch), torch.no_grad(), keyed(0, torch.arange(5)):
        before = torch.random.get_rng_state()
        points = attack(relu_net, *batch)
        assert torch.equal(torch.random.get_rng_state(), before)
    with keyed(0, torch.arange(5)):
        assert torch.equal(points, attack(relu_net, *batch))


@every_attack
def test_the_mode_of_the_model_is_left_alone(attack, relu_net, batch):
    relu_net.train()
    relu_net[1].eval()
    modes = [module.training for module in relu_net.modules()]
    attack(relu_net, *batch)
    assert [module.training for module in relu_net.modules()] == modes


@every_attack
def test_batch_size_and_order_do_not_matter(attack, smooth_net):
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    order = torch.tensor([4, 0, 5])
    with keyed(3, torch.arange(6)):
        whole = attack(smooth_net, inputs, target)
    with keyed(3, order):
        assert_close(attack(smooth_net, inputs[order], target[order]), whole[order], atol=1e-12, rtol=0)


@every_attack
def test_saturated_images_stay_finite_and_in_budget(attack):
    net = nn.Sequential(nn.Flatten(), nn.Linear(32, 4))
    with torch.no_grad():
        net[1].weight.mul_(1e4)
    inputs = torch.rand(4, 2, 4, 4)
    points = attack(net, inputs, net(inputs).argmax(1))  # the cross entropy is exactly flat
    assert points.isfinite().all()
    assert (norm_of(attack).length(points - inputs) <= attack.epsilon + 1e-6).all()


@every_attack
def test_logits_of_half_precision_are_attacked_in_that_of_the_images(attack, relu_net, batch):
    with torch.autocast("cpu", torch.bfloat16):
        points = attack(relu_net, *batch)
    assert points.dtype == torch.float32
    assert points.isfinite().all()
    margin = relu_net(batch[0]).gather(1, batch[1][:, None]) - relu_net(points).gather(1, batch[1][:, None])
    assert (margin > 0).float().mean() > 0.7


@pytest.mark.parametrize("attack", [FGSM(epsilon=0.01), LinfPGD(epsilon=0.01)], ids=repr)
@pytest.mark.parametrize("lead", [10.0, 30.0, 1000.0])
def test_confidence_does_not_hide_the_way(attack, lead):
    """In float32 the gradient of the cross entropy loses f_y beyond a lead of 17, and all beyond 104."""
    case = linear_case(classes=2)
    model, inputs = case.model.float(), case.inputs.float()
    with torch.no_grad():
        model[1].weight[case.target[0]].mul_(5)  # so that the two classes do not ask for the same corner
        model[1].bias[case.target[0]] += lead
        difference = model[1].weight[1] - model[1].weight[0]
    target = case.target[:1]
    away = difference.sign().view_as(inputs[:1]) * (1 - 2 * target)
    expected = inputs[:1] + 0.01 * away
    assert_close(attack(model, inputs[:1], target), expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize("peer", [foolbox.attacks.LinfPGD, foolbox.attacks.L2PGD], ids=["Linf", "L2"])
def test_aimed_iterates_are_those_of_foolbox(peer):
    kind = LinfPGD if peer is foolbox.attacks.LinfPGD else L2PGD
    attack = kind(epsilon=0.1, steps=5, random_start=False, aim=LeastLikely())
    net, inputs = tiny_net(nn.Softplus), torch.rand(12, 2, 8, 8)
    logits = net(inputs)
    goal = foolbox.criteria.TargetedMisclassification(logits.argmin(1))
    other = peer(rel_stepsize=0.5, steps=5, random_start=False).run(
        peer_model(net), inputs, goal, epsilon=0.1
    )
    assert_close(attack(net, inputs, logits.argmax(1)), other, atol=1e-5, rtol=0)


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
def test_momentum_is_a_running_sum_of_gradients_of_l1_length_one(norm, smooth_net):
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target, points, velocity = torch.tensor([0, 1, 2]), inputs, 0
    for _ in range(4):
        points = points.detach().requires_grad_()
        loss = cross_entropy(smooth_net(points), target, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        velocity = 0.7 * velocity + gradient / gradient.abs().sum((1, 2, 3), keepdim=True)
        if norm == Linf():
            step = velocity.sign()
        else:
            step = velocity / velocity.square().sum((1, 2, 3), keepdim=True).sqrt()
        delta = points.detach() + 0.05 * step - inputs
        if norm == Linf():
            delta = delta.clamp(-0.1, 0.1)
        else:
            length = delta.square().sum((1, 2, 3), keepdim=True).sqrt()
            delta = delta * (0.1 / length).clamp(max=1)
        points = (inputs + delta).clamp(0, 1)
    attack = MomentumPGD(epsilon=0.1, norm=norm, steps=4, step_size=0.05, momentum=0.7)
    assert_close(attack(smooth_net, inputs, target), points, atol=1e-12, rtol=0)
    plain = MomentumPGD(epsilon=0.1, norm=norm, steps=4, step_size=0.05, momentum=0.0)
    kind = LinfPGD if norm == Linf() else L2PGD
    assert_close(
        plain(smooth_net, inputs, target),
        kind(epsilon=0.1, steps=4, step_size=0.05, random_start=False)(smooth_net, inputs, target),
    )


def loss_at(net, points, target):
    with torch.no_grad():
        return CE()(net(points), target)


def test_of_several_starts_the_worst_is_kept_per_image(relu_net):
    inputs, target = torch.rand(40, 2, 8, 8), torch.zeros(40, dtype=torch.int64)
    with keyed(0, torch.arange(40)):
        one = LinfPGD(epsilon=0.1, steps=2)(relu_net, inputs, target)
        more = LinfPGD(epsilon=0.1, steps=2, restarts=5)(relu_net, inputs, target)
    first, worst = loss_at(relu_net, one, target), loss_at(relu_net, more, target)
    assert (worst >= first).all()
    kept = (one == more).flatten(1).all(1)
    assert 0 < kept.sum() < 20
    assert torch.equal(worst > first, ~kept)


def test_the_best_iterate_is_at_least_as_good_as_start_and_last(relu_net):
    inputs, target = torch.rand(40, 2, 8, 8), torch.zeros(40, dtype=torch.int64)
    wild = {"epsilon": 0.3, "steps": 7, "step_size": 0.3, "random_start": False}
    last = LinfPGD(**wild)(relu_net, inputs, target)
    best = LinfPGD(**wild, best=True)(relu_net, inputs, target)
    losses = [loss_at(relu_net, points, target) for points in (inputs, last, best)]
    assert (losses[2] >= losses[1]).all()
    assert (losses[2] >= losses[0]).all()
    assert (losses[2] > losses[1]).any()
    iterates = [LinfPGD(**{**wild, "steps": k})(relu_net, inputs, target) for k in range(1, 8)]
    every = torch.stack([loss_at(relu_net, points, target) for points in [inputs, *iterates]])
    assert_close(losses[2], every.amax(0))


def test_fooled_images_leave_with_the_first_point_that_fools(relu_net):
    inputs = torch.rand(60, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    options = {"epsilon": 0.2, "step_size": 0.01, "random_start": False}
    counted = Recorder(relu_net)
    found = LinfPGD(**options, steps=15, stop_early=True)(counted, inputs, target)
    expected, left = inputs.clone(), torch.zeros(60, dtype=torch.bool)
    arrived = torch.full((60,), 15)
    for steps in range(1, 16):
        points = LinfPGD(**options, steps=steps)(relu_net, inputs, target)
        expected[~left] = points[~left]
        flips = ~left & (relu_net(points).argmax(1) != target)
        arrived[flips], left = steps, left | flips
    assert_close(found, expected)
    assert left.sum() > 3
    assert counted.calls == sorted(counted.calls, reverse=True)
    least = int((arrived + 1).clamp(max=15).sum())  # an image sees its flip, and leaves
    assert least <= sum(counted.calls) <= 1.2 * least + 60
    if left.all():
        assert len(counted.calls) < 15


def test_an_empty_batch_has_no_neighbours(relu_net):
    inputs, target = torch.rand(0, 2, 8, 8), torch.zeros(0, dtype=torch.int64)
    for attack in (LinfPGD(epsilon=0.1), LinfPGD(epsilon=0.1, restarts=2, stop_early=True)):
        assert attack(relu_net, inputs, target).shape == inputs.shape


@every_attack
def test_no_gradient_and_no_number_leave_points_in_budget(attack):
    class Root(nn.Module):  # at 0, its gradient is infinite for one channel and not a number for all
        def forward(self, inputs):
            return (inputs.flatten(2).mean(2) * inputs.flatten(1).amin(1, keepdim=True)).sqrt()[
                :, [0, 1, 0, 1]
            ]

    inputs = torch.rand(3, 2, 8, 8)
    inputs[1] = 0
    for net in (Root(), nn.Sequential(nn.Flatten(), nn.Linear(128, 4).requires_grad_(False))):
        if not isinstance(net, Root):
            nn.init.zeros_(net[1].weight)
        points = attack(net, inputs, torch.tensor([0, 1, 0]))
        assert points.isfinite().all()
        assert (norm_of(attack).length(points - inputs) <= attack.epsilon + 1e-6).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FGSM(epsilon=0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: FGSM(epsilon=0.1, step_size=-1.0), "`step_size` must be greater than 0, got -1.0"),
        (lambda: LinfPGD(epsilon=-0.1), "`epsilon` must be greater than 0, got -0.1"),
        (lambda: LinfPGD(epsilon=float("nan")), "`epsilon` must be greater than 0, got nan"),
        (lambda: LinfPGD(epsilon=0.1, steps=0), "`steps` must be at least 1, got 0"),
        (lambda: L2PGD(epsilon=0.1, step_size=0.0), "`step_size` must be greater than 0, got 0.0"),
        (lambda: L2PGD(epsilon=0.1, restarts=0), "`restarts` must be at least 1, got 0"),
        (lambda: LinfPGD(0.1, random_start=False, restarts=2), "`restarts` above 1 need a `random_start`"),
        (lambda: MomentumPGD(0.1, momentum=-1.0), "`momentum` must be at least 0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
