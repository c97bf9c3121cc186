"""Boundary maps: definitions, slow twins, sums, missing points, scaling, shared searches."""

import dataclasses
from dataclasses import dataclass

import captum.attr
import numpy
import pytest
import torch
from rows import nearest
from subjects import linear_case
from torch import Tensor, nn

from benchmarks.passes import Meter
from lit_xai import randomness
from lit_xai.attacks import DDN
from lit_xai.attacks.base import Boundary, Search
from lit_xai.attributions import (
    BoundaryDeepLift,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    BoundarySmoothGrad,
    DeepLift,
    IntegratedGradients,
    Logit,
    Margin,
    OnBoundary,
    Probability,
    Saliency,
    SmoothGrad,
)
from lit_xai.memory import remembering
from lit_xai.metrics import BoundaryDistance, Closeness, Missing, Residual
from lit_xai.types import Flags, Images, Labels

METHODS = [BoundarySaliency, BoundaryIntegratedGradients, BoundarySmoothGrad, BoundaryDeepLift]
IDS = torch.arange(4)

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


def flip(net: nn.Module) -> tuple[nn.Module, Images, Labels, Known]:
    """A net, images, and for each a point of another class; nothing here depends on how it was found."""
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    others = torch.rand(200, 2, 8, 8, dtype=torch.float64)
    target, labels = logits(net, inputs).argmax(1), logits(net, others).argmax(1)
    points = torch.stack([others[labels != c][i] for i, c in enumerate(target)])
    return net, inputs, target, Known(points, torch.ones(4, dtype=torch.bool))


@pytest.fixture
def flipped(smooth_net):
    return flip(smooth_net)


@pytest.fixture
def broken(relu_net):
    """The same for a net of ReLUs, on which DeepLIFT has its rule."""
    return flip(relu_net.double())


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


def test_boundary_smooth_grad_is_a_loop_over_the_draws_of_smooth_grad(flipped):
    net, inputs, target, search = flipped
    with randomness.keyed(5, IDS):
        ours = BoundarySmoothGrad(search, sigma=0.2, samples=3, score=Margin(), chunk=5)(net, inputs, target)
        keys = randomness.keys(inputs, "smooth_grad")
    rows, rival, total = torch.arange(4), logits(net, search.points).argmax(1), torch.zeros_like(inputs)
    for sample in range(3):
        noise = randomness.normal(keys + sample, 0, (2, 8, 8), torch.float64)
        point = (search.points + 0.2 * noise).requires_grad_()
        out = net(point)
        total += torch.autograd.grad((out[rows, target] - out[rows, rival]).sum(), point)[0] / 3
    torch.testing.assert_close(ours, total)


def test_its_draws_are_those_of_its_twin(flipped):
    """At the image itself nothing else is left to differ."""
    net, inputs, target, _ = flipped
    method = BoundarySmoothGrad(Known(inputs, torch.ones(4, dtype=torch.bool)), sigma=0.3, samples=5)
    with randomness.keyed(2, IDS):
        assert torch.equal(method(net, inputs, target), method.plain(net, inputs, target))


@pytest.mark.parametrize("score", [Logit(), Margin(), Probability()], ids=repr)
def test_without_noise_it_is_boundary_saliency(score, flipped):
    net, inputs, target, search = flipped
    expected = BoundarySaliency(search, score)(net, inputs, target)
    far, near = (
        (BoundarySmoothGrad(search, sigma, 3, score)(net, inputs, target) - expected).abs().max()
        for sigma in (1e-3, 1e-6)
    )
    assert far > 1e-6 * expected.abs().max()
    assert near < 2e-3 * far  # in proportion to sigma


