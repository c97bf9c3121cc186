import math

import pytest
import torch
from peers import foolbox, peer_model, returning
from sklearn.datasets import load_digits
from subjects import Recorder, linear_case, tiny_net, unchanged
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks import DDN, L2PGD
from lit_xai.randomness import keyed


class Constant(nn.Module):
    """The same logits for every image, connected to it by a gradient of zero."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, inputs):
        return self.logits.expand(len(inputs), -1) + 0 * inputs.sum(dim=(1, 2, 3))[:, None]


class Step(nn.Module):
    """Flat on both sides of a jump: class 1 wherever the image is further than 0.4 from black."""

    def forward(self, inputs):
        far = (inputs.flatten(1).norm(dim=1) > 0.4).to(inputs.dtype)
        return torch.stack([1 - 2 * far, 2 * far - 1], dim=1) + 0 * inputs.sum(dim=(1, 2, 3))[:, None]


def digits_net(epsilon):
    images, target = load_digits(return_X_y=True)
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 8, 8) / 16
    target = torch.tensor(target)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.Conv2d(16, 24, 3, 2, 1), nn.ReLU(),
            nn.Flatten(), nn.Linear(384, 48), nn.ReLU(), nn.Linear(48, 10),
        )  # fmt: skip
        optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
        for _ in range(6):
            for index in torch.randperm(1400).split(64):
                images = inputs[index]
                if epsilon:
                    images = L2PGD(epsilon=epsilon, steps=3)(net, images, target[index])
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(images), target[index]).backward()
                optimizer.step()
    held = inputs[1400:]
    assert (net(held).argmax(1) == target[1400:]).float().mean() > 0.8
    return net.eval().requires_grad_(False), held, net(held).argmax(1)


@pytest.fixture(scope="module")
def standard():
    return digits_net(0.0)


@pytest.fixture(scope="module")
def robust():
    return digits_net(0.6)


def margins(net, points, target):
    logits = net(points)
    own = logits.gather(1, target[:, None])
    return own[:, 0] - logits.scatter(1, target[:, None], -torch.inf).amax(1), own


def linear_distances(case):
    logits = case.model(case.inputs)
    gaps = logits.gather(1, case.target[:, None]) - logits
    normals = (case.weight[case.target][:, None] - case.weight).norm(dim=2)
    return (gaps / normals).scatter(1, case.target[:, None], torch.inf).min(1)


@pytest.mark.parametrize("search", [DDN(), DDN(steps=7, gamma=0.2, tolerance=0.0, rivals=1)], ids=repr)
def test_repr_builds_the_search_again(search):
    assert eval(repr(search)) == search


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_distance_of_a_linear_classifier_is_that_of_the_closest_hyperplane(classes):
    case = linear_case(classes)
    found = DDN().search(case.model, case.inputs, case.target)
    distance, rival = linear_distances(case)
    assert_close(found.distance, distance, atol=1e-4, rtol=1e-4)
    assert torch.equal(found.label, rival)
    assert found.forwards.max() <= 10  # the first foot is the point: little is left to search


@torch.no_grad()
def test_distances_of_many_linear_classifiers_of_ten_classes():
    worst = 0.0
    for seed in range(5):
        draw = torch.Generator().manual_seed(seed)
        model = nn.Sequential(nn.Flatten(), nn.Linear(48, 10))
        with torch.no_grad():
            model[1].weight.copy_(torch.randn(10, 48, generator=draw))
            model[1].bias.copy_(-0.5 * model[1].weight.sum(1) + 0.1 * torch.randn(10, generator=draw))
        inputs = 0.45 + 0.1 * torch.rand(100, 3, 4, 4, generator=draw)
        target = model(inputs).argmax(1)
        found = DDN(rivals=9).search(model, inputs, target)
        weight, logits = model[1].weight, model(inputs)
        gaps = logits.gather(1, target[:, None]) - logits
        exact = (gaps / (weight[target][:, None] - weight).norm(dim=2)).scatter(1, target[:, None], torch.inf)
        worst = max(worst, float((found.distance - exact.amin(1)).abs().max()))
    assert worst < 1e-4


@pytest.mark.parametrize("which", ["standard", "robust"])
@pytest.mark.parametrize("steps", [20, 60])
def test_no_further_than_foolbox_at_the_same_steps(which, steps, request):
    net, inputs, target = request.getfixturevalue(which)
    found = DDN(steps).search(net, inputs, target)
    points = foolbox.attacks.DDNAttack(steps=steps).run(peer_model(net), inputs, target)
    near, far = torch.zeros(len(inputs)), torch.ones(len(inputs))
    for _ in range(12):  # the peer's points, too, are moved onto the boundary
        middle = (near + far) / 2
        flips = net(inputs + middle[:, None, None, None] * (points - inputs)).argmax(1) != target
        near, far = torch.where(flips, near, middle), torch.where(flips, middle, far)
    other = far * (points - inputs).flatten(1).norm(dim=1)
    other[net(points).argmax(1) == target] = torch.inf
    assert found.found.all()
    assert found.distance.median() <= 1.002 * other.median()
    assert found.distance.mean() <= 1.002 * other.mean()
    assert (found.distance / other).median() <= 1.002
    assert found.forwards.float().mean() + found.backwards.float().mean() < 2 * steps + 11


@pytest.mark.parametrize("which", ["standard", "robust"])
def test_points_lie_just_beyond_the_boundary_and_face_the_input(which, request):
    net, inputs, target = request.getfixturevalue(which)
    found = DDN().search(net, inputs, target)
    one_by_one = torch.cat([net(point[None]) for point in found.points]).argmax(1)
    assert (one_by_one != target).all()
    assert torch.equal(one_by_one, found.label)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    delta = inputs - found.points
    assert_close(found.distance, delta.flatten(1).norm(dim=1))
    points = found.points.clone().requires_grad_()
    margin, _ = margins(net, points, target)
    (normal,) = torch.autograd.grad(margin.sum(), points)
    over = -margin / (normal.flatten(1).norm(dim=1) * found.distance)
    assert (over > 0).all()
    assert (over < 0.01).all()
    # A local minimiser: where the box allows it, the input lies along the normal (pixels on the box aside).
    free = ~(((points <= 0) & (normal > 0)) | ((points >= 1) & (normal < 0)))
    straight = nn.functional.cosine_similarity((delta * free).flatten(1), (normal * free).flatten(1))
    assert straight.median() > 0.995


def test_more_steps_do_not_lose_ground(standard):
    net, inputs, target = standard
    distance = [DDN(steps, tolerance=0.0).search(net, inputs, target).distance.mean() for steps in (2, 8, 40)]
    assert distance[0] > distance[1] > 0.999 * distance[2]


@pytest.mark.parametrize("factor", [1e-3, 50.0])
def test_scaling_and_shifting_the_logits_changes_nothing(factor):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(8, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    first = DDN().search(net, inputs, target)
    with torch.no_grad():
        net[-1].weight.mul_(factor)
        net[-1].bias.mul_(factor).add_(0.7)
    second = DDN().search(net, inputs, target)
    assert_close(second.points, first.points, atol=1e-9, rtol=0)
    assert torch.equal(second.forwards, first.forwards)


def test_batch_size_and_order_do_not_matter():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(9, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    target[3] = (target[3] + 1) % 4  # leaves at once
    order = torch.tensor([5, 3, 0, 7])
    whole, part = DDN().search(net, inputs, target), DDN().search(net, inputs[order], target[order])
    for name in ("points", "distance", "found", "label", "forwards", "backwards"):
        assert_close(getattr(part, name), getattr(whole, name)[order], atol=1e-10, rtol=0)


def test_draws_off_a_plateau_belong_to_the_sample():
    inputs = torch.zeros(4, 1, 6, 6) + 0.02
    target = torch.zeros(4, dtype=torch.int64)
    with keyed(0, torch.arange(4)):
        whole = DDN().search(Step(), inputs, target)
    assert whole.found.all()
    assert (whole.points.flatten(1).norm(dim=1) > 0.4).all()
    assert len({float(point.sum()) for point in whole.points}) == 4
    with keyed(0, torch.tensor([2, 0])):
        part = DDN().search(Step(), inputs[:2], target[:2])
    assert torch.equal(part.points, whole.points[[2, 0]])


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_passes_are_those_that_the_model_saw(dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(20, 2, 8, 8, dtype=dtype)
    target = net(inputs).argmax(1)
    target[:3] = (target[:3] + 1) % 4
    counted = Recorder(net)
    with returning(counted) as returned:
        found = DDN().search(counted, inputs, target)
    assert int(found.forwards.sum()) == sum(counted.calls)
    assert int(found.backwards.sum()) == sum(returned)
    assert (found.forwards[:3] == 1).all()
    assert (found.backwards[:3] == 0).all()
    assert counted.calls[0] == 20
    assert max(counted.calls[1:]) == 17
    assert len(found.forwards[3:].unique()) > 1  # each image stops by itself
    assert found.forwards.max() <= 1 + 20 + 1 + 1 + 10  # decision, steps, two feet, bisection
    assert found.backwards.max() <= 20 + 3 - 1
    assert found.points.dtype == found.distance.dtype == dtype


def test_images_stop_earlier_under_a_looser_tolerance_and_lose_no_more_than_that(standard):
    net, inputs, target = standard
    strict, loose = (DDN(tolerance=t).search(net, inputs, target) for t in (0.0, 0.01))
    assert loose.backwards.float().mean() < 0.6 * strict.backwards.float().mean()
    assert (loose.distance / strict.distance).median() < 1.01


def test_images_of_another_class_are_their_own_boundary_point(relu_net):
    inputs = torch.rand(6, 2, 8, 8)
    target = (relu_net(inputs).argmax(1) + 1) % 4
    found = DDN().search(relu_net, inputs, target)
    assert torch.equal(found.points, inputs)
    assert (found.distance == 0).all()
    assert found.found.all()
    assert torch.equal(found.label, relu_net(inputs).argmax(1))
    assert (found.forwards == 1).all()
    assert (found.backwards == 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lead", [0.0, 1e-8, 1e-7])
def test_an_image_on_the_boundary_is_next_to_it(dtype, lead):
    case = linear_case(classes=2)
    inputs, model = case.inputs.to(dtype), case.model.to(dtype)
    for image in inputs.split(1):
        with torch.no_grad():
            model[1].bias += 1 + torch.tensor([lead, 0.0], dtype=dtype) - model(image)[0]
            target = model(image).argmax(1)
        found = DDN().search(model, image, target)
        assert found.found.all()
        assert found.distance <= 1e-5
        assert model(found.points).argmax(1) == found.label


def test_a_net_without_biases_is_searched_from_a_black_image():
    model = nn.Sequential(nn.Flatten(), nn.Linear(9, 3, bias=False))  # all logits are 0 there
    found = DDN().search(model, torch.zeros(1, 1, 3, 3), torch.tensor([0]))
    assert found.found.all()
    assert 0 < found.distance < 1e-5
    assert found.label != 0


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("target", [0, 1])
def test_logits_that_are_not_finite_are_of_no_class(value, target):
    found = DDN().search(Constant(value, 0.0, value), torch.rand(2, 1, 5, 5), torch.full((2,), target))
    assert (found.distance == 0).all()
    assert (found.forwards == 1).all()


@pytest.mark.parametrize("logits", [(1.0, 0.0, -1.0), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_without_a_boundary_nothing_is_found(logits):
    inputs = torch.rand(3, 1, 5, 5)
    found = DDN(steps=200).search(Constant(*logits), inputs, torch.zeros(3, dtype=torch.int64))
    assert not found.found.any()
    assert torch.equal(found.points, inputs)
    assert found.distance.isinf().all()
    assert (found.label == 0).all()


def test_a_boundary_outside_the_box_is_not_found():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([8.5, 0.0]))  # the sum of the pixels would have to exceed 4.25
    found = DDN(steps=40).search(model, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    assert not found.found.any()


def test_the_box_bends_the_way():
    """Two pixels, of which the steep one is already white: all of the way falls to the other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-2.0, -1.0], [2.0, 1.0]]))
        model[1].bias.copy_(torch.tensor([2.5, -2.5]))  # class 1 where 2 a + b > 2.5
    inputs = torch.tensor([1.0, 0.2]).view(1, 1, 1, 2)
    found = DDN().search(model, inputs, torch.tensor([0]))
    assert_close(found.points.flatten(), torch.tensor([1.0, 0.5]), atol=1e-3, rtol=0)


