"""Confidence sequences: a martingale by sums and integrals, exact failure rates, and what they save."""

import math
from itertools import pairwise

import numpy as np
import pytest
import torch
from scipy import integrate, stats
from test_models_smoothed import Halfspaces, Votes, linear
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.models import Smoothed
from lit_xai.models.certificates import (
    _PRIOR,
    _log_mixture,
    anytime_lower_bound,
    certified_radius,
    looks,
    lower_confidence_bound,
    possible_radii,
    radius_of,
    settled,
)


def failure(wrong: np.ndarray, share: float) -> float:
    """Probability that a path of counts ever enters `wrong[samples, count]`: exact."""
    alive, lost = np.ones(1), 0.0
    for row in wrong[1:]:
        moved = np.append(0, share * alive) + np.append((1 - share) * alive, 0)
        here = row[: len(moved)]
        lost += moved[here].sum()
        alive = np.where(here, 0.0, moved)
    return float(lost)


@pytest.mark.parametrize(("alpha", "naive"), [(0.05, 0.19), (0.001, 0.005)])
def test_the_sequence_fails_less_often_than_alpha_at_all_times_together_and_peeking_does_not(alpha, naive):
    limit = 300
    samples, count = np.meshgrid(np.arange(limit + 1), np.arange(limit + 1), indexing="ij")
    possible = (count <= samples) & (samples > 0)
    anytime, fixed = np.zeros(possible.shape), np.zeros(possible.shape)
    anytime[possible] = anytime_lower_bound(count[possible], samples[possible], alpha)
    for size in range(1, limit + 1):
        fixed[size, : size + 1] = lower_confidence_bound(np.arange(size + 1), size, alpha)
    for share in (0.5, 0.7, 0.9):
        assert 0.7 * alpha < failure(anytime > share, share) <= alpha
        assert failure(fixed > share, share) > naive
    assert (anytime <= fixed)[possible & (count > 0)].all()


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.6, 0.95, 0.995])
def test_simulated_paths_that_are_looked_at_after_each_vote(share):
    alpha, limit, paths = 0.02, 1500, 2000
    votes = np.random.default_rng(0).random((paths, limit), dtype=np.float32) < share
    counts, times = votes.cumsum(axis=1), np.arange(1, limit + 1)
    log_q = math.log1p(-share)
    over = _log_mixture(np.maximum(counts, 1), times, log_q) >= -math.log(alpha)
    failed = int((over & (counts > 0)).any(axis=1).sum())
    assert stats.binomtest(failed, paths, alpha, alternative="greater").pvalue > 1e-3
    assert failed > 0.4 * alpha * paths


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("samples", [1, 17, 400])
def test_the_mixture_has_mean_one_under_the_share(samples, share):
    counts = np.arange(samples + 1)
    mixture = np.empty(samples + 1)
    mixture[1:] = np.exp(_log_mixture(counts[1:], samples, math.log1p(-share)))
    mixture[0] = _PRIOR / (_PRIOR + samples)  # E u^t
    assert stats.binom.pmf(counts, samples, share) @ mixture == pytest.approx(1, rel=1e-9)


@pytest.mark.parametrize(("count", "samples", "share"), [(9, 10, 0.6), (40, 50, 0.7), (100, 100, 0.95)])
def test_the_mixture_is_the_mean_of_likelihood_ratios(count, samples, share):
    def ratio(v: float) -> float:  # u = v^(1/b) is Beta(b, 1) for a uniform v
        u = v ** (1 / _PRIOR)
        return ((1 - u * (1 - share)) / share) ** count * u ** (samples - count)

    mean, _ = integrate.quad(ratio, 0, 1, epsabs=0, epsrel=1e-10)
    assert math.exp(_log_mixture(count, samples, math.log1p(-share))) == pytest.approx(mean, rel=1e-8)


def test_the_bound_parts_what_is_rejected_from_what_is_not():
    rng = np.random.default_rng(1)
    samples = rng.integers(1, 5000, 200)
    counts = np.maximum(1, (samples * rng.random(200) ** 0.2).astype(int))
    counts[:20] = samples[:20]
    for alpha in (0.5, 0.05, 1e-6):
        bound = anytime_lower_bound(counts, samples, alpha)
        assert ((bound > 0) & (bound < counts / samples)).all()
        shares = np.linspace(0, 1, 402)[1:-1, None]
        rejected = _log_mixture(counts, samples, np.log1p(-shares)) >= -np.log(alpha)
        np.testing.assert_array_equal(rejected, shares <= bound)  # all below one point, and no others
        at = _log_mixture(counts, samples, np.log1p(-bound))
        assert at == pytest.approx(-np.log(alpha), abs=1e-6)


