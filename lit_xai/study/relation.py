"""Whether the quality of explanations goes with robustness: rank correlation over runs."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lit_xai.study.labels import inline, words
from lit_xai.study.tables import Column, Study

FEW_RUNS = 10  # below this many runs, a correlation describes them and says nothing about others
RHO = "\N{GREEK SMALL LETTER RHO}"
DRAWS = 2000
LEVEL = 0.95


@dataclass(frozen=True)
class Relation:
    """Rank correlation of an explanation's quality with robustness, over runs.

    Args:
        rho: Spearman's coefficient; positive where the better explanations belong to the more robust runs.
        low: Lower end of the 95 % bootstrap interval; NaN where no regime has two seeds.
        high: Upper end.
        n: Number of runs.
    """

    rho: float
    low: float
    high: float
    n: int

    @property
    def descriptive(self) -> bool:
        """Whether the runs are too few to say anything beyond them."""
        return self.n < FEW_RUNS

    @property
    def clear(self) -> bool:
        """Whether the interval leaves out zero."""
        return self.low > 0 or self.high < 0

    def show(self) -> str:
        """Coefficient, interval, number of runs, and the caveat where there is one."""
        if math.isnan(self.rho):
            return f"No rank correlation: {self.n} runs with both numbers, or no variation."
        interval = f", 95 % interval {self.low:+.2f} to {self.high:+.2f}" if self.low == self.low else ""
        few = f"fewer than {FEW_RUNS} runs{', and an interval from so few is too narrow' if interval else ''}"
        caveat = f" Descriptive only: {few}." if self.descriptive else ""
        return f"Spearman {RHO} = {self.rho:+.2f} over {self.n} runs{interval}.{caveat}"


def spearman(x: Float[np.ndarray, "*draws run"], y: Float[np.ndarray, "*draws run"]) -> np.ndarray:
    """Spearman's rank correlation along the last axis, ties at their mean rank; NaN without variation.

    Source: Spearman, 1904, The proof and measurement of association between two things.
    """
    a, b = ranks(x), ranks(y)
    a, b = a - a.mean(-1, keepdims=True), b - b.mean(-1, keepdims=True)
    scale = np.sqrt((a**2).sum(-1) * (b**2).sum(-1))
    result: np.ndarray = np.divide((a * b).sum(-1), scale, out=np.full(scale.shape, np.nan), where=scale > 0)
    return result


def ranks(values: Float[np.ndarray, "*draws run"]) -> np.ndarray:
    """Ranks along the last axis, ties at their mean."""
    below = (values[..., None, :] < values[..., :, None]).sum(-1)
    equal = (values[..., None, :] == values[..., :, None]).sum(-1)
    result: np.ndarray = below + (equal + 1) / 2
    return result


def relate(study: Study, quality: Column, robustness: Column) -> Relation:
    """Correlate quality with robustness over the last epochs of all runs.

    Epochs are no units here: both quantities drift while a run trains, whatever they have to do with each
    other. The interval is a percentile bootstrap that draws runs with replacement inside each regime.

    Args:
        study: The runs.
        quality: What the explanation scores.
        robustness: What the model scores.

    Source: Efron, 1979, Bootstrap methods: another look at the jackknife; drawn within strata.
    """
    groups: list[list[tuple[float, float]]] = []
    for regime in study.regimes:
        pairs = [(robustness.at(record), quality.at(record)) for record in study.of(regime)]
        groups.append([(x, y) for x, y in pairs if x is not None and y is not None and math.isfinite(x + y)])
    groups = [group for group in groups if group]
    points = np.array([point for group in groups for point in group]).reshape(-1, 2)
    sign = -1.0 if quality.fact(study.used).better == "lower" else 1.0
    if len(points) < 3:
        return Relation(math.nan, math.nan, math.nan, len(points))
    rho = sign * float(spearman(points[:, 0], points[:, 1]))
    if max(map(len, groups)) < 2 or math.isnan(rho):
        return Relation(rho, math.nan, math.nan, len(points))
    generator = np.random.default_rng(0)
    starts = np.cumsum([0, *map(len, groups)])
    drawn = np.concatenate(
        [
            start + generator.integers(len(group), size=(DRAWS, len(group)))
            for start, group in zip(starts, groups, strict=False)
        ],
        axis=1,
    )
    rhos = sign * spearman(points[drawn, 0], points[drawn, 1])
    tail = (1 - LEVEL) / 2
    low, high = np.nanquantile(rhos, [tail, 1 - tail])
    return Relation(rho, float(low), float(high), len(points))


def relation_sentence(relation: Relation, quality: Column) -> str:
    """Whether an explanation's quality follows robust accuracy, claimed no further than the runs carry."""
    name = f"{words(quality.attribution).lower()} ({inline(quality.label)})"
    if math.isnan(relation.rho):
        return f"The quality of {name} cannot be related to robust accuracy: too few runs, or no variation."
    over = f", 95 % bootstrap interval {relation.low:+.2f} to {relation.high:+.2f}"
    numbers = f"Spearman {RHO} = {relation.rho:+.2f}{over if relation.low == relation.low else ''}"
    if not relation.clear:
        text = f"no clear relation of {name} to robust accuracy"
    else:
        text = f"{name} was {'better' if relation.rho > 0 else 'worse'} where robust accuracy was higher"
    caveat = " That describes these runs; they are too few to say more." if relation.descriptive else ""
    return f"Over {relation.n} runs, {text} ({numbers}).{caveat}"
