import math
import warnings

import pytest
import torch
from peers import returning
from sklearn.datasets import load_digits
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.losses import CE, DLR, LogitMargin, RunnerUp
from lit_xai.attacks.norms import L1, L2, Linf
from lit_xai.randomness import keyed, keys, normal
from lit_xai.types import Eps

ATTACKS = [
    APGD(epsilon=Eps("4/255"), steps=12),
    APGD(epsilon=0.02, steps=9, loss=DLR(), targets=3),
    APGD(epsilon=0.3, norm=L2(), steps=12, restarts=2, loss=DLR()),
    APGD(epsilon=0.3, norm=L2(), steps=12, stop_early=False),
    APGD(epsilon=1.5, norm=L1(), steps=12, loss=LogitMargin(), targets=None),
    APGD(epsilon=1.5, norm=L1(), steps=12, shrinking=False, stop_early=False),
    APGD(epsilon=0.02, steps=12, shrinking=True, restarts=2, targets=1),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@every_attack
def test_repr_builds_the_attack_again(attack):
    assert eval(repr(attack)) == attack


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_budget_and_box_hold_and_points_fool_or_cost_confidence(attack, dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(24, 2, 8, 8, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels on the box
    target = net(inputs).argmax(1)
    target[0] = (target[0] + 1) % 4
    points = attack(net, inputs, target)
    assert points.dtype == dtype
    assert not points.requires_grad
    assert points.min() >= 0
    assert points.max() <= 1
    assert (attack.norm.length(points - inputs) <= attack.epsilon + 1e-6).all()
    assert torch.equal(points[0], inputs[0]) == attack.stop_early
    fooled = net(points).argmax(1) != target
    assert 2 < fooled.sum() < 24
    assert (LogitMargin()(net(points), target) > LogitMargin()(net(inputs), target))[1:].all()


def on_surface(norm, draw, inputs, epsilon):
    delta = norm.start(draw, 0, inputs.shape[1:], epsilon, inputs.dtype)
    return inputs + delta * (epsilon / norm.length(delta))[:, None, None, None]


def twin(net, image, label, start, epsilon, steps, into_ball, steepest, reach):
    """Algorithm 1 of Croce and Hein 2020, for one image, without a batch."""

    def climb(point):
        point = point.detach().requires_grad_()
        loss = cross_entropy(net(point), label)
        return loss.item(), torch.autograd.grad(loss, point)[0]

    def confine(point):
        return (image + into_ball(point - image)).clamp(0, 1)

    point = confine(start)
    loss, slope = climb(point)
    before, best, peak, best_slope, losses = point, point, loss, slope, [loss]
    eta, rises, halved, then = reach * epsilon, 0, True, loss
    window, checked, halvings = int(0.22 * steps), 0, 0
    for step in range(steps):
        share = 1.0 if step == 0 else 0.75
        ahead = confine(point + eta * steepest(slope))
        ahead = confine(point + share * (ahead - point) + (1 - share) * (point - before))
        before, point = point, ahead
        loss, slope = climb(point)
        rises += loss > losses[-1]
        losses.append(loss)
        if loss > peak:
            best, peak, best_slope = point, loss, slope
        if step + 1 == checked + window:
            stuck = rises <= 0.75 * window or (not halved and peak == then)
            if stuck:
                eta, point, slope, halvings = eta / 2, best, best_slope, halvings + 1
            halved, then, rises, checked = stuck, peak, 0, step + 1
            window = max(window - int(0.03 * steps), int(0.06 * steps))
    return best, halvings


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
def test_points_are_those_of_the_pseudo_code(norm, smooth_net):
    inputs, target = torch.rand(6, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0, 1])
    epsilon = 0.05 if norm == Linf() else 0.5
    with keyed(1, torch.arange(6)):
        points = APGD(epsilon, norm, steps=100, stop_early=False)(smooth_net, inputs, target)
        starts = on_surface(norm, keys(inputs, "APGD"), inputs, epsilon)

    def into_ball(delta):
        return delta.clamp(-epsilon, epsilon) if norm == Linf() else delta * min(1, epsilon / delta.norm())

    def steepest(slope):
        return slope.sign() if norm == Linf() else slope / slope.norm()

    total = 0
    for row in range(6):
        one = slice(row, row + 1)
        args = smooth_net, inputs[one], target[one], starts[one]
        expected, halvings = twin(*args, epsilon, 100, into_ball, steepest, 2)
        total += halvings
        assert_close(points[one], expected, atol=1e-9, rtol=0)
    assert total > 12


def sparse_twin(net, image, label, start, epsilon, steps, into_ball):
    """Algorithm 1 of Croce and Hein 2021, in one ball, for one image."""

    def climb(point):
        point = point.detach().requires_grad_()
        loss = cross_entropy(net(point), label)
        return loss.item(), torch.autograd.grad(loss, point)[0]

    count = image.numel()
    point = best = into_ball(start, image, epsilon)
    peak, slope = climb(point)
    best_slope, eta = slope, epsilon
    spread = int((point != image).sum())
    share = spread / count / 1.5
    for step in range(steps):
        rank = min(max(int((1 - share) * count), 0), count - 1)
        size = slope.abs()
        chosen = size >= size.flatten().sort().values[rank]
        signs = slope.sign() * chosen
        point = into_ball(point + eta * signs / signs.abs().sum(), image, epsilon)
        loss, slope = climb(point)
        if loss > peak:
            best, peak, best_slope = point, loss, slope
        if (step + 1) % max(int(0.04 * steps), 1) == 0:
            now = int((best != image).sum())
            share = now / count / 1.5
            if now / spread < 0.95:
                eta, point, slope = epsilon, best, best_slope
            else:
                eta = max(eta / 1.5, epsilon / 10)
            spread = now
    return best


def test_points_in_l1_are_those_of_the_pseudo_code_ball_after_ball(smooth_net):
    inputs, target = torch.rand(4, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3])
    with keyed(1, torch.arange(4)):
        points = APGD(2.0, L1(), steps=60, stop_early=False)(smooth_net, inputs, target)
        noise = normal(keys(inputs, "APGD"), 0, (2, 8, 8), torch.float64)
    for row in range(4):
        one = slice(row, row + 1)
        point = inputs[one] + noise[one]
        for epsilon, steps in ((6.0, 18), (4.0, 18), (2.0, 24)):
            point = sparse_twin(smooth_net, inputs[one], target[one], point, epsilon, steps, L1().confine)
        assert_close(points[one], point, atol=1e-9, rtol=0)


@pytest.mark.parametrize(
    ("norm", "dual", "tolerance"), [(Linf(), 1, 1e-12), (L2(), 2, 1e-5), (L1(), math.inf, 0.06)], ids=str
)
def test_worst_margin_of_two_linear_classes_is_the_margin_less_epsilon_times_the_dual_norm(
    norm, dual, tolerance
):
    case = linear_case(classes=2)
    attack = APGD(epsilon=0.2, norm=norm, stop_early=False)
    before = LogitMargin()(case.model(case.inputs), case.target)
    after = LogitMargin()(case.model(attack(case.model, case.inputs, case.target)), case.target)
    gain = 0.2 * (case.weight[0] - case.weight[1]).norm(p=dual)
    assert_close(after - before, gain.expand(6), rtol=tolerance, atol=0)


@pytest.mark.parametrize(
    ("options", "forwards", "backwards"),
    [
        ({"stop_early": False}, 11, 10),
        ({}, 12, 10),
        ({"restarts": 2}, 23, 20),
        ({"loss": DLR(), "targets": 2}, 23, 20),
        ({"loss": DLR(), "targets": None}, 34, 30),
        ({"shrinking": True, "stop_early": False}, 13, 10),
    ],
    ids=str,
)
def test_a_run_costs_a_gradient_per_step_and_a_forward_pass_more(options, forwards, backwards, relu_net):
    counted = Recorder(relu_net)
    inputs = torch.rand(5, 2, 8, 8)
    with returning(counted) as returned:
        APGD(1e-4, steps=10, **options)(counted, inputs, relu_net(inputs).argmax(1))
    assert counted.calls == [5] * forwards
    assert returned == [5] * backwards


def test_images_leave_when_they_are_fooled_which_changes_none_that_stays(relu_net):
    inputs = torch.rand(60, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    counted = Recorder(relu_net)
    with keyed(0, torch.arange(60)):
        early = APGD(0.03, steps=30, loss=LogitMargin())(counted, inputs, target)
        full = APGD(0.03, steps=30, loss=LogitMargin(), stop_early=False)(relu_net, inputs, target)
    fooled = relu_net(early).argmax(1) != target
    assert 10 < fooled.sum() < 50
    assert torch.equal(fooled, LogitMargin()(relu_net(full), target) > 0)
    assert_close(early[~fooled], full[~fooled], atol=1e-6, rtol=0)
    assert sum(counted.calls) < 60 * 32 - 20 * int(fooled.sum())


@every_attack
def test_batch_size_and_order_do_not_matter(attack, smooth_net):
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    order = torch.tensor([4, 0, 5])
    with keyed(3, torch.arange(6)):
        whole = attack(smooth_net, inputs, target)
    with keyed(3, order):
        assert_close(attack(smooth_net, inputs[order], target[order]), whole[order], atol=1e-9, rtol=0)


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
@pytest.mark.parametrize("weight", [0.0, 1e4, math.nan])
def test_flat_saturated_and_broken_models_leave_points_in_budget(attack, weight):
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 4))
    net.requires_grad_(False)[1].weight.mul_(weight)
    inputs = torch.rand(3, 2, 8, 8)
    points = attack(net, inputs, net(inputs).argmax(1))
    assert points.isfinite().all()
    assert (attack.norm.length(points - inputs) <= attack.epsilon + 1e-6).all()


