"""Certificates from votes: what counts of noisy answers prove about a smoothed classifier, and how far.

Two bounds of the probability of a class: for a number of votes fixed in advance, and for one that may depend
on the votes themselves.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from jaxtyping import Int
from numpy.typing import ArrayLike
from scipy import special
from torch import Tensor

from lit_xai.types import Flags, Labels, Scores, require, require_at_least, require_positive

ABSTAINED = -1
_PRIOR = 0.25  # b of the mixture below: small where shares near 1, the easy images, matter most
_HALVINGS = 52


@dataclass(frozen=True)
class Certificate:
    """What `Smoothed.certify` found, per image.

    Args:
        label: The certified class, -1 for an abstention.
        radius: l2 radius in pixel units in which the label holds, in float64; 0 for an abstention.
        count: Votes for the selected class, out of `samples`.
        samples: Votes of the estimation.
        alpha: Probability that the radius of one image is wrong.
        sigma: Standard deviation of the noise in pixel units.
    """

    label: Labels
    radius: Scores
    count: Int[Tensor, " batch"]
    samples: Int[Tensor, " batch"]
    alpha: float
    sigma: float

    @property
    def abstained(self) -> Flags:
        return self.label == ABSTAINED


def lower_confidence_bound(count: ArrayLike, samples: int, alpha: float) -> Any:
    """One-sided Clopper-Pearson bound: with probability 1 - alpha, the true share is at least this.

    p = BetaInv(alpha; k, n - k + 1), and 0 for k = 0. For k = n this is alpha^(1/n). It holds for a number of
    trials that was fixed before any was seen: see `anytime_lower_bound`.

    Args:
        count: Successes k, from 0 to `samples`: a number or an array of them.
        samples: Trials n, at least 1.
        alpha: Probability that the bound is wrong, in (0, 1).

    Returns:
        A float64 number, or an array of the shape of `count`.

    Source: Clopper and Pearson 1934, "The use of confidence or fiducial limits illustrated in the case of the
    binomial".
    """
    check_level(samples, alpha)
    k = _checked(count, samples)
    bound = special.betaincinv(np.maximum(k, 1), samples - k + 1.0, alpha)
    return np.where(k > 0, bound, 0.0)[()]


def anytime_lower_bound(count: ArrayLike, samples: ArrayLike, alpha: float) -> Any:
    """Lower bounds of a share that hold for all numbers of trials at once, with probability 1 - alpha.

    For k successes in t trials and a share p, let

        M_t(p) = E_q [ (q / p)^k ((1 - q) / (1 - p))^(t - k) ],  (1 - q) / (1 - p) ~ Beta(b, 1), b = 1/4,

    a mixture over alternatives q > p of the likelihood ratios of q against p. The bound is the smallest p
    with M_t(p) < 1 / alpha. Votes may be looked at after each draw, and drawing may stop for whatever reason.

    Why. If p is the true share, the next factor of each ratio has mean p (q/p) + (1 - p) (1-q)/(1-p) = 1,
    whatever came before, so that each ratio, and with it the mixture, is a nonnegative martingale that starts
    at 1. Ville's inequality says that such a process ever reaches 1 / alpha with probability alpha at most.
    Otherwise p is, at every t, among the shares with M_t(p) < 1 / alpha, and no smaller than the smallest.

    Why bisection finds it. For u = (1 - q) / (1 - p) the mean is a beta integral,

        M_t(p) = b B(k + 1, t - k + b) I_{1-p}(t - k + b, k + 1) / (p^k (1 - p)^(t - k + b)).

    With s = k / t, d log M / dp = (1 - 1/M) b / (1 - p) - t (s - p) / (p (1 - p)), which is negative where
    M > 1 and t (s - p) >= b p. Elsewhere, above s, no q does better than p, and M <= 1; between, M is at most
    (likelihood of s) / (likelihood of p) <= exp(t chi^2), which is below exp(b). So wherever M >= exp(b), it
    falls with p: the rejected shares are those below one point, for every alpha <= 1/2.

    Args:
        count: Successes k, from 0 to `samples`: a number or an array of them.
        samples: Trials t so far, at least 1: a number or an array of them.
        alpha: Probability that any of the bounds, for any t, is wrong; in (0, 0.5].

    Returns:
        A float64 number, or an array of the shape of `count`.

    Source: Ville 1939, "Etude critique de la notion de collectif" (the inequality); Robbins 1970,
    "Statistical methods related to the law of the iterated logarithm" (mixtures); Howard, Ramdas, McAuliffe
    and Sekhon 2021, arXiv 1810.08240 (confidence sequences; the one-sided beta-binomial mixture).
    Deviates: the prior is scaled into (p, 1) for each p, which gains log 1 / (1 - p) near 1.
    """
    require(0 < alpha <= 0.5, f"`alpha` must lie above 0 and be at most 0.5, got {alpha!r}.")
    t = np.asarray(samples, dtype=np.float64)
    require(bool(np.all(t >= 1)), f"`samples` must be at least 1, got {samples!r}.")
    k = np.asarray(_checked(count, t), dtype=np.float64)
    # Bisection for log(1 - p), between the observed share of misses, which is accepted, and 1.
    accepted = np.log(np.maximum(t - k, 1e-3) / t)
    rejected = np.zeros_like(accepted)
    for _ in range(_HALVINGS):
        log_miss = (accepted + rejected) / 2
        inside = _log_mixture(np.maximum(k, 1), t, log_miss) < -np.log(alpha)
        accepted, rejected = np.where(inside, (log_miss, rejected), (accepted, log_miss))
    return np.where(k > 0, -np.expm1(rejected), 0.0)[()]


def _log_mixture(k: Any, t: Any, log_miss: Any) -> Any:
    """By log(1 - p), the log of M_t(p) of `anytime_lower_bound`, for k >= 1; -inf if it is too small."""
    misses = t - k + _PRIOR
    with np.errstate(divide="ignore"):
        tail = np.log(special.betainc(misses, k + 1, np.exp(log_miss)))
        likelihood = k * np.log(-np.expm1(log_miss)) + misses * log_miss
    return np.log(_PRIOR) + special.betaln(k + 1, misses) + tail - likelihood


def certified_radius(count: ArrayLike, samples: int, alpha: float, sigma: float) -> Any:
    """The l2 radius within which the smoothed answer cannot change: sigma * PhiInv(p), or 0 to abstain.

    p is `lower_confidence_bound(count, samples, alpha)`. Below p = 1/2 nothing is certified.

    Args:
        count: Votes for the class, from 0 to `samples`: a number or an array of them.
        samples: Votes in all, at least 1.
        alpha: Probability that a radius is wrong, in (0, 1).
        sigma: Standard deviation of the noise in pixel units, greater than 0.

    Returns:
        A float64 number in pixel units, or an array of the shape of `count`.

    Source: Cohen, Rosenfeld and Kolter 2019, arXiv 1902.02918, theorem 1 and section 3.2.2.
    """
    require_positive(sigma=sigma)
    return radius_of(lower_confidence_bound(count, samples, alpha), sigma)


def radius_of(bound: ArrayLike, sigma: float) -> Any:
    """The radius that a lower bound of the class's probability proves; 0 below 1/2."""
    p = np.asarray(bound)
    return np.where(p >= 0.5, sigma * special.ndtri(np.maximum(p, 0.5)), 0.0)[()]


