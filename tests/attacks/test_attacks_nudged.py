"""The attack that starts beside the image: the start, the steps, the budget and the passes."""

import pytest
import torch
from subjects import Recorder, tiny_net
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_xai.attacks import CE, L1, L2, Linf, LogitMargin
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.randomness import keyed, keys, normal
from lit_xai.types import Eps

ATTACKS = [
    NudgedPGD(epsilon=0.1, steps=4),
    NudgedPGD(epsilon=Eps("8/255"), steps=3, step_size=0.007, spread=0.1),
    NudgedPGD(epsilon=0.5, norm=L2(), steps=4),
    NudgedPGD(epsilon=0.5, norm=L2(), steps=4, step_size=0.3, loss=LogitMargin()),
    NudgedPGD(epsilon=3.0, norm=L1(), steps=20),
]
every_attack = pytest.mark.parametrize("attack", ATTACKS, ids=repr)


@pytest.fixture
def batch():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(8, 2, 8, 8, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    return net, inputs, net(inputs).argmax(1)


@every_attack
def test_it_stays_in_ball_and_box_and_raises_the_loss(attack, batch):
    net, inputs, target = batch
    points = attack(net, inputs, target)
    assert (attack.norm.length(points - inputs) <= attack.epsilon + 1e-9).all()
    assert points.min() >= 0
    assert points.max() <= 1
    assert not points.requires_grad
    assert (attack.norm.length(points - inputs) > 0.5 * min(attack.epsilon, 3 * 0.007)).all()
    before, after = (cross_entropy(net(images), target) for images in (inputs, points))
    assert after > before


@pytest.mark.parametrize("norm", [Linf(), L2()], ids=repr)
def test_it_is_the_paper_step_by_step(norm, batch):
    net, inputs, target = batch
    attack = NudgedPGD(epsilon=0.2, norm=norm, steps=5)
    with keyed(3, torch.arange(8)):
        ours = attack(net, inputs, target)
        points = inputs + 0.001 * normal(keys(inputs, "NudgedPGD"), 0, (2, 8, 8), torch.float64)
    for _ in range(5):
        points = points.detach().requires_grad_()
        gradient = torch.autograd.grad(cross_entropy(net(points), target, reduction="sum"), points)[0]
        if norm == Linf():
            points = points + 0.08 * gradient.sign()
            points = torch.minimum(torch.maximum(points, inputs - 0.2), inputs + 0.2)
        else:
            delta = points + 0.08 * gradient / gradient.flatten(1).norm(dim=1)[:, None, None, None] - inputs
            points = inputs + delta * (0.2 / delta.flatten(1).norm(dim=1)).clamp(max=1)[:, None, None, None]
        points = points.clamp(0, 1)
    assert_close(ours, points.detach())


def test_a_step_is_two_passes(batch):
    net, inputs, target = batch
    recorder = Recorder(net)
    NudgedPGD(epsilon=0.1, steps=4)(recorder, inputs, target)
    assert recorder.calls == [8] * 4


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"epsilon": 0.0}, "`epsilon` must be greater than 0"),
        ({"epsilon": 0.1, "steps": 0}, "`steps` must be at least 1"),
        ({"epsilon": 0.1, "step_size": -1.0}, "`step_size` must be greater than 0"),
        ({"epsilon": 0.1, "spread": 0.0}, "`spread` must be greater than 0"),
    ],
)
def test_values_out_of_range_are_refused(values, message):
    with pytest.raises(ValueError, match=message):
        NudgedPGD(**values)


@every_attack
def test_repr_builds_the_attack_again(attack):
    names = {kind.__name__: kind for kind in (CE, L1, L2, Linf, LogitMargin, NudgedPGD)}
    assert eval(repr(attack), names) == attack
