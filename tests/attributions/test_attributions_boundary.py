"""Boundary maps: definitions, slow twins, sums, missing points, scaling, shared searches."""

from dataclasses import dataclass

import captum.attr
import numpy
import pytest
import torch
from rows import nearest
from subjects import linear_case
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attributions import (
    BoundaryIntegratedGradients,
    BoundarySaliency,
    IntegratedGradients,
    Logit,
    Margin,
    OnBoundary,
    Saliency,
)
from lit_xai.memory import remembering
from lit_xai.types import Flags, Images, Labels

calls: list[int] = []


@dataclass(frozen=True, eq=False)
class Known(Search):
    """Answers with points that are known beforehand."""

    points: Images
    found: Flags

    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        calls.append(len(inputs))
        with torch.no_grad():
            label = model(self.points).argmax(1)
        distance = (self.points - inputs).flatten(1).norm(dim=1).where(self.found, torch.inf)
        return Boundary(self.points, distance, self.found, label, label * 0, label * 0)


@pytest.fixture
def flipped(smooth_net):
    """A net, images, and for each a point of another class; nothing here depends on how it was found."""
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    others = torch.rand(200, 2, 8, 8, dtype=torch.float64)
    with torch.no_grad():
        target, labels = smooth_net(inputs).argmax(1), smooth_net(others).argmax(1)
    points = torch.stack([others[labels != c][i] for i, c in enumerate(target)])
    return smooth_net, inputs, target, Known(points, torch.ones(4, dtype=torch.bool))


def logits(net: nn.Module, points: Tensor) -> Tensor:
    with torch.no_grad():
        return net(points)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_boundary_saliency_is_captums_saliency_at_the_boundary_point(flipped):
    net, inputs, target, search = flipped
    expected = captum.attr.Saliency(net).attribute(search.points, target=target, abs=False)
    torch.testing.assert_close(BoundarySaliency(search)(net, inputs, target), expected)


def test_boundary_integrated_gradients_are_captums_with_the_boundary_point_as_baseline(flipped):
    net, inputs, target, search = flipped
    captums = captum.attr.IntegratedGradients(net)
    expected = captums.attribute(inputs, search.points, target=target, n_steps=10, method="riemann_trapezoid")
    ours = BoundaryIntegratedGradients(search, steps=10, rule="official")(net, inputs, target)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("rule", ["trapezoid", "official"])
def test_a_loop_over_the_definition_gives_the_same_map(rule, flipped):
    net, inputs, target, search = flipped
    n = 6
    divisor = n if rule == "official" else n - 1
    for i in range(4):
        x, start, c = inputs[i : i + 1], search.points[i : i + 1], target[i]
        total = torch.zeros_like(x)
        for k in range(n):
            point = (start + k / (n - 1) * (x - start)).requires_grad_()
            weight = (0.5 if k in (0, n - 1) else 1.0) / divisor
            total += weight * torch.autograd.grad(net(point)[0, c], point)[0]
        ours = BoundaryIntegratedGradients(search, steps=n, rule=rule)(net, inputs, target)
        torch.testing.assert_close(ours[i : i + 1], (x - start) * total)


