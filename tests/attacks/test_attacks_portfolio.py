import itertools
import math

import pytest
import torch
from digits_net import digits, trained
from peers import foolbox, peer_model, returning
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.boundary_walk import BoundaryWalk
from lit_xai.attacks.portfolio import THOROUGH, ClosestBoundary
from lit_xai.randomness import keyed

FIELDS = ("points", "distance", "found", "label", "forwards", "backwards")


class Step(nn.Module):
    """Flat on both sides of a jump: class 1 wherever the image is further than 0.4 from black."""

    def forward(self, inputs):
        far = (inputs.flatten(1).norm(dim=1) > 0.4).to(inputs.dtype)
        return torch.stack([1 - 2 * far, 2 * far - 1], dim=1) + 0 * inputs.sum(dim=(1, 2, 3))[:, None]


class Islands(nn.Module):
    """Class 1 straight ahead, at 0.6; class 2 at 0.3, where the gradient at the input does not lead."""

    def forward(self, inputs):
        inputs = (inputs - 0.5).flatten(1)
        ahead, aside = inputs[:, 0] - 0.4, 4 * (inputs[:, 1] - 0.28)
        return torch.stack([torch.zeros_like(ahead), ahead, aside.where(aside > -0.6, -0.6)], dim=1)


@pytest.fixture(scope="module")
def case():
    inputs = digits()[0][::6][:100]
    net = trained()
    return net, inputs, net(inputs).argmax(1)


def keyed_search(search, net, inputs, target, seed=0):
    with keyed(seed, torch.arange(len(inputs))):
        return search.search(net, inputs, target)


@pytest.mark.parametrize("search", [ClosestBoundary(), THOROUGH], ids=repr)
def test_repr_builds_the_search_again(search):
    assert eval(repr(search)) == search


@pytest.mark.parametrize("classes", [2, 3, 12])
def test_distance_of_a_linear_classifier_is_that_of_the_closest_hyperplane(classes):
    case = linear_case(classes)
    found = ClosestBoundary().search(case.model, case.inputs, case.target)
    logits = case.model(case.inputs)
    gaps = logits.gather(1, case.target[:, None]) - logits
    normals = (case.weight[case.target][:, None] - case.weight).norm(dim=2)
    distance, rival = (gaps / normals).scatter(1, case.target[:, None], torch.inf).min(1)
    assert_close(found.distance, distance, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.label, rival)


