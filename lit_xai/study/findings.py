"""What the numbers allow to be said: rank correlation over runs, flags, and sentences that claim no more."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from lit_xai.study.record import Record, flat, in_order
from lit_xai.study.tables import CONTROL, PRIMARY, Column, Study, clear_winner, words

FEW_RUNS = 10  # below this many runs, a correlation describes them and says nothing about others
MISSING = 0.05  # share of images without a boundary point above which a flag goes up
RESIDUAL = 0.1  # share of what a map should add up to above which a flag goes up
EASIER = 0.02  # how far robust accuracy may lie above clean accuracy, measured on other images
RHO = "\N{GREEK SMALL LETTER RHO}"
SLACK = 1e-6  # of bounds, for rounding
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


@dataclass(frozen=True)
class Flag:
    """A sign that a number is not to be taken at face value.

    Args:
        what: What was seen.
        remedy: What it means, and what to do.
        regimes: The regimes it concerns; all if none is named.
        about: Start of the log keys it concerns, or none.
    """

    what: str
    remedy: str
    regimes: tuple[str, ...] = ()
    about: str = ""

    def concerns(self, regime: str, column: Column) -> bool:
        """Whether the flag belongs beside a number of the table."""
        return (
            bool(self.about)
            and column.key.startswith(self.about)
            and (not self.regimes or regime in self.regimes)
        )


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


def flags(study: Study) -> list[Flag]:
    """All that speaks against taking the study's numbers at face value."""
    return [*flags_of_runs(study), *flags_of_numbers(study), *flags_of_maps(study)]


def flags_of_runs(study: Study) -> Iterator[Flag]:
    """Runs that failed, regimes without spread, seeds that are not alike."""
    if study.used and all(record.state != "finished" for record in study.used):
        yield Flag("No run has finished", "All numbers here are of unfinished runs. Let them finish.")
    for regime in study.regimes:
        planned = [record for record in study.records if record.regime == regime]
        used = study.of(regime)
        if len(used) < len(planned):
            lost = ", ".join(f"{r.name} ({r.state})" for r in planned if r not in used)
            remedy = "The mean is over the others. Run the study again to go on with it."
            yield Flag(
                f"{words(regime)}: {len(used)} of {len(planned)} runs count, without {lost}",
                remedy,
                (regime,),
            )
        if len({record.last for record in used}) > 1:
            lasts = ", ".join(f"{record.name}: {record.last}" for record in used)
            yield Flag(
                f"{words(regime)}: runs end at different epochs ({lasts})", "Compare with care.", (regime,)
            )
    single = [regime for regime in study.regimes if len(study.of(regime)) == 1]
    if single and len(study.records) > 1:
        names = ", ".join(words(regime) for regime in single)
        yield Flag(
            f"One seed only: {names}", "There is no spread to judge differences by. Add seeds to the plan."
        )
    for part in ("versions", "machine", "git"):
        seen = {
            tuple(sorted((k, str(v)) for k, v in flat(r.provenance.get(part)).items())) for r in study.used
        }
        if len(seen) > 1:
            keys = sorted(
                {key for one in seen for key, value in one if any((key, value) not in o for o in seen)}
            )
            what = f"Runs differ in {part}" + (f" ({', '.join(keys)})" if any(keys) else "")
            yield Flag(
                what,
                "The differences between them may come from there. The provenance below says who has what.",
            )
    for record in study.records:
        for problem in record.problems if record.curves or record.state == "finished" else ():
            yield Flag(f"{record.name}: {problem}", "What rests on it is left out.", (record.regime,))


def flags_of_numbers(study: Study) -> Iterator[Flag]:
    """Numbers that cannot be, or that an attack should not have left."""
    for key in study.log_keys():
        ends = [(record, Column(key).at(record)) for record in study.used]
        known = [(record, value) for record, value in ends if value is not None]
        lost = [record for record, value in known if not math.isfinite(value)]
        fact = Column(key).fact(study.used)
        low = -math.inf if fact.low is None else fact.low
        high = math.inf if fact.high is None else fact.high
        out = [record for record, value in known if value < low - SLACK or value > high + SLACK]
        if lost:
            remedy = (
                "They are left out of the mean. Look for diverging training or for images without a score."
            )
            yield Flag(f"`{key}` is no finite number in {listed(lost)}", remedy, regimes_of(lost), key)
        if out:
            what = f"`{key}` lies outside {low:g} to {high:g} in {listed(out)}"
            yield Flag(what, "The metric or the file is broken.", regimes_of(out), key)
    robustness, clean = study.robustness(), Column("val/accuracy")
    for record in study.used if robustness else ():
        hard, easy = robustness.at(record) if robustness else None, clean.at(record)
        if robustness and hard is not None and easy is not None and hard > easy + EASIER:
            yield Flag(
                f"{record.name}: robust accuracy {robustness.show(hard)} lies above clean {clean.show(easy)}",
                "The attack does nothing, or the probe images are easier than the rest. Check the attack.",
                (record.regime,),
                robustness.key,
            )


