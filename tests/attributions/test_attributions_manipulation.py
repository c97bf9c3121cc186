import re
from dataclasses import replace

import numpy as np
import pytest
import torch
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn

from lit_xai.attacks import L2, Linf
from lit_xai.attributions import (
    LRP,
    DeepLift,
    ExpectedGradients,
    FlatImage,
    GradCam,
    GuidedBackprop,
    InputXGradient,
    IntegratedGradients,
    NoiseImage,
    Occlusion,
    Saliency,
    SharingRatio,
    SmoothGrad,
    StoredImages,
)
from lit_xai.attributions.comparison import compared, manipulated, shuffled
from lit_xai.attributions.goals import Drawing, Frame, MapOf
from lit_xai.attributions.manipulation import MassCentreAttack, TargetedManipulation, TopKAttack
from lit_xai.attributions.similarity import shares, top
from lit_xai.network.softened import softened
from lit_xai.randomness import keyed, keys, normal

IDS = torch.tensor([7, 3, 11, 0, 5])
METHODS = [
    Saliency(),
    InputXGradient(),
    IntegratedGradients(steps=3),
    SmoothGrad(samples=3),
    ExpectedGradients(samples=3),
    SharingRatio(),
    LRP(),
    DeepLift(baseline=0.5),
    GradCam(),
    Occlusion(window=3, stride=2),
]


def attacked(attack, net, inputs, target):
    with keyed(0, IDS[: len(inputs)]):
        return manipulated(attack, net, inputs, target)


@pytest.fixture
def sure(relu_net):
    """The five of 60 images that the network decides most clearly."""
    inputs = torch.rand(60, 2, 8, 8)
    ordered = relu_net(inputs).sort(dim=1).values
    inputs = inputs[(ordered[:, -1] - ordered[:, -2]).argsort(descending=True)[:5]]
    return inputs, relu_net(inputs).argmax(1)


class Quadratic(nn.Module):
    """Logits sum a x^2 / 2 and 0: the gradient is a x, and shares of the pixels are |a| x / total."""

    def __init__(self, weight):
        super().__init__()
        self.weight = weight
        self.eval()

    def forward(self, inputs):
        first = (self.weight * inputs.square()).sum((1, 2, 3)) / 2
        return torch.stack([first, torch.zeros_like(first)], dim=1)


@pytest.mark.parametrize("shape", [(1, 4, 4), (3, 2, 3)])
def test_the_top_pixels_are_lowered_to_the_exact_minimum_where_there_is_one(shape, float64):
    """The share of B falls in each pixel of B and rises in all others: the best point is a corner."""
    net, inputs = Quadratic(torch.rand(shape) + 0.5), 0.3 + 0.4 * torch.rand(5, *shape)
    target = torch.zeros(5, dtype=torch.int64)
    chosen = top(shares(Saliency()(net, inputs, target)), 0.25)[:, None]
    corner = inputs + 0.1 * torch.where(chosen, -1.0, 1.0)
    points = TopKAttack(epsilon=0.1, steps=60, share=0.25)(net, inputs, target)
    torch.testing.assert_close(points, corner, rtol=0, atol=1e-4)


def test_the_centre_moves_as_far_as_it_can_along_a_line(float64):
    """Of two pixels with shares u and 1 - u, the centre is at 1 - u: it moves most where u changes most."""
    net, inputs = Quadratic(torch.ones(1, 1, 2)), torch.tensor([[[[0.3, 0.6]]]])
    points = MassCentreAttack(epsilon=0.1, steps=60)(net, inputs, torch.zeros(1, dtype=torch.int64))
    share = max((0.6 + sign * 0.1) / 0.9 for sign in (1, -1)) - 0.6 / 0.9
    value = MassCentreAttack(epsilon=0.1).value(net, inputs, points, torch.zeros(1, dtype=torch.int64))
    assert -value == pytest.approx(share, rel=1e-4)


