"""AGI and MFABA: slow twins of the formulas, sums that converge, images that do not see each other."""

import dataclasses
from dataclasses import dataclass

import numpy
import pytest
import torch
from subjects import Recorder, linear_case
from torch import Tensor, nn

from benchmarks.passes import Meter
from lit_xai import randomness
from lit_xai.attributions import Logit
from lit_xai.attributions.score import Probability
from lit_xai.attributions.trajectory import MFABA, AdversarialGradientIntegration
from lit_xai.memory import remembering


@dataclass(frozen=True)
class Way:
    """What a loop over one image finds."""

    total: Tensor
    end: Tensor
    steps: int


def probability(net: nn.Module, point: Tensor, label: int) -> Tensor:
    return net(point[None]).softmax(1)[0, label]


def slope(net: nn.Module, point: Tensor, label: int) -> Tensor:
    point = point.detach().requires_grad_()
    return torch.autograd.grad(probability(net, point, label), point)[0]


def decision(net: nn.Module, point: Tensor) -> int:
    return int(net(point[None]).argmax())


def slow_agi(
    method: AdversarialGradientIntegration, net: nn.Module, image: Tensor, label: int, false: int
) -> Way:
    """The way to one false class, with the softmax written out."""
    z, total, taken = image, torch.zeros_like(image), 0
    while taken < method.steps and decision(net, z) != false:
        origin = image if method.path == "released" else z
        new = (origin + method.epsilon * slope(net, z, false).sign()).clamp(0, 1)
        total = total - slope(net, z, label) * (new - origin)
        z, taken = new, taken + 1
    return Way(total, z, taken)


def slow_mfaba(method: MFABA, net: nn.Module, image: Tensor, label: int) -> Way:
    """The way down of one image, with the softmax written out."""
    size = method.step_size or {"sharp": 0.1, "smooth": 0.001}[method.mode]
    z, total, summed, taken = image, torch.zeros_like(image), 0, 0
    while taken < method.steps and (taken == 0 or decision(net, z) == label):
        g = slope(net, z, label)
        if method.gradient == "released":
            g = summed = g + summed
        if method.mode == "sharp":
            new = z - size * g / g.norm()
        else:
            new = image + (z - size * g.sign() - image).clamp(-method.epsilon, method.epsilon)
        new = new.clamp(0, 1)
        total = total - (new - z) * g
        z, taken = new, taken + 1
    return Way(total, z, taken)


@pytest.fixture
def images(smooth_net):
    inputs = torch.rand(6, 2, 8, 8, dtype=torch.float64)
    inputs[0] = inputs[0].round()  # at the box, steps are clipped
    return inputs, smooth_net(inputs).argmax(1)


@pytest.mark.parametrize("path", ["released", "accumulate"])
@pytest.mark.parametrize("epsilon", [0.05, 0.01])
def test_a_loop_over_images_and_false_classes_gives_the_same_maps(path, epsilon, smooth_net, images):
    method = AdversarialGradientIntegration(path=path, epsilon=epsilon, steps=6, chunk=4)
    maps = method(smooth_net, *images)
    taken = set()
    for image, label, ours in zip(*images, maps, strict=True):
        ways = [
            slow_agi(method, smooth_net, image, int(label), false) for false in range(4) if false != label
        ]
        taken |= {way.steps for way in ways}
        torch.testing.assert_close(ours, sum(way.total for way in ways), rtol=1e-9, atol=1e-14)
    assert len(taken) > 1  # ways of different lengths share a batch


def test_a_false_class_that_is_predicted_ends_its_way_at_once(smooth_net, images):
    inputs, seen = images
    method = AdversarialGradientIntegration(steps=3)
    target = (seen + 1) % 4
    maps = method(smooth_net, inputs, target)
    for image, label, now, ours in zip(inputs, target, seen, maps, strict=True):
        others = [false for false in range(4) if false not in (label, now)]
        expected = sum(slow_agi(method, smooth_net, image, int(label), false).total for false in others)
        torch.testing.assert_close(ours, expected, rtol=1e-9, atol=1e-14)


def test_accumulated_ways_add_up_to_the_fall_of_the_score_with_order_one(smooth_net, images):
    inputs, target = images[0][1:3], images[1][1:3]
    sizes, errors = [0.02, 0.01, 0.005, 0.0025], []
    for epsilon in sizes:
        steps = round(0.12 / epsilon)
        method = AdversarialGradientIntegration(path="accumulate", epsilon=epsilon, steps=steps)
        maps = method(smooth_net, inputs, target)
        error = 0.0
        for image, label, ours in zip(inputs, target.tolist(), maps, strict=True):
            ways = [slow_agi(method, smooth_net, image, label, false) for false in range(4) if false != label]
            start = probability(smooth_net, image, label).item()
            fall = sum(start - probability(smooth_net, way.end, label).item() for way in ways)
            error += abs(ours.sum().item() - fall)
            assert fall > 0.1
        errors.append(error)
    assert numpy.polyfit(numpy.log(sizes), numpy.log(errors), 1)[0] == pytest.approx(1, abs=0.25)


