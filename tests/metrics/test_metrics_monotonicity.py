"""Monotonicity: linear models where every step is known, a slow twin, and steps that are none."""

import itertools
import math

import pytest
import torch
from scipy import stats
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import InputXGradient, Saliency
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import Constant, PixelFlipping, RandomMap, SignedSum
from lit_xai.metrics.monotonicity import Monotonicity, monotonicity
from lit_xai.observe import explain


def scored(metric, model, inputs, target, maps):
    with randomness.keyed(0, torch.arange(len(inputs)) + 5):
        return metric.named(model=model, inputs=inputs, target=target, attributions=maps)


def linear(weight, inputs, dtype=torch.float64):
    """One logit, which is <weight, x>, and one that is 0."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(weight.numel(), 2, dtype=dtype)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([weight.flatten(), 0 * weight.flatten()]))
        model[1].bias.zero_()
    return model, inputs.to(dtype), torch.zeros(len(inputs), dtype=torch.int64)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("sign", [1, -1])
def test_where_all_pixels_speak_for_the_class_it_rises_in_any_order(sign, dtype):
    model, inputs, target = linear(sign * (torch.rand(1, 5, 6) + 0.1), torch.rand(4, 1, 5, 6) + 0.1, dtype)
    scores = scored(Monotonicity(10), model, inputs, target, torch.randn(4, 1, 5, 6, dtype=dtype))
    torch.testing.assert_close(scores["rising"], torch.full((4,), float(sign > 0)).double())
    torch.testing.assert_close(scores["spearman"], torch.full((4,), float(sign)).double())


def test_one_pixel_at_a_time_the_share_is_that_of_the_pixels_that_speak_for_the_class():
    weight = torch.randn(1, 6, 5)
    model, inputs, target = linear(weight, torch.rand(8, 1, 6, 5) + 0.1)
    maps = RandomMap()(model, inputs, target)  # in whatever order: a map that knows nothing is not at 1
    scores = scored(Monotonicity(1000), model, inputs, target, maps)
    expected = (weight > 0).double().mean()
    assert 0.2 < float(expected) < 0.8
    torch.testing.assert_close(scores["rising"], expected.expand(8))
    assert len(scores["spearman"].unique()) == 8


def test_it_equals_its_slow_twin():
    net, inputs = tiny_net(nn.ReLU, torch.float64), torch.rand(3, 2, 8, 8, dtype=torch.float64)
    target, maps = torch.tensor([0, 1, 2]), torch.randn(3, 2, 8, 8, dtype=torch.float64)
    scores = scored(Monotonicity(9, Constant(0.5)), net, inputs, target, maps)
    for image in range(3):
        order = maps[image].abs().sum(0).flatten().argsort().tolist()
        seen, curve = torch.full((2, 64), 0.5, dtype=torch.float64), []
        for step in range(10):
            for pixel in order[: round(64 * step / 9)]:
                seen[:, pixel] = inputs[image].flatten(1)[:, pixel]
            with torch.no_grad():
                curve.append(float(net(seen.view(1, 2, 8, 8))[0, target[image]]))
        rising = sum(later >= former for former, later in itertools.pairwise(curve)) / 9
        assert float(scores["rising"][image]) == pytest.approx(rising, abs=1e-12)
        expected = stats.spearmanr(range(10), curve)[0]
        assert float(scores["spearman"][image]) == pytest.approx(expected, abs=1e-9)
    assert float(scores["rising"].max()) < 1


def test_the_least_salient_come_first_by_the_reduction():
    """All evidence against comes first where the sign counts, and the class only falls until it is over."""
    weight = torch.randn(1, 6, 6)
    model, inputs, target = linear(weight, torch.full((1, 1, 6, 6), 0.5))
    maps = InputXGradient()(model, inputs, target)
    rising = (weight > 0).double().mean()
    signed = Monotonicity(36, reduction=SignedSum())
    by_sign, by_size = (scored(metric, model, inputs, target, maps) for metric in (signed, Monotonicity(36)))
    falls = torch.cat([maps.flatten().sort().values.new_zeros(1), maps.flatten().sort().values.cumsum(0)])
    expected = stats.spearmanr(range(37), falls)[0]
    for scores in (by_sign, by_size):
        assert float(scores["rising"]) == pytest.approx(float(rising))
    assert float(by_sign["spearman"]) == pytest.approx(expected, abs=1e-9)
    assert float(by_size["spearman"]) != pytest.approx(expected, abs=1e-3)


def test_steps_that_show_nothing_are_none():
    """Pixels at the baseline change nothing: their steps do not fall, and share a rank."""
    inputs = torch.zeros(1, 1, 4, 4, dtype=torch.float64)
    inputs[0, 0, 3] = 1
    weight = torch.ones(1, 4, 4)
    weight[0, 3] = torch.tensor([1.0, -2.0, 3.0, 4.0])
    model, inputs, target = linear(weight, inputs)
    maps = torch.arange(16.0, dtype=torch.float64).view(1, 1, 4, 4)
    scores = scored(Monotonicity(16), model, inputs, target, maps)
    assert float(scores["rising"]) == pytest.approx(15 / 16)
    curve = [0.0] * 13 + [1.0, -1.0, 2.0, 6.0]
    assert float(scores["spearman"]) == pytest.approx(stats.spearmanr(range(17), curve)[0], abs=1e-12)


def test_rounding_is_no_step():
    curve = torch.tensor([[1.0, 1.0, 1.0, 2.0, 2.0, 3.0]], dtype=torch.float64)
    noisy = curve * (1 + torch.tensor([0, -3, 2, 1, -2, 1]) * 2.0**-23)
    exact = monotonicity(curve, torch.float64)
    for name, column in monotonicity(noisy, torch.float32).items():
        torch.testing.assert_close(column, exact[name], rtol=0, atol=1e-12)
    assert float(monotonicity(noisy, torch.float64)["rising"]) < 1
    flat = monotonicity(noisy[:, :3], torch.float32)
    assert all(column.isnan().all() for column in flat.values())


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1e9, 1e30])
def test_the_scale_of_a_map_does_not_matter(relu_net, batch, scale):
    maps = torch.randn(5, 2, 8, 8)
    expected = scored(Monotonicity(6), relu_net, *batch, maps)
    torch.testing.assert_close(scored(Monotonicity(6), relu_net, *batch, maps * scale), expected)


def test_maps_without_an_answer_have_no_score(relu_net, batch):
    inputs, target = batch
    maps = torch.randn(5, 2, 8, 8)
    maps[0] = 0  # in random order, as wherever pixels are ranked
    maps[1, 0, 0, 0] = math.nan
    maps[2, 1, 3, 3] = math.inf
    for column in scored(Monotonicity(6), relu_net, inputs, target, maps).values():
        assert column.isnan().tolist() == [False, True, True, False, False]
    one = scored(Monotonicity(6), *linear(torch.ones(1, 1, 1), torch.ones(1, 1, 1, 1)), maps[3:4, :1, :1, :1])
    assert [float(column) for column in one.values()] == pytest.approx([1, 1])


def test_a_random_map_does_not_always_rise(relu_net):
    inputs = torch.rand(30, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    scores = scored(Monotonicity(16), relu_net, inputs, target, RandomMap()(relu_net, inputs, target))
    assert 0.3 < float(scores["rising"].mean()) < 0.95
    assert float(scores["spearman"].min()) < 0.9


def test_forward_passes_are_those_told(relu_net, batch):
    counted = Counted(relu_net)
    explain(counted, *batch, {"saliency": Saliency()}, {"monotonicity": Monotonicity(9)}, 0)
    assert (counted.forwards, counted.backwards) == (5 * (1 + 9 + 1), 5)


def test_it_costs_nothing_beside_flipping_in_the_same_order(relu_net, batch):
    counted = Counted(relu_net)
    flipping = PixelFlipping(9, reduction=Monotonicity().reduction)
    explain(counted, *batch, {"map": RandomMap()}, {"flipping": flipping, "it": Monotonicity(9)}, 0)
    assert counted.forwards == 5 * (9 + 1)


def test_refusals():
    with pytest.raises(ValueError, match=r"`steps` must be at least 2, got 1\."):
        Monotonicity(1)
    with pytest.raises(ValueError, match=r"`chunk` must be at least 1, got 0\."):
        Monotonicity(chunk=0)
