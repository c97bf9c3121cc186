"""Symmetric relevance gain, and remove-and-debias: least against most relevant pixels first."""

import math

import numpy as np
import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import Facts, RandomMap
from lit_xai.metrics.faithfulness import ROAD, SRG, Perturbation, decisions, gain_curves
from lit_xai.metrics.imputation import LinearImputation
from lit_xai.metrics.looks import pixel_ranks
from lit_xai.metrics.removal import Blur, Constant, ImageMean, UniformNoise

IDS = torch.tensor([7, 3, 11, 0, 5])
GREY = Constant(0.5)


@pytest.fixture
def case():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    maps = torch.randn(5, 2, 8, 8, dtype=torch.float64)
    return net, inputs, net(inputs).argmax(1), maps


def scored(metric, net, inputs, target, maps, ids=IDS):
    with randomness.keyed(1, ids):
        return metric.named(model=net, inputs=inputs, target=target, attributions=maps)


def agree(first, second, tolerance=1e-12):
    assert first.keys() == second.keys()
    for name in first:
        torch.testing.assert_close(first[name], second[name], rtol=0, atol=tolerance, equal_nan=True)


OPERATORS = [GREY, ImageMean(), Blur(5, 2.0, 8), UniformNoise(), LinearImputation()]


@pytest.mark.parametrize("removal", OPERATORS, ids=repr)
def test_gain_changes_sign_with_the_map(case, removal):
    net, inputs, target, maps = case
    metric = SRG(8, removal)
    there, back = scored(metric, *case), scored(metric, net, inputs, target, -maps)
    torch.testing.assert_close(back["gain"], -there["gain"])
    torch.testing.assert_close(back["relative"], -there["relative"])
    torch.testing.assert_close(back["most"], there["least"])
    assert there["gain"].abs().min() > 1e-6


@pytest.mark.parametrize("removal", OPERATORS, ids=repr)
@pytest.mark.parametrize("steps", [1, 5, 13])
def test_gain_equals_a_slow_twin(case, removal, steps):
    net, inputs, target, maps = case
    fast = scored(SRG(steps, removal), *case)
    with randomness.keyed(1, IDS):
        empty = removal(inputs)

    def probability(image, gone):
        mixed = removal.fill(inputs[image, None], gone[None, None], empty[image, None])[0]
        return float(net(mixed).softmax(1)[0, target[image]].detach())

    for image in range(len(inputs)):
        order = maps[image].sum(0).flatten().argsort(descending=True)
        few, curves = min(steps, 64), {"most": [], "least": []}
        shares = [round(64 * step / few) for step in range(few + 1)]
        for name, ranked in (("most", order), ("least", order.flip(0))):
            for count in shares:
                gone = torch.zeros(64, dtype=torch.bool)
                gone[ranked[:count]] = True
                curves[name].append(probability(image, gone.reshape(8, 8)))
        areas = {name: np.trapezoid(curve, np.array(shares) / 64) for name, curve in curves.items()}
        gain = areas["least"] - areas["most"]
        for name, value in (*areas.items(), ("gain", gain), ("relative", gain / curves["most"][0])):
            assert float(fast[name][image]) == pytest.approx(value, abs=1e-12)


def test_gain_curves_begin_at_the_image_and_end_where_all_is_gone(case):
    net, inputs, target, maps = case
    shares, most, least = gain_curves(net, inputs, target, pixel_ranks(maps.sum(1), IDS), GREY, 7, 64)
    ends = [net(images).softmax(1).gather(1, target[:, None])[:, 0] for images in (inputs, GREY(inputs))]
    for curve in (most, least):
        torch.testing.assert_close(curve[:, [0, -1]], torch.stack(ends, dim=1).detach())
    assert shares.tolist() == [0, 9 / 64, 18 / 64, 27 / 64, 37 / 64, 46 / 64, 55 / 64, 1]


def test_a_random_map_has_no_gain_and_one_that_knows_has():
    net = tiny_net(nn.ReLU)
    inputs, ids = torch.rand(400, 2, 8, 8), torch.arange(400)
    target = net(inputs).argmax(1)
    with randomness.keyed(0, ids):
        noise = RandomMap()(net, inputs, target)
    gain = scored(SRG(8), net, inputs, target, noise, ids)["gain"]
    assert abs(gain.mean()) < 4 * gain.std() / math.sqrt(400)
    assert gain.std() > 0.005
    linear = nn.Sequential(nn.Flatten(), nn.Linear(128, 4)).eval()
    weight = linear[1].weight.detach()[target].reshape(-1, 2, 8, 8)
    maps = (inputs - inputs.mean((2, 3), keepdim=True)) * weight
    assert scored(SRG(8, ImageMean()), linear, inputs, target, maps, ids)["gain"].mean() > 0.05


def test_relative_gain_of_no_probability_is_missing():
    class Hopeless(nn.Module):
        def forward(self, inputs):
            return torch.stack([inputs.new_zeros(len(inputs)), inputs.new_full((len(inputs),), 800.0)], dim=1)

    case = (Hopeless(), torch.rand(2, 1, 4, 4), torch.zeros(2, dtype=torch.int64), torch.randn(2, 1, 4, 4))
    seen = scored(SRG(3, GREY), *case, IDS[:2])
    assert seen["relative"].isnan().all()
    assert (seen["gain"] == 0).all()


