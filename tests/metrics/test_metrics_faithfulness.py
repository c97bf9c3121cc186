"""Deletion and insertion."""

import math

import numpy as np
import pytest
import torch
from subjects import Recorder, tiny_net
from torch import nn

from lit_xai import metrics, randomness
from lit_xai.metrics import AbsoluteSum, RandomMap
from lit_xai.metrics.faithfulness import Perturbation, removal_curves
from lit_xai.metrics.looks import pixel_ranks
from lit_xai.metrics.removal import Blur, Constant, ImageMean

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


def slow_game(net, image, label, saliency, background, steps, reveal):
    """Petsiuk et al. with loops: one image, one pixel and one step at a time."""
    order = sorted(range(saliency.size), key=lambda pixel: -saliency.flat[pixel])
    canvas, other = (background.copy(), image) if reveal else (image.copy(), background)
    curve, shares, done = [], [], 0
    for step in range(steps + 1):
        while done < round(saliency.size * step / steps):
            row, column = divmod(order[done], saliency.shape[1])
            canvas[:, row, column] = other[:, row, column]
            done += 1
        logits = net(torch.from_numpy(canvas)[None])[0].detach().numpy()
        exponents = np.exp(logits - logits.max())
        curve.append(exponents[label] / exponents.sum())
        shares.append(done / saliency.size)
    return sum((curve[k] + curve[k + 1]) / 2 * (shares[k + 1] - shares[k]) for k in range(steps))


@pytest.mark.parametrize("steps", [1, 5, 14, 64, 100])
@pytest.mark.parametrize("reduction", [metrics.SignedSum(), AbsoluteSum()], ids=repr)
def test_scores_equal_a_slow_twin(case, steps, reduction):
    net, inputs, target, maps = case
    metric = Perturbation(steps, removal=ImageMean(), start=GREY, reduction=reduction, chunk=7)
    fast = scored(metric, *case)
    numbers = maps.numpy()
    saliency = numbers.sum(1) if reduction == metrics.SignedSum() else np.abs(numbers).sum(1)
    for image in range(len(inputs)):
        pixels, label = inputs[image].numpy(), int(target[image])
        mean = np.broadcast_to(pixels.mean((1, 2), keepdims=True), pixels.shape).copy()
        few = min(steps, 64)
        deletion = slow_game(net, pixels, label, saliency[image], mean, few, reveal=False)
        insertion = slow_game(
            net, pixels, label, saliency[image], np.full_like(pixels, 0.5), few, reveal=True
        )
        assert float(fast["deletion"][image]) == pytest.approx(deletion, abs=1e-12)
        assert float(fast["insertion"][image]) == pytest.approx(insertion, abs=1e-12)
        assert float(fast["difference"][image]) == pytest.approx(insertion - deletion, abs=1e-12)


def test_curves_begin_and_end_at_the_image_and_its_background(case):
    net, inputs, target, maps = case
    ranks = pixel_ranks(maps.sum(1), IDS)
    shares, down, up = removal_curves(net, inputs, target, ranks, GREY, Blur(5, 2.0, 8), 6, 100)

    def probability(images):
        return net(images).softmax(1).gather(1, target[:, None])[:, 0].detach()

    assert shares[0] == 0
    assert shares[-1] == 1
    clean = probability(inputs)
    torch.testing.assert_close(down[:, 0], clean)
    torch.testing.assert_close(down[:, -1], probability(GREY(inputs)))
    torch.testing.assert_close(up[:, 0], probability(Blur(5, 2.0, 8)(inputs)))
    torch.testing.assert_close(up[:, -1], clean)
    assert (clean - down[:, -1]).abs().min() > 1e-4


def test_insertion_is_the_reversed_deletion_of_the_reversed_ranking(case):
    net, inputs, target, maps = case
    ranks = pixel_ranks(maps.sum(1), IDS)
    _, down, _ = removal_curves(net, inputs, target, ranks, GREY, GREY, 8, 100)
    _, _, up = removal_curves(net, inputs, target, 63 - ranks, GREY, GREY, 8, 100)
    torch.testing.assert_close(up, down.flip(1))