def test_points_lie_just_beyond_the_boundary_and_face_the_input(case):
    net, inputs, target = case
    found = keyed_search(ClosestBoundary(), net, inputs, target)
    one_by_one = torch.cat([net(point[None]) for point in found.points]).argmax(1)
    assert found.found.all()
    assert (one_by_one != target).all()
    assert torch.equal(one_by_one, found.label)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    delta = inputs - found.points
    assert_close(found.distance, delta.flatten(1).norm(dim=1))
    points = found.points.clone().requires_grad_()
    logits = net(points)
    own = logits.gather(1, target[:, None])
    margin = (own - logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
    (normal,) = torch.autograd.grad(margin.sum(), points)
    over = -margin / (normal.flatten(1).norm(dim=1) * found.distance)
    assert (over > 0).all()
    assert (over < 0.01).all()
    free = ~(((points <= 0) & (normal > 0)) | ((points >= 1) & (normal < 0)))
    opt = nn.functional.cosine_similarity((delta * free).flatten(1), (normal * free).flatten(1))
    assert opt.median() > 0.98


@pytest.mark.slow
def test_closer_than_foolbox_with_1000_steps_at_41_gradients(case):
    net, inputs, target = case
    found = keyed_search(ClosestBoundary(), net, inputs, target)
    points = foolbox.attacks.DDNAttack(steps=1000).run(peer_model(net), inputs, target)
    near, far = torch.zeros(len(inputs)), torch.ones(len(inputs))
    for _ in range(12):  # the peer's points, too, are moved onto the boundary
        middle = (near + far) / 2
        flips = net(inputs + middle[:, None, None, None] * (points - inputs)).argmax(1) != target
        near, far = torch.where(flips, near, middle), torch.where(flips, middle, far)
    other = far * (points - inputs).flatten(1).norm(dim=1)
    assert found.found.all()
    assert found.distance.median() <= 1.01 * other.median()
    assert found.distance.mean() <= other.mean()
    assert found.backwards.float().mean() <= 41
    assert found.forwards.float().mean() <= 125


def test_random_starts_find_what_a_single_walk_does_not(case):
    net, inputs, target = case
    alone = keyed_search(BoundaryWalk(steps=39), net, inputs, target).distance
    several = keyed_search(ClosestBoundary(), net, inputs, target).distance
    assert several.mean() < 0.995 * alone.mean()
    assert ((several < 0.99 * alone).float().mean()) > 2 * ((alone < 0.99 * several).float().mean())


def test_a_barred_start_looks_for_another_class():
    inputs = torch.full((8, 1, 2, 2), 0.5)
    target = torch.zeros(8, dtype=torch.int64)
    assert (keyed_search(DDN(), Islands(), inputs, target).label == 1).all()
    found = keyed_search(ClosestBoundary(), Islands(), inputs, target)
    assert (found.label == 2).float().mean() > 0.5
    assert (found.distance[found.label == 2] < 0.29).all()


def test_more_starts_never_lose_ground(case):
    """Without a last walk the first starts are the same ones, and only what is nearer replaces them."""
    net, inputs, target = case
    distance = [
        keyed_search(ClosestBoundary(starts=starts, last=0), net, inputs, target).distance
        for starts in (0, 2, 5, 9)
    ]
    for fewer, more in itertools.pairwise(distance):
        assert (more <= 1.005 * fewer).all()  # points are compared before they are bisected
        assert more.mean() < fewer.mean()


@pytest.mark.slow
def test_thorough_is_closer_still(case):
    net, inputs, target = case
    usual, thorough = (keyed_search(search, net, inputs, target) for search in (ClosestBoundary(), THOROUGH))
    assert (thorough.distance <= 1.001 * usual.distance).float().mean() > 0.9
    assert thorough.distance.mean() < 0.998 * usual.distance.mean()


def test_never_more_than_41_gradients_and_what_the_model_saw(case):
    net, inputs, target = case
    target = target.clone()
    target[:3] = (target[:3] + 1) % 10
    counted = Recorder(net)
    with returning(counted) as returned:
        found = keyed_search(ClosestBoundary(), counted, inputs, target)
    assert int(found.forwards.sum()) == sum(counted.calls)
    assert int(found.backwards.sum()) == sum(returned)
    assert counted.calls[0] == 100
    assert max(counted.calls[1:]) == 97
    assert found.backwards.max() == 41
    assert found.forwards.max() <= 1 + 2 + (2 * 5 + 1) + 5 * (2 * 5 + 1) + (2 * 8 + 1) + 10
    assert (found.forwards[:3] == 1).all()
    assert (found.backwards[:3] == 0).all()


@pytest.mark.parametrize("search", [ClosestBoundary(), ClosestBoundary(starts=12, steps=3, last=2)], ids=repr)
def test_batch_size_and_order_do_not_matter(search):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(9, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    target[3] = (target[3] + 1) % 4  # leaves at once
    with keyed(2, torch.arange(9)):
        whole = search.search(net, inputs, target)
    for order in (torch.tensor([5, 3, 0, 7]), torch.tensor([8])):
        with keyed(2, order):
            part = search.search(net, inputs[order], target[order])
        for name in FIELDS:
            assert_close(getattr(part, name), getattr(whole, name)[order], atol=1e-9, rtol=0)


def test_seeds_differ_and_a_seed_repeats(case):
    net, inputs, target = case
    first, again, other = (keyed_search(ClosestBoundary(), net, inputs[:9], target[:9], s) for s in (0, 0, 1))
    assert torch.equal(first.points, again.points)
    assert not torch.equal(first.points, other.points)


def test_a_plateau_is_left_and_its_rim_found():
    found = keyed_search(
        ClosestBoundary(), Step(), torch.zeros(4, 1, 6, 6) + 0.02, torch.zeros(4, dtype=torch.int64)
    )
    assert found.found.all()
    assert (found.points.flatten(1).norm(dim=1) > 0.4).all()
    assert (found.distance < 0.45).all()


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_on_the_way_leave_finite_points(value):
    class Holes(nn.Module):
        def forward(self, inputs):
            margin = 0.3 - (inputs - 0.2).flatten(1).sum(1)
            margin = torch.where(inputs.flatten(1).amax(1) > 0.5, value, margin)
            return torch.stack([margin, -margin], dim=1)

    target = torch.zeros(5, dtype=torch.int64)
    found = keyed_search(ClosestBoundary(), Holes(), torch.full((5, 1, 1, 2), 0.2), target)
    assert found.found.all()
    assert found.points.isfinite().all()
    assert_close(found.distance, torch.full((5,), 0.3 / math.sqrt(2)), atol=1e-3, rtol=0)


def test_nothing_is_touched_and_no_gradient_mode_is_needed(relu_net, batch):
    with unchanged(relu_net, *batch), torch.no_grad(), keyed(0, torch.arange(5)):
        before = torch.random.get_rng_state()
        quiet = ClosestBoundary().search(relu_net, *batch)
        assert torch.equal(torch.random.get_rng_state(), before)
    inputs = batch[0].clone().requires_grad_()
    loud = keyed_search(ClosestBoundary(), relu_net, inputs, batch[1])
    assert torch.equal(quiet.points, loud.points)
    assert not loud.points.requires_grad


def test_an_empty_batch_has_an_empty_answer(relu_net):
    empty = torch.rand(0, 2, 8, 8)
    found = keyed_search(ClosestBoundary(), relu_net, empty, torch.zeros(0, dtype=torch.int64))
    assert found.points.shape == (0, 2, 8, 8)
    assert found.distance.shape == (0,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"starts": -1}, "`starts` must be at least 0, got -1"),
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"first": 0}, "`first` must be at least 1, got 0"),
        ({"last": -1}, "`last` must be at least 0, got -1"),
        ({"noise": 0.0}, "`noise` must be greater than 0, got 0.0"),
        ({"leave": 0.9}, "`leave` must be at least 1, got 0.9"),
        ({"tolerance": math.nan}, r"`tolerance` must lie in \[0, 1\), got nan"),
        ({"rivals": 0}, "`rivals` must be at least 1, got 0"),
        ({"bisections": -1}, "`bisections` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        ClosestBoundary(**arguments)
