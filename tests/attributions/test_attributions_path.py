"""Integrated and expected gradients: Captum, slow twins, completeness, orders, rates, passes."""

import captum.attr
import numpy
import pytest
import torch
from subjects import Recorder

from lit_xai import randomness
from lit_xai.attributions import InputXGradient, IntegratedGradients, Logit, Margin
from lit_xai.attributions.baselines import FlatImage, NoiseImage, StoredImages
from lit_xai.attributions.path import ExpectedGradients, nodes


@pytest.fixture
def smooth_batch(smooth_net):
    inputs = torch.rand(4, 2, 8, 8, dtype=torch.float64)
    return smooth_net, inputs, smooth_net(inputs).argmax(1)


def change(net, score, inputs, target, baseline=0.0):
    with torch.no_grad():
        return score(net(inputs), target) - score(net(torch.full_like(inputs, baseline)), target)


def gap(net, score, inputs, target, **settings):
    """How far the maps are from adding up to the change of score, at worst."""
    maps = IntegratedGradients(score=score, **settings)(net, inputs, target)
    return (maps.flatten(1).sum(1) - change(net, score, inputs, target)).abs().max()


def test_the_official_rule_is_captums_trapezoid(smooth_batch):
    """Captum weighs with 1/n, halved at the ends: what the released boundary code runs on."""
    net, inputs, target = smooth_batch
    captums = captum.attr.IntegratedGradients(net, multiply_by_inputs=True)
    expected = captums.attribute(inputs, target=target, n_steps=11, method="riemann_trapezoid")
    ours = IntegratedGradients(steps=11, rule="official")(net, inputs, target)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


def test_the_midpoint_rule_is_captums(smooth_batch):
    net, inputs, target = smooth_batch
    captums = captum.attr.IntegratedGradients(net)
    expected = captums.attribute(inputs, 0.25, target=target, n_steps=7, method="riemann_middle")
    ours = IntegratedGradients(steps=7, rule="midpoint", baseline=0.25)(net, inputs, target)
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


def test_the_trapezoid_agrees_with_a_loop_over_the_definition(smooth_batch):
    net, inputs, target = smooth_batch
    baseline, n = 0.1, 9
    gradients = []
    for k in range(n):
        point = (baseline + k / (n - 1) * (inputs - baseline)).requires_grad_()
        chosen = net(point)[range(4), target].sum()
        gradients.append(torch.autograd.grad(chosen, point)[0])
    mean = torch.trapezoid(torch.stack(gradients), dx=1 / (n - 1), dim=0)
    ours = IntegratedGradients(steps=n, baseline=baseline)(net, inputs, target)
    torch.testing.assert_close(ours, (inputs - baseline) * mean)


@pytest.mark.parametrize("rule", ["trapezoid", "midpoint"])
def test_completeness_closes_at_order_two(rule, smooth_batch):
    gaps = [gap(smooth_batch[0], Logit(), *smooth_batch[1:], rule=rule, steps=n) for n in (33, 65, 129)]
    spacings = [1 / (n - (rule == "trapezoid")) for n in (33, 65, 129)]
    order = numpy.polyfit(numpy.log(spacings), numpy.log(gaps), 1)[0]
    assert order == pytest.approx(2, abs=0.05)


def test_the_midpoint_error_is_half_the_trapezoid_error(smooth_batch):
    net, inputs, target = smooth_batch
    trapezoid = gap(net, Logit(), inputs, target, rule="trapezoid", steps=65)
    midpoint = gap(net, Logit(), inputs, target, rule="midpoint", steps=64)
    assert float(midpoint / trapezoid) == pytest.approx(0.5, abs=0.02)


