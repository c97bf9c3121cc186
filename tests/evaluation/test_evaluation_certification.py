"""Reports about certificates: by hand, against exact probabilities, and on logs that were made here."""

import math

import numpy as np
import pytest
from scipy import special, stats

from lit_xai.evaluation.certification import (
    Certified,
    at_least,
    certified,
    default_radii,
    envelope,
    read_table,
    released_bound,
    summary,
    unexplained,
)
from lit_xai.models.certificates import certified_radius, possible_radii

FOUR = Certified(
    radius=np.array([0.5, 0.2, 0.0, 1.0]),
    correct=np.array([True, True, False, False]),
    abstained=np.array([False, False, True, False]),
    sigma=0.25,
    alpha=0.001,
)


def test_accuracy_counts_what_is_right_and_reaches_the_radius():
    assert FOUR.accuracy(0.0) == 0.5
    assert FOUR.accuracy(0.2) == 0.5
    assert FOUR.accuracy([0.21, 0.5, 0.51]).tolist() == [0.25, 0.25, 0.0]
    assert FOUR.average_radius == pytest.approx(0.7 / 4)
    assert FOUR.average_radius_error == pytest.approx(np.std([0.5, 0.2, 0, 0], ddof=1) / 2)
    assert FOUR.abstention == 0.25


def test_the_average_radius_is_the_area_below_the_curve():
    rng = np.random.default_rng(0)
    radius = rng.random(300)
    found = Certified(radius, rng.random(300) < 0.7, np.zeros(300, dtype=bool))
    grid = np.linspace(0, 1, 20_001)
    assert np.trapezoid(found.accuracy(grid), grid) == pytest.approx(found.average_radius, abs=1e-4)


def test_the_envelope_is_the_best_at_each_radius():
    far = Certified(np.array([2.0, 0, 0, 0]), np.array([True, False, False, False]), np.zeros(4, dtype=bool))
    assert envelope([FOUR, far], [0, 0.5, 1.5]).tolist() == [0.5, 0.25, 0.25]


@pytest.mark.parametrize(("images", "alpha"), [(500, 0.001), (10_000, 0.001), (10_000, 0.01)])
def test_the_bound_fails_as_seldom_as_it_says_and_the_released_one_does_not(images, alpha):
    rho = 0.001
    wrong = round((0.9 - at_least(0.9, images, alpha, rho)) * images)
    assert stats.binom.sf(wrong, images, alpha) <= rho < stats.binom.sf(wrong - 1, images, alpha)
    loss = (0.9 - released_bound(0.9, images, alpha, rho)) * images
    by_hand = alpha + math.sqrt(alpha * (1 - alpha) * math.log(1000) / images) + math.log(1000) / (3 * images)
    assert loss == pytest.approx(by_hand * images)
    fails = stats.binom.sf(math.floor(loss), images, alpha)
    assert (fails > 2 * rho) == (images == 10_000 and alpha == 0.01)


def test_a_bound_is_no_less_than_nothing():
    assert at_least([0.0, 0.01], 10, 0.5).tolist() == [0.0, 0.0]
    with pytest.raises(ValueError, match="`images` must be at least 1"):
        at_least(0.5, 0, 0.001)


def test_the_summary_has_intervals_and_bounds():
    said = summary(FOUR, [0.0, 0.5])
    assert said["images"] == 4
    assert [point["accuracy"] for point in said["certified"]] == [0.5, 0.25]
    for point in said["certified"]:
        assert point["bound"] <= point["accuracy"]
        assert point["low"] < point["accuracy"] < point["high"]
    assert default_radii(FOUR) == [0.125 * k for k in range(9)]
    alone = Certified(np.array([0.1]), np.array([True]), np.array([False]), 0.25, 0.001)
    assert summary(alone)["average_radius_error"] is None
    assert default_radii(Certified(np.zeros(1), np.zeros(1, dtype=bool), np.ones(1, dtype=bool))) == [0.0]


def log(samples: int, alpha: float, sigma: float, images: int = 2000) -> np.ndarray:
    """Counts of a made-up log: shares near 1, as those of digits."""
    shares = special.ndtr(np.random.default_rng(3).normal(3.2, 0.5, images).clip(0.1))
    counts = np.random.default_rng(4).binomial(samples, shares)
    return counts[certified_radius(counts, samples, alpha, sigma) > 0]


def wilson_radius(counts: np.ndarray, samples: int, alpha: float, sigma: float) -> np.ndarray:
    z, share = stats.norm.isf(alpha), counts / samples
    middle = share + z * z / (2 * samples)
    reach = z * np.sqrt(share * (1 - share) / samples + z * z / (4 * samples**2))
    return sigma * special.ndtri((middle - reach) / (1 + z * z / samples))


@pytest.mark.parametrize(("form", "sigma"), [(".3", 0.25), (".4f", 0.25), ("", 0.25), ("", 1.0)])
def test_a_log_is_explained_by_its_own_terms_and_by_no_others(form, sigma):
    """What the check can see: power against wrong bounds grows with the digits that are printed."""
    samples, alpha = 100_000, 0.001
    counts = log(samples, alpha, sigma)

    def missed(radii: np.ndarray, against: int = samples) -> float:
        printed = [format(radius, form) for radius in radii.tolist()]
        return len(unexplained(printed, against, alpha, sigma, form)) / len(printed)

    right = certified_radius(counts, samples, alpha, sigma)
    assert missed(right) == 0
    twosided = certified_radius(counts, samples, alpha / 2, sigma)
    power = {".3": 0.1, ".4f": 0.3, "": 0.95}[form]
    assert missed(twosided) > power
    assert missed(wilson_radius(counts, samples, alpha, sigma)) > power
    assert missed(right, against=100_100) > power / 10
    # An error by one in the count stays unseen: the ends are tested in `test_models_smoothed.py`.
    assert missed(certified_radius(np.minimum(counts + 1, samples), samples, alpha, sigma)) == 0


def test_all_radii_of_few_votes_are_known_by_sight():
    assert possible_radii(100, 0.001, 1.0)[[0, -1]] == pytest.approx(
        [certified_radius(66, 100, 0.001, 1.0), 1.500475], abs=5.1e-7
    )
    assert unexplained(["1.5", "1.51", "0.0"], 100, 0.001, 1.0) == ["1.51", "0.0"]


def test_tables_of_others_can_be_read(tmp_path):
    path = tmp_path / "sigma_0.25"
    text = "idx\tlabel\tpredict\tradius\tcorrect\ttime\n0\t3\t3\t0.5\t1\t0:00:14.1\n1\t8\t-1\t0.0\t0\t9\n"
    path.write_text(text + "2\t8\t")  # torn
    found = certified(read_table(path))
    assert found.radius.tolist() == [0.5, 0.0]
    assert found.correct.tolist() == [True, False]
    assert found.abstained.tolist() == [False, True]
    path.write_text("idx\tradius\n")
    with pytest.raises(ValueError, match="lacks the column `correct`"):
        read_table(path)
    with pytest.raises(ValueError, match="`images` must be at least 1, got 0"):
        certified([])
