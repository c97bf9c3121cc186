"""Baseline sensitivity: how much a map owes to a choice that has nothing to do with what is explained."""

import dataclasses
import itertools
from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any, ClassVar

import torch
from torch import nn

from lit_xai import randomness
from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.grid import PGDGrid
from lit_xai.attacks.portfolio import ClosestBoundary
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.baselines import Baseline, FlatImage, NoiseImage
from lit_xai.attributions.boundary import OnBoundary
from lit_xai.attributions.similarity import pearson, ranks, unit
from lit_xai.metrics.base import Metric, Quantity, SignedSum
from lit_xai.metrics.shared import maps_of
from lit_xai.types import Images, Keys, Labels, Scores, require, require_at_least

SIGNED = SignedSum()


def disagreement(maps: Sequence[Images]) -> dict[str, Scores]:
    """How unlike several maps of one image are, in double precision.

    cosine = 1 - mean over pairs <A, B> / (||A|| ||B||),
    spearman = 1 - mean over pairs of the rank correlation of |z_A| and |z_B|,    z = the sum over channels

    0 for maps that differ by a factor above 0. NaN where a map is zero or not finite; for `spearman` also
    where |z| is constant.

    Args:
        maps: At least two maps per image.
    """
    require(len(maps) >= 2, f"`maps` must be at least 2 per image, got {len(maps)}.")
    count = len(maps)
    pairs = itertools.combinations([ranks(SIGNED(some.double()).abs()) for some in maps], 2)
    total = reduce(torch.add, map(unit, maps))  # of unit vectors: its square has each pair twice
    cosine = (total.square().sum(1) - count) / (count * (count - 1))
    rank = torch.stack([pearson(first, second) for first, second in pairs]).mean(0)
    return {"cosine": (1 - cosine).clamp(min=0), "spearman": (1 - rank).clamp(min=0)}


class BaselineSensitivity(Metric):
    """How unlike a method's maps are under baselines that are all as good: see `disagreement`.

    For a method with a `baseline`: flat images and noise. For one on a decision boundary, whose baseline is
    found by a search: the same under several random states of the search, so that its own freedom is counted.
    0 for a map that owes nothing to the choice. Each quantity stands as mean and, with `_median`, as median.

    Applies to methods with a baseline, and to those on a boundary that is searched for from random starts. It
    costs one map per baseline, or one search and map per state; those that the run has anyway are shared.

    Args:
        baselines: Pixel values of flat images, in [0, 1]: black, white and grey by default.
        noise: Draws of uniform noise, at least 0; with the flat images at least 2.
        searches: Random states of a search, at least 2; the first is that of the run.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257 (boundary attributions are less sensitive to the
        baseline than integrated gradients).
    Deviates: the source shows maps; the numbers are ours.
    """

    quantities: ClassVar = {
        "cosine": Quantity("lower", (0.0, 2.0)),
        "spearman": Quantity("lower", (0.0, 2.0)),
        "cosine_median": Quantity("lower", (0.0, 2.0), median=True),
        "spearman_median": Quantity("lower", (0.0, 2.0), median=True),
    }

    def __init__(
        self, baselines: Sequence[float] = (0.0, 1.0, 0.5), noise: int = 3, searches: int = 3
    ) -> None:
        super().__init__()
        for baseline in baselines:
            require(0 <= baseline <= 1, f"`baselines` must lie in [0, 1], got {baseline!r}.")
        require_at_least(0, noise=noise)
        require_at_least(2, searches=searches)
        require(
            len(baselines) + noise >= 2,
            f"`baselines` and `noise` must be at least 2 together, got {len(baselines)} and {noise}.",
        )
        self.baselines, self.noise, self.searches = tuple(map(float, baselines)), noise, searches

    def applies(self, attribution: Attribution) -> bool:
        return hasattr(attribution, "baseline") or _searched_at_random(attribution)

    def variants(self, attribution: Attribution) -> list[Attribution]:
        """The method under each baseline, or each random state of its search."""
        method: Any = attribution
        if isinstance(attribution, OnBoundary):
            first = attribution.search
            searches = [first, *(_Reseeded(first, state) for state in range(1, self.searches))]
            return [dataclasses.replace(method, search=search) for search in searches]
        drawn = (NoiseImage(), *(_Redrawn(NoiseImage(), draw) for draw in range(1, self.noise)))
        flat = (FlatImage(value) for value in self.baselines)
        return [dataclasses.replace(method, baseline=one) for one in (*flat, *drawn[: self.noise])]

    def score(
        self, model: nn.Module, inputs: Images, target: Labels, attribution: Attribution
    ) -> dict[str, Scores]:
        variants = self.variants(attribution)
        scores = disagreement([maps_of(variant, model, inputs, target) for variant in variants])
        return {**scores, **{f"{name}_median": column for name, column in scores.items()}}


@dataclass(frozen=True)
class _Redrawn(Baseline):
    """Another draw of a baseline; all else that a method draws stays as it is."""

    baseline: Baseline
    draw: int

    def __call__(self, inputs: Images, keys: Keys) -> Images:
        return self.baseline(inputs, randomness.bits(keys, self.draw, ()))


@dataclass(frozen=True)
class _Reseeded(Search):
    """A search in another random state; all else that a method draws stays as it is."""

    inner: Search
    state: int

    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        names = randomness.bits(randomness.keys(inputs, "search state"), self.state, ())
        with randomness.renamed(names):
            return self.inner.find(model, inputs, target)


def _searched_at_random(attribution: Attribution) -> bool:
    """Whether the method stands on a boundary whose search starts at random places."""
    search = attribution.search if isinstance(attribution, OnBoundary) else None
    return isinstance(search, PGDGrid) or (isinstance(search, ClosestBoundary) and search.starts > 0)