def test_logits_of_half_precision_are_attacked_in_that_of_the_images(relu_net, batch):
    with torch.autocast("cpu", torch.bfloat16):
        points = APGD(0.1, steps=10, loss=DLR(), targets=2)(relu_net, *batch)
    assert points.dtype == torch.float32
    assert (relu_net(points).argmax(1) != batch[1]).any()


def test_an_empty_batch_has_no_neighbours(relu_net):
    inputs, target = torch.rand(0, 2, 8, 8), torch.zeros(0, dtype=torch.int64)
    for attack in ATTACKS:
        assert attack(relu_net, inputs, target).shape == inputs.shape


@pytest.mark.parametrize("classes", [2, 3])
def test_too_few_classes_are_told(classes):
    net, inputs = nn.Sequential(nn.Flatten(), nn.Linear(128, classes)), torch.rand(3, 2, 8, 8)
    target = net(inputs).argmax(1)
    with pytest.raises(
        ValueError, match=f"`targets` must be at most {classes - 1} for a model with {classes}"
    ):
        APGD(0.1, targets=9)(net, inputs, target)
    with pytest.raises(ValueError, match="DLR with an aim needs at least 4 classes"):
        APGD(0.1, loss=DLR(), targets=None)(net, inputs, target)
    if classes == 2:
        with pytest.raises(ValueError, match="DLR needs at least 3 classes"):
            APGD(0.1, loss=DLR())(net, inputs, target)
    assert (net(APGD(0.5, targets=None, steps=5)(net, inputs, target)).argmax(1) != target).all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: APGD(epsilon=0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: APGD(0.1, steps=0), "`steps` must be at least 1, got 0"),
        (lambda: APGD(0.1, restarts=0), "`restarts` must be at least 1, got 0"),
        (lambda: APGD(0.1, targets=-1), "`targets` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()


@pytest.fixture(scope="module")
def digits():
    """A net trained on two thirds of the embedded digits, and 300 others."""
    data = load_digits()
    images, labels = torch.tensor(data.images).float().div(16)[:, None], torch.tensor(data.target)
    torch.manual_seed(0)
    net = nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )
    optimizer = torch.optim.Adam(net.parameters(), 5e-3)
    for _ in range(5):
        for index in torch.randperm(1200).split(64):
            optimizer.zero_grad()
            cross_entropy(net(images[index]), labels[index]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False), images[1300:1600], labels[1300:1600]