def test_big_adds_up_to_the_rise_of_the_logit(flipped):
    net, inputs, target, search = flipped
    maps = BoundaryIntegratedGradients(search, steps=400)(net, inputs, target)
    rise = Logit()(logits(net, inputs), target) - Logit()(logits(net, search.points), target)
    torch.testing.assert_close(maps.flatten(1).sum(1), rise, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint"])
def test_its_sum_closes_at_order_two(rule, flipped):
    net, inputs, target, search = flipped
    rise = Logit()(logits(net, inputs), target) - Logit()(logits(net, search.points), target)
    sizes, gaps = [32, 64, 128], []
    for spaces in sizes:
        method = BoundaryIntegratedGradients(search, spaces + (rule == "trapezoid"), rule=rule)
        gaps.append((method(net, inputs, target).flatten(1).sum(1) - rise).abs().max())
    order = -numpy.polyfit(numpy.log(sizes), numpy.log(gaps), 1)[0]
    assert order == pytest.approx(2, abs=0.05)


def test_big_with_margin_adds_up_to_the_rise_of_the_margin_against_the_class_on_the_other_side(flipped):
    net, inputs, target, search = flipped
    maps = BoundaryIntegratedGradients(search, steps=400, score=Margin())(net, inputs, target)
    rows, rival = torch.arange(4), logits(net, search.points).argmax(1)
    at_x, at_boundary = logits(net, inputs), logits(net, search.points)
    rise = (at_x[rows, target] - at_x[rows, rival]) - (at_boundary[rows, target] - at_boundary[rows, rival])
    torch.testing.assert_close(maps.flatten(1).sum(1), rise, rtol=1e-4, atol=1e-4)


def test_the_rival_is_the_class_on_the_other_side_not_the_runner_up_of_the_image(flipped):
    net, inputs, target, search = flipped
    rival = logits(net, search.points).argmax(1)
    runner_up = logits(net, inputs).topk(2).indices[:, 1]
    assert (rival != runner_up).any()
    point = search.points.clone().requires_grad_()
    out, rows = net(point), torch.arange(4)
    expected = torch.autograd.grad((out[rows, target] - out[rows, rival]).sum(), point)[0]
    torch.testing.assert_close(BoundarySaliency(search, Margin())(net, inputs, target), expected)


def test_linear_classifier_with_the_exact_search():
    case = linear_case()
    points, rival = nearest(case.weight, case.bias, case.inputs, case.target)
    points = case.inputs + (1 + 1e-10) * (points - case.inputs)  # on the far side, however it rounds
    search = Known(points, torch.ones(6, dtype=torch.bool))
    own = case.weight[case.target].view_as(case.inputs)
    away = own - case.weight[rival].view_as(own)
    arguments = case.model, case.inputs, case.target
    torch.testing.assert_close(BoundarySaliency(search)(*arguments), own)
    torch.testing.assert_close(BoundarySaliency(search, Margin())(*arguments), away)
    maps = BoundaryIntegratedGradients(search, steps=2)(*arguments)
    torch.testing.assert_close(maps, (case.inputs - points) * own)
    maps = BoundaryIntegratedGradients(search, steps=2, score=Margin())(*arguments)
    # On the boundary the margin is zero, so the map adds up to the margin of the image.
    margin = Margin()(logits(case.model, case.inputs), case.target, rival)
    torch.testing.assert_close(maps.flatten(1).sum(1), margin)


@pytest.mark.parametrize("method", [BoundarySaliency, BoundaryIntegratedGradients])
@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_missing_boundary_points_give_nan_and_leave_the_others_alone(method, score, flipped):
    net, inputs, target, search = flipped
    found = torch.tensor([True, False, True, False])
    points = search.points.where(found.view(-1, 1, 1, 1), inputs)
    maps = method(Known(points, found), score=score)(net, inputs, target)
    assert maps[~found].isnan().all()
    torch.testing.assert_close(maps[found], method(search, score=score)(net, inputs, target)[found])


def test_an_image_of_another_class_is_its_own_boundary_point(flipped):
    net, inputs, target, _ = flipped
    wrong = (target + 1) % 4
    search = Known(inputs, torch.ones(4, dtype=torch.bool))
    saliency = BoundarySaliency(search)(net, inputs, wrong)
    torch.testing.assert_close(saliency, Saliency()(net, inputs, wrong))
    assert not BoundaryIntegratedGradients(search)(net, inputs, wrong).any()


def test_plain_twins():
    search = Known(torch.zeros(1, 1, 1, 1), torch.ones(1, dtype=torch.bool))
    assert BoundarySaliency(search, Margin()).plain == Saliency(Margin())
    big = BoundaryIntegratedGradients(search, steps=7, score=Margin(), rule="midpoint", chunk=9)
    assert big.plain == IntegratedGradients(steps=7, baseline=0.0, score=Margin(), rule="midpoint", chunk=9)
    assert isinstance(big, OnBoundary)
    assert isinstance(BoundarySaliency(search), OnBoundary)
    assert not isinstance(Saliency(), OnBoundary)
    assert not isinstance(IntegratedGradients(), OnBoundary)


def test_methods_that_name_the_same_search_search_once(flipped):
    net, inputs, target, search = flipped
    calls.clear()
    with remembering():
        BoundarySaliency(search)(net, inputs, target)
        BoundaryIntegratedGradients(search, steps=2)(net, inputs, target)
        BoundarySaliency(search, Margin())(net, inputs, target)
    assert calls == [4]
    BoundarySaliency(search)(net, inputs, target)
    assert calls == [4, 4]


class Scaled(nn.Module):
    """a f + b, with one b for all classes: other numbers, the same decisions."""

    def __init__(self, model: nn.Module, a: float, b: float) -> None:
        super().__init__()
        self.model, self.a, self.b = model, a, b
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        return self.a * self.model(inputs) + self.b


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_scaling_all_logits_scales_the_maps_and_nothing_else(score, flipped):
    net, inputs, target, _ = flipped
    saliency, big = BoundarySaliency(score=score), BoundaryIntegratedGradients(steps=5, score=score)
    for method in (saliency, big):
        scaled = method(Scaled(net, 7.0, -3.0), inputs, target)
        torch.testing.assert_close(scaled, 7 * method(net, inputs, target), rtol=1e-5, atol=1e-6)


def test_big_with_the_default_search_adds_up_to_the_margin_of_the_image(flipped):
    """The boundary point lies on the boundary, where the margin is zero."""
    net, inputs, target, _ = flipped
    method = BoundaryIntegratedGradients(steps=200, score=Margin())
    found = method.search.search(net, inputs, target)
    assert found.found.all()
    total = method(net, inputs, target).flatten(1).sum(1)
    torch.testing.assert_close(
        total, Margin()(logits(net, inputs), target, found.label), rtol=1e-3, atol=1e-4
    )


class Stubborn(nn.Module):
    """Class 0 everywhere, by a lead that depends on the image."""

    def forward(self, inputs: Tensor) -> Tensor:
        lead = 1 + inputs.flatten(1).sum(1)
        return torch.stack([lead, 0 * lead, 0 * lead], dim=1)


def test_where_there_is_no_boundary_the_default_search_says_so_and_the_maps_are_nan():
    net, inputs, target = Stubborn().eval(), torch.rand(3, 1, 4, 4), torch.zeros(3, dtype=torch.int64)
    for method in (BoundarySaliency(), BoundaryIntegratedGradients(steps=3)):
        found = method.search.search(net, inputs, target)
        assert not found.found.any()
        assert found.distance.isinf().all()
        assert method(net, inputs, target).isnan().all()


def test_bad_settings_are_refused(flipped):
    search = flipped[3]
    with pytest.raises(ValueError, match=r"`steps` must be at least 2, got 1."):
        BoundaryIntegratedGradients(search, steps=1)
    with pytest.raises(ValueError, match=r"`chunk` must be at least 1, got 0."):
        BoundaryIntegratedGradients(search, chunk=0)