def listed(records: Sequence[Record]) -> str:
    """Names of runs."""
    return ", ".join(record.name for record in records)


def regimes_of(records: Sequence[Record]) -> tuple[str, ...]:
    """Regimes of runs."""
    return tuple(in_order(record.regime for record in records))


def flags_of_maps(study: Study) -> Iterator[Flag]:
    """Maps that say nothing, and boundary searches that found nothing."""
    kinds = {
        "zero": (
            0.0,
            "of the maps are zero everywhere",
            "A zero map still gets a score. Images that the model gets wrong have zero boundary maps.",
        ),
        "nonfinite": (0.0, "of the maps hold NaN or infinity", "Their scores are left out of the mean."),
        "missing": (
            MISSING,
            "of the images got no boundary point",
            "Scores are over the others. Give the search more steps.",
        ),
        "residual": (
            RESIDUAL,
            "is missing from what the maps should add up to, or too much",
            "Take more steps.",
        ),
    }
    for key in study.log_keys():
        column = Column(key)
        kind = column.metric.removeprefix("flag/")
        if not column.metric.startswith("flag/") or column.attribution == CONTROL or kind not in kinds:
            continue
        limit, what, remedy = kinds[kind]
        for regime in study.regimes:
            cell = study.cell(column, regime)
            if cell.finite and max(cell.finite) > limit:
                share = statistics.fmean(cell.finite)
                text = f"{words(regime)}, {words(column.attribution).lower()}: {100 * share:.1f} % {what}"
                yield Flag(text, remedy, (regime,), f"explain/{column.attribution}/")


def sentences(study: Study) -> list[str]:
    """The headline, computed: what ran, which regime is most robust, and whether explanations follow."""
    count, used = len(study.records), len(study.used)
    regimes = [regime for regime in study.regimes if study.of(regime)]
    if not used:
        return [
            f"None of {count} runs has left numbers yet." if count > 1 else "The run has left no numbers yet."
        ]
    out = []
    robustness = study.robustness()
    if count == 1:
        shown = [(column, study.cell(column, regimes[0])) for column in study.headline()]
        parts = [
            f"{column.label[:1].lower()}{column.label[1:]} {cell.show(column)}"
            for column, cell in shown[:3]
            if cell.finite
        ]
        out.append(
            f"At epoch {study.used[0].last}: {', '.join(parts)}." if parts else "The run has no accuracy."
        )
        return out
    if robustness and len(regimes) > 1:
        out.append(robust_sentence(study, robustness, regimes))
    for metric in PRIMARY[:1]:
        chosen = [column for column in study.headline() if column.metric == metric]
        if chosen and robustness:
            out.append(relation_sentence(relate(study, chosen[0], robustness), chosen[0]))
    return out


def robust_sentence(study: Study, robustness: Column, regimes: list[str]) -> str:
    """Which regime is the most robust, and whether its seeds stand apart."""
    cells = {regime: study.cell(robustness, regime) for regime in regimes}
    cells = {regime: cell for regime, cell in cells.items() if cell.finite}
    order = sorted(cells, key=lambda regime: -cells[regime].mean)
    if len(order) < 2:
        return "Robust accuracy is known for fewer than two regimes."
    first, second = order[:2]
    apart = (
        "every seed above every seed of"
        if clear_winner(study, robustness, order[:2])
        else "not clearly apart from"
    )
    shown = {regime: cells[regime].show(robustness) for regime in (first, second)}
    return (
        f"{words(first)} training has the highest robust accuracy, {shown[first]}, "
        f"{apart} {words(second).lower()} ({shown[second]})."
    )


def relation_sentence(relation: Relation, quality: Column) -> str:
    """Whether an explanation's quality follows robust accuracy, claimed no further than the runs carry."""
    name = f"{words(quality.attribution).lower()} ({quality.label[:1].lower()}{quality.label[1:]})"
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