def test_on_a_quadratic_it_is_the_gradient_at_the_mean_of_its_points():
    """f_0 = w.x + x.A x / 2, whose gradient w + A x is linear: every draw counts, with one weight."""
    w, a = torch.randn(12, dtype=torch.float64), torch.randn(12, 12, dtype=torch.float64)
    a = a + a.T

    class Quadratic(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            x = inputs.flatten(1)
            value = x @ w + ((x @ a) * x).sum(1) / 2
            return torch.stack([value, 0 * value], dim=1)

    inputs, points = torch.rand(2, 4, 3, 2, 2, dtype=torch.float64)
    search = Known(points, torch.ones(4, dtype=torch.bool))
    with randomness.keyed(1, IDS):
        maps = BoundarySmoothGrad(search, sigma=0.4, samples=6)(Quadratic().eval(), inputs, 0 * IDS)
        keys = randomness.keys(inputs, "smooth_grad")
    draws = [randomness.normal(keys + k, 0, (3, 2, 2), torch.float64) for k in range(6)]
    mean = (points + 0.4 * torch.stack(draws).mean(0)).flatten(1)
    torch.testing.assert_close(maps.flatten(1), w + mean @ a)


@pytest.mark.filterwarnings("ignore:Setting forward, backward hooks and attributes on non-linear")
@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_boundary_deep_lift_is_captums_with_the_boundary_point_as_baseline(broken):
    net, inputs, target, search = broken
    expected = captum.attr.DeepLift(net).attribute(inputs, search.points, target=target)
    torch.testing.assert_close(BoundaryDeepLift(search)(net, inputs, target), expected, rtol=1e-8, atol=1e-10)


def test_a_loop_over_the_rescale_rule_gives_the_same_map(broken):
    """Chord by chord, with the logit of the class on the other side taken off."""
    net, inputs, target, search = broken
    rival = logits(net, search.points).argmax(1)
    ours = BoundaryDeepLift(search, Margin())(net, inputs, target)
    for i in range(4):
        start = here = inputs[i : i + 1].clone().requires_grad_()
        there = search.points[i : i + 1]
        for part in net:
            if isinstance(part, nn.ReLU):
                chord = (part(here) - part(there)) / (here - there)
                here = part(here).detach() + chord.detach() * (here - here.detach())
            else:
                here = part(here)
            there = part(there)
        out = here[0, target[i]] - here[0, rival[i]]
        (slopes,) = torch.autograd.grad(out, start)
        torch.testing.assert_close(ours[i : i + 1], (inputs[i] - search.points[i]) * slopes)


def rise_by_hand(net, inputs, target, points, rival=None):
    """Of the logit, or of the lead over a rival."""
    rows = torch.arange(len(inputs))
    high, low = logits(net, inputs), logits(net, points)
    rise = high[rows, target] - low[rows, target]
    return rise if rival is None else rise - (high[rows, rival] - low[rows, rival])


@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_maps_add_up_to_their_total_under_the_rival_of_the_boundary_point(score, broken):
    net, inputs, target, search = broken
    rival = logits(net, search.points).argmax(1) if score == Margin() else None
    expected = rise_by_hand(net, inputs, target, search.points, rival)
    deep, path = BoundaryDeepLift(search, score), BoundaryIntegratedGradients(search, 4000, score, chunk=3)
    for method in (deep, path):
        total = method.total(net, inputs, target)
        torch.testing.assert_close(total, expected)
        assert not total.requires_grad
    torch.testing.assert_close(deep(net, inputs, target).flatten(1).sum(1), expected)
    path = BoundaryIntegratedGradients(search, 4000, score, chunk=2000)
    torch.testing.assert_close(path(net, inputs, target).flatten(1).sum(1), expected, rtol=5e-3, atol=5e-3)


def test_a_total_of_no_images_is_none_and_of_a_missing_point_is_nan(broken):
    net, inputs, target, search = broken
    found = torch.tensor([True, False, True, False])
    for method in (BoundaryDeepLift, BoundaryIntegratedGradients):
        assert method(DDN(steps=2)).total(net, inputs[:0], target[:0]).shape == (0,)
        total = method(Known(search.points, found)).total(net, inputs, target)
        assert torch.equal(total.isnan(), ~found)
        maps = method(Known(search.points, found))(net, inputs, target)
        score = Residual().score(net, inputs, target, maps, method(Known(search.points, found)))
        assert torch.equal(score.isnan(), ~found)


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
    torch.testing.assert_close(BoundarySmoothGrad(search)(*arguments), own)
    torch.testing.assert_close(BoundarySmoothGrad(search, score=Margin())(*arguments), away)
    margin = Margin()(logits(case.model, case.inputs), case.target, rival)
    for method in (BoundaryIntegratedGradients(search, steps=2), BoundaryDeepLift(search)):
        torch.testing.assert_close(method(*arguments), (case.inputs - points) * own)
        # On the boundary the margin is zero, so the map adds up to the margin of the image.
        method = dataclasses.replace(method, score=Margin())
        torch.testing.assert_close(method(*arguments).flatten(1).sum(1), margin)
        torch.testing.assert_close(method.total(*arguments), margin)


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("score", [Logit(), Margin()], ids=repr)
def test_missing_boundary_points_give_nan_and_leave_the_others_alone(method, score, broken):
    net, inputs, target, search = broken
    found = torch.tensor([True, False, True, False])
    points = search.points.where(found.view(-1, 1, 1, 1), inputs)
    with randomness.keyed(0, IDS):
        maps = method(Known(points, found), score=score)(net, inputs, target)
        assert maps[~found].isnan().all()
        torch.testing.assert_close(maps[found], method(search, score=score)(net, inputs, target)[found])


def test_an_image_of_another_class_is_its_own_boundary_point(broken):
    net, inputs, target, _ = broken
    wrong = (target + 1) % 4
    search = Known(inputs, torch.ones(4, dtype=torch.bool))
    saliency = BoundarySaliency(search)(net, inputs, wrong)
    torch.testing.assert_close(saliency, Saliency()(net, inputs, wrong))
    assert not BoundaryIntegratedGradients(search)(net, inputs, wrong).any()
    assert not BoundaryDeepLift(search)(net, inputs, wrong).any()


def test_plain_twins():
    search = Known(torch.zeros(1, 1, 1, 1), torch.ones(1, dtype=torch.bool))
    assert BoundarySaliency(search, Margin()).plain == Saliency(Margin())
    big = BoundaryIntegratedGradients(search, steps=7, score=Margin(), rule="midpoint", chunk=9)
    assert big.plain == IntegratedGradients(steps=7, baseline=0.0, score=Margin(), rule="midpoint", chunk=9)
    bsg = BoundarySmoothGrad(search, sigma=0.3, samples=7, score=Margin(), chunk=9)
    assert bsg.plain == SmoothGrad(0.3, 7, Saliency(Margin()), 9)
    assert BoundaryDeepLift(search, Margin()).plain == DeepLift(baseline=0.0, score=Margin())
    assert all(isinstance(method(search), OnBoundary) for method in METHODS)
    assert not isinstance(SmoothGrad(), OnBoundary)
    assert not isinstance(Saliency(), OnBoundary)
    assert not isinstance(IntegratedGradients(), OnBoundary)


def test_methods_and_metrics_that_name_the_same_search_search_once(broken):
    net, inputs, target, search = broken
    given = {"model": net, "inputs": inputs, "target": target}
    calls.clear()
    with remembering():
        for method in [maker(search, score=score) for maker in METHODS for score in (Logit(), Margin())]:
            maps = method(net, inputs, target)
            for metric in (Missing(), Closeness(), Residual(), BoundaryDistance(search)):
                if metric.applies(method):
                    metric.update(**given, attributions=maps, attribution=method)
    assert calls == [4]
    BoundarySaliency(search)(net, inputs, target)
    assert calls == [4, 4]


def test_all_methods_together_cost_one_search_and_their_own_passes(broken):
    net, inputs, target, _ = broken
    with Meter(net) as alone:
        DDN(steps=7).search(net, inputs, target)
    with Meter(net) as together, remembering():
        BoundarySaliency(DDN(steps=7))(net, inputs, target)
        BoundaryIntegratedGradients(DDN(steps=7), steps=5)(net, inputs, target)
        BoundarySmoothGrad(DDN(steps=7), samples=6)(net, inputs, target)
        BoundaryDeepLift(DDN(steps=7))(net, inputs, target)
    assert together.forwards == alone.forwards + 4 * (1 + 5 + 6 + 2)


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
        with randomness.keyed(0, torch.arange(len(inputs))):
            scaled = method(Scaled(net, 7.0, -3.0), inputs, target)
            plain = method(net, inputs, target)
        torch.testing.assert_close(scaled, 7 * plain, rtol=1e-5, atol=1e-6)


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


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (BoundaryIntegratedGradients, {"steps": 1}, "`steps` must be at least 2, got 1."),
        (BoundaryIntegratedGradients, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
        (BoundarySmoothGrad, {"sigma": 0.0}, "`sigma` must be greater than 0, got 0.0."),
        (BoundarySmoothGrad, {"samples": 0}, "`samples` must be at least 1, got 0."),
        (BoundarySmoothGrad, {"chunk": -1}, "`chunk` must be at least 1, got -1."),
        (BoundaryDeepLift, {"score": Probability()}, "`score` must be linear in the logits, .*Probability"),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
