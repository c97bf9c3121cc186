"""Input bias against maps whose blind colour is known."""

import dataclasses
import math

import pytest
import torch
from scipy import stats
from subjects import linear_case, tiny_net
from torch import nn

from lit_xai import attributions as a
from lit_xai import randomness
from lit_xai.attacks import ClosestBoundary
from lit_xai.attributions.rules import Epsilon, Flat
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import Facts, RandomMap
from lit_xai.metrics.input_bias import (
    BlindColour,
    ColourSweep,
    Polarity,
    blank,
    colour_curve,
    dark_share,
    highlight,
    painted,
    patches,
    v_shape,
)
from lit_xai.models import Normalized
from lit_xai.observe import explain

MEAN, STD = (0.25, 0.5), (0.25, 0.5)  # exact in binary: what is painted in the mean is exactly zero
MULTIPLIED = {
    "input x gradient": a.InputXGradient(),
    "integrated gradients": a.IntegratedGradients(steps=3),
    "rectified gradient": a.RectifiedGradient(percentile=50),
    "deep lift": a.DeepLift(),
}
UNMULTIPLIED = {
    "gradient": a.Saliency(),
    "rectified gradient": a.RectifiedGradient(percentile=50, times_input=False),
    "flat": a.LRP(first=Flat()),
}


@pytest.fixture
def subject():
    net = Normalized(tiny_net(nn.ReLU), MEAN, STD).eval()
    inputs = torch.rand(5, 2, 8, 8)
    return net, inputs, net(inputs).argmax(1)


def scored(metric, subject, method):
    net, inputs, target = subject
    return explain(net, inputs, target, {"map": method}, {"metric": metric}, 0).scores["map"]["metric"]


@pytest.mark.parametrize("shape", [(8, 8), (5, 12), (1, 1), (1, 9)])
def test_patches_are_rectangles_anywhere_inside(shape):
    inputs, keys = torch.zeros(400, 3, *shape), torch.arange(400)
    where = patches(inputs, keys, 0.25)
    height, width = (max(1, round(size / 2)) for size in shape)
    assert where.shape == (400, *shape)
    assert (where.sum((1, 2)) == height * width).all()
    assert (where.any(2).sum(1) == height).all()
    assert where.any(0).all()  # every pixel is in a patch sometimes
    assert torch.equal(where[7:9], patches(inputs[7:9], keys[7:9], 0.25))


def test_painting_by_channel():
    inputs, where = torch.rand(2, 3, 4, 4), torch.rand(2, 4, 4) > 0.5
    seen = painted(inputs, where, (0.1, 0.2, 0.3))
    for channel, value in enumerate((0.1, 0.2, 0.3)):
        assert torch.equal(seen[:, channel], torch.where(where, torch.tensor(value), inputs[:, channel]))
    assert torch.equal(painted(inputs, where, 0.5)[:, 1], torch.where(where, 0.5, inputs[:, 1]))


@pytest.mark.parametrize("scale", [1e-30, 1.0, 1e30])
def test_highlight_by_hand(scale):
    maps = scale * torch.tensor([[[[3.0, -1.0], [0.0, 0.0]], [[0.0, 4.0], [0.0, 0.0]]]])
    where = torch.tensor([[[True, False], [False, False]]])
    torch.testing.assert_close(highlight(maps, where), torch.tensor([3 / 8 * 4]).double())
    torch.testing.assert_close(highlight(maps, torch.ones_like(where)), torch.ones(1).double())


def test_maps_that_say_nothing_have_no_highlight():
    maps, where = torch.rand(4, 1, 3, 3), torch.zeros(4, 3, 3, dtype=torch.bool)
    where[:, 0] = True
    maps[0], maps[1, 0, 2, 2], maps[2, 0, 2, 2] = 0, math.nan, math.inf
    maps[3, 0, 0] = 0
    for score in (highlight(maps, where), blank(maps, where)):
        assert score.isnan().tolist() == [True, True, True, False]
    assert highlight(maps, where)[3] == 0
    assert blank(maps, where)[3] == 1
    maps[3, 0, 0, 0] = 1e-38
    assert blank(maps, where)[3] == 0


@pytest.mark.parametrize("method", MULTIPLIED.values(), ids=MULTIPLIED)
def test_multiplied_maps_are_blind_to_black(subject, method):
    scores = scored(BlindColour(), subject, method)
    assert (scores["highlight"] == 0).all()
    assert (scores["exactly_zero"] == 1).all()
    assert (scores["contrast"] > 0.1).all()


@pytest.mark.parametrize("method", UNMULTIPLIED.values(), ids=UNMULTIPLIED)
def test_maps_without_the_factor_see_black(subject, method):
    scores = scored(BlindColour(), subject, method)
    assert (scores["highlight"] > 0.1).all()
    assert (scores["exactly_zero"] == 0).all()


