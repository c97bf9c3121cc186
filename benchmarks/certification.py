"""What certificates cost: `python -m benchmarks.certification [--save]`, from the repository.

* Efficiency: the time of a bare forward pass over that and all else that a vote costs: draws of noise, counts
  and bounds, measured with a network that costs nothing. A direct comparison of whole votes with bare passes
  stands beside it; caches make it differ by some per cent either way.
* Votes that the sequential mode spends, and the radius that it gives for them, by the share of votes for the
  class: against the fixed mode with all of them, of simulated votes.
* How often the bound is above the true share at any number of votes, and how often that of a fixed number
  would be: exact, by the distribution of counts that have not failed yet.
"""

import argparse
import json
from collections.abc import Callable
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import torch
from scipy import special, stats

from benchmarks.passes import bare_forward, clock, machine
from lit_xai import randomness
from lit_xai.models import ResNet20, SmallCNN, Smoothed
from lit_xai.models.certificates import (
    anytime_lower_bound,
    looks,
    lower_confidence_bound,
    radius_of,
    settled,
)

RESULTS = Path(__file__).parent / "results"
SHARES = (0.55, 0.7, 0.8, 0.9, 0.95, 0.99, 0.999, 0.9999, 1.0)


class Free(torch.nn.Module):
    """A network that costs nothing: what is left are draws, sums, counts and bounds."""

    def forward(self, inputs: torch.Tensor) -> torch.Tensor:
        return inputs.flatten(1)[:, :10]


def efficiency(
    net: Callable[[int, int], torch.nn.Module], size: int, votes: int, chunk: int
) -> dict[str, Any]:
    """Cost of a vote, beside that of a bare forward pass in as large a batch."""
    channels = 1 if size == 28 else 3
    model = net(channels, 10).eval().requires_grad_(False)
    images, copies = torch.rand(8, channels, size, size), torch.rand(chunk, channels, size, size)
    passes = len(images) * (votes + 100)
    whole, free = Smoothed(model, sigma=0.25), Smoothed(Free(), sigma=0.25)

    def certify(smoothed: Smoothed) -> None:
        with randomness.keyed(0, torch.arange(len(images))):
            smoothed.certify(images, n=votes, chunk=chunk)

    times = [
        (
            clock(lambda: bare_forward(model, copies), 3) / chunk,
            clock(lambda: certify(free)) / passes,
            clock(lambda: certify(whole)) / passes,
        )
        for _ in range(15)
    ]
    # In turn, and the best of each: others may use the machine too.
    bare, rest, vote = (1e6 * min(column) for column in zip(*times, strict=True))
    return {
        "net": net.__name__,
        "chunk": chunk,
        "microseconds of a bare pass": round(bare, 2),
        "of all but the pass": round(rest, 2),
        "of a vote": round(vote, 2),
        "efficiency": round(bare / (bare + rest), 3),
        "bare / vote": round(bare / vote, 3),
    }


def spending(limit: int, alpha: float, tolerance: float, images: int = 400) -> list[dict[str, float]]:
    """What simulated images of known shares cost in the sequential mode."""
    rng, rows = np.random.default_rng(0), []
    for share in SHARES:
        open_, count = np.ones(images, dtype=bool), np.zeros(images, dtype=np.int64)
        spent = np.zeros(images, dtype=np.int64)
        for first, last in pairwise([0, *looks(limit)]):
            count[open_] += rng.binomial(last - first, share, open_.sum())
            spent[open_] = last
            if last < limit and open_.any():
                open_[open_] = ~settled(count[open_], last, limit, alpha, tolerance)
        radius = radius_of(anytime_lower_bound(count, spent, alpha), 1.0)
        fixed = radius_of(lower_confidence_bound(rng.binomial(limit, share, images), limit, alpha), 1.0)
        rows.append(
            {
                "share": share,
                "spent": round(float(spent.mean() / limit), 4),
                "most": round(float(spent.max() / limit), 4),
                "radius": round(float(radius.mean()), 4),
                "fixed": round(float(fixed.mean()), 4),
                "ratio": round(float(radius.mean() / fixed.mean()), 4),
                "above": float((radius > special.ndtri(share)).mean()),
            }
        )
    return rows


def failure(bound: Callable[[Any, int], Any], share: float, limit: int) -> float:
    """Probability that a bound lies above the share at any number of votes up to `limit`: exact."""
    alive, lost = np.ones(1), 0.0
    for samples in range(1, limit + 1):
        moved = np.zeros(samples + 1)
        moved[1:] = share * alive
        moved[:-1] += (1 - share) * alive
        wrong = bound(np.arange(samples + 1), samples) > share
        lost += moved[wrong].sum()
        alive = np.where(wrong, 0.0, moved)
    return float(lost)


def failures(alpha: float, limit: int) -> list[dict[str, float]]:
    rows = []
    for share in (0.5, 0.7, 0.9, 0.99):
        anytime = failure(lambda k, t: anytime_lower_bound(k, t, alpha), share, limit)
        peeking = failure(lambda k, t: lower_confidence_bound(k, t, alpha), share, limit)
        once = lower_confidence_bound(np.arange(limit + 1), limit, alpha) > share
        rows.append(
            {
                "share": share,
                "alpha": alpha,
                "anytime": round(anytime, 6),
                "fixed, looked at each time": round(peeking, 6),
                "fixed, once": round(
                    float(stats.binom.pmf(np.arange(limit + 1), limit, share)[once].sum()), 6
                ),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/certification.json")
    save = parser.parse_args().save
    torch.set_num_threads(1)
    found = {
        "machine": machine(),
        "efficiency": [
            efficiency(SmallCNN, 28, 900, 1000),
            efficiency(ResNet20, 32, 150, 128),
        ],
        "sequential, 100,000 votes": spending(100_000, 0.001, 0.1),
        "sequential, 10,000 votes": spending(10_000, 0.001, 0.1),
        "failures, up to 1000 votes": [*failures(0.001, 1000), *failures(0.05, 1000)],
    }
    print(json.dumps(found, indent=1))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "certification.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
