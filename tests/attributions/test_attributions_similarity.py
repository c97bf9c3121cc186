import itertools
import math

import numpy as np
import pytest
import scipy.stats
import torch
from torchmetrics.functional.image import structural_similarity_index_measure

from lit_xai.attributions.similarity import overlap, pearson, ranks, shares, spearman, ssim, top


def pairs(height=12, width=9, count=4):
    """Maps that are more and more alike, on scales that differ by orders of magnitude."""
    first, noise = torch.randn(2, count, height, width, dtype=torch.float64)
    weight = torch.linspace(0, 1, count, dtype=torch.float64)[:, None, None]
    return first, weight * first + (1 - weight) * noise


def slow_ssim(first, second, window=7):
    """Window by window, with the moments as they are defined."""
    span = max(first.max(), second.max()) - min(first.min(), second.min())
    a, b = (0.01 * span) ** 2, (0.03 * span) ** 2
    values = []
    for row, column in itertools.product(*(range(side - window + 1) for side in first.shape)):
        x, y = (image[row : row + window, column : column + window].ravel() for image in (first, second))
        covariance = np.mean((x - x.mean()) * (y - y.mean()))
        values.append(
            (2 * x.mean() * y.mean() + a)
            * (2 * covariance + b)
            / ((x.mean() ** 2 + y.mean() ** 2 + a) * (x.var() + y.var() + b))
        )
    return np.mean(values)


@pytest.mark.parametrize(("scale", "shift"), [(1.0, 0.0), (1e-6, 0.0), (1.0, 30.0)])
@pytest.mark.parametrize("window", [3, 7])
def test_ssim_is_the_mean_over_windows(scale, shift, window):
    first, second = (maps * scale + shift for maps in pairs())
    expected = [slow_ssim(x, y, window) for x, y in zip(first.numpy(), second.numpy(), strict=True)]
    torch.testing.assert_close(ssim(first, second, window), torch.tensor(expected), rtol=1e-8, atol=1e-8)
    torch.testing.assert_close(ssim(second, first, window), ssim(first, second, window))


def test_ssim_agrees_with_torchmetrics_in_windows_that_lie_within_the_maps():
    for x, y in zip(*pairs(20, 20), strict=True):
        span = float(torch.stack([x, y]).max() - torch.stack([x, y]).min())
        _, image = structural_similarity_index_measure(
            x[None, None], y[None, None], gaussian_kernel=False, kernel_size=7, data_range=span,
            return_full_image=True,
        )  # fmt: skip
        expected = image[0, 0, 3:-3, 3:-3].mean()
        torch.testing.assert_close(ssim(x[None], y[None])[0], expected, rtol=1e-6, atol=1e-6)


def test_ssim_of_equal_constant_and_small_maps():
    first, second = pairs(5, 4)
    assert torch.equal(ssim(first, first), torch.ones(4, dtype=torch.float64))
    expected = [slow_ssim(x, y, 4) for x, y in zip(first.numpy(), second.numpy(), strict=True)]
    torch.testing.assert_close(ssim(first, second), torch.tensor(expected))
    assert torch.equal(ssim(torch.full((1, 8, 8), 0.1), torch.full((1, 8, 8), 0.1)), torch.ones(1).double())
    with pytest.raises(ValueError, match="`window` must be odd and at least 3, got 4"):
        ssim(first, second, 4)


@pytest.mark.parametrize("digits", [1, 8])
def test_correlations_agree_with_scipy_also_where_values_are_equal(digits):
    first, second = (maps.mul(10**digits).round() / 10**digits for maps in pairs())
    flat = [maps.flatten(1).numpy() for maps in (first, second)]
    for mine, theirs in ((spearman, scipy.stats.spearmanr), (pearson, scipy.stats.pearsonr)):
        expected = [theirs(x, y).statistic for x, y in zip(*flat, strict=True)]
        torch.testing.assert_close(mine(first, second), torch.tensor(expected), rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_ranks_are_those_of_scipy_and_a_map_that_is_not_finite_has_none(dtype):
    maps = (3 * torch.randn(5, 12, 9, dtype=dtype)).round()
    maps[1], maps[3, 0, 0], maps[4, 1, 1] = 0.1, math.nan, -math.inf
    seen = ranks(maps)
    expected = scipy.stats.rankdata(maps[:3].flatten(1).numpy(), axis=1).reshape(3, 12, 9)
    np.testing.assert_array_equal(seen[:3].numpy(), expected)
    assert seen[3:].isnan().all()


def test_the_scale_of_a_map_does_not_change_a_correlation_and_a_constant_has_none():
    first, second = pairs()
    for measure in (spearman, pearson):
        torch.testing.assert_close(measure(first * 1e-200, second * 1e200), measure(first, second))
        torch.testing.assert_close(measure(first, -first), -torch.ones(4, dtype=torch.float64))
        assert measure(first, torch.full_like(first, 0.1)).isnan().all()


def test_overlap_counts_common_pixels():
    first, second = pairs()
    for share, count in ((0.1, 11), (0.5, 54), (1e-9, 1), (1.0, 108)):
        chosen = [[set(np.argsort(-x.numpy().ravel())[:count]) for x in maps] for maps in (first, second)]
        expected = [len(a & b) / count for a, b in zip(*chosen, strict=True)]
        torch.testing.assert_close(overlap(first, second, share), torch.tensor(expected).double())
        assert (top(first, share).sum((1, 2)) == count).all()
    assert torch.equal(overlap(torch.zeros(1, 4, 4), torch.zeros(1, 4, 4)), torch.ones(1).double())
    with pytest.raises(ValueError, match=r"`share` must lie in \(0, 1\], got 0"):
        overlap(first, second, 0)


@pytest.mark.parametrize("measure", [ssim, spearman, pearson, overlap])
@pytest.mark.parametrize("broken", [math.nan, math.inf])
def test_a_map_that_is_not_finite_has_no_likeness_and_leaves_the_others_alone(measure, broken):
    first, second = pairs()
    expected = measure(first, second)
    second[2, 1, 1] = broken
    seen = measure(first, second)
    assert seen[2].isnan()
    kept = torch.tensor([0, 1, 3])
    assert torch.equal(seen[kept], expected[kept])
    assert measure(first[:0], second[:0]).shape == (0,)


def test_shares_add_up_to_one_unless_the_map_is_zero():
    maps = torch.randn(3, 2, 4, 4) * torch.tensor([1.0, 1e-30, 0.0])[:, None, None, None]
    seen = shares(maps)
    torch.testing.assert_close(seen.sum((1, 2)), torch.tensor([1.0, 1.0, 0.0]))
    torch.testing.assert_close(seen[0], maps[0].abs().sum(0) / maps[0].abs().sum())