@pytest.mark.parametrize(
    "attack",
    [
        TargetedManipulation(epsilon=0.1, weight=3.0),
        TargetedManipulation(epsilon=0.1, goal=MapOf(), method=IntegratedGradients(steps=3)),
        TargetedManipulation(epsilon=0.1, method=LRP()),
        TopKAttack(epsilon=0.1, method=InputXGradient()),
        MassCentreAttack(epsilon=0.1, method=SharingRatio()),
    ],
    ids=str,
)
def test_the_gradient_is_that_of_the_softened_map_and_the_networks_own_logits(attack):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = 0.2 + 0.6 * torch.rand(2, 2, 8, 8, dtype=torch.float64)  # LRP has a kink at black
    target, own, beta = net(inputs).argmax(1), IDS[:2], 4.0
    objective = attack._begin(net, inputs, target, own)[2]
    points = attack._start(inputs, own)

    def value(there):
        with softened(net, beta):
            seen = shares(attack.method(net, there, target))
        return objective(seen, net(there)).sum()

    leaf = points.clone().requires_grad_()
    gradient = attack._gradient(net, leaf, target, net(leaf), objective, beta)
    step = 1e-6 * torch.randn_like(points)
    with torch.no_grad():
        difference = (value(points + step) - value(points - step)) / 2
    torch.testing.assert_close((gradient * step).sum(), difference, rtol=1e-4, atol=1e-12)
    assert difference.abs() > 1e-9


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=str)
@pytest.mark.parametrize("kind", [TargetedManipulation, TopKAttack, MassCentreAttack])
def test_maps_move_within_budget_and_box_and_much_more_than_under_the_same_changes_shuffled(
    kind, norm, relu_net, sure
):
    inputs, target = sure
    epsilon = 0.1 if norm == Linf() else 0.6
    attack = kind(epsilon=epsilon, norm=norm, steps=30, unsoftened=False)
    with unchanged(relu_net, *sure):
        seen = attacked(attack, relu_net, inputs, target)
    assert norm.length(seen.points - inputs).max() <= epsilon * (1 + 1e-5)
    assert seen.points.min() >= 0
    assert seen.points.max() <= 1
    assert seen.attacked.kept.all()
    gained, by_chance = seen.before - seen.after, seen.before - seen.after_control
    assert (gained > 2 * by_chance).all()
    assert (gained > 0.05 * seen.before).all()
    assert seen.attacked.ssim.mean() < seen.shuffled.ssim.mean() - 0.1
    assert seen.attacked.spearman.mean() < seen.shuffled.spearman.mean() - 0.1
    if kind is TopKAttack:
        assert (seen.after < 0.75 * seen.before).all()
        assert seen.attacked.overlap.mean() < seen.shuffled.overlap.mean() - 0.2
    if kind is MassCentreAttack:
        assert (seen.after < -0.3).all()  # pixels


def test_the_goal_is_approached_and_the_logits_stay(relu_net, sure):
    inputs, target = sure
    logits = relu_net(inputs)
    spread = (logits - logits.mean(1, keepdim=True)).norm(dim=1)
    for weight, allowed in ((1.0, 0.1), (10.0, 0.03)):
        attack = TargetedManipulation(epsilon=0.15, weight=weight, steps=30, unsoftened=False)
        seen = attacked(attack, relu_net, inputs, target)
        goal = Frame()(Saliency(), relu_net, inputs)
        before, after = (
            (shares(Saliency()(relu_net, images, target)) - goal).square().sum((1, 2))
            for images in (inputs, seen.points)
        )
        share = after / before
        change = seen.attacked.logits / spread
        torch.testing.assert_close(seen.after, share + weight * change.square(), rtol=1e-3, atol=1e-4)
        torch.testing.assert_close(seen.before, torch.ones(5))
        assert (share < 0.95).all()
        assert share.mean() < 0.85
        assert (change < allowed).all()
        control = (shares(Saliency()(relu_net, seen.control, target)) - goal).square().sum((1, 2))
        assert (control > 0.85 * before).all()


def test_without_softening_a_gradient_map_only_seems_robust(relu_net, sure):
    """The second derivative of a ReLU is zero: the attack has nothing to follow, and the report says so."""
    hard = attacked(TopKAttack(epsilon=0.1, steps=20, betas=None), relu_net, *sure)
    soft = attacked(TopKAttack(epsilon=0.1, steps=20, unsoftened=False), relu_net, *sure)
    assert (hard.slope == 0).all()
    assert (soft.slope > 1e-3).all()
    assert (soft.slope_relu == 0).all()
    assert (hard.after > soft.after + 0.02).all()