def test_bounds_at_the_ends():
    assert anytime_lower_bound(0, 50, 0.01) == 0
    assert isinstance(anytime_lower_bound(3, 5, 0.01), float)
    assert anytime_lower_bound(np.array([[1, 2]]), 2, 0.01).shape == (1, 2)
    top = radius_of(anytime_lower_bound(100_000, 100_000, 0.001), 1.0)
    assert 0.99 * 3.811457 < top < 3.811457  # the price of being valid at all times
    for wrong in (0.0, 0.6, 1.0):
        with pytest.raises(ValueError, match=r"`alpha` must lie above 0 and be at most 0\.5"):
            anytime_lower_bound(1, 2, wrong)
    with pytest.raises(ValueError, match="`count` must lie between 0 and"):
        anytime_lower_bound(3, 2, 0.1)
    with pytest.raises(ValueError, match="`samples` must be at least 1"):
        anytime_lower_bound(0, 0, 0.1)


def spent(share: float, limit: int, **words) -> tuple[np.ndarray, np.ndarray]:
    """Votes spent by 60 simulated images, and their votes for the class."""
    rng = np.random.default_rng(2)
    open_, count, used = np.ones(60, dtype=bool), np.zeros(60, dtype=np.int64), np.zeros(60, dtype=np.int64)
    for first, last in pairwise([0, *looks(limit)]):
        count[open_] += rng.binomial(last - first, share, open_.sum())
        used[open_] = last
        if last < limit and open_.any():
            open_[open_] = ~settled(count[open_], last, limit, **words)
    return used, count


@pytest.mark.parametrize("share", [0.99, 0.999, 0.9999, 1.0])
def test_easy_images_spend_a_quarter_at_most_and_lose_little(share):
    used, count = spent(share, 100_000, alpha=0.001, tolerance=0.1)
    assert used.max() <= 25_000
    radius = radius_of(anytime_lower_bound(count, used, 0.001), 1.0)
    fixed = certified_radius(round(share * 100_000), 100_000, 0.001, 1.0)
    assert radius.mean() > 0.88 * fixed


def test_what_is_hopeless_stops_and_what_is_close_goes_on():
    assert spent(0.3, 100_000, alpha=0.001, tolerance=0.1)[0].max() < 1000
    assert spent(0.501, 5000, alpha=0.001, tolerance=0.1)[0].min() > 4000
    assert spent(0.9, 3000, alpha=0.001, tolerance=0.0)[0].min() == 3000


def test_radii_are_decided():
    goals = (0.5, 1.0)
    used, count = spent(0.99, 100_000, alpha=0.001, tolerance=0.1, goals=goals)
    assert used.max() < 500  # its radius is 2.3
    assert (radius_of(anytime_lower_bound(count, used, 0.001), 1.0) >= 1).all()
    used, count = spent(0.75, 100_000, alpha=0.001, tolerance=0.1, goals=goals)
    assert used.max() < 10_000  # 0.67: above one, below the other
    radius = radius_of(anytime_lower_bound(count, used, 0.001), 1.0)
    assert ((radius >= 0.5) & (radius < 1)).all()
    assert spent(stats.norm.cdf(0.5), 3000, alpha=0.001, tolerance=0.1, goals=goals)[0].min() > 2000


@pytest.mark.parametrize("goal", [8.5, 40.0])
def test_radii_that_no_number_of_votes_can_reach_are_decided_at_once(goal):
    assert settled(np.array([60, 99, 100]), 100, 100_000, 0.001, 0.1, (goal,)).all()
    assert not settled(np.array([60, 99, 100]), 100, 100_000, 0.001, 0.1, (goal, 3.0)).all()


def test_looks_end_with_the_limit():
    assert looks(40) == [40]
    assert looks(110) == [100, 110]
    found = looks(100_000)
    assert found[-1] == 100_000
    assert all(a < b <= max(a + 25, 1.0625 * a) for a, b in pairwise(found))


