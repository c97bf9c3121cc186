import math

import pytest
import torch
from subjects import Recorder, linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.ledger import Ledger, bisect, inner, pressed


@pytest.fixture
def case():
    return linear_case(classes=4)


@pytest.fixture
def everyone(case):
    return torch.arange(len(case.inputs))


@torch.no_grad()
def test_a_gap_is_the_distance_to_the_nearest_hyperplane_and_a_climb_says_the_same(case, everyone):
    ledger = Ledger(case.model, case.inputs, case.target)
    climb = ledger.survey(everyone, 3)
    logits = case.model(case.inputs)
    gaps = logits.gather(1, case.target[:, None]) - logits
    normals = (case.weight[case.target][:, None] - case.weight).norm(dim=2)
    distance = (gaps / normals).scatter(1, case.target[:, None], torch.inf).amin(1)
    assert_close(climb.gap, distance, rtol=2e-4, atol=1e-9)  # the survey aims just beyond
    assert_close(ledger.gap(everyone, case.inputs), distance)
    assert_close(ledger.climb(everyone, case.inputs).gap, distance)


@torch.no_grad()
def test_a_barred_class_is_no_rival_but_its_flips_count(case, everyone):
    ledger = Ledger(case.model, case.inputs, case.target)
    ledger.survey(everyone, 3)
    logits = case.model(case.inputs)
    gaps = logits.gather(1, case.target[:, None]) - logits
    normals = (case.weight[case.target][:, None] - case.weight).norm(dim=2)
    distances = (gaps / normals).scatter(1, case.target[:, None], torch.inf)
    nearest, second = distances.sort(dim=1)[0][:, :2].T
    label = distances.argmin(1)
    assert torch.equal(ledger.label, label)  # the survey's foot
    ledger.bar(label)
    assert_close(ledger.gap(everyone, case.inputs), second)
    climb = ledger.climb(everyone, case.inputs)
    assert_close(climb.gap, second)
    # Nothing of the gradient leads to the barred class in particular.
    barred = case.weight[label].view_as(case.inputs)
    open_ = torch.stack([case.weight[row.argsort()[1]] for row in distances]).view_as(case.inputs)
    assert (inner(climb.gradient, open_) > inner(climb.gradient, barred)).all()
    own = case.weight[case.target].view_as(case.inputs)
    beyond = case.inputs - 1.05 * nearest[:, None, None, None] * torch.nn.functional.normalize(
        (own - barred).flatten(1)
    ).view_as(own)
    _, flips, _ = ledger.look(everyone, beyond)
    assert flips.all()
    ledger.bar(None)
    assert_close(ledger.gap(everyone, case.inputs), nearest)


@torch.no_grad()
def test_the_only_other_class_cannot_be_barred():
    case = linear_case(classes=2)
    ledger = Ledger(case.model, case.inputs, case.target)
    everyone = torch.arange(len(case.inputs))
    ledger.survey(everyone, 1)
    before = ledger.gap(everyone, case.inputs)
    ledger.bar(1 - case.target)
    assert before.isfinite().all()
    assert torch.equal(ledger.gap(everyone, case.inputs), before)


@torch.no_grad()
def test_the_nearest_flip_is_kept_for_all_images_and_for_some():
    case = linear_case(classes=2)
    normal = case.weight[1 - case.target] - case.weight[case.target]
    normal = (normal / normal.norm(dim=1, keepdim=True)).view_as(case.inputs)
    ledger = Ledger(case.model, case.inputs, case.target)
    for index, length in (([0, 1, 2, 3, 4, 5], 2.0), ([1, 4], 1.5), ([0, 1], 3.0)):
        index = torch.tensor(index)
        ledger.look(index, case.inputs[index] + length * normal[index])
    assert_close(ledger.length, torch.tensor([2, 1.5, 2, 2, 1.5, 2], dtype=torch.float64))
    assert_close(ledger.points - case.inputs, ledger.length[:, None, None, None] * normal)
    assert ledger.forwards.tolist() == [3, 4, 2, 2, 3, 2]
    assert torch.equal(ledger.label, 1 - case.target)


@torch.no_grad()
def test_a_length_that_is_known_need_not_be_right_to_be_believed(case, everyone):
    ledger = Ledger(case.model, case.inputs, case.target)
    ledger.survey(everyone, 3)
    far = ledger.points + 0.3 * (ledger.points - case.inputs)
    ledger.gap(everyone, far, torch.full((len(far),), 1e-3, dtype=torch.float64))
    assert_close(ledger.length, torch.full_like(ledger.length, 1e-3))
    assert_close(ledger.boundary().distance, (far - case.inputs).flatten(1).norm(dim=1))


def test_pressed_pixels_are_on_the_box_and_pushed_out_of_it():
    points = torch.tensor([0.0, 0.0, 0.0, 0.5, 0.5, 0.5, 1.0, 1.0, 1.0]).view(1, 1, 3, 3)
    gradient = torch.tensor([-1e-20, 0.0, 3.0, -1e20, 0.0, 1.0, -2.0, 0.0, 1e-20]).view(1, 1, 3, 3)
    on = [True, False, False, False, False, False, False, False, True]
    assert pressed(points, gradient).flatten().tolist() == on
    assert not pressed(points.clamp(1e-3, 0.999), gradient).any()


@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_bisection_spends_few_passes_and_never_gives_up_a_flip(dtype):
    net = tiny_net(nn.ReLU, dtype)
    inputs = torch.rand(20, 2, 8, 8, dtype=dtype)
    target = net(inputs).argmax(1)
    counted = Recorder(net)
    ledger = Ledger(counted, inputs, target)
    everyone = torch.arange(20)
    ledger.look(everyone, 1 - inputs)
    found = ledger.found.clone()
    assert found.any()
    before = ledger.length.clone()
    bisect(ledger, 30)
    assert torch.equal(ledger.found, found)
    assert (ledger.length[found] < before[found]).all()
    assert (ledger.margin[found] < 0).all()
    assert (ledger.margin[found] >= -4 * ledger.slack[found]).all()
    assert ledger.forwards[found].float().mean() < 12
    assert int(ledger.forwards.sum()) == sum(counted.calls)
    assert ledger.length[~found].isinf().all()


@torch.no_grad()
def test_the_layout_of_the_images_in_memory_does_not_matter():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    last = inputs.contiguous(memory_format=torch.channels_last)
    ledger = Ledger(net, last, target)
    assert ledger.inputs.is_contiguous()
    assert torch.equal(ledger.inputs, inputs)
    assert math.isclose(ledger.diagonal, math.sqrt(128))
