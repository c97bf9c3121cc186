"""Complexity against its definitions, its extremes, its slow twins and other libraries."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from torchmetrics.functional.image import total_variation as library_variation

from lit_xai.metrics import AbsoluteSum, Gini, SignedSum
from lit_xai.metrics.complexity import (
    Entropy,
    HighFrequency,
    ParticipationRatio,
    TotalVariation,
    core,
    entropy,
    gini,
    high_frequency,
    participation_ratio,
    total_variation,
)

EVERY = (gini, entropy, participation_ratio, core, total_variation, high_frequency)
each = pytest.mark.parametrize("score", EVERY, ids=lambda score: score.__name__)


def pairs(values):
    """Half the mean absolute difference of all pairs, over the mean."""
    values = np.abs(values.astype(np.float64)).ravel()
    return np.abs(values[:, None] - values[None, :]).mean() / (2 * values.mean())


def information(values):
    shares = np.abs(values.astype(np.float64)).ravel()
    return stats.entropy(shares) / np.log(shares.size)


def participation(values):
    sizes = np.abs(values.astype(np.float64)).ravel()
    return sizes.sum() ** 2 / (sizes.size * (sizes**2).sum())


def fewest(values):
    """Pixels taken one by one, the largest first, until they carry 90 %."""
    sizes = sorted(np.abs(values.astype(np.float64)).ravel(), reverse=True)
    carried, count = 0.0, 0
    while carried < 0.9 * sum(sizes):
        carried, count = carried + sizes[count], count + 1
    return count / len(sizes)


def steps(values):
    values = values.astype(np.float64)
    height, width = values.shape
    down = sum(abs(values[y + 1, x] - values[y, x]) for y in range(height - 1) for x in range(width))
    across = sum(abs(values[y, x + 1] - values[y, x]) for y in range(height) for x in range(width - 1))
    return (down + across) / np.abs(values).sum()


def ring(values):
    """Energy wave by wave, by the sum that defines the transform."""
    height, width = values.shape
    y, x = np.mgrid[:height, :width]
    high = whole = 0.0
    for row in range(height):
        for column in range(width):
            wave = np.exp(-2j * np.pi * (row * y / height + column * x / width))
            power = abs((values * wave).sum()) ** 2
            fy, fx = min(row, height - row) / height, min(column, width - column) / width
            whole, high = whole + power, high + power * (math.hypot(fy, fx) > 0.25 + 1e-9)
    return high / whole


TWINS = {
    gini: pairs,
    entropy: information,
    participation_ratio: participation,
    core: fewest,
    total_variation: steps,
    high_frequency: ring,
}


@each
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_it_equals_its_slow_twin(score, dtype):
    maps = torch.randn(6, 7, 9, dtype=dtype)
    expected = [TWINS[score](image.numpy()) for image in maps]
    np.testing.assert_allclose(score(maps).numpy(), expected, rtol=1e-9)


@pytest.mark.parametrize("side", [1, 2, 28, 224])
def test_one_pixel_has_everything(side):
    maps, pixels = torch.zeros(1, side, side), side**2
    maps[0, side // 2, side // 2] = -0.3
    assert float(gini(maps)) == pytest.approx(1 - 1 / pixels, abs=1e-12)
    assert float(participation_ratio(maps)) == pytest.approx(1 / pixels, abs=1e-12)
    assert float(core(maps)) == pytest.approx(1 / pixels, abs=1e-12)
    if side == 1:
        assert entropy(maps).isnan()
    else:
        assert float(entropy(maps)) == 0
    assert float(total_variation(maps)) == {1: 0, 2: 2}.get(side, 4)


@pytest.mark.parametrize("shape", [(28, 28), (10, 10), (5, 9)], ids=str)
def test_a_constant_map(shape):
    maps, pixels = torch.full((1, *shape), 0.1), math.prod(shape)
    assert float(gini(maps)) == pytest.approx(0, abs=1e-12)
    assert float(entropy(maps)) == pytest.approx(1, abs=1e-12)
    assert float(participation_ratio(maps)) == pytest.approx(1, abs=1e-12)
    assert float(core(maps)) == math.ceil(0.9 * pixels - 1e-9) / pixels
    assert float(total_variation(maps)) == 0
    assert float(high_frequency(maps)) == pytest.approx(0, abs=1e-12)


@pytest.mark.parametrize("equal", [1, 3, 50])
def test_a_map_that_is_equal_on_some_pixels(equal):
    maps = torch.zeros(1, 100)
    maps[0, torch.randperm(100)[:equal]] = 2.0
    maps = maps.reshape(1, 10, 10)
    assert float(participation_ratio(maps)) == pytest.approx(equal / 100)
    assert float(entropy(maps)) == pytest.approx(math.log(equal) / math.log(100))
    assert float(core(maps)) == pytest.approx(math.ceil(0.9 * equal) / 100)
    assert float(core(maps, 1.0)) == pytest.approx(equal / 100)


def test_a_sum_that_misses_the_mark_by_its_last_digit_has_reached_it():
    mass = 0.07  # of 100 pixels, which in binary are 7.000000000000001
    assert mass * 100 > 7
    assert float(core(torch.ones(1, 10, 10), mass)) == pytest.approx(0.07)


def test_a_uniform_map_has_a_gini_index_of_a_third_and_a_participation_ratio_of_three_quarters():
    maps = torch.rand(1, 400, 400)
    assert float(gini(maps)) == pytest.approx(1 / 3, abs=4 * 0.3 / 400)
    assert float(participation_ratio(maps)) == pytest.approx(3 / 4, abs=0.01)
    assert float(core(maps)) == pytest.approx(1 - math.sqrt(0.1), abs=0.01)


def test_variation_equals_that_of_torchmetrics():
    maps = torch.randn(5, 6, 11, dtype=torch.float64)
    expected = library_variation(maps[:, None], reduction="none") / maps.abs().sum((1, 2))
    torch.testing.assert_close(total_variation(maps), expected)


def test_a_checkerboard_is_rough_as_long_as_signs_count():
    board = 1 - 2 * ((torch.arange(8)[:, None] + torch.arange(8)) % 2)
    maps = board[None, None].double()
    assert float(TotalVariation().score(maps)) == pytest.approx(2 * 2 * 7 * 8 / 64)
    assert float(TotalVariation(AbsoluteSum()).score(maps)) == 0
    assert float(HighFrequency(0.99).score(maps)) == pytest.approx(1)
    assert float(HighFrequency(0.5, AbsoluteSum()).score(maps)) == pytest.approx(0)


@pytest.mark.parametrize(("waves", "cutoff", "share"), [(4, 0.49, 1), (4, 0.5, 0), (3, 0.5, 0), (5, 0.5, 1)])
def test_a_wave_lies_above_the_cutoff_or_not(waves, cutoff, share):
    wave = torch.sin(2 * torch.pi * waves * torch.arange(16, dtype=torch.float64) / 16 + 0.3)
    assert float(high_frequency(wave.expand(1, 12, 16), cutoff)) == pytest.approx(share)
    assert float(high_frequency(wave[:, None].expand(1, 16, 12), cutoff)) == pytest.approx(share)


def test_white_noise_has_its_energy_all_over_the_square():
    shares = high_frequency(torch.randn(50, 40, 40), 0.5)
    assert float(shares.mean()) == pytest.approx(1 - math.pi / 16, abs=0.01)


@each
@pytest.mark.parametrize("scale", [1e-38, 1e-9, -1, 1e9, 1e37])
def test_the_scale_does_not_matter(score, scale):
    maps = torch.rand(3, 8, 8) + 0.1
    torch.testing.assert_close(score(maps * scale), score(maps), rtol=0, atol=1e-6)


@each
@pytest.mark.parametrize("broken", [math.nan, math.inf, -math.inf])
def test_a_map_that_is_no_answer_has_no_score(score, broken):
    maps = torch.rand(4, 5, 5)
    maps[1] = 0
    maps[3, 2, 2] = broken
    assert score(maps).isnan().tolist() == [False, True, False, True]
    assert score(maps[:0]).shape == (0,)


@pytest.mark.parametrize(
    "metric", [Gini(), Entropy(), ParticipationRatio(), TotalVariation(), HighFrequency()], ids=str
)
def test_zero_maps_are_counted_as_missing(metric):
    maps = torch.rand(4, 2, 5, 5)
    maps[1] = 0
    metric.update(attributions=maps)
    assert {spread["missing"] for spread in metric.spread().values()} == {1}
    assert all(value.isfinite() for value in metric.compute().values())


def test_channels_are_added_up_by_the_reduction():
    maps = torch.randn(3, 2, 5, 5)
    for reduction, single in ((AbsoluteSum(), maps.abs().sum(1)), (SignedSum(), maps.sum(1))):
        torch.testing.assert_close(Gini(reduction).score(maps), gini(single))
        torch.testing.assert_close(Entropy(reduction).score(maps), entropy(single))
        seen = ParticipationRatio(reduction, mass=0.5).score(maps)
        torch.testing.assert_close(seen["ratio"], participation_ratio(single))
        torch.testing.assert_close(seen["core"], core(single, 0.5))
        torch.testing.assert_close(HighFrequency(0.7, reduction).score(maps), high_frequency(single, 0.7))
    assert not torch.allclose(Gini().score(maps), Gini(SignedSum()).score(maps))


def test_sparse_and_smooth_is_better():
    assert Gini().higher_is_better is True
    for metric in (Entropy(), ParticipationRatio(), TotalVariation(), HighFrequency()):
        assert metric.higher_is_better is False


@pytest.mark.parametrize("mass", [0, -0.1, 1.1, math.nan])
def test_the_mass_is_checked(mass):
    with pytest.raises(ValueError, match=r"`mass` must lie in \(0, 1\], got"):
        ParticipationRatio(mass=mass)


@pytest.mark.parametrize(("cutoff", "rule"), [(0, "greater than 0"), (1, "less than 1"), (math.nan, "great")])
def test_the_cutoff_is_checked(cutoff, rule):
    with pytest.raises(ValueError, match=f"`cutoff` must be {rule}"):
        HighFrequency(cutoff=cutoff)


@pytest.fixture
def quantus():
    return pytest.importorskip("quantus", exc_type=ImportError)


def judged(metric, maps):
    """What Quantus says of maps; model, images and labels do not matter."""
    images = np.zeros((len(maps), 1, *maps.shape[1:]))
    given = maps[:, None].numpy().copy()
    return metric(model=None, x_batch=images, y_batch=np.zeros(len(maps), int), a_batch=given)


def test_sparseness_of_quantus_is_the_gini_index(quantus):
    maps = torch.rand(4, 9, 9, dtype=torch.float64)
    seen = judged(quantus.Sparseness(disable_warnings=True, normalise=False), maps)
    np.testing.assert_allclose(gini(maps).numpy(), seen, atol=1e-5)


def test_complexity_of_quantus_is_the_entropy_and_ours_leaves_the_maps_alone(quantus):
    maps = torch.rand(4, 9, 9, dtype=torch.float64)
    before = maps.clone()
    theirs = quantus.Complexity(disable_warnings=True, normalise=False)
    np.testing.assert_allclose(entropy(maps).numpy(), np.array(judged(theirs, maps)) / np.log(81), atol=1e-6)
    assert torch.equal(maps, before)
    given = maps.numpy().copy()
    theirs.evaluate_batch(x_batch=given, a_batch=given)
    assert not np.array_equal(given, before.numpy())  # theirs divides in place


def test_a_map_is_as_complex_in_company_as_alone(quantus):
    # A faint map beside a strong one: Quantus scales both by the maximum of the batch.
    faint, strong = 1e-4 * torch.rand(1, 28, 28, dtype=torch.float64), torch.rand(1, 28, 28).double()
    company = torch.cat([faint, strong])
    theirs = quantus.EffectiveComplexity(disable_warnings=True, abs=True, normalise=True)
    alone, together = judged(theirs, faint)[0], judged(theirs, company)[0]
    assert together < alone - 50
    for score in EVERY:
        torch.testing.assert_close(score(company)[:1], score(faint), rtol=1e-12, atol=0)