def test_nothing_is_touched_and_no_gradient_mode_is_needed(relu_net, batch):
    with unchanged(relu_net, *batch), torch.no_grad(), keyed(0, torch.arange(5)):
        before = torch.random.get_rng_state()
        quiet = DDN().search(relu_net, *batch)
        assert torch.equal(torch.random.get_rng_state(), before)
    inputs = batch[0].clone().requires_grad_()
    loud = DDN().search(relu_net, inputs, batch[1])
    assert torch.equal(quiet.points, loud.points)
    assert not loud.points.requires_grad
    assert torch.equal(DDN()(relu_net, *batch), quiet.points)


def test_tiny_logits_are_searched_like_any_others():
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(8, 2, 8, 8)
    target = net(inputs).argmax(1)
    with torch.no_grad():
        net[-1].weight.mul_(1e-20)
        net[-1].bias.mul_(1e-20)
    found = DDN().search(net, inputs, target)
    assert found.found.all()
    assert found.points.isfinite().all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 1, got 0"),
        ({"rivals": 0}, "`rivals` must be at least 1, got 0"),
        ({"gamma": 1.0}, "`gamma` must lie between 0 and 1, got 1.0"),
        ({"tolerance": -0.1}, r"`tolerance` must lie in \[0, 1\), got -0.1"),
        ({"tolerance": math.nan}, r"`tolerance` must lie in \[0, 1\), got nan"),
        ({"bisections": -1}, "`bisections` must be at least 0, got -1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DDN(**arguments)


def test_a_single_class_has_no_boundary():
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="a boundary needs at least 2 classes, got a model with 1"):
        DDN().search(model, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))