def possible_radii(samples: int, alpha: float, sigma: float) -> Any:
    """Every radius that `certified_radius` can give, in ascending order: one for each count that certifies.

    A radius that is logged and not among them was made with other terms, or with another bound.

    Args:
        samples: Votes in all, at least 1.
        alpha: Probability that a radius is wrong, in (0, 1).
        sigma: Standard deviation of the noise in pixel units, greater than 0.

    Source: arithmetic; one radius for each count of `certified_radius`.
    """
    counts = np.arange(samples // 2, samples + 1)
    certain = lower_confidence_bound(counts, samples, alpha) >= 0.5
    return certified_radius(counts[certain], samples, alpha, sigma)


def settled(
    count: ArrayLike,
    samples: int,
    limit: int,
    alpha: float,
    tolerance: float,
    goals: Sequence[float] = (),
) -> Any:
    """Whether more votes, up to `limit`, are not worth their cost. It cannot make a certificate wrong.

    Three reasons to stop: even the upper end of the confidence sequence, or `limit` with all votes to come
    for the class, would not exceed 1/2; or the radius is at least 1 - `tolerance` of that which `limit` votes
    give in the same proportion; or, where there are `goals`, in place of the latter, for each of them either
    the radius is reached already or one of the two ends lies below it.

    Args:
        count: Votes for the class so far, per image.
        samples: Votes so far.
        limit: The most votes there may be.
        alpha: Probability that a certificate is wrong.
        tolerance: Share of the radius that may be given away, in [0, 1).
        goals: Radii, in units of sigma.
    """
    k = np.asarray(count)

    def out_of_reach(radius: Any) -> Any:
        above = _proves(samples - k, samples, alpha, -radius)
        return above | ~_proves(k + limit - samples, limit, alpha, radius)

    hopeless = ~_proves(k, samples, alpha, 0.0) & out_of_reach(0.0)
    if goals:
        each = np.asarray(goals, dtype=np.float64)[:, None]
        return hopeless | (_proves(k, samples, alpha, each) | out_of_reach(each)).all(axis=0)
    wanted = (1 - tolerance) * np.interp(k / samples, *_radii_of_shares(limit, alpha))
    return hopeless | ((wanted > 0) & _proves(k, samples, alpha, wanted))


def _proves(count: Any, samples: int, alpha: float, radius: Any) -> Any:
    """Whether `anytime_lower_bound(count, samples, alpha)` is at least Phi(radius), of any sign."""
    log_miss = special.log_ndtr(-np.asarray(radius))  # of radii whose Phi rounds to 1, too
    mixture = _log_mixture(np.maximum(count, 1), float(samples), log_miss)
    return (count > 0) & (mixture >= -np.log(alpha))


@lru_cache(maxsize=8)
def _radii_of_shares(limit: int, alpha: float) -> tuple[Any, Any]:
    """Some shares of votes out of `limit`, and the radii that they prove, in units of sigma."""
    misses = np.unique(np.geomspace(1, limit // 2 + 1, 200).astype(np.int64)) - 1
    counts = (limit - misses)[::-1]
    return counts / limit, radius_of(anytime_lower_bound(counts, limit, alpha), 1.0)


def looks(limit: int) -> list[int]:
    """After how many votes a sequence is looked at: 100, then about 6 % more each time, `limit` last."""
    found = [min(100, limit)]
    while found[-1] < limit:
        found.append(min(limit, found[-1] + max(25, found[-1] // 16)))
    return found


def check_level(samples: int, alpha: float) -> None:
    """Refuse a number of votes or a probability that cannot be."""
    require_at_least(1, samples=samples)
    require(0 < alpha < 1, f"`alpha` must lie between 0 and 1, got {alpha!r}.")


def _checked(count: ArrayLike, samples: Any) -> Any:
    k = np.asarray(count)
    require(
        bool(np.all((k >= 0) & (k <= samples))), f"`count` must lie between 0 and {samples}, got {count!r}."
    )
    return k