def test_false_classes_are_drawn_evenly_for_each_image_and_are_never_the_target():
    case = linear_case()
    inputs, target = case.inputs[:1].expand(900, -1, -1, -1), case.target[:1].expand(900)
    method = AdversarialGradientIntegration(epsilon=1e-4, steps=1, classes=2, score=Logit())
    with randomness.keyed(0, torch.arange(900)):
        maps = method(case.model, inputs, target).flatten(1)
    own = int(target[0])
    one = {i: -1e-4 * case.weight[own] * case.weight[i].sign() for i in range(4) if i != own}
    counts = []
    for left_out in one:
        pair = sum(term for i, term in one.items() if i != left_out)
        counts.append(int(torch.isclose(maps, pair, rtol=1e-6, atol=1e-12).all(1).sum()))
    assert sum(counts) == 900
    assert all(abs(count - 300) < 60 for count in counts)  # four standard deviations


def test_agi_costs_no_more_passes_than_its_steps(smooth_net, images):
    for epsilon, steps, classes in ((0.05, 1, 3), (0.05, 5, 2), (1e-9, 5, 3)):
        method = AdversarialGradientIntegration(epsilon=epsilon, steps=steps, classes=classes, chunk=8)
        with Meter(smooth_net) as meter:
            method(smooth_net, *images)
        forwards, backwards = 1 + classes * (steps - 1), classes + 1 + 2 * classes * (steps - 1)
        assert meter.forwards <= 6 * forwards <= 6 * classes * steps
        assert meter.backwards <= 6 * backwards <= 6 * 2 * classes * steps
        # With tiny steps no class is reached, and none of these passes is saved.
        assert (meter.forwards == 6 * forwards) is (epsilon == 1e-9 or steps == 1)
        assert (meter.backwards == 6 * backwards) is (epsilon == 1e-9 or steps == 1)


def test_agi_needs_a_second_class():
    net = nn.Sequential(nn.Flatten(), nn.Linear(16, 1)).eval()
    with pytest.raises(ValueError, match="at least 2 classes, got a model with 1"):
        AdversarialGradientIntegration()(net, torch.rand(2, 1, 4, 4), torch.tensor([0, 0]))


MODES = [
    MFABA(steps=12, step_size=0.05),
    MFABA(steps=12, step_size=0.05, gradient="released"),
    MFABA(mode="smooth", steps=12, step_size=0.01, epsilon=0.05),
    MFABA(mode="smooth", steps=12, step_size=0.01, gradient="released"),
    MFABA(),
]


@pytest.mark.parametrize("method", MODES, ids=str)
def test_a_loop_over_images_gives_the_same_maps(method, smooth_net, images):
    maps = dataclasses.replace(method, chunk=4)(smooth_net, *images)
    ways = [slow_mfaba(method, smooth_net, image, int(label)) for image, label in zip(*images, strict=True)]
    torch.testing.assert_close(maps, torch.stack([way.total for way in ways]), rtol=1e-9, atol=1e-14)
    assert len({way.steps for way in ways}) > 1  # images leave the batch at different times


@pytest.mark.parametrize("method", MODES, ids=str)
def test_maps_do_not_depend_on_the_company(method, smooth_net, images):
    inputs, target = images
    together = method(smooth_net, inputs, target)
    for i in range(len(inputs)):
        alone = method(smooth_net, inputs[i : i + 1], target[i : i + 1])
        torch.testing.assert_close(together[i : i + 1], alone, rtol=1e-10, atol=1e-14)


def test_the_sum_of_gradients_is_not_the_gradient(smooth_net, images):
    exact, released = (
        MFABA(steps=12, step_size=0.05, gradient=gradient)(smooth_net, *images)
        for gradient in ("exact", "released")
    )
    total = MFABA(steps=12, step_size=0.05).total(smooth_net, *images)
    assert (exact.flatten(1).sum(1) - total).abs().max() < 0.1
    assert (released.flatten(1).sum(1) - total).abs().max() > 0.2


@pytest.mark.parametrize("mode", ["sharp", "smooth"])
def test_the_map_adds_up_to_the_fall_of_the_score_with_order_one(mode, smooth_net, images):
    lengths = {"sharp": 0.2, "smooth": 0.02}
    shares, errors = [10, 20, 40, 80], []
    for share in shares:
        method = MFABA(mode=mode, steps=share, step_size=lengths[mode] / share)
        with remembering():
            maps = method(smooth_net, *images)
            total = method.total(smooth_net, *images)
        for image, label, fall in zip(*images, total, strict=True):
            way = slow_mfaba(method, smooth_net, image, int(label)) if share == 10 else None
            if way:
                ends = probability(smooth_net, image, int(label)) - probability(
                    smooth_net, way.end, int(label)
                )
                torch.testing.assert_close(fall, ends.detach())
        errors.append(float((maps.flatten(1).sum(1) - total).abs().sum()))
    assert total.min() > 1e-3
    assert errors[-1] < 0.05 * float(total.sum())
    assert numpy.polyfit(numpy.log(shares), numpy.log(errors), 1)[0] == pytest.approx(-1, abs=0.3)