def test_the_margin_map_adds_up_to_the_change_of_margin_although_the_runner_up_changes(relu_net):
    net = relu_net.double()
    inputs = torch.rand(16, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    with torch.no_grad():
        runners = [net(s * inputs).topk(2).indices[:, 1] for s in (0.1, 1.0)]
    assert (runners[0] != runners[1]).any()
    total = change(net, Margin(), inputs, target).abs().mean()
    gaps = [gap(net, Margin(), inputs, target, steps=n, rule="midpoint") / total for n in (16, 1024)]
    assert gaps[1] < 5e-3
    assert gaps[1] < gaps[0] / 20


@pytest.mark.parametrize("n", [2, 3, 10, 50])
def test_weights_add_up(n):
    for rule, total in (("trapezoid", 1), ("midpoint", 1), ("official", (n - 1) / n)):
        positions, weights = nodes(rule, n)
        assert len(positions) == len(weights) == n
        assert float(weights.sum()) == pytest.approx(total, rel=1e-12)
        # All three are symmetric: exact for slopes that grow evenly.
        assert float((weights * positions).sum()) == pytest.approx(total / 2, rel=1e-12)


def test_the_official_map_is_short_by_one_part_in_n(smooth_batch):
    net, inputs, target = smooth_batch
    right = IntegratedGradients(steps=10)(net, inputs, target)
    official = IntegratedGradients(steps=10, rule="official")(net, inputs, target)
    torch.testing.assert_close(official, 0.9 * right)


def test_one_midpoint_step_on_a_net_linear_from_black_is_input_x_gradient(relu_net):
    """Without biases a ReLU net is linear on every ray from black."""
    relu_net.eval()
    for name, parameter in relu_net.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.zeros_(parameter)
    relu_net[1].running_mean.zero_()
    inputs = torch.rand(3, 2, 8, 8)
    target = torch.tensor([0, 1, 2])
    ours = IntegratedGradients(steps=1, rule="midpoint")(relu_net, inputs, target)
    torch.testing.assert_close(ours, InputXGradient()(relu_net, inputs, target), rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("chunk", "calls"), [(256, [45]), (20, [20, 20, 5]), (5, [5] * 9), (3, [3] * 9 + [2] * 9)]
)
def test_passes_are_exactly_images_times_steps_and_small_batches_fill_them(chunk, calls, relu_net, batch):
    counted = Recorder(relu_net)
    IntegratedGradients(steps=9, chunk=chunk)(counted, *batch)
    assert counted.calls == calls
    assert sum(counted.calls) == 5 * 9


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"steps": 0}, "`steps` must be at least 2, got 0."),
        ({"steps": 1}, "`steps` must be at least 2, got 1."),
        ({"steps": 0, "rule": "midpoint"}, "`steps` must be at least 1, got 0."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
        ({"baseline": 1.5}, r"`baseline` must lie in \[0, 1\], got 1.5."),
        ({"baseline": float("nan")}, r"`baseline` must lie in \[0, 1\], got nan."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        IntegratedGradients(**settings)


def test_a_number_stands_for_the_flat_image_of_that_value():
    for method in (IntegratedGradients, ExpectedGradients):
        assert method(baseline=0.5) == method(baseline=FlatImage(0.5))
        assert hash(method(baseline=0.5)) == hash(method(baseline=FlatImage(0.5)))
        assert method(baseline=1) != method(baseline=0.5)
    assert IntegratedGradients() == IntegratedGradients(baseline=0.0)


@pytest.mark.parametrize("baseline", [0.0, 1.0, 0.5, NoiseImage()], ids=repr)
def test_the_map_adds_up_to_its_total_from_any_baseline(baseline, smooth_batch):
    """Black, white, grey and noise: other maps, each complete from where it starts."""
    method = IntegratedGradients(steps=400, baseline=baseline)
    with randomness.keyed(2, torch.arange(4)):
        maps, total = method(*smooth_batch), method.total(*smooth_batch)
        start = method.baseline(smooth_batch[1], randomness.keys(smooth_batch[1], "baseline"))
    net, inputs, target = smooth_batch
    with torch.no_grad():
        rise = Logit()(net(inputs), target) - Logit()(net(start), target)
    torch.testing.assert_close(total, rise)
    torch.testing.assert_close(maps.flatten(1).sum(1), total, rtol=1e-4, atol=1e-5)
    assert not total.requires_grad
    assert total.abs().min() > 1e-2


def test_noise_baselines_are_captums(smooth_batch):
    net, inputs, target = smooth_batch
    with randomness.keyed(2, torch.arange(4)):
        ours = IntegratedGradients(steps=7, baseline=NoiseImage(), rule="midpoint")(net, inputs, target)
        start = randomness.uniform(randomness.keys(inputs, "baseline"), 0, (2, 8, 8), torch.float64)
    captums = captum.attr.IntegratedGradients(net)
    expected = captums.attribute(inputs, start, target=target, n_steps=7, method="riemann_middle")
    torch.testing.assert_close(ours, expected, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("baseline", [0.25, NoiseImage()], ids=repr)
def test_expected_gradients_agree_with_a_loop_over_the_same_draws(baseline, smooth_batch):
    net, inputs, target = smooth_batch
    method = ExpectedGradients(samples=5, baseline=baseline, chunk=7)
    with randomness.keyed(4, torch.arange(4)):
        ours = method(net, inputs, target)
        places, starts = (randomness.keys(inputs, purpose) for purpose in ("place", "baseline"))
    for i in range(4):
        total = torch.zeros_like(inputs[i])
        for sample in range(5):
            t = randomness.uniform(places[i : i + 1] + sample, 0, (), torch.float64)
            start = method.baseline(inputs[i : i + 1], starts[i : i + 1] + sample)[0]
            point = (start + t * (inputs[i] - start)).requires_grad_()
            slope = torch.autograd.grad(net(point[None])[0, target[i]], point)[0]
            total += (inputs[i] - start) * slope / 5
        torch.testing.assert_close(ours[i], total)


def test_expected_gradients_tend_to_integrated_gradients_at_the_rate_of_monte_carlo(smooth_batch):
    """From one flat baseline the place alone is random; the error falls as one over the root of the draws."""
    net, inputs, target = smooth_batch
    inputs, target = inputs[:1].repeat(32, 1, 1, 1), target[:1].repeat(32)
    exact = IntegratedGradients(steps=2000, rule="midpoint", baseline=0.3)(net, inputs[:1], target[:1])
    sizes, errors = [4, 16, 64, 256], []
    for samples in sizes:
        maps = ExpectedGradients(samples=samples, baseline=0.3, chunk=2048)(net, inputs, target)
        errors.append((maps - exact).square().mean().sqrt())
    rate = numpy.polyfit(numpy.log(sizes), numpy.log(errors), 1)[0]
    assert rate == pytest.approx(-0.5, abs=0.08)


def test_expected_gradients_are_integrated_gradients_averaged_over_stored_baselines(tmp_path, smooth_batch):
    net, inputs, target = smooth_batch
    references = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    numpy.save(tmp_path / "references.npy", references.numpy())
    captums = captum.attr.IntegratedGradients(net)
    expected = sum(
        captums.attribute(inputs, part[None].expand_as(inputs), target=target, n_steps=64)
        for part in references
    )
    method = ExpectedGradients(4000, baseline=StoredImages(str(tmp_path / "references.npy")), chunk=4096)
    ours = method(net, inputs, target)
    single = ExpectedGradients(1, baseline=method.baseline)(net, inputs, target)
    spread = (single - expected / 3).square().mean().sqrt()
    error = (ours - expected / 3).square().mean().sqrt()
    assert error < 1.5 * spread / 4000**0.5
    assert (InputXGradient()(net, inputs, target) - expected / 3).square().mean().sqrt() > 5 * error


def test_the_total_of_expected_gradients_is_the_mean_rise_over_the_same_baselines(smooth_batch):
    net, inputs, target = smooth_batch
    method = ExpectedGradients(samples=6, baseline=NoiseImage(), chunk=5)
    with randomness.keyed(1, torch.arange(4)):
        total, starts = method.total(net, inputs, target), randomness.keys(inputs, "baseline")
    expected = torch.zeros_like(total)
    with torch.no_grad():
        for sample in range(6):
            start = randomness.uniform(starts + sample, 0, (2, 8, 8), torch.float64)
            expected += (Logit()(net(inputs), target) - Logit()(net(start), target)) / 6
    torch.testing.assert_close(total, expected)


def test_expected_gradients_pass_exactly_images_times_samples(relu_net, batch):
    counted = Recorder(relu_net)
    ExpectedGradients(samples=9, chunk=20)(counted, *batch)
    assert counted.calls == [20, 20, 5]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"samples": 0}, "`samples` must be at least 1, got 0."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
        ({"baseline": -0.5}, r"`baseline` must lie in \[0, 1\], got -0.5."),
    ],
)
def test_bad_settings_of_expected_gradients_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        ExpectedGradients(**settings)
