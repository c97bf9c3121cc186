"""Pixel flipping, region perturbation and removal of superpixels, against loops and other libraries."""

import math

import numpy as np
import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics import AbsoluteSum, Facts, flipping
from lit_xai.metrics.faithfulness import Perturbation
from lit_xai.metrics.flipping import AOPC, IROF, PixelFlipping, aopc, area_over, flipping_curves
from lit_xai.metrics.looks import pixel_ranks
from lit_xai.metrics.removal import Constant, ImageMean, UniformNoise
from lit_xai.metrics.segments import superpixels

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


def grey_case(side=8):
    net = nn.Sequential(nn.Conv2d(1, 5, 3), nn.ReLU(), nn.Flatten(), nn.Linear(5 * (side - 2) ** 2, 4)).eval()
    inputs = 0.3 + 0.6 * torch.rand(6, 1, side, side)  # its black is not the least of an image
    return net, inputs, net(inputs).argmax(1), torch.randn(6, 1, side, side)


@pytest.mark.parametrize("step", [1, 4, 16])
@pytest.mark.parametrize("softmax", [True, False])
def test_flipping_curves_equal_those_of_quantus(step, softmax):
    quantus = pytest.importorskip("quantus")
    net, inputs, target, maps = grey_case()
    theirs = quantus.PixelFlipping(
        features_in_step=step, normalise=False, perturb_baseline=0.0, disable_warnings=True
    )(net, inputs.numpy(), target.numpy(), maps.numpy(), softmax=softmax, device="cpu")
    ranks = pixel_ranks(maps[:, 0], torch.arange(6))
    shares, logit, probability = flipping_curves(net, inputs, target, ranks, Constant(), 64 // step, 64)
    ours = probability if softmax else logit
    np.testing.assert_allclose(ours[:, 1:].numpy(), np.array(theirs), rtol=0, atol=1e-6)
    # Their area calls a function that NumPy has dropped; this one is that of the whole curve.
    got = scored(PixelFlipping(64 // step), net, inputs, target, maps, torch.arange(6))
    expected = np.trapezoid(ours.numpy(), shares.numpy(), axis=1)
    name = "probability" if softmax else "logit"
    np.testing.assert_allclose(got[name].numpy(), expected, rtol=0, atol=1e-6)


@pytest.mark.parametrize("steps", [3, 7, 16])
def test_area_over_the_curve_of_regions_equals_that_of_quantus(steps):
    quantus = pytest.importorskip("quantus")
    net, inputs, target, maps = grey_case()
    theirs = quantus.RegionPerturbation(
        patch_size=2,
        regions_evaluation=steps,
        normalise=False,
        perturb_baseline=0.0,
        disable_warnings=True,
    )(net, inputs.numpy(), target.numpy(), maps.numpy(), device="cpu")
    falls = np.concatenate([np.zeros((6, 1)), np.array(theirs)], axis=1)
    got = scored(AOPC(2, steps, Constant()), net, inputs, target, maps, torch.arange(6))["probability"]
    np.testing.assert_allclose(got.numpy(), falls.mean(1), rtol=0, atol=1e-6)


def slow_parts(net, inputs, target, removal, parts, worth):
    """Logits and probabilities while the parts go, one image and one part at a time."""
    with randomness.keyed(1, IDS):
        empty = removal(inputs)
    logits, probabilities = [], []
    for image in range(len(inputs)):
        order = sorted(set(parts[image].flatten().tolist()), key=lambda part: -worth(image, part))
        canvas, said = inputs[image].clone(), []
        for part in (None, *order):
            if part is not None:
                canvas[:, parts[image] == part] = empty[image][:, parts[image] == part]
            said.append(net(canvas[None])[0].detach())
        own = torch.stack(said)
        logits.append(own[:, target[image]])
        probabilities.append(own.softmax(1)[:, target[image]])
    return logits, probabilities


@pytest.mark.parametrize("region", [1, 3, 4, 7])
@pytest.mark.parametrize("steps", [2, 1000])
def test_area_over_the_curve_equals_a_slow_twin_where_squares_are_cut_off(case, region, steps):
    net, inputs, target, maps = case
    rows, columns = torch.meshgrid(torch.arange(8) // region, torch.arange(8) // region, indexing="ij")
    parts = (10 * rows + columns).expand(5, -1, -1)
    saliency = maps.sum(1)
    noise = UniformNoise()
    logits, probabilities = slow_parts(
        net,
        inputs,
        target,
        noise,
        parts,
        lambda image, part: float(saliency[image][parts[image] == part].sum()),
    )
    got = scored(AOPC(region, steps, noise), *case)
    for image in range(5):
        logit, probability = logits[image], probabilities[image]
        fall = float((logit[0] - logit[: steps + 1]).mean())
        assert float(got["logit"][image]) == pytest.approx(fall, abs=1e-12)
        assert float(got["normalised"][image]) == pytest.approx(fall / float(logit[0] - logit[-1]), rel=1e-9)
        fall = float((probability[0] - probability[: steps + 1]).mean())
        assert float(got["probability"][image]) == pytest.approx(fall, abs=1e-12)


@pytest.mark.parametrize("rounds", [0, 4])
@pytest.mark.parametrize("reduction", [AbsoluteSum(), None], ids=repr)
def test_removal_of_superpixels_equals_a_slow_twin_on_colour_images(case, rounds, reduction):
    """Quantus 0.6.0 refuses colour images, and its area calls a function that NumPy has dropped."""
    net, inputs, target, maps = case
    parts, count = superpixels(inputs, 3, 0.5, rounds)
    assert count == 9
    saliency = maps.sum(1) if reduction is None else maps.abs().sum(1)
    _, probabilities = slow_parts(
        net,
        inputs,
        target,
        ImageMean(),
        parts,
        lambda image, part: float(saliency[image][parts[image] == part].mean()),
    )
    chosen = {} if reduction is None else {"reduction": reduction}
    got = scored(IROF(3, rounds, 0.5, **chosen), *case)[""]
    for image in range(5):
        curve = probabilities[image].numpy()
        expected = 1 - np.trapezoid(curve / curve[0], np.linspace(0, 1, len(curve)))
        assert float(got[image]) == pytest.approx(expected, abs=1e-12)


def test_areas_have_closed_forms():
    curves = torch.tensor([[1.0, 0.5, 0.0], [0.5, 0.5, 0.5], [0.0, 0.3, 0.6]], dtype=torch.float64)
    torch.testing.assert_close(aopc(curves), torch.tensor([0.5, 0.0, -0.3], dtype=torch.float64))
    expected = torch.tensor([0.5, 0.0, math.nan], dtype=torch.float64)
    torch.testing.assert_close(area_over(curves, torch.full((3,), 2)), expected, equal_nan=True)


def test_a_segment_without_pixels_is_no_step(monkeypatch):
    """What has no pixel does not go last, and the curve ends where the image does."""
    net, inputs, target, maps = grey_case()
    parts = (torch.arange(64).reshape(8, 8) // 16).expand(6, -1, -1)
    expected = None
    for count in (4, 5, 9):
        monkeypatch.setattr(flipping, "superpixels", lambda *_, count=count: (parts, count))
        got = scored(IROF(3), net, inputs, target, maps, torch.arange(6))[""]
        expected = got if expected is None else expected
        torch.testing.assert_close(got, expected)


def test_on_a_linear_model_the_falls_are_those_of_the_weights():
    linear = nn.Linear(64, 2, dtype=torch.float64)
    net = nn.Sequential(nn.Flatten(), linear).eval()
    inputs, target = torch.rand(4, 1, 8, 8, dtype=torch.float64), torch.zeros(4, dtype=torch.int64)
    maps = inputs * linear.weight.detach()[0].reshape(1, 1, 8, 8)  # from black, each square's own share
    sums = nn.functional.avg_pool2d(maps, 2, divisor_override=1).flatten(1)
    gone = sums.sort(descending=True).values.cumsum(1)
    got = scored(AOPC(2, 5, Constant()), net, inputs, target, maps, torch.arange(4))
    torch.testing.assert_close(got["logit"], gone[:, :5].sum(1) / 6)
    torch.testing.assert_close(got["normalised"], gone[:, :5].sum(1) / 6 / maps.sum((1, 2, 3)))


@pytest.mark.parametrize(
    ("metric", "passes"),
    [
        (PixelFlipping(6), 7),
        (PixelFlipping(1000), 65),
        (AOPC(2, 5), 7),
        (AOPC(4, 100), 5),
        (IROF(3), 10),
        (IROF(3, rounds=0), 10),
    ],
    ids=repr,
)
def test_passes_are_as_declared(case, metric, passes):
    net, *rest = case
    counted = Counted(net)
    scored(metric, counted, *rest)
    assert counted.forwards == 5 * passes
    assert counted.backwards == 0


def test_flipping_costs_nothing_beside_a_deletion_by_the_same_operator(case):
    net, inputs, target, maps = case
    counted = Counted(net)
    with randomness.keyed(1, IDS), remembering():
        asked = {"model": counted, "inputs": inputs, "target": target, "attributions": maps}
        deletion = Perturbation(7).named(**asked)["deletion"]
        assert counted.forwards == 5 * 15
        assert torch.equal(PixelFlipping(7).named(**asked)["probability"], deletion)
        AOPC(4, 2, Constant()).named(**asked)
        assert counted.forwards == 5 * (15 + 2)  # the whole image and the empty one are known


METRICS = [PixelFlipping(5), AOPC(3, 4), AOPC(3, 4, GREY), IROF(3), IROF(3, rounds=0)]


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_scores_depend_on_the_sample_alone(case, metric):
    net, inputs, target, maps = case
    maps = maps.sign()  # ties
    maps[1, 0, 2, 2] = math.nan
    together = scored(metric, net, inputs, target, maps)
    for column in together.values():
        assert column.isnan().tolist() == [False, True, False, False, False]
    part = torch.tensor([3, 1, 4])
    alone = scored(metric, net, inputs[part], target[part], maps[part], IDS[part])
    agree(alone, {name: column[part] for name, column in together.items()})


@pytest.mark.parametrize("metric", METRICS, ids=repr)
@pytest.mark.parametrize("scale", [1e-9, 1e9])
def test_the_scale_of_a_map_does_not_matter(case, metric, scale):
    net, inputs, target, maps = case
    agree(scored(metric, net, inputs, target, maps * scale), scored(metric, *case))
    single = (net.float(), inputs.float(), target, maps.float())
    expected = scored(metric, *single)
    agree(scored(metric, *single[:3], single[3] * scale), expected, 1e-6)


@pytest.mark.parametrize("metric", METRICS, ids=repr)
def test_constant_maps_images_and_shapes_have_scores(metric):
    net = nn.Sequential(nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(8, 3)).eval()
    for shape in ((1, 2, 4, 9), (3, 2, 7, 5)):
        inputs, target = torch.rand(shape), torch.zeros(len(torch.empty(shape)), dtype=torch.int64)
        for maps in (torch.zeros(shape), torch.ones(shape), torch.randn(shape)):
            for column in scored(metric, net, inputs, target, maps, IDS[: shape[0]]).values():
                assert column.isfinite().all()
    inputs = torch.full((2, 2, 6, 6), 0.5)  # the operator changes nothing
    flat = scored(AOPC(3, 4, GREY), net, inputs, torch.zeros(2, dtype=torch.int64), inputs, IDS[:2])
    assert flat["normalised"].isnan().all()
    assert (flat["logit"] == 0).all()


def test_a_region_that_holds_the_image_is_refused_before_the_run(case):
    facts = Facts(case[0], (3, 8, 6), 4, 5, 4, False, torch.device("cpu"))
    with pytest.raises(
        ValueError, match="`regions` ranks squares of 8 x 8 pixels, and one holds all of an image"
    ):
        AOPC(8).check("regions", facts)
    AOPC(7).check("regions", facts)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: PixelFlipping(steps=0), "`steps` must be at least 1, got 0."),
        (lambda: PixelFlipping(chunk=0), "`chunk` must be at least 1, got 0."),
        (lambda: AOPC(region=0), "`region` must be at least 1, got 0."),
        (lambda: AOPC(steps=0), "`steps` must be at least 1, got 0."),
        (lambda: IROF(segments=0), "`segments` must be at least 1, got 0."),
        (lambda: IROF(rounds=-1), "`rounds` must be at least 0, got -1."),
        (lambda: IROF(compactness=0.0), "`compactness` must be greater than 0, got 0.0."),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
