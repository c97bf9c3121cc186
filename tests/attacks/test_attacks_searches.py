"""What holds for every closest-boundary search, whatever its way to the boundary."""

import math

import pytest
import torch
from peers import returning
from subjects import Recorder, linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.carlini_wagner import CarliniWagner
from lit_xai.attacks.deepfool import DeepFool
from lit_xai.attacks.fmn import FMN
from lit_xai.attacks.grid import PGDGrid
from lit_xai.attacks.projection import FABProjection
from lit_xai.randomness import keyed

SEARCHES = [
    DDN(steps=8),
    DeepFool(),
    DeepFool(steps=9, rivals=1, overshoot=0.05),
    FMN(steps=20),
    CarliniWagner(steps=20, rounds=3, constant=1.0, step_size=0.05),
    PGDGrid(radii=(0.2, 0.5, 1.0, 2.0, 4.0), steps=8),
    PGDGrid(radii=(0.5, 2.0, 4.0), steps=8, released=True),
    FABProjection(steps=8),
    FABProjection(steps=8, rivals=2, alpha=0.3, eta=1.1, beta=0.8),
]
every_search = pytest.mark.parametrize("search", SEARCHES, ids=repr)
FIELDS = ("points", "distance", "found", "label", "forwards", "backwards")


class Constant(nn.Module):
    """The same logits for every image, connected to it by a gradient of zero."""

    def __init__(self, *logits):
        super().__init__()
        self.logits = torch.tensor(logits)

    def forward(self, inputs):
        return self.logits.expand(len(inputs), -1) + 0 * inputs.sum(dim=(1, 2, 3))[:, None]


@every_search
def test_repr_builds_the_search_again(search):
    assert eval(repr(search)) == search


@every_search
def test_points_flip_lie_in_the_box_and_just_beyond_the_boundary(search):
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(24, 2, 8, 8).mul(1.3).sub(0.15).clamp(0, 1)  # some pixels on the box
    target = net(inputs).argmax(1)
    found = search.search(net, inputs, target)
    assert found.found.all()
    one_by_one = torch.cat([net(point[None]) for point in found.points]).argmax(1)
    assert (one_by_one != target).all()
    assert torch.equal(one_by_one, found.label)
    assert found.points.min() >= 0
    assert found.points.max() <= 1
    assert not found.points.requires_grad
    assert_close(found.distance, (found.points - inputs).flatten(1).norm(dim=1))
    points = found.points.clone().requires_grad_()
    logits = net(points)
    own = logits.gather(1, target[:, None])
    margin = (own - logits.scatter(1, target[:, None], -torch.inf).amax(1, keepdim=True))[:, 0]
    (normal,) = torch.autograd.grad(margin.sum(), points)
    over = -margin / (normal.flatten(1).norm(dim=1) * found.distance)
    assert (over > 0).all()
    assert (over < 0.01).all()


@every_search
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_passes_are_those_that_the_model_saw(search, dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(20, 2, 8, 8, dtype=dtype)
    target = net(inputs).argmax(1)
    target[:3] = (target[:3] + 1) % 4
    counted = Recorder(net)
    with returning(counted) as returned:
        found = search.search(counted, inputs, target)
    assert int(found.forwards.sum()) == sum(counted.calls)
    assert int(found.backwards.sum()) == sum(returned)
    assert counted.calls[0] == 20
    assert max(counted.calls[1:]) == 17
    assert (found.forwards[:3] == 1).all()
    assert (found.backwards[:3] == 0).all()
    assert torch.equal(found.points[:3], inputs[:3])
    assert (found.distance[:3] == 0).all()
    assert len(found.forwards[3:].unique()) > 1  # each image stops by itself
    assert found.points.dtype == found.distance.dtype == dtype


@every_search
def test_images_of_another_class_cost_one_forward_pass(search, relu_net):
    inputs = torch.rand(4, 2, 8, 8)
    counted = Recorder(relu_net)
    found = search.search(counted, inputs, (relu_net(inputs).argmax(1) + 1) % 4)
    assert counted.calls == [4]
    assert found.found.all()
    assert (found.distance == 0).all()


@every_search
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


@every_search
@pytest.mark.parametrize("logits", [(1.0, 0.0, -1.0), (0.5, 0.5, 0.5), (0.0, 0.0, 0.0)])
def test_without_a_boundary_nothing_is_found(search, logits):
    inputs = torch.rand(3, 1, 5, 5)
    found = search.search(Constant(*logits), inputs, torch.zeros(3, dtype=torch.int64))
    assert not found.found.any()
    assert torch.equal(found.points, inputs)
    assert found.distance.isinf().all()
    assert (found.label == 0).all()


@every_search
def test_a_boundary_outside_the_box_is_not_found(search):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-1.0] * 4, [1.0] * 4]))
        model[1].bias.copy_(torch.tensor([8.5, 0.0]))  # the sum of the pixels would have to exceed 4.25
    found = search.search(model, torch.rand(3, 1, 2, 2), torch.zeros(3, dtype=torch.int64))
    assert not found.found.any()


@every_search
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_logits_that_are_not_finite_are_of_no_class(search, value):
    found = search.search(Constant(value, 0.0, value), torch.rand(2, 1, 5, 5), torch.full((2,), 1))
    assert (found.distance == 0).all()
    assert (found.forwards == 1).all()


@every_search
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("lead", [0.0, 1e-8, 1e-7])
def test_an_image_on_the_boundary_is_next_to_it(search, dtype, lead):
    case = linear_case(classes=2)
    inputs, model = case.inputs.to(dtype), case.model.to(dtype)
    for image in inputs.split(1):
        with torch.no_grad():
            model[1].bias += 1 + torch.tensor([lead, 0.0], dtype=dtype) - model(image)[0]
            target = model(image).argmax(1)
        found = search.search(model, image, target)
        assert found.found.all()
        assert found.distance <= 1e-5
        assert model(found.points).argmax(1) == found.label


@pytest.mark.parametrize("factor", [1e-20, 1e-3, 50.0])
@pytest.mark.parametrize(
    "search", [search for search in SEARCHES if not isinstance(search, CarliniWagner | PGDGrid)], ids=repr
)
def test_scaling_and_shifting_the_logits_changes_nothing(search, factor):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(8, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    first = search.search(net, inputs, target)
    with torch.no_grad():
        net[-1].weight.mul_(factor)
        net[-1].bias.mul_(factor).add_(0.0 if factor < 1e-9 else 0.7)
    second = search.search(net, inputs, target)
    assert_close(second.points, first.points, atol=1e-8, rtol=0)
    assert torch.equal(second.forwards, first.forwards)


@every_search
def test_a_single_class_has_no_boundary(search):
    model = nn.Sequential(nn.Flatten(), nn.Linear(4, 1))
    with pytest.raises(ValueError, match="a boundary needs at least 2 classes, got a model with 1"):
        search.search(model, torch.rand(2, 1, 2, 2), torch.zeros(2, dtype=torch.int64))


@pytest.mark.parametrize("search", {type(search): search for search in SEARCHES}.values(), ids=repr)
def test_bad_arguments_are_refused(search):
    kind = type(search)
    with pytest.raises(ValueError, match="`steps` must be at least 1, got 0"):
        kind(steps=0)
    with pytest.raises(ValueError, match="`bisections` must be at least 0, got -1"):
        kind(bisections=-1)