@pytest.mark.parametrize("method", [a.LRP(), a.LRP(Epsilon(), Epsilon())], ids=["z+", "epsilon"])
def test_relevance_is_blind_to_what_the_normalisation_makes_zero(subject, method):
    assert (scored(BlindColour(colour=MEAN), subject, method)["exactly_zero"] == 1).all()
    assert (scored(BlindColour(), subject, method)["exactly_zero"] == 0).all()


def test_the_blind_colour_of_a_path_is_that_of_its_baseline(subject):
    grey = a.IntegratedGradients(steps=3, baseline=0.5)
    assert (scored(BlindColour(colour=0.5, other=0.0), subject, grey)["exactly_zero"] == 1).all()
    assert (scored(BlindColour(colour=0.0), subject, grey)["exactly_zero"] == 0).all()


def test_a_linear_model_in_closed_form():
    case = linear_case()
    own = case.weight[case.target].view_as(case.inputs)
    given = (case.model, case.inputs, case.target)
    scores = scored(BlindColour(share=0.2), given, a.Saliency())
    with randomness.keyed(0, torch.arange(len(case.inputs))):
        where = patches(case.inputs, randomness.keys(case.inputs, "painted patch"), 0.2)
    expected = (own.abs().sum(1) * where).sum((1, 2)) / own.abs().sum((1, 2, 3)) / where.double().mean((1, 2))
    for name in ("highlight", "contrast"):
        torch.testing.assert_close(scores[name], expected)


def test_a_random_map_highlights_a_patch_as_any_place():
    inputs = torch.rand(64, 1, 16, 16)
    net = nn.Sequential(nn.Flatten(), nn.Linear(256, 3)).eval()
    scores = scored(BlindColour(), (net, inputs, torch.zeros(64, dtype=torch.int64)), RandomMap())
    for name in ("highlight", "contrast"):
        assert abs(float(scores[name].mean()) - 1) < 0.03


@pytest.mark.parametrize(
    ("argument", "said"),
    [
        ({"colour": 1.5}, "`colour` must lie in"),
        ({"other": (0.5, -1.0)}, "`other` must lie in"),
        ({"colour": ()}, "`colour` must have a value"),
        ({"colour": 0.5}, "`other` must differ"),
        ({"share": 1.0}, "`share` must lie between"),
    ],
    ids=str,
)
def test_arguments_are_refused_in_one_line(argument, said):
    with pytest.raises(ValueError, match=said) as refusal:
        BlindColour(**argument)
    assert "\n" not in str(refusal.value)


def test_a_colour_of_other_channels_is_refused_before_the_run():
    facts = Facts(nn.Identity(), (1, 8, 8), 10, 4, 2, False, torch.device("cpu"))
    BlindColour(colour=0.5, other=(1.0,)).check("blind", facts)
    with pytest.raises(ValueError, match="`blind` must have colours of one value, or one per channel, got 3"):
        BlindColour(colour=(0.1, 0.2, 0.3)).check("blind", facts)
    with pytest.raises(ValueError, match="got 2 values for images of 3 channels"):
        BlindColour(colour=(0.1, 0.2)).check("blind", dataclasses.replace(facts, shape=(3, 8, 8)))


def test_polarity_is_spearman_of_brightness_and_size():
    inputs, maps = torch.rand(3, 2, 6, 7), torch.randn(3, 2, 6, 7)
    scores = Polarity().named(inputs=inputs, attributions=maps)
    for row in range(3):
        x, size = inputs[row].sum(0), maps[row].abs().sum(0)
        expected = stats.spearmanr(x.flatten(), size.flatten()).statistic
        assert float(scores["spearman"][row]) == pytest.approx(expected)
        dark = x < x.mean()
        meant = float(size[dark].sum() / size.sum() / dark.double().mean())
        assert float(scores["dark"][row]) == pytest.approx(meant)


def test_polarity_of_a_picture_of_the_image_and_of_none():
    inputs = torch.rand(2, 1, 8, 8)
    scores = Polarity().named(inputs=inputs, attributions=-3 * inputs)
    torch.testing.assert_close(scores["spearman"], torch.ones(2).double())
    assert (scores["dark"] < 0.7).all()
    blind = inputs * (inputs > 0.6)
    assert (dark_share(blind, inputs) == 0).all()
    flat = torch.full_like(inputs, 0.5)
    for name, column in Polarity().named(inputs=flat, attributions=blind).items():
        assert column.isnan().all(), name
    assert Polarity().named(inputs=inputs, attributions=torch.ones(2, 1, 8, 8))["spearman"].isnan().all()
    for broken in (math.nan, math.inf):
        blind[0, 0, 0, 0] = broken
        for column in Polarity().named(inputs=inputs, attributions=blind).values():
            assert column.isnan().tolist() == [True, False]


