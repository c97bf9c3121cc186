"""The Gini index against its definition, its extremes and its slow twin."""

import math

import numpy as np
import pytest
import torch

from lit_xai.metrics import AbsoluteSum, Gini, SignedSum
from lit_xai.metrics.complexity import gini


def twin(values):
    """Half the mean absolute difference of all pairs, over the mean."""
    values = np.abs(values.astype(np.float64)).ravel()
    pairs = np.abs(values[:, None] - values[None, :])
    return pairs.mean() / (2 * values.mean())


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_equals_the_mean_difference_of_pairs(dtype):
    maps = torch.randn(6, 7, 9, dtype=dtype)
    expected = [twin(image.numpy()) for image in maps]
    np.testing.assert_allclose(gini(maps).numpy(), expected, rtol=1e-12)


@pytest.mark.parametrize("side", [1, 2, 28, 224])
def test_one_pixel_has_everything(side):
    maps = torch.zeros(1, side, side)
    maps[0, side // 2, side // 2] = -0.3
    assert float(gini(maps)) == pytest.approx(1 - 1 / side**2, abs=1e-12)


def test_a_constant_map_has_none():
    assert float(gini(torch.full((1, 28, 28), 0.1))) == pytest.approx(0, abs=1e-12)


def test_a_uniform_map_has_a_third():
    assert float(gini(torch.rand(1, 400, 400))) == pytest.approx(1 / 3, abs=4 * 0.3 / 400)


@pytest.mark.parametrize("scale", [1e-38, 1e-9, 1e9, 1e37])
def test_the_scale_does_not_matter(scale):
    maps = torch.rand(3, 8, 8) + 0.1
    torch.testing.assert_close(gini(maps * scale), gini(maps), rtol=0, atol=1e-6)


@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_no_answer_has_no_index(broken):
    maps = torch.rand(4, 5, 5)
    maps[1] = 0
    maps[3, 2, 2] = broken
    assert gini(maps).isnan().tolist() == [False, True, False, True]
    metric = Gini()
    metric.update(attributions=maps[:, None])
    assert metric.spread()[""]["missing"] == 2


def test_channels_are_added_up_by_the_reduction():
    maps = torch.randn(3, 2, 5, 5)
    for reduction, single in ((AbsoluteSum(), maps.abs().sum(1)), (SignedSum(), maps.sum(1))):
        torch.testing.assert_close(Gini(reduction).score(maps), gini(single))
    assert not torch.allclose(Gini().score(maps), Gini(SignedSum()).score(maps))
