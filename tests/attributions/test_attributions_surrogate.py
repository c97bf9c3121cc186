"""KernelSHAP and LIME: Shapley values by definition and in closed form, Captum's fit to the same looks."""

import math
from collections.abc import Iterator
from itertools import combinations

import captum.attr
import numpy
import pytest
import torch
from captum._utils.models.linear_model import SkLearnLinearRegression, SkLearnRidge
from subjects import Recorder
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions import IntegratedGradients, KernelShap, Lime, Margin
from lit_xai.attributions.perturbation import grid

TARGET = torch.tensor([0, 1, 2])


@pytest.fixture
def images(float64) -> Tensor:
    return 0.1 + 0.9 * torch.rand(3, 2, 8, 8)


def numbered(images: Tensor, segments: int) -> Tensor:
    """The number of the segment of each pixel."""
    down, across = grid(images, segments)
    return down.argmax(0)[:, None] * len(across) + across.argmax(0)


def by_segment(maps: Tensor, segments: int) -> Tensor:
    """What each segment's pixels and channels add up to."""
    number = numbered(maps, segments)
    return torch.stack([maps[..., number == part].sum((1, 2)) for part in number.unique()], dim=1)


def shapley(score, segments: int) -> Tensor:
    """Shapley values by definition: the mean gain of a segment over all orders of the others."""
    count = segments**2
    values = []
    for own in range(count):
        others = [part for part in range(count) if part != own]
        gains = [
            (score({*team, own}) - score(set(team))) / math.comb(count - 1, size)
            for size in range(count)
            for team in combinations(others, size)
        ]
        values.append(sum(gains) / count)
    return torch.stack(values, dim=1)


def shown_only(net: nn.Module, images: Tensor, segments: int):
    number = numbered(images, segments)

    def score(team: set[int]) -> Tensor:
        kept = torch.isin(number, torch.tensor(sorted(team), dtype=torch.int64))
        return net(images * kept)[range(3), TARGET].detach()

    return score


def looks(method, net: nn.Module, images: Tensor, segments: int) -> tuple[Tensor, Tensor]:
    """What of the first image was shown in each look, and its map."""

    class Witness(nn.Module):
        def forward(self, inputs: Tensor) -> Tensor:
            seen.append(inputs.detach())
            return net(inputs)

    seen: list[Tensor] = []
    maps = method(Witness().eval(), images[:1], TARGET[:1])
    first = [int((numbered(images, segments).flatten() == part).nonzero()[0]) for part in range(segments**2)]
    return torch.cat(seen)[:, 0].flatten(1)[:, first] != 0, maps


def captums(net: nn.Module, images: Tensor, shown: Tensor, model, weight) -> Tensor:
    """Captum's fit of a linear model to the given looks at the first image."""

    def perturb(original: Tensor, **_: object) -> Iterator[Tensor]:
        yield from shown.long()[:, None]

    lime = captum.attr.LimeBase(
        net,
        interpretable_model=model,
        similarity_func=lambda original, perturbed, z, **_: weight(z.double().mean()),
        perturb_func=perturb,
        perturb_interpretable_space=True,
        from_interp_rep_transform=lambda z, original, number, **_: original * z[0, number],
        to_interp_rep_transform=None,
    )
    number = numbered(images, math.isqrt(shown.shape[1]))
    settings = {"n_samples": len(shown), "number": number}
    return lime.attribute(images[:1], target=TARGET[:1], **settings).double()


def test_the_map_adds_up_to_the_rise_of_the_score_however_few_the_samples(smooth_net, images):
    rise = (smooth_net(images) - smooth_net(torch.full_like(images, 0.3)))[range(3), TARGET].detach()
    for samples in (1, 2, 7, 100):
        method = KernelShap(segments=3, samples=samples, baseline=0.3)
        torch.testing.assert_close(method(smooth_net, images, TARGET).sum((1, 2, 3)), rise)
        torch.testing.assert_close(method.total(smooth_net, images, TARGET), rise)


