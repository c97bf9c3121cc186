import math

import pytest
import torch
from peers import returning
from subjects import Recorder, linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.boundary_walk import BoundaryWalk, walk
from lit_xai.attacks.ledger import Ledger, bisect
from lit_xai.randomness import keyed


class Ball(nn.Module):
    """Class 1 outside a ball around grey: from a point beside the centre the nearest point is known."""

    def forward(self, inputs):
        square = (inputs - 0.5).square().flatten(1).sum(1)
        return torch.stack([0.09 - square, square - 0.09], dim=1)


class Corner(nn.Module):
    """Class 1 where both of two planes are crossed: the nearest point may lie on the edge where they meet."""

    def __init__(self, first, second):
        super().__init__()
        self.register_buffer("planes", torch.stack([first, second]))

    def forward(self, inputs):
        margin = (0.2 - (inputs - 0.5).flatten(1) @ self.planes.T).amax(1)
        return torch.stack([margin, -margin], dim=1)


class Step(nn.Module):
    """Flat on both sides of a jump: class 1 wherever the image is further than 0.4 from black."""

    def forward(self, inputs):
        far = (inputs.flatten(1).norm(dim=1) > 0.4).to(inputs.dtype)
        return torch.stack([1 - 2 * far, 2 * far - 1], dim=1) + 0 * inputs.sum(dim=(1, 2, 3))[:, None]


@pytest.mark.parametrize("classes", [2, 3, 4, 12])
def test_distance_of_a_linear_classifier_is_that_of_the_closest_hyperplane(classes):
    case = linear_case(classes)
    found = BoundaryWalk().search(case.model, case.inputs, case.target)
    logits = case.model(case.inputs)
    gaps = logits.gather(1, case.target[:, None]) - logits
    normals = (case.weight[case.target][:, None] - case.weight).norm(dim=2)
    distance, rival = (gaps / normals).scatter(1, case.target[:, None], torch.inf).min(1)
    assert_close(found.distance, distance, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.label, rival)
    assert found.forwards.max() <= 10  # the first foot is the point: nothing is left to slide


def test_the_foot_on_a_sphere_is_along_the_radius():
    draw = torch.Generator().manual_seed(0)
    away = torch.randn(6, 2, 3, 3, generator=draw, dtype=torch.float64)
    inputs = 0.5 + 0.1 * away / away.flatten(1).norm(dim=1)[:, None, None, None]
    found = BoundaryWalk().search(Ball(), inputs, torch.zeros(6, dtype=torch.int64))
    assert_close(found.distance, torch.full((6,), 0.2, dtype=torch.float64), atol=2e-4, rtol=0)


def test_the_walk_settles_on_an_edge_where_single_normals_lead_astray():
    first, second = torch.zeros(8), torch.zeros(8)
    first[:2], second[:2] = torch.tensor([1.0, 0.6]), torch.tensor([1.0, -0.6])  # they meet at (0.7, 0.5)
    found = BoundaryWalk(steps=60).search(
        Corner(first, second), torch.full((1, 2, 2, 2), 0.5), torch.tensor([0])
    )
    assert_close(found.distance, torch.tensor([0.2]), atol=2e-4, rtol=0)
    assert_close(found.points.flatten()[:2], torch.tensor([0.7, 0.5]), atol=4e-3, rtol=0)


def test_the_box_bends_the_way():
    """Two pixels, of which the steep one is already white: all of the way falls to the other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-2.0, -1.0], [2.0, 1.0]]))
        model[1].bias.copy_(torch.tensor([2.5, -2.5]))  # class 1 where 2 a + b > 2.5
    inputs = torch.tensor([1.0, 0.2]).view(1, 1, 1, 2)
    found = BoundaryWalk().search(model, inputs, torch.tensor([0]))
    assert_close(found.points.flatten(), torch.tensor([1.0, 0.5]), atol=1e-3, rtol=0)


@torch.no_grad()
def test_a_walk_from_the_points_of_another_search_never_loses_ground_and_gains_some():
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(40, 2, 8, 8)
    target = net(inputs).argmax(1)
    start = DDN(steps=4).search(net, inputs, target)
    ledger = Ledger(net, inputs, target)
    everyone = torch.arange(40)
    ledger.look(everyone, start.points)
    ledger.survey(everyone, 3)
    walk(ledger, everyone, start.points, 10, 1.0, 1e-3)
    bisect(ledger, 10)
    after = ledger.boundary().distance
    assert (after <= start.distance + 1e-6).all()
    assert (after / start.distance).mean() < 0.995


def test_cost_is_two_forward_passes_and_one_gradient_a_step():
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(20, 2, 8, 8)
    target = net(inputs).argmax(1)
    counted = Recorder(net)
    with returning(counted) as returned:
        found = BoundaryWalk(steps=9, tolerance=0.0, rivals=2, bisections=0).search(counted, inputs, target)
    assert int(found.forwards.sum()) == sum(counted.calls)
    assert int(found.backwards.sum()) == sum(returned)
    assert found.backwards.max() == 2 + 8
    assert found.forwards.max() == 1 + 2 + 2 * 8 + 1  # decision, survey and its foot, walk, last look


def test_where_the_model_is_flat_the_way_out_is_drawn_by_sample():
    inputs = torch.zeros(4, 1, 6, 6) + 0.02
    target = torch.zeros(4, dtype=torch.int64)
    with keyed(0, torch.arange(4)):
        whole = BoundaryWalk().search(Step(), inputs, target)
    assert whole.found.all()
    assert (whole.points.flatten(1).norm(dim=1) > 0.4).all()
    assert len({float(point.sum()) for point in whole.points}) == 4
    with keyed(0, torch.tensor([2, 0])):
        part = BoundaryWalk().search(Step(), inputs[:2], target[:2])
    assert torch.equal(part.points, whole.points[[2, 0]])


def test_a_model_that_goes_blind_on_the_way_does_not_spoil_what_was_found():
    class Blind(nn.Module):
        """No number comes out where the first pixel is white enough, which is where its gradient leads."""

        def forward(self, inputs):
            margin = 0.3 - (inputs - 0.2).flatten(1).sum(1)
            margin = torch.where(inputs[:, 0, 0, 0] > 0.6, math.nan, margin)
            return torch.stack([margin, -margin], dim=1)

    found = BoundaryWalk().search(Blind(), torch.full((3, 1, 1, 2), 0.2), torch.zeros(3, dtype=torch.int64))
    assert found.found.all()
    assert found.points.isfinite().all()
    assert_close(found.distance, torch.full((3,), 0.3 / math.sqrt(2)), atol=1e-3, rtol=0)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"rivals": 0}, "`rivals` must be at least 1, got 0"),
        ({"turn": 0.0}, "`turn` must be greater than 0, got 0.0"),
        ({"tolerance": 1.0}, r"`tolerance` must lie in \[0, 1\), got 1.0"),
        ({"bisections": -1}, "`bisections` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        BoundaryWalk(**arguments)
