"""SmoothGrad: closed form on a quadratic, rate of its error, Captum's tunnel, keyed noise."""

from contextlib import nullcontext
from dataclasses import dataclass

import captum.attr
import numpy
import pytest
import torch
from subjects import Recorder, linear_case
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions import Attribution, InputXGradient, IntegratedGradients, Saliency, SmoothGrad
from lit_xai.types import Images, Labels

TARGET = torch.zeros(64, dtype=torch.int64)


class Quadratic(nn.Module):
    """f_0(x) = w.x + x.A x / 2, f_1 = 0: the gradient of the smoothed f_0 is w + A x, whatever sigma is."""

    def __init__(self) -> None:
        super().__init__()
        self.w = torch.randn(12, dtype=torch.float64)
        matrix = torch.randn(12, 12, dtype=torch.float64)
        self.a = matrix + matrix.T
        self.eval()

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        value = x @ self.w + ((x @ self.a) * x).sum(1) / 2
        return torch.stack([value, torch.zeros_like(value)], dim=1)

    def smoothed_gradient(self, inputs: Tensor) -> Tensor:
        return (self.w + inputs.flatten(1) @ self.a).view_as(inputs)


def test_the_error_on_a_quadratic_falls_as_one_over_the_root_of_the_samples():
    net = Quadratic()
    inputs = torch.rand(64, 3, 2, 2, dtype=torch.float64)
    sizes = [4, 16, 64, 256, 1024]
    errors = []
    for samples in sizes:
        maps = SmoothGrad(sigma=0.3, samples=samples, chunk=4096)(net, inputs, TARGET)
        errors.append((maps - net.smoothed_gradient(inputs)).square().mean().sqrt())
    # One draw has variance sigma^2 sum_j A_ij^2 in pixel i.
    one = 0.3 * net.a.square().sum(1).mean().sqrt()
    rate = numpy.polyfit(numpy.log(sizes), numpy.log(errors), 1)[0]
    assert rate == pytest.approx(-0.5, abs=0.05)
    assert float(errors[0] * 2 / one) == pytest.approx(1, abs=0.15)


def test_exact_on_a_linear_net_for_any_sigma():
    case = linear_case()
    for sigma in (0.01, 3.0):
        maps = SmoothGrad(sigma=sigma, samples=2)(case.model, case.inputs, case.target)
        torch.testing.assert_close(maps, case.weight[case.target].view_as(maps))


def test_a_loop_over_the_same_draws_gives_the_same_mean(smooth_net):
    inputs = torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1, 2])
    with randomness.keyed(5, torch.arange(3)):
        ours = SmoothGrad(sigma=0.2, samples=4)(smooth_net, inputs, target)
        keys = randomness.keys(inputs, "smooth_grad")
    total = torch.zeros_like(inputs)
    for sample in range(4):
        noise = randomness.normal(keys + sample, 0, (2, 8, 8), torch.float64)
        point = (inputs + 0.2 * noise).requires_grad_()
        total += torch.autograd.grad(smooth_net(point)[range(3), target].sum(), point)[0]
    torch.testing.assert_close(ours, total / 4)


@pytest.mark.filterwarnings("ignore:Input Tensor 0 did not already require gradients")
def test_captums_noise_tunnel_has_the_same_mean(smooth_net):
    inputs = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1])
    tunnel = captum.attr.NoiseTunnel(captum.attr.Saliency(smooth_net))
    samples = 4000
    settings = {
        "nt_samples": samples,
        "nt_samples_batch_size": 500,
        "stdevs": 0.3,
        "target": target,
        "abs": False,
    }
    theirs = tunnel.attribute(inputs, nt_type="smoothgrad", **settings)
    ours = SmoothGrad(sigma=0.3, samples=samples, chunk=1000)(smooth_net, inputs, target)
    coarse = SmoothGrad(sigma=0.3, samples=1)(smooth_net, inputs, target)
    spread = (coarse - ours).square().mean().sqrt()
    assert (ours - theirs).square().mean().sqrt() < 2 * spread * (2 / samples) ** 0.5
    plain = Saliency()(smooth_net, inputs, target)
    assert (ours - plain).square().mean().sqrt() > 5 * spread * (2 / samples) ** 0.5


def test_noise_is_not_clipped_and_has_the_stated_size(relu_net):
    class Witness(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return inputs.flatten(1)[:, :2] ** 2

    seen: list[Tensor] = []
    SmoothGrad(sigma=0.5, samples=200)(Witness().eval(), torch.ones(1, 1, 8, 8), torch.tensor([0]))
    points = torch.cat(seen)
    assert points.max() > 1.5
    assert float(points.mean()) == pytest.approx(1, abs=0.03)
    assert float(points.std()) == pytest.approx(0.5, abs=0.02)


def test_images_of_a_batch_and_samples_of_an_image_do_not_share_noise():
    seen: list[Tensor] = []

    class Witness(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach().flatten(1))
            return inputs.flatten(1)[:, :2] ** 2

    target = torch.zeros(4, dtype=torch.int64)
    SmoothGrad(sigma=1.0, samples=50)(Witness().eval(), torch.zeros(4, 1, 8, 8), target)
    draws = torch.cat(seen)
    assert draws.shape == (200, 64)
    correlation = numpy.corrcoef(draws) - numpy.eye(200)
    assert abs(correlation).max() < 0.7
    assert correlation.std() == pytest.approx(1 / 8, abs=0.01)


def test_other_maps_can_be_smoothed_too(smooth_net):
    inputs = torch.rand(2, 2, 8, 8, dtype=torch.float64)
    target = torch.tensor([0, 1])
    for base in (InputXGradient(), IntegratedGradients(steps=4)):
        maps = SmoothGrad(sigma=1e-7, samples=2, base=base)(smooth_net, inputs, target)
        torch.testing.assert_close(maps, base(smooth_net, inputs, target), rtol=1e-4, atol=1e-5)


@dataclass(frozen=True)
class Noise(Attribution):
    """A map that is nothing but its own draws."""

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return randomness.normal(randomness.keys(inputs, "noise"), 0, inputs.shape[1:], inputs.dtype)


def test_the_smoothed_map_draws_afresh_for_every_sample_and_image(relu_net, batch):
    for keyed in (randomness.keyed(0, torch.arange(5)), nullcontext()):
        with keyed:
            maps = SmoothGrad(samples=400, base=Noise())(relu_net, *batch)
        assert float(maps.std()) == pytest.approx(1 / 20, rel=0.1)
        assert (numpy.corrcoef(maps.flatten(1)) - numpy.eye(5)).max() < 0.4


def test_passes_are_exactly_images_times_samples(relu_net, batch):
    counted = Recorder(relu_net)
    SmoothGrad(samples=16, chunk=32)(counted, *batch)
    assert counted.calls == [30, 30, 20]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"sigma": 0.0}, "`sigma` must be greater than 0, got 0.0."),
        ({"sigma": -0.1}, "`sigma` must be greater than 0, got -0.1."),
        ({"samples": 0}, "`samples` must be at least 1, got 0."),
        ({"chunk": 0}, "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_settings_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        SmoothGrad(**settings)