class Quadratic(nn.Module):
    """Pixels interact in pairs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(128, 4)
        self.pairs = nn.Bilinear(128, 128, 4, bias=False)

    def forward(self, inputs: Tensor) -> Tensor:
        x = inputs.flatten(1)
        return self.linear(x) + self.pairs(x, x)


def test_segments_that_interact_in_pairs_have_their_exact_shapley_values(images):
    """There, integrated gradients add up to the same: both split what two segments do together evenly."""
    net = Quadratic().eval()
    ours = by_segment(KernelShap(segments=3, samples=60, baseline=0.2)(net, images, TARGET), 3)
    theirs = by_segment(IntegratedGradients(steps=2, baseline=0.2)(net, images, TARGET), 3)
    torch.testing.assert_close(ours, theirs)
    alone = by_segment(KernelShap(segments=3, samples=4, baseline=0.2)(net, images, TARGET), 3)
    assert (alone - theirs).abs().max() > 0.01


def test_shapley_values_by_definition_are_the_limit_of_many_samples(smooth_net, images):
    exact = shapley(shown_only(smooth_net, images, 3), 3)
    sizes = [64, 256, 1024, 4096]
    errors = []
    for samples in sizes:
        spread = [
            by_segment(KernelShap(segments=3, samples=samples, chunk=4096)(smooth_net, images, TARGET), 3)
            - exact
            for _ in range(3)
        ]
        errors.append(float(torch.stack(spread).square().mean().sqrt()))
    assert errors[-1] < 0.01 * exact.abs().max()
    assert numpy.polyfit(numpy.log(sizes), numpy.log(errors), 1)[0] == pytest.approx(-0.5, abs=0.15)


def test_captums_kernel_shap_comes_close_to_the_same_values(smooth_net, images):
    exact = shapley(shown_only(smooth_net, images, 2), 2)[:1]
    mask = numbered(images, 2).expand(1, 2, 8, 8)
    kernel = captum.attr.KernelShap(smooth_net)
    settings = {"n_samples": 500, "return_input_shape": False}
    theirs = kernel.attribute(images[:1], target=TARGET[:1], feature_mask=mask, **settings)
    ours = by_segment(KernelShap(segments=2, samples=500)(smooth_net, images, TARGET), 2)[:1]
    tolerance = 0.05 * float(exact.abs().max())
    torch.testing.assert_close(theirs.double(), exact, rtol=0, atol=tolerance)
    torch.testing.assert_close(ours, exact, rtol=0, atol=tolerance)


def test_captum_fits_the_same_kernel_shap_to_the_same_looks(smooth_net, images):
    shown, maps = looks(KernelShap(segments=3, samples=40), smooth_net, images, 3)
    assert shown[0].all()
    assert not shown[1].any()

    def weight(share: Tensor) -> float:
        return 1e7 if share in (0, 1) else 1.0

    theirs = captums(smooth_net, images, shown, SkLearnLinearRegression(), weight)
    torch.testing.assert_close(by_segment(maps, 3), theirs, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("samples", [4, 60])
def test_captum_fits_the_same_ridge_to_the_same_looks(smooth_net, images, samples):
    method = Lime(segments=3, samples=samples, width=0.3, ridge=0.7)
    shown, maps = looks(method, smooth_net, images, 3)
    assert shown[0].all()
    assert len(shown) == samples + 1

    def weight(share: Tensor) -> float:
        return math.exp(-((1 - math.sqrt(share)) ** 2) / (2 * 0.3**2))

    theirs = captums(smooth_net, images, shown, SkLearnRidge(alpha=0.7), weight)
    torch.testing.assert_close(by_segment(maps, 3), theirs, rtol=1e-4, atol=1e-5)


def test_coalitions_come_in_pairs_and_sizes_as_the_shapley_kernel_says(relu_net):
    images = torch.ones(1, 2, 8, 8)
    shown, _ = looks(KernelShap(segments=3, samples=20001, chunk=30000), relu_net, images, 3)
    drawn = shown[2:]
    assert len(drawn) == 20001
    assert torch.equal(drawn[:-1:2], ~drawn[1::2])
    odds = torch.tensor([1 / (k * (9 - k)) for k in range(1, 9)])
    sizes = drawn.sum(1).bincount(minlength=10)[1:9] / len(drawn)
    torch.testing.assert_close(sizes, odds / odds.sum(), rtol=0, atol=0.015)
    # Of one size, all segments are equally likely, and so are all pairs of them.
    three = drawn[drawn.sum(1) == 3].double()
    together = three.T @ three / len(three)
    expected = torch.full((9, 9), 3 * 2 / (9 * 8), dtype=torch.float64).fill_diagonal_(1 / 3)
    torch.testing.assert_close(together, expected, rtol=0, atol=0.05)


def test_looks_of_lime_show_half_of_the_segments(relu_net):
    images = torch.ones(1, 2, 8, 8)
    shown, _ = looks(Lime(segments=3, samples=10000, chunk=20000), relu_net, images, 3)
    drawn = shown[1:].float()
    torch.testing.assert_close(drawn.mean(0), torch.full((9,), 0.5), rtol=0, atol=0.02)
    assert float((torch.corrcoef(drawn.T) - torch.eye(9)).abs().max()) < 0.04


def test_a_large_penalty_draws_all_values_of_lime_to_zero(smooth_net, images):
    small, large = (Lime(segments=3, ridge=ridge)(smooth_net, images, TARGET) for ridge in (1.0, 1e4))
    assert large.abs().max() < 0.01 * small.abs().max()


def test_explanations_of_the_margin_are_those_of_the_two_logits(images):
    net = nn.Sequential(nn.Flatten(), nn.Linear(128, 2)).eval()
    target, rival = torch.zeros(3, dtype=torch.int64), torch.ones(3, dtype=torch.int64)
    for method in (KernelShap, Lime):
        with randomness.keyed(0, torch.arange(3)):
            own, other = (method(segments=3)(net, images, label) for label in (target, rival))
            lead = method(segments=3, score=Margin())(net, images, target)
        torch.testing.assert_close(lead, own - other)


def test_small_images_have_a_segment_per_pixel(float64):
    net = nn.Sequential(nn.Flatten(), nn.Linear(6, 4)).eval()
    inputs = torch.rand(3, 1, 2, 3)
    expected = inputs * net[1].weight[TARGET].view_as(inputs).detach()
    for method in (KernelShap(segments=7), Lime(segments=7, ridge=0.0)):
        torch.testing.assert_close(method(net, inputs, TARGET), expected)
    one = nn.Sequential(nn.Flatten(), nn.Linear(1, 4)).eval()
    pixel = torch.rand(3, 1, 1, 1)
    rise = pixel * one[1].weight[TARGET].view_as(pixel).detach()
    for method in (KernelShap(samples=8), Lime(samples=8, ridge=0.0)):
        torch.testing.assert_close(method(one, pixel, TARGET), rise)


def test_passes_are_the_samples_and_the_ends(relu_net, batch):
    counted = Recorder(relu_net)
    KernelShap(segments=3, samples=10, chunk=25)(counted, *batch)
    assert counted.calls == [25, 25, 10]
    counted.calls.clear()
    Lime(segments=3, samples=10, chunk=64)(counted, *batch)
    assert counted.calls == [55]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (KernelShap, {"segments": 1}, "`segments` must be at least 2, got 1."),
        (KernelShap, {"samples": 0}, "`samples` must be at least 1, got 0."),
        (KernelShap, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
        (KernelShap, {"baseline": 2.0}, r"`baseline` must lie in \[0, 1\], got 2.0."),
        (Lime, {"segments": 0}, "`segments` must be at least 1, got 0."),
        (Lime, {"samples": 0}, "`samples` must be at least 1, got 0."),
        (Lime, {"width": 0.0}, "`width` must be greater than 0, got 0.0."),
        (Lime, {"ridge": -1.0}, "`ridge` must be at least 0, got -1.0."),
        (Lime, {"baseline": -0.5}, r"`baseline` must lie in \[0, 1\], got -0.5."),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