def test_with_one_operator_the_difference_changes_sign_with_the_map(case):
    net, inputs, target, maps = case
    metric = Perturbation(8, removal=GREY, start=GREY)
    there = scored(metric, *case)["difference"]
    back = scored(metric, net, inputs, target, -maps)["difference"]
    torch.testing.assert_close(back, -there)
    assert there.abs().min() > 1e-4


def test_a_random_map_gains_nothing_where_both_games_use_one_operator():
    net = tiny_net(nn.ReLU)
    inputs = torch.rand(400, 2, 8, 8)
    target = net(inputs).argmax(1)
    ids = torch.arange(400)
    with randomness.keyed(0, ids):
        maps = RandomMap()(net, inputs, target)
    scores = scored(Perturbation(8, removal=GREY, start=GREY), net, inputs, target, maps, ids)["difference"]
    assert abs(scores.mean()) < 4 * scores.std() / math.sqrt(400)
    assert scores.std() > 0.01


def test_a_map_that_knows_the_model_beats_a_random_one():
    weight = torch.linspace(-1, 1, 64).view(1, 8, 8)
    net = nn.Sequential(nn.Flatten(), nn.Linear(64, 2)).eval()
    with torch.no_grad():
        net[1].weight.copy_(torch.cat([weight.view(1, -1), torch.zeros(1, 64)]))
        net[1].bias.zero_()
    inputs, target = torch.rand(9, 1, 8, 8), torch.zeros(9, dtype=torch.int64)
    ids = torch.arange(9)
    with randomness.keyed(0, ids):
        noise = RandomMap()(net, inputs, target)
    metric = Perturbation(16, removal=Constant(), start=Constant())
    good = scored(metric, net, inputs, target, inputs * weight, ids)
    bad = scored(metric, net, inputs, target, noise, ids)
    assert (good["deletion"] < bad["deletion"]).all()
    assert (good["insertion"] > bad["insertion"]).all()
    assert (good["difference"] > 0).all()


@pytest.mark.parametrize("chunk", [1, 9, 10_000])
def test_chunk_bounds_the_images_per_pass_and_changes_nothing(case, chunk):
    net, *rest = case
    counted = Recorder(net)
    agree(scored(Perturbation(6, chunk=chunk), counted, *rest), scored(Perturbation(6), net, *rest))
    assert max(counted.calls) <= chunk
    assert sum(counted.calls) == 5 * (2 * 6 + 1)


@pytest.mark.parametrize("tied", [False, True])
def test_batch_size_and_order_do_not_matter(case, tied):
    net, inputs, target, maps = case
    maps = maps.round() if tied else maps
    together = scored(Perturbation(7), net, inputs, target, maps)
    for part in (torch.tensor([3, 1, 4]), torch.tensor([2])):
        alone = scored(Perturbation(7), net, inputs[part], target[part], maps[part], IDS[part])
        agree(alone, {name: column[part] for name, column in together.items()})


@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_a_map_does_not_matter(case, scale):
    net, inputs, target, maps = case
    agree(scored(Perturbation(7), net, inputs, target, maps * scale), scored(Perturbation(7), *case))


@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_map_that_is_not_finite_has_no_score_and_counts_as_missing(case, broken):
    net, inputs, target, maps = case
    expected = scored(Perturbation(7), *case)
    maps = maps.clone()
    maps[2, 0, 3, 3] = broken
    got = scored(Perturbation(7), net, inputs, target, maps)
    agree(got, {name: column.index_fill(0, torch.tensor(2), math.nan) for name, column in expected.items()})
    metric = Perturbation(7)
    metric.fold(got)
    assert metric.spread()["deletion"]["missing"] == 1
    assert float(metric.compute()["deletion"]) == pytest.approx(float(got["deletion"].nanmean()))


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Perturbation(steps=0), "`steps` must be at least 1, got 0."),
        (lambda: Perturbation(chunk=0), "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