@pytest.mark.parametrize("level", [0.1, 0.3, 0.7])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_an_image_of_one_brightness_has_nothing_dark_however_its_mean_is_rounded(level, dtype):
    for side in (9, 28, 30):
        flat = torch.full((1, 3, side, side), level, dtype=dtype)
        assert dark_share(torch.rand_like(flat), flat).isnan().all()


def test_the_curve_of_a_linear_model_in_closed_form():
    case = linear_case()
    where = torch.zeros(6, 5, 5, dtype=torch.bool)
    where[:, 1:3, 2:5] = True
    levels = [0.0, 0.25, 0.5, 1.0]
    grey = a.IntegratedGradients(steps=3, baseline=0.25)
    curve = colour_curve(grey, case.model, case.inputs, case.target, where, levels)
    inside = (case.weight[case.target].view_as(case.inputs).abs().sum(1) * where).sum((1, 2)) / 6
    expected = inside[:, None] * (torch.tensor(levels, dtype=torch.float64) - 0.25).abs()
    torch.testing.assert_close(curve, expected)
    shape = v_shape(curve, levels)
    assert (shape["minimum"] == 0.25).all()
    torch.testing.assert_close(shape["depth"], torch.ones(6).double())


@dataclasses.dataclass(frozen=True)
class Cracked(a.Attribution):
    """Ones, and at the first pixel of the first image what is no number."""

    def maps(self, model, inputs, target):
        maps = torch.ones_like(inputs)
        maps[0, 0, 0, 0] = math.nan
        return maps


def test_the_curve_of_a_map_that_is_broken_elsewhere_is_missing():
    case, where = linear_case(), torch.zeros(6, 5, 5, dtype=torch.bool)
    where[:, 1:3, 2:5] = True
    curve = colour_curve(Cracked(), case.model, case.inputs, case.target, where, [0.0, 1.0])
    assert curve.isnan().all(1).tolist() == [True] + [False] * 5
    assert (curve[1:] == case.inputs.shape[1]).all()


def test_v_shapes_by_hand():
    rows = [[2, 1, 4], [0, 1, 2], [1, 1, 1], [0, 3, 0], [1, math.nan, 2], [1, 3, 1], [1, math.inf, 2]]
    shape = v_shape(torch.tensor(rows, dtype=torch.float32), [0.0, 0.5, 1.0])
    meant = {
        "minimum": [0.5, 0, math.nan, math.nan, math.nan, 0, math.nan],
        "depth": [2 / 3, 1, 0, math.nan, math.nan, 0, math.nan],
    }
    for name, column in meant.items():
        torch.testing.assert_close(shape[name], torch.tensor(column).double(), equal_nan=True)


def test_a_sweep_finds_the_blind_colour(subject):
    scores = scored(ColourSweep(steps=5), subject, a.InputXGradient())
    assert (scores["minimum"] == 0).all()
    torch.testing.assert_close(scores["depth"], torch.ones(5).double())
    grey = scored(ColourSweep(steps=5), subject, a.IntegratedGradients(steps=3, baseline=0.5))
    assert (grey["minimum"] == 0.5).all()
    torch.testing.assert_close(grey["depth"], torch.ones(5).double())
    plain = scored(ColourSweep(steps=5), subject, a.Saliency())
    assert float(plain["depth"].mean()) < 0.5


@pytest.mark.parametrize(("metric", "maps"), [(BlindColour(), 2), (ColourSweep(steps=4), 4), (Polarity(), 0)])
def test_what_it_costs(subject, metric, maps):
    net, inputs, target = subject
    counted = Counted(net).eval()
    explain(counted, inputs, target, {"map": a.Saliency()}, {"metric": metric}, 0)
    assert counted.forwards == counted.backwards == (1 + maps) * len(inputs)


def test_patches_of_two_sizes_in_one_run_are_those_of_two_runs(subject):
    net, inputs, target = subject
    metrics = {"small": BlindColour(share=0.1), "large": BlindColour(share=0.5), "sweep": ColourSweep(3, 0.1)}
    methods = {"map": a.Saliency()}
    both = explain(net, inputs, target, methods, metrics, 0).scores["map"]
    for name, metric in metrics.items():
        torch.testing.assert_close(both[name], scored(metric, subject, a.Saliency()))
    assert not torch.allclose(both["small"]["contrast"], both["large"]["contrast"])


def test_two_methods_share_the_painted_images_and_so_a_search(subject):
    net, inputs, target = subject
    counted, search = Counted(net).eval(), ClosestBoundary(starts=0, first=2, last=0)
    methods = {"plain": a.BoundarySaliency(search), "margin": a.BoundarySaliency(search, "margin")}
    explain(counted, inputs, target, {"plain": methods["plain"]}, {"metric": BlindColour()}, 0)
    alone, counted.forwards = counted.forwards, 0
    explain(counted, inputs, target, methods, {"metric": BlindColour()}, 0)
    assert counted.forwards == alone + 3 * len(inputs)