@pytest.mark.parametrize("channels", [1, 3])
def test_accuracy_that_is_left_equals_a_slow_twin_on_colour_images(channels):
    """Quantus 0.6.0 takes flat indices over channels for pixels, and raises IndexError."""
    net = nn.Sequential(nn.Conv2d(3, 6, 3), nn.ReLU(), nn.Flatten(), nn.Linear(6 * 6 * 7, 4)).double().eval()
    inputs = torch.rand(5, 3, 8, 9, dtype=torch.float64)
    target = net(inputs).argmax(1)
    saliency = torch.randn(5, channels, 8, 9, dtype=torch.float64)
    maps = saliency.expand_as(inputs) / (3 / channels)
    shares, removal = (0.1, 0.35, 0.8), LinearImputation(tolerance=1e-10)
    with randomness.keyed(1, IDS):
        empty = removal(inputs)
    expected = {"most": torch.zeros(5), "least": torch.zeros(5)}
    for image in range(5):
        order = saliency[image].sum(0).flatten().argsort(descending=True)
        for name, ranked in (("most", order), ("least", order.flip(0))):
            for share in shares:
                gone = torch.zeros(72, dtype=torch.bool)
                gone[ranked[: round(72 * share)]] = True
                mixed = removal.fill(inputs[image, None], gone.reshape(1, 1, 8, 9), empty[image, None])[0]
                expected[name][image] += float(net(mixed).argmax() == target[image]) / 3
    metric = ROAD(shares, removal)
    got = scored(metric, net, inputs, target, maps)
    for name, column in (*expected.items(), ("difference", expected["least"] - expected["most"])):
        torch.testing.assert_close(got[name], column, check_dtype=False)
    # Over several batches all samples count, where Quantus aggregates the first.
    for rows in (slice(0, 2), slice(2, 5)):
        with randomness.keyed(1, IDS[rows]):
            metric.update(model=net, inputs=inputs[rows], target=target[rows], attributions=maps[rows])
    assert float(metric.compute()["most"]) == pytest.approx(float(expected["most"].mean()), abs=1e-6)


def test_logits_that_are_not_finite_decide_nothing():
    class Broken(nn.Module):
        def forward(self, inputs):
            return inputs.new_full((len(inputs), 3), math.nan)

    target = torch.zeros(2, dtype=torch.int64)
    seen = scored(
        ROAD((0.5,), GREY), Broken(), torch.rand(2, 1, 4, 4), target, torch.randn(2, 1, 4, 4), IDS[:2]
    )
    assert all((column == 0).all() for column in seen.values())


def test_decisions_by_share(case):
    net, inputs, target, maps = case
    most, least = decisions(net, inputs, target, pixel_ranks(maps.sum(1), IDS), GREY, (0.25, 0.5), 64)
    assert most.shape == least.shape == (5, 2)
    assert set(torch.cat([most, least]).unique().tolist()) <= {0.0, 1.0}


@pytest.mark.parametrize(
    ("metric", "passes"),
    [
        (Perturbation(6), 13),
        (Perturbation(6, GREY, GREY), 12),
        (SRG(6), 12),
        (SRG(6, GREY), 12),
        (ROAD(), 18),
        (ROAD((0.2, 0.5)), 4),
        (SRG(100, GREY), 128),
    ],
    ids=repr,
)
def test_passes_are_as_declared(case, metric, passes):
    net, *rest = case
    counted = Counted(net)
    scored(metric, counted, *rest)
    assert counted.forwards == 5 * passes
    assert counted.backwards == 0


def test_what_one_metric_has_looked_at_costs_the_others_nothing(case):
    net, inputs, target, maps = case
    counted = Counted(net)
    with randomness.keyed(1, IDS), remembering():
        asked = {"model": counted, "inputs": inputs, "target": target}
        first = SRG(20).named(**asked, attributions=maps)
        assert counted.forwards == 5 * 40
        apart = ROAD().named(**asked, attributions=maps)
        assert counted.forwards == 5 * 40
        other = SRG(20).named(**asked, attributions=maps.flip(3))  # clean and empty are those of the first
        assert counted.forwards == 5 * (40 + 38)
    agree(first, scored(SRG(20), net, inputs, target, maps))
    agree(apart, scored(ROAD(), net, inputs, target, maps))
    agree(other, scored(SRG(20), net, inputs, target, maps.flip(3)))


@pytest.mark.parametrize("metric", [SRG(5), ROAD((0.3, 0.6)), SRG(5, UniformNoise())], ids=repr)
def test_gain_and_accuracy_depend_on_the_sample_alone(case, metric):
    net, inputs, target, maps = case
    maps = maps.round()
    maps[1, 0, 2, 2] = math.nan
    together = scored(metric, net, inputs, target, maps)
    assert [bool(value.isnan()) for value in next(iter(together.values()))] == [False, True] + [False] * 3
    part = torch.tensor([3, 1, 4])
    alone = scored(metric, net, inputs[part], target[part], maps[part], IDS[part])
    agree(alone, {name: column[part] for name, column in together.items()})
    for scale in (1e-9, 1e9):
        agree(scored(metric, net, inputs, target, maps * scale), together)


def test_a_colour_for_other_channels_is_refused_before_the_run(case):
    facts = Facts(case[0], (3, 8, 8), 4, 5, 4, False, torch.device("cpu"))
    colour = Constant((0.1, 0.2))
    for metric in (SRG(removal=colour), ROAD(removal=colour), Perturbation(start=colour)):
        with pytest.raises(
            ValueError, match=r"`kept` removes pixels by .* images have 3 channels: give as many"
        ):
            metric.check("kept", facts)
    SRG(removal=Constant((0.1, 0.2, 0.3))).check("kept", facts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: SRG(steps=0), "`steps` must be at least 1, got 0."),
        (lambda: SRG(chunk=0), "`chunk` must be at least 1, got 0."),
        (lambda: ROAD(shares=()), "`shares` must hold at least one"),
        (lambda: ROAD(shares=(0.5, 0.2)), "`shares` must rise and lie in"),
        (lambda: ROAD(shares=(0.5, 1.0)), "`shares` must rise and lie in"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
