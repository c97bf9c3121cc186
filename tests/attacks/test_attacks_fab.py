import pytest
import torch
from digits_net import held_out, trained
from peers import returning
from pyautoattack.fab_pt import FABAttack_PT
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.fab import FAB
from lit_xai.attacks.hyperplane import foot
from lit_xai.attacks.norms import L1, L2, Linf
from lit_xai.types import Eps

ATTACKS = [
    FAB(epsilon=Eps("4/255"), steps=6, targets=2),
    FAB(epsilon=0.3, norm=L2(), steps=6),
    FAB(epsilon=1.5, norm=L1(), steps=6, targets=1, alpha=0.2, eta=1.1, beta=0.8),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)
every_norm = pytest.mark.parametrize("norm", [Linf(), L2(), L1()], ids=repr)


@every_attack
def test_repr_builds_the_attack_again(attack):
    assert eval(repr(attack)) == attack


@every_norm
@pytest.mark.parametrize("classes", [2, 4])
@torch.no_grad()
def test_closest_points_of_a_linear_classifier_lie_on_the_closest_hyperplane(norm, classes):
    case = linear_case(classes)
    points, length = FAB(epsilon=1.0, norm=norm, steps=20).closest(case.model, case.inputs, case.target)
    logits = case.model(case.inputs)
    distances = torch.full_like(logits, torch.inf)
    for row, own in enumerate(case.target):
        for other in range(classes):
            if other != own:
                normal = (case.weight[other] - case.weight[own]).view_as(case.inputs[:1])
                gap = (logits[row, other] - logits[row, own])[None]
                distances[row, other] = norm.length(
                    foot(norm, case.inputs[row, None], normal, gap) - case.inputs[row]
                )
                if norm == L2():
                    assert distances[row, other] == pytest.approx(float(-gap / normal.norm()))
    # Where one pixel is all of the way in l1, it stops at the box, and the iterates round its corner.
    assert_close(length, distances.amin(1), rtol=2e-4 if norm != L1() else 0.02, atol=0)
    assert torch.equal(case.model(points).argmax(1), distances.argmin(1))
    assert_close(norm.length(points - case.inputs), length)