@pytest.mark.slow
@pytest.mark.parametrize(("norm", "epsilon"), [(Linf(), 0.07), (L2(), 0.45), (L1(), 1.2)], ids=str)
@pytest.mark.parametrize("targeted", [False, True], ids=["CE", "targeted DLR"])
def test_the_same_images_stand_as_for_the_authors(norm, epsilon, targeted, digits):
    from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted

    net, inputs, target = digits
    options = {"loss": DLR(), "targets": 3} if targeted else {"restarts": 3}
    with keyed(0, torch.arange(300)):
        ours = net(APGD(epsilon, norm, **options)(net, inputs, target)).argmax(1) == target
    name = type(norm).__name__
    shared = {"norm": name, "eps": epsilon, "device": "cpu", "use_largereps": norm == L1()}
    if targeted:
        peer = APGDAttack_targeted(net, n_target_classes=3, **shared)
    else:
        peer = APGDAttack(net, n_restarts=3, **shared)
    with torch.random.fork_rng(), warnings.catch_warnings():
        warnings.simplefilter("ignore")  # it counts points without gradient
        theirs = net(peer.perturb(inputs.clone(), target.clone())).argmax(1) == target
    assert 0.25 < ours.float().mean() < 0.75
    assert (ours == theirs).float().mean() >= 0.99


def test_one_aim_is_the_runner_up(smooth_net):
    inputs = torch.rand(8, 2, 8, 8, dtype=torch.float64)
    logits = smooth_net(inputs)
    target = logits.argmax(1)
    points = APGD(0.01, loss=LogitMargin(), targets=1, steps=20, stop_early=False)(smooth_net, inputs, target)
    aim = RunnerUp()(logits, target)
    rise = LogitMargin()(smooth_net(points), target, aim) - LogitMargin()(logits, target, aim)
    assert (rise > 0).all()
    assert CE() != DLR()