def test_on_a_linear_logit_the_sum_is_exact():
    case = linear_case()
    for mode in ("sharp", "smooth"):
        method = MFABA(mode=mode, steps=7, score=Logit())
        total = method.total(case.model, case.inputs, case.target)
        maps = method(case.model, case.inputs, case.target)
        torch.testing.assert_close(maps.flatten(1).sum(1), total)


def test_smooth_stays_in_its_cube():
    case = linear_case()
    target = case.target
    maps = MFABA(mode="smooth", steps=9, step_size=1e-4, epsilon=2.5e-4, score=Logit())(
        case.model, case.inputs, target
    )
    expected = 2.5e-4 * case.weight[target].abs().view_as(maps)
    torch.testing.assert_close(maps, expected, rtol=0, atol=1e-12)


def test_an_image_of_another_class_takes_one_step(smooth_net, images):
    inputs, seen = images
    target = (seen + 1) % 4
    maps = MFABA()(smooth_net, inputs, target)
    torch.testing.assert_close(maps, MFABA(steps=1)(smooth_net, inputs, target))
    assert (maps.flatten(1).sum(1) > 0).all()


def test_mfaba_costs_no_more_than_its_steps_and_images_that_leave_cost_nothing(smooth_net, images):
    with Meter(smooth_net) as meter:
        MFABA(step_size=1e-9, steps=4, chunk=4)(smooth_net, *images)
    assert meter.forwards == meter.backwards == 6 * 4
    assert meter.calls == 2 * 4
    method = MFABA(steps=12, step_size=0.05)
    ways = [slow_mfaba(method, smooth_net, image, int(label)) for image, label in zip(*images, strict=True)]
    with Meter(smooth_net) as meter:
        method(smooth_net, *images)
    # An image that leaves is seen once more, where it has left.
    assert meter.forwards == meter.backwards == sum(min(way.steps + 1, 12) for way in ways)


def test_map_and_sum_are_one_descent_while_remembering(relu_net, batch):
    method = MFABA(steps=3, step_size=1e-6)
    counted = Recorder(relu_net)
    with remembering():
        method(counted, *batch)
        method.total(counted, *batch)
    assert sum(counted.calls) == 5 * 3 + 2 * 5


def test_maps_survive_where_single_precision_rounds_the_probability_to_one():
    case = linear_case()
    inputs, target = case.inputs, torch.zeros(6, dtype=torch.int64)
    with torch.no_grad():
        case.model[1].bias[0] += 30
    for method in (
        MFABA(steps=3, step_size=0.01),
        AdversarialGradientIntegration(steps=3, epsilon=0.005),
        AdversarialGradientIntegration(path="accumulate", steps=3, epsilon=0.005),
    ):
        exact = method(case.model.double(), inputs, target)
        single = method(case.model.float(), inputs.float(), target).double()
        assert exact.abs().max() < 1e-10
        torch.testing.assert_close(single, exact, rtol=1e-3, atol=1e-3 * float(exact.abs().max()))


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (AdversarialGradientIntegration, {"epsilon": 0.0}, "`epsilon` must be greater than 0, got 0.0."),
        (AdversarialGradientIntegration, {"steps": 0}, "`steps` must be at least 1, got 0."),
        (AdversarialGradientIntegration, {"classes": 0}, "`classes` must be at least 1, got 0."),
        (AdversarialGradientIntegration, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
        (MFABA, {"steps": -1}, "`steps` must be at least 1, got -1."),
        (MFABA, {"step_size": 0.0}, "`step_size` must be greater than 0, got 0.0."),
        (MFABA, {"epsilon": -0.1}, "`epsilon` must be greater than 0, got -0.1."),
        (MFABA, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)


@pytest.mark.parametrize(
    ("method", "settings"),
    [
        (AdversarialGradientIntegration, {"path": "paper"}),
        (MFABA, {"mode": "paper"}),
        (MFABA, {"gradient": "paper"}),
    ],
)
def test_bad_names_are_refused(method, settings):
    with pytest.raises((ValueError, TypeError), match="paper"):
        method(**settings)


def test_a_score_may_be_given_by_its_name():
    assert MFABA() == MFABA(score="probability") == MFABA(score=Probability())
    assert AdversarialGradientIntegration(score="logit").score == Logit()
