"""What the numbers allow to be said: flags, and sentences that claim no more."""

import math
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from lit_xai.study.assessment import Assessment
from lit_xai.study.labels import inline, words
from lit_xai.study.record import ENDED, Record, flat, in_order
from lit_xai.study.relation import relate, relation_sentence
from lit_xai.study.tables import ASIDE, CONTROL, Column, Study, clear_winner

MISSING = 0.05  # share of images without a boundary point above which a flag goes up
RESIDUAL = 0.1  # share of what a map should add up to above which a flag goes up
FEW = 3  # names that a flag lists
TIED = 0.5  # share of tied pixels above which a flag goes up
MASKED = 0.01  # share of images without input gradient above which a flag goes up
EASIER = 0.02  # how far robust accuracy may lie above clean accuracy, measured on other images
COLLAPSE = "guard/collapse"  # logged by the guard against catastrophic overfitting
SLACK = 1e-6  # of bounds, for rounding


@dataclass(frozen=True)
class Flag:
    """A sign that a number is not to be taken at face value.

    Args:
        what: What was seen.
        remedy: What it means, and what to do.
        regimes: The regimes it concerns; all if none is named.
        about: Start of the log keys it concerns, or several, or none.
    """

    what: str
    remedy: str
    regimes: tuple[str, ...] = ()
    about: str | tuple[str, ...] = ""

    def concerns(self, regime: str, column: Column) -> bool:
        """Whether the flag belongs beside a number of the table."""
        return (
            bool(self.about)
            and column.key.startswith(self.about)
            and (not self.regimes or regime in self.regimes)
        )


def flags(study: Study) -> list[Flag]:
    """All that speaks against taking the study's numbers at face value."""
    found = (flags_of_robustness, flags_of_runs, flags_of_numbers, flags_of_maps, flags_of_samples)
    return [flag for look in found for flag in look(study)]


def flags_of_robustness(study: Study) -> Iterator[Flag]:
    """Evaluations that did not pass their own checks, and training that lost its robustness."""
    for record in study.records:
        for one in record.evaluations:
            if one.doubts:
                how = "is suspicious" if one.suspicious else "did not pass all its checks"
                yield Flag(
                    f"{record.name}: the evaluation {one.name} {how} ({'; '.join(one.doubts)})",
                    "The model may be weaker than its number. Find out before reporting it: see its checks.",
                    (record.regime,),
                    f"attack/{one.name}/",
                )
    for key in (key for key in study.log_keys if key.startswith("robust/") and key.endswith("/zero")):
        ends = [(record, Column(key).at(record) or 0.0) for record in study.used]
        blind = [record for record, share in ends if share > MASKED]
        if blind:
            most = max(share for _, share in ends)
            yield Flag(
                f"`{key}`: up to {100 * most:.1f} % of the images have no input gradient in {listed(blind)}",
                "Attacks that follow gradients are blind there: believe no accuracy that rests on them.",
                regimes_of(blind),
                "robust/",
            )
    for record in study.used:
        collapsed = [epoch for epoch, value in record.curves.get(COLLAPSE, {}).items() if value > 0]
        if collapsed:
            otherwise = f"robustness collapsed at epoch {min(collapsed)}"
            said = next((note for note in record.notes if "collapsed" in note), otherwise)
            yield Flag(
                f"{record.name}: {said}",
                "Catastrophic overfitting: the network hides from attacks of one step. Take the checkpoint "
                "of an earlier epoch, or train with more attack steps.",
                (record.regime,),
                "robust/",
            )


def flags_of_runs(study: Study) -> Iterator[Flag]:
    """Runs that failed, regimes without spread, seeds that are not alike."""
    if study.used and all(record.state not in ENDED for record in study.used):
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
    for key in (key for key in study.log_keys if not key.startswith(ASIDE)):
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
        "failed": (
            0.0,
            "of the images could not be explained, or not be scored by every metric",
            "The log of the run says why.",
        ),
        "ties": (
            TIED,
            "of a map's pixels are tied",
            "Metrics that rank pixels draw the order of these.",
        ),
        "residual": (
            RESIDUAL,
            "is missing from what the maps should add up to, or too much",
            "Take more steps.",
        ),
    }
    for key in study.log_keys:
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


def flags_of_samples(study: Study) -> Iterator[Flag]:
    """Metrics that have no score for a good part of the images."""
    lost: dict[str, dict[str, float]] = {}  # largest share by log key, by metric
    regimes: dict[str, list[str]] = {}
    for record in study.used:
        for key, sampled in record.samples.items():
            column = Column(key)
            if column.attribution in ("", CONTROL) or sampled.lost <= MISSING:
                continue
            name = column.metric.partition("/")[0]
            shares = lost.setdefault(name, {})
            shares[key] = max(sampled.lost, shares.get(key, 0.0))
            regimes.setdefault(name, []).append(record.regime)
    for name, shares in lost.items():
        methods = in_order(words(Column(key).attribution).lower() for key in shares)
        where = f" ({', '.join(methods[:FEW])}{f' and {len(methods) - FEW} more' if methods[FEW:] else ''})"
        share = f"{'' if len(shares) == 1 else 'up to '}{100 * max(shares.values()):.1f} %"
        yield Flag(
            f"`{name}` has no score for {share} of the images{where}",
            "Its mean is over the others, which may be the easy ones: compare methods with care.",
            tuple(in_order(regimes[name])),
            tuple(shares),
        )


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
        columns = [column for column in study.headline() if not column.final]
        shown = [(column, study.cell(column, regimes[0])) for column in columns]
        parts = [f"{inline(column.label)} {cell.show(column)}" for column, cell in shown[:3] if cell.finite]
        if parts:
            out.append(f"At epoch {study.used[0].last}: {', '.join(parts)}.")
        out += [final_sentence(one) for one in study.used[0].evaluations if one.robust is not None]
        return out or ["The run has no accuracy."]
    for final in study.finals():
        if sum(bool(study.cell(final, regime).finite) for regime in regimes) > 1:
            out.append(robust_sentence(study, final, regimes))
    if robustness and len(regimes) > 1:
        out.append(robust_sentence(study, robustness, regimes))
    chosen = [column for column in study.headline() if column.attribution]
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
    what = inline(robustness.label) if robustness.final else "robust accuracy"
    compared = [one for regime in order for record in study.of(regime) for one in record.evaluations]
    doubtful = any(one.suspicious for one in compared if one.name == robustness.final)
    return (
        f"{words(first)} training has the highest {what}, {shown[first]}, "
        f"{apart} {words(second).lower()} ({shown[second]})."
        f"{' Not to be believed yet: an evaluation among them is suspicious.' if doubtful else ''}"
    )


def final_sentence(one: Assessment) -> str:
    """A final evaluation, with its interval."""
    interval = f" (95 % interval {one.robust.interval})" if one.robust and one.robust.interval else ""
    clean = f", of {one.clean.text} clean" if one.clean else ""
    robust = one.robust.text if one.robust else "not known"
    what = f"; {one.what}" if one.what else ""
    doubt = " Not to be believed yet: the evaluation is suspicious." if one.suspicious else ""
    return f"Final robust accuracy, {one.name}: {robust}{interval}{clean}{what}.{doubt}"