@pytest.mark.parametrize("method", METHODS, ids=lambda method: type(method).__name__)
def test_every_method_with_a_gradient_can_be_attacked(method, relu_net, sure):
    inputs, target = sure
    attack = TopKAttack(epsilon=0.1, method=method, steps=6)
    with unchanged(relu_net, *sure):
        seen = attacked(attack, relu_net, inputs, target)
    assert (seen.after < seen.before - 0.01).all()
    assert (seen.after < seen.after_control).all()
    assert (seen.slope > 0).all()
    assert seen.attacked.kept.all()


def test_two_searches_find_what_the_better_of_them_finds(relu_net, batch):
    attack = TopKAttack(epsilon=0.1, method=LRP(), steps=4)
    values = [
        attacked(way, relu_net, *batch).after
        for way in (attack, replace(attack, unsoftened=False), replace(attack, betas=None))
    ]
    torch.testing.assert_close(values[0], torch.minimum(*values[1:]))
    assert not torch.equal(values[1], values[2])


@pytest.mark.parametrize("kind", [TargetedManipulation, TopKAttack, MassCentreAttack])
def test_what_cannot_be_moved_stays(kind):
    case = linear_case()
    assert torch.equal(kind(epsilon=0.1, steps=5)(case.model, case.inputs, case.target), case.inputs)


def test_a_point_of_another_class_is_never_returned():
    """Images so near to the boundary that nearly all of the ball is of the other class."""
    case = linear_case(2)
    net = nn.Sequential(nn.Softplus(), case.model).eval()  # a map that moves with the image
    normals = (case.weight[0] - case.weight[1]).view(1, 2, 5, 5)
    inputs = 0.5 + 0.1 * torch.randn(6, 2, 5, 5, dtype=torch.float64)
    for _ in range(30):  # Newton steps to the boundary
        margin = net(inputs)[:, 0] - net(inputs)[:, 1]
        slope = normals * inputs.sigmoid()
        inputs = inputs - (margin / slope.square().sum((1, 2, 3)))[:, None, None, None] * slope
    inputs = (inputs + 1e-3 * normals).detach()
    target = net(inputs).argmax(1)
    assert (target == 0).all()
    seen = attacked(TopKAttack(epsilon=0.1, steps=20), net, inputs[:5], target[:5])
    assert seen.attacked.kept.all()
    assert (seen.after < seen.before).any()
    assert not seen.shuffled.kept.all()


def test_draws_belong_to_the_image_and_the_global_generator_stays(relu_net, batch):
    inputs, target = batch
    attack = TargetedManipulation(
        epsilon=0.1, method=SmoothGrad(samples=2), steps=4, goal=MapOf(), weight=1.0
    )
    with keyed(2, IDS):
        together = attack(relu_net.double(), inputs.double(), target)
    with keyed(2, IDS[[3, 1]]):
        torch.testing.assert_close(
            attack(relu_net, inputs[[3, 1]].double(), target[[3, 1]]), together[[3, 1]]
        )
    assert not torch.equal(together, inputs)


def test_all_is_as_it_was_when_the_network_fails_amid_an_attack(relu_net, batch):
    attack = TopKAttack(epsilon=0.1, steps=3)
    counted = Recorder(relu_net)
    attack(counted, *batch)
    hooks = nn.modules.module._global_forward_hooks
    expected = relu_net(batch[0])
    for call in range(1, len(counted.calls) + 1):
        failing = Recorder(relu_net, fail_at=call)
        with unchanged(failing, *batch), pytest.raises(RuntimeError, match="fails on purpose"):
            attack(failing, *batch)
        assert not hooks
        assert torch.equal(relu_net(batch[0]), expected)


def test_goals_add_up_to_one_and_are_what_they_say(relu_net, batch, tmp_path):
    inputs, _ = batch
    frame = Frame(share=0.2)(Saliency(), relu_net, inputs)
    assert (frame[:, 2:6, 2:6] == 0).all()
    torch.testing.assert_close(frame[:, :2], torch.full((5, 2, 8), 1 / 48))
    picture = torch.rand(1, 2, 8, 8)
    np.save(tmp_path / "maps.npy", picture.numpy())
    drawn = Drawing(image=StoredImages(path=str(tmp_path / "maps.npy")))(Saliency(), relu_net, inputs)
    torch.testing.assert_close(drawn, (picture.sum(1) / picture.sum()).expand(5, 8, 8))
    grey = torch.full_like(inputs, 0.5)
    expected = shares(InputXGradient()(relu_net, grey, relu_net(grey).argmax(1)))
    goal = MapOf(image=FlatImage(value=0.5))(InputXGradient(), relu_net, inputs)
    torch.testing.assert_close(goal, expected)
    with keyed(0, IDS):
        goals = [MapOf(image=NoiseImage())(Saliency(), relu_net, inputs) for _ in range(2)]
    assert torch.equal(*goals)
    for map_ in (frame, drawn, goal, goals[0]):
        torch.testing.assert_close(map_.sum((1, 2)), torch.ones(5))


