import dataclasses
import math

import pytest
import torch
from peers import foolbox, peer_model
from rows import nearest
from subjects import Recorder, linear_case, tiny_net
from torch import nn
from torch.nn.functional import cross_entropy
from torch.testing import assert_close

from lit_xai.attacks.grid import PGDGrid
from lit_xai.randomness import keyed, keys, normal, uniform

RADII = (0.05, 0.2, 0.6, 2.0, 5.0)
IDS = torch.arange(20)


def start(inputs, stream):
    """The point of the unit ball that belongs to each image."""
    with keyed(0, IDS[: len(inputs)]):
        draws = keys(inputs, "PGDGrid")
    direction = normal(draws, 2 * stream, inputs.shape[1:], inputs.dtype).flatten(1)
    length = uniform(draws, 2 * stream + 1, (1,), inputs.dtype) ** (1 / direction.shape[1])
    return (length * direction / direction.norm(dim=1, keepdim=True)).view_as(inputs)


def specified(net, inputs, target, radii, steps, released):
    """The stage as it is specified: all images walk in all balls, the first ball that flips is kept."""
    kept, which = inputs.clone(), torch.full_like(target, -1)
    for stream, radius in enumerate(radii):
        eta = 2 * radius**2 / steps if released else 2 * radius / steps
        points = (inputs + radius * start(inputs, stream)).clamp(0, 1)
        for _ in range(steps):
            points = points.detach().requires_grad_()
            (g,) = torch.autograd.grad(cross_entropy(net(points), target, reduction="sum"), points)
            points = points.detach() + eta * g / g.flatten(1).norm(dim=1)[:, None, None, None]
            length = (points - inputs).flatten(1).norm(dim=1)[:, None, None, None]
            points = (inputs + (points - inputs) * (radius / length).clamp(max=1)).clamp(0, 1)
        new = (net(points).argmax(1) != target) & (which < 0)
        kept[new], which[new] = points[new], stream
    return kept, which


@pytest.mark.parametrize("released", [False, True])
def test_points_are_those_of_the_first_ball_that_flips(released):
    net = tiny_net(nn.Softplus, torch.float64)
    inputs = torch.rand(20, 2, 8, 8, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    target = net(inputs).argmax(1)
    expected, which = specified(net, inputs, target, RADII, 7, released)
    with keyed(0, IDS):
        found = PGDGrid(RADII, 7, released, bisections=0).search(net, inputs, target)
    assert len(which.unique()) > 2
    assert torch.equal(found.found, which >= 0)
    assert_close(found.points, expected, atol=1e-9, rtol=0)
    balls = torch.where(which < 0, len(RADII), which + 1)
    assert torch.equal(found.backwards, 7 * balls)
    assert torch.equal(found.forwards, 1 + 8 * balls)


class Started(foolbox.attacks.L2PGD):
    """foolbox's attack from our random points."""

    def get_random_start(self, x0, epsilon):
        return x0 + type(x0)(epsilon * start(x0.raw, 0))


@pytest.mark.parametrize("released", [False, True])
def test_iterates_are_those_of_foolbox_with_the_step_that_it_is_handed(released):
    """The released code hands 2 radius / steps to an argument that is relative to the radius."""
    net, radius = tiny_net(nn.Softplus), 1.5
    inputs = torch.rand(20, 2, 8, 8)
    target = net(inputs).argmax(1)
    peer = Started(rel_stepsize=(2 * radius if released else 2) / 10, steps=10)
    other = peer.run(peer_model(net), inputs, target, epsilon=radius)
    with keyed(0, IDS):
        found = PGDGrid((radius,), 10, released, bisections=0).search(net, inputs, target)
    assert torch.equal(found.found, net(other).argmax(1) != target)
    assert found.found.float().mean() > 0.5
    assert_close(found.points[found.found], other[found.found], atol=1e-5, rtol=0)


def test_balls_of_a_linear_classifier_reach_its_hyperplane_and_no_further():
    case = linear_case(classes=2)
    foot, _ = nearest(case.weight, case.bias, case.inputs, case.target)
    distance = (foot - case.inputs).flatten(1).norm(dim=1)
    least, most = float(distance.min()), float(distance.max())
    assert not PGDGrid((0.99 * least,), 50).search(case.model, case.inputs, case.target).found.any()
    found = PGDGrid((1.2 * most,), 50).search(case.model, case.inputs, case.target)
    assert found.found.all()
    assert (found.distance >= distance - 1e-9).all()
    assert (found.distance / distance).max() < 1.05


def test_the_start_is_even_in_the_ball_and_belongs_to_the_sample():
    """In d dimensions, |start|^d is even in (0, 1): seen where the model is flat and flips at once."""

    class Flipping(nn.Module):
        def __init__(self):
            super().__init__()
            self.calls = 0

        def forward(self, inputs):
            self.calls += 1
            first = 1.0 if self.calls == 1 else -1.0
            return (
                torch.tensor([first, 0.0]).to(inputs).expand(len(inputs), 2)
                + 0 * inputs.sum((1, 2, 3))[:, None]
            )

    inputs, target = (
        torch.full((2000, 1, 2, 2), 0.5, dtype=torch.float64),
        torch.zeros(2000, dtype=torch.int64),
    )
    with keyed(0, torch.arange(2000)):
        found = PGDGrid((0.4,), 1, bisections=0).search(Flipping(), inputs, target)
    delta = (found.points - inputs).flatten(1) / 0.4
    share = (delta.norm(dim=1) ** 4).sort().values
    even = (torch.arange(2000, dtype=torch.float64) + 0.5) / 2000
    assert (share - even).abs().max() < 1.63 / 2000**0.5  # Kolmogorov's 1 % point
    assert delta.mean(0).abs().max() < 0.05
    with keyed(0, torch.tensor([7, 3])):
        part = PGDGrid((0.4,), 1, bisections=0).search(Flipping(), inputs[:2], target[:2])
    assert torch.equal(part.points, found.points[[7, 3]])


def test_released_steps_cannot_cross_a_small_ball(relu_net):
    inputs = torch.rand(20, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    search = PGDGrid(radii=(0.2,), steps=20)
    with keyed(0, IDS):
        repaired, released = (
            dataclasses.replace(search, released=r).search(relu_net, inputs, target) for r in (False, True)
        )
    assert repaired.found.sum() > released.found.sum()


def test_images_leave_with_the_ball_that_flips_them(relu_net):
    inputs = torch.rand(20, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    counted = Recorder(relu_net)
    found = PGDGrid(RADII, steps=3, bisections=0).search(counted, inputs, target)
    sizes = counted.calls[1::4]
    assert counted.calls[1:] == [size for size in sizes for _ in range(4)]
    assert sizes[0] == 20
    assert sizes == sorted(sizes, reverse=True)
    assert len(set(sizes)) > 2
    assert found.found.all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"radii": ()}, "`radii` must name at least one radius, got none"),
        ({"radii": (0.5, 0.0)}, "`radii` must be greater than 0, got 0.0"),
        ({"radii": (math.nan,)}, "`radii` must be greater than 0, got nan"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        PGDGrid(**arguments)