@every_attack
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_points_fool_within_budget_and_box_or_are_the_inputs(attack, dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(40, 2, 8, 8, dtype=dtype).mul(1.2).sub(0.1).clamp(0, 1)  # some pixels on the box
    target = net(inputs).argmax(1)
    target[0] = (target[0] + 1) % 4
    points = attack(net, inputs, target)
    assert points.dtype == dtype
    assert not points.requires_grad
    assert points.min() >= 0
    assert points.max() <= 1
    assert (attack.norm.length(points - inputs) <= attack.epsilon).all()
    fooled = net(points).argmax(1) != target
    same = (points == inputs).flatten(1).all(1)
    assert 3 < fooled.sum() < 38
    assert torch.equal(points[0], inputs[0])
    assert torch.equal(~same[1:], fooled[1:])
    closest, length = attack.closest(net, inputs, target)
    assert length[0] == 0
    assert ((length <= attack.epsilon) >= fooled).all()  # who goes on finds no less
    found = length.isfinite()
    assert (net(closest).argmax(1) != target)[found].all()
    assert torch.equal(closest[~found], inputs[~found])


@pytest.mark.parametrize(
    ("norm", "epsilon", "count"),
    [
        (Linf(), 0.15, 30),
        (L2(), 0.7, 30),
        (L1(), 1.2, 30),
        pytest.param(Linf(), 0.15, 200, marks=pytest.mark.slow),
        pytest.param(L2(), 0.7, 200, marks=pytest.mark.slow),
        pytest.param(L1(), 1.2, 200, marks=pytest.mark.slow),
    ],
    ids=repr,
)
def test_the_same_images_fall_as_for_the_authors(norm, epsilon, count):
    steps, targets = (100, 9) if count == 200 else (20, 3)
    net, (inputs, target) = trained(), held_out(list(range(count)))
    peer = FABAttack_PT(
        net, norm=type(norm).__name__, n_iter=steps, eps=epsilon, targeted=True, n_target_classes=targets
    )
    stands = net(FAB(epsilon, norm, steps, targets)(net, inputs, target)).argmax(1) == target
    theirs = net(peer.perturb(inputs, target)).argmax(1) == target
    assert 0.2 < theirs.float().mean() < 0.9
    assert (stands == theirs).float().mean() >= 0.98  # the final search finds a few more
    assert (stands & ~theirs).sum() <= count / 100


def test_without_a_budget_points_are_as_close_as_those_of_the_authors():
    net, (inputs, target) = trained(), held_out(list(range(40)))
    _, length = FAB(1.0, L2(), 20, 3).closest(net, inputs, target)
    peer = FABAttack_PT(net, norm="L2", n_iter=20, eps=1e-6, targeted=True)
    theirs = torch.full_like(length, torch.inf)
    for rank in (2, 3, 4):
        peer.target_class = rank
        delta = peer.attack_single_run(inputs, target, is_targeted=True) - inputs
        theirs = torch.minimum(theirs, delta.flatten(1).norm(dim=1))
    assert (length <= 1.001 * theirs).float().mean() >= 0.9
    assert_close(length, theirs, rtol=0.03, atol=0)


@every_attack
def test_a_step_costs_two_forward_passes_and_one_input_gradient(attack):
    net, far = tiny_net(nn.ReLU), FAB(1e-9, attack.norm, attack.steps, attack.targets)
    inputs = torch.rand(5, 2, 8, 8)
    target, runs = net(inputs).argmax(1), min(attack.targets, 3)
    counted = Recorder(net)
    with returning(counted) as returned:
        far(counted, inputs, target)
    found = far.closest(net, inputs, target)[1].isfinite().sum()
    assert counted.calls == [5] * (1 + 2 * attack.steps * runs) + [found] * 4
    assert returned == [5] * attack.steps * runs


def test_images_leave_once_they_are_fooled_within_the_budget(relu_net, batch):
    inputs, target = batch
    counted = Recorder(relu_net)
    FAB(epsilon=1.0)(counted, inputs, target)
    assert sum(counted.calls) < 5 * 12
    counted = Recorder(relu_net)
    FAB(epsilon=1.0)(counted, inputs, (target + 1) % 4)
    assert counted.calls == [5]


@every_attack
@pytest.mark.parametrize("frozen", [False, True])
def test_model_inputs_and_global_generator_stay_as_they_were(attack, frozen, relu_net, batch):
    relu_net.requires_grad_(not frozen)
    with unchanged(relu_net, *batch), torch.no_grad():
        before = torch.random.get_rng_state()
        points = attack(relu_net, *batch)
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(points, attack(relu_net, *batch))  # nothing is random


@every_attack
def test_batch_size_and_order_do_not_matter(attack, smooth_net):
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    target = smooth_net(inputs).argmax(1)
    order = torch.tensor([4, 0, 5])
    whole = attack(smooth_net, inputs, target)
    assert_close(attack(smooth_net, inputs[order], target[order]), whole[order], atol=1e-10, rtol=0)


@every_attack
def test_a_model_without_slope_is_not_fooled(attack):
    class Flat(nn.Module):
        def forward(self, inputs):
            return torch.tensor([1.0, 0.0, -1.0]) + inputs.flatten(1) @ torch.zeros(32, 3)

    inputs = torch.rand(4, 2, 4, 4)
    target = torch.zeros(4, dtype=torch.int64)
    assert torch.equal(attack(Flat(), inputs, target), inputs)
    assert attack.closest(Flat(), inputs, target)[1].isinf().all()


@every_attack
def test_logits_of_half_precision_are_attacked_in_that_of_the_images(attack, relu_net, batch):
    with torch.autocast("cpu", torch.bfloat16):
        points, length = attack.closest(relu_net, *batch)
    assert points.dtype == length.dtype == torch.float32
    assert points.isfinite().all()


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: FAB(epsilon=0.0), "`epsilon` must be greater than 0, got 0.0"),
        (lambda: FAB(epsilon=0.1, steps=0), "`steps` must be at least 1, got 0"),
        (lambda: FAB(epsilon=0.1, targets=0), "`targets` must be at least 1, got 0"),
        (lambda: FAB(epsilon=0.1, eta=0.9), "`eta` must be at least 1, got 0.9"),
        (lambda: FAB(epsilon=0.1, alpha=1.5), r"`alpha` must lie in \[0, 1\], got 1.5"),
        (lambda: FAB(epsilon=0.1, beta=1.0), "`beta` must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
