"""Occlusion and ablation: a loop over windows, Captum, the grid, the passes."""

from itertools import pairwise

import captum.attr
import pytest
import torch
from subjects import Recorder

from lit_xai import randomness
from lit_xai.attributions import FeatureAblation, Occlusion
from lit_xai.attributions.baselines import NoiseImage
from lit_xai.attributions.perturbation import grid

TARGET = torch.tensor([0, 1, 2])


@pytest.fixture
def images(float64):
    return torch.rand(3, 2, 8, 8)


@pytest.mark.parametrize(("window", "stride"), [(4, 4), (4, 2), (3, 1), (1, 1), (8, 8)])
def test_captum_finds_the_same_fall_in_every_window(smooth_net, images, window, stride):
    theirs = captum.attr.Occlusion(smooth_net).attribute(
        images, (2, window, window), strides=(2, stride, stride), baselines=0.5, target=TARGET
    )
    ours = Occlusion(window=window, stride=stride, baseline=0.5)(smooth_net, images, TARGET)
    torch.testing.assert_close(ours, theirs / (2 * window**2))
    assert ours.abs().max() > 1e-4


@pytest.mark.parametrize(("window", "stride"), [(3, 3), (5, 2), (4, 3), (20, 20)])
def test_a_loop_over_windows_that_are_cut_off_at_the_edges(smooth_net, images, window, stride):
    images = images[..., :6].contiguous()  # not square
    images = torch.nn.functional.pad(images, (1, 1))
    score = smooth_net(images)[range(3), TARGET]
    total, windows = torch.zeros_like(images), torch.zeros_like(images)
    starts = range(0, max(1, 8 - window + stride), stride)
    for top in starts:
        for left in starts:
            place = (..., slice(top, top + window), slice(left, left + window))
            points = images.clone()
            points[place] = 0
            fall = score - smooth_net(points)[range(3), TARGET]
            total[place] += fall[:, None, None, None] / points[0][place].numel()
            windows[place] += 1
    assert windows.min() == 1
    ours = Occlusion(window=window, stride=stride)(smooth_net, images, TARGET)
    torch.testing.assert_close(ours, (total / windows).detach())


@pytest.mark.parametrize("segments", [1, 2, 3, 5, 8, 50])
def test_captum_finds_the_same_fall_in_every_segment(smooth_net, images, segments):
    down, across = grid(images, segments)
    rows, columns = down.argmax(0), across.argmax(0)
    segment = rows[:, None] * len(across) + columns
    theirs = captum.attr.FeatureAblation(smooth_net).attribute(
        images, baselines=0.25, target=TARGET, feature_mask=segment.expand(1, 2, 8, 8)
    )
    ours = FeatureAblation(segments=segments, baseline=0.25)(smooth_net, images, TARGET)
    size = 2 * segment.flatten().bincount()[segment]
    torch.testing.assert_close(ours, theirs / size)
    sums = ours.sum((1, 2, 3))
    values = torch.stack(
        [
            theirs[:, 0, (segment == part).nonzero()[0, 0], (segment == part).nonzero()[0, 1]]
            for part in segment.unique()
        ]
    )
    torch.testing.assert_close(sums, values.sum(0))


@pytest.mark.parametrize("size", [(7, 7), (8, 5), (3, 28), (1, 1)])
def test_the_grid_is_a_partition_even_to_one_pixel(size):
    for segments in (1, 2, 3, 7):
        for spans, length in zip(grid(torch.rand(1, 1, *size), segments), size, strict=True):
            assert spans.shape == (min(segments, length), length)
            assert torch.equal(spans.sum(0), torch.ones(length))
            widths = spans.sum(1)
            assert widths.max() - widths.min() <= 1
            firsts = spans.argmax(1).tolist()
            assert all(first < second for first, second in pairwise(firsts))


def test_a_drawn_baseline_belongs_to_its_image(smooth_net, images):
    with randomness.keyed(3, torch.arange(3)):
        ours = FeatureAblation(segments=1, baseline=NoiseImage())(smooth_net, images, TARGET)
        seen = NoiseImage()(images, randomness.keys(images, "baseline"))
    fall = (smooth_net(images) - smooth_net(seen))[range(3), TARGET]
    torch.testing.assert_close(ours.sum((1, 2, 3)), fall.detach())


def test_passes_are_exactly_one_per_window_and_one_for_the_whole(relu_net, batch):
    counted = Recorder(relu_net)
    Occlusion(window=4, stride=2, chunk=20)(counted, *batch)
    assert counted.calls == [20, 20, 10]  # 5 images, 9 windows
    counted.calls.clear()
    FeatureAblation(segments=3, chunk=64)(counted, *batch)
    assert counted.calls == [50]


@pytest.mark.parametrize(
    ("method", "settings", "message"),
    [
        (Occlusion, {"window": 0}, "`window` must be at least 1, got 0."),
        (Occlusion, {"stride": 0}, "`stride` must be at least 1, got 0."),
        (Occlusion, {"window": 3, "stride": 4}, "`stride` must be at most `window`, 3, got 4"),
        (Occlusion, {"baseline": 1.5}, r"`baseline` must lie in \[0, 1\], got 1.5."),
        (Occlusion, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
        (FeatureAblation, {"segments": 0}, "`segments` must be at least 1, got 0."),
        (FeatureAblation, {"baseline": -0.1}, r"`baseline` must lie in \[0, 1\], got -0.1."),
        (FeatureAblation, {"chunk": 0}, "`chunk` must be at least 1, got 0."),
    ],
)
def test_bad_settings_are_refused(method, settings, message):
    with pytest.raises(ValueError, match=message):
        method(**settings)