def test_numbers_give_numbers_and_arrays_arrays():
    assert isinstance(certified_radius(99, 100, 0.01, 0.5), float)
    assert certified_radius(np.full((2, 3), 99), 100, 0.01, 0.5).shape == (2, 3)
    assert certified_radius(torch.tensor([99, 100]), 100, 0.01, 0.5).shape == (2,)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((-1, 10, 0.1), "`count` must lie between 0 and 10, got -1"),
        ((11, 10, 0.1), "`count` must lie between 0 and 10, got 11"),
        ((1, 0, 0.1), "`samples` must be at least 1, got 0"),
        ((1, 10, 0.0), "`alpha` must lie between 0 and 1, got 0.0"),
        ((1, 10, 1.0), "`alpha` must lie between 0 and 1"),
    ],
)
def test_impossible_counts_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        lower_confidence_bound(*arguments)


def test_possible_radii_are_those_of_all_counts():
    every = possible_radii(1000, 0.001, 0.5)
    assert len(every) == 1000 - 550 + 1
    assert (every[0] > 0, bool((np.diff(every) > 0).all())) == (True, True)
    assert every[-1] == certified_radius(1000, 1000, 0.001, 0.5)
    assert np.isin(certified_radius(np.array([600, 999]), 1000, 0.001, 0.5), every).all()


def sequential(net: nn.Module, images: Tensor, ids: Tensor, **words):
    with randomness.keyed(3, ids):
        return Smoothed(net, 0.5).certify_sequentially(images, n0=20, **words)


@pytest.mark.parametrize("chunk", [3, 100_000])
def test_a_sequence_is_the_beginning_of_the_votes_of_the_fixed_mode(chunk):
    net, images, distance = linear()
    ids = torch.arange(6) + 40
    found = sequential(net, images, ids, n=3000, alpha=0.01, chunk=97)
    assert len(found.samples.unique()) > 2
    assert ((found.samples >= 100) & (found.samples <= 3000)).all()
    for row, samples in enumerate(found.samples.tolist()):
        with randomness.keyed(3, ids[[row]]):
            fixed = Smoothed(net, 0.5).certify(images[[row]], n0=20, n=samples, alpha=0.01)
        assert fixed.count == found.count[row]
        assert found.radius[row] <= fixed.radius
        assert found.radius[row] == radius_of(anytime_lower_bound(int(found.count[row]), samples, 0.01), 0.5)
    assert (found.radius <= distance.abs()).all()
    some = torch.tensor([4, 1])
    part = sequential(net, images[some], ids[some], n=3000, alpha=0.01, chunk=chunk)
    for name in ("label", "radius", "count", "samples"):
        assert torch.equal(getattr(part, name), getattr(found, name)[some])


def test_images_that_have_stopped_are_not_passed():
    net, images, _ = linear()
    assert isinstance(net, Halfspaces)
    found = sequential(net, images, torch.arange(6), n=2000, chunk=150)
    assert max(net.sizes) <= 150
    assert sum(net.sizes) == int(found.samples.sum()) + 6 * 20
    assert found.samples.min() < found.samples.max()
    assert sequential(net, images[:0], torch.arange(0), n=50).label.shape == (0,)


def test_sequential_certificates_fail_as_seldom_as_they_may():
    """The stopping rule sees the votes, and still at most alpha of the radii are too long."""
    share, alpha = 0.8, 0.05
    images = torch.zeros(1500, 1, 1, 1)
    with randomness.keyed(0, torch.arange(1500)):
        found = Smoothed(Votes(share), 1.0).certify_sequentially(
            images, n0=50, n=2000, alpha=alpha, tolerance=0.3
        )
    assert (found.label == 0).all()
    assert found.samples.double().mean() < 1000
    failures = int((found.radius > stats.norm.ppf(share)).sum())
    assert failures <= stats.binom.ppf(0.999, 1500, alpha)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"n0": 0}, "`n0` must be at least 1, got 0"),
        ({"tolerance": 1.0}, r"`tolerance` must lie in \[0, 1\), got 1.0"),
        ({"alpha": 0.7}, "`alpha` must lie above 0 and be at most 0.5, got 0.7"),
        ({"radii": (0.1, -1.0)}, "`radii` must be at least 0"),
    ],
)
def test_values_out_of_range_are_refused(words, message):
    with pytest.raises(ValueError, match=message):
        Smoothed(Votes(0.5), 1.0).certify_sequentially(torch.zeros(1, 1, 1, 1), **words)