def test_the_control_is_as_long_in_every_norm_and_stays_in_the_box():
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    inputs[:, :, :4] = inputs[:, :, :4].round()
    points = (inputs + 0.3 * normal(keys(inputs, "test"), 0, (2, 8, 8), torch.float64)).clamp(0, 1)
    points = inputs + (points - inputs).clamp(-0.5, 0.5)
    control = shuffled(inputs, points)
    changes = [(images - inputs).abs().flatten(1).sort(dim=1).values for images in (points, control)]
    torch.testing.assert_close(*changes)
    assert control.min() >= 0
    assert control.max() <= 1
    assert not torch.equal(control, points)


def test_an_image_is_like_itself_and_the_numbers_are_those_of_the_pair(relu_net, batch):
    inputs, target = batch
    same = compared(SmoothGrad(samples=2), relu_net, inputs, inputs, target)
    for name in ("ssim", "spearman", "pearson", "overlap"):
        torch.testing.assert_close(getattr(same, name), torch.ones(5).double())
    assert same.kept.all()
    assert same.l2.eq(0).all()
    points = inputs.flip(0)
    seen = compared(Saliency(), relu_net, inputs, points, target)
    assert torch.equal(seen.kept, relu_net(inputs).argmax(1) == relu_net(points).argmax(1))
    torch.testing.assert_close(seen.logits, (relu_net(inputs) - relu_net(points)).norm(dim=1))
    torch.testing.assert_close(seen.linf, (inputs - points).abs().amax((1, 2, 3)))
    torch.testing.assert_close(seen.slope_after, Saliency()(relu_net, points, target).flatten(1).norm(dim=1))
    assert (seen.ssim < 0.9).any()


REFUSALS = [
    (TopKAttack, {"epsilon": 0.0}, "`epsilon` must be greater than 0, got 0.0."),
    (TopKAttack, {"steps": 0}, "`steps` must be at least 1, got 0."),
    (TopKAttack, {"step_size": -1.0}, "`step_size` must be greater than 0, got -1.0."),
    (TopKAttack, {"share": 1.5}, "`share` must lie in (0, 1], got 1.5."),
    (TopKAttack, {"betas": (10.0, 1.0)}, "`betas` must be above 0 and not fall, got (10.0, 1.0)."),
    (TopKAttack, {"method": GuidedBackprop()}, "`GuidedBackprop` cannot be differentiated"),
    (TargetedManipulation, {"weight": -1.0}, "`weight` must be at least 0, got -1.0."),
    (MassCentreAttack, {"random_start": False}, "`random_start` must be True"),
]


@pytest.mark.parametrize(("kind", "given", "message"), REFUSALS, ids=[row[2][:30] for row in REFUSALS])
def test_what_makes_no_attack_is_refused(kind, given, message):
    with pytest.raises(ValueError, match=re.escape(message)):
        kind(**({"epsilon": 0.1} | given))
    with pytest.raises(ValueError, match=r"`share` must lie between 0 and 1/2, got 0.5"):
        Frame(share=0.5)


def test_a_network_that_a_method_has_no_rule_for_is_refused_by_the_method():
    net = tiny_net(nn.GELU)
    inputs = torch.rand(2, 2, 8, 8)
    target = net(inputs).argmax(1)
    with unchanged(net, inputs), pytest.raises(ValueError, match="`LRP` has no rule for `gelu`"):
        TopKAttack(epsilon=0.1, method=LRP(), steps=2)(net, inputs, target)
    with pytest.raises(ValueError, match="`model` must be in eval mode"):
        TopKAttack(epsilon=0.1, steps=2)(net.train(), inputs, target)
    points = TopKAttack(epsilon=0.1, steps=5)(net.eval(), inputs, target)  # smooth as it is
    assert not torch.equal(points, inputs)
