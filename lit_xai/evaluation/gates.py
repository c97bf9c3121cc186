"""Sanity gates: signs that a robustness number is not to be believed, each in one sentence.

`examine` measures them on the model, `judge` reads them off a complete evaluation. A gate is passed, failed,
or says nothing (None).

Source: Croce and Hein 2020, arXiv 2003.01690 (the flags of the authors' code); Carlini et al. 2019,
arXiv 1902.06705, section 5; Athalye, Carlini and Wagner 2018, arXiv 1802.00420, section 3.1.
"""

from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from itertools import pairwise
from typing import Any

import torch
from jaxtyping import Int
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.overrides import TorchFunctionMode

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import LogitMargin, holds
from lit_xai.attacks.norms import Linf
from lit_xai.attacks.square import Square
from lit_xai.evaluation.journal import CLEAN, Plan, Rows
from lit_xai.randomness import keyed
from lit_xai.types import Flags, Images, Labels, Logits, Scores

_NOISE = 1e-4  # relative difference of outputs between two calls that is not rounding
_FLAT = 0.01  # share of images without gradient from which on gradients are hidden
_POINTS = 0.005  # by how much accuracy may rise where it should fall
_HELP = 0.002  # by how much Square may lower accuracy after attacks that see gradients; by one image always
_FEW = 20  # images from which on a comparison of shares can say that all is well


@dataclass(frozen=True)
class Gate:
    """One check.

    Args:
        name: Of the gate.
        passed: Whether all is well; None where it cannot be said.
        said: One sentence.
    """

    name: str
    passed: bool | None
    said: str


@dataclass(frozen=True)
class Probe:
    """A model and some images of it, on which gates are measured.

    Args:
        model: The network, as it is evaluated.
        inputs: Images.
        target: Their labels.
        ids: Their names.
        seed: Of all draws.
        chunk: Largest number of images that pass at once.
    """

    model: nn.Module
    inputs: Images
    target: Labels
    ids: Int[Tensor, " batch"]
    seed: int
    chunk: int

    def logits(self, points: Images) -> Logits:
        with torch.no_grad():
            return torch.cat([self.model(part).to(part.dtype) for part in torch.split(points, self.chunk)])

    def slopes(self, loss: Callable[[Logits, Labels], Scores]) -> Images:
        """Input gradients of a loss."""
        parts = []
        for inputs, target in self._chunks(self.inputs, self.target):
            with torch.enable_grad():
                points = inputs.detach().requires_grad_()
                total = loss(self.model(points).to(points.dtype), target).sum() + 0 * points.sum()
            parts.append(torch.autograd.grad(total, points)[0])
        return torch.cat(parts)

    def differentiable(self) -> bool:
        """Whether logits depend on the images by operations that have a gradient."""
        with torch.enable_grad():
            logits: Tensor = self.model(self.inputs[:1].detach().requires_grad_())
        return logits.requires_grad

    def after(self, attack: Attack) -> float:
        """Share of the images that are right after an attack."""
        standing = 0
        for inputs, target, ids in self._chunks(self.inputs, self.target, self.ids):
            with keyed(self.seed, ids):
                points = attack(self.model, inputs, target)
            standing += int(holds(self.logits(points), target).sum())
        return standing / len(self.ids)

    def _chunks(self, *columns: Tensor) -> Iterable[tuple[Tensor, ...]]:
        return zip(*(torch.split(column, self.chunk) for column in columns), strict=True)

    def only(self, rows: Flags) -> "Probe":
        return Probe(self.model, self.inputs[rows], self.target[rows], self.ids[rows], self.seed, self.chunk)


def examine(probe: Probe, epsilon: float, norm: Any) -> list[Gate]:
    """The gates that need the model: what it returns, whether its gradients lead anywhere.

    Costs some 200 forward and 100 backward passes per image.
    """
    logits = probe.logits(probe.inputs)
    right = holds(logits, probe.target)
    gates = [_no_probabilities(logits), _same_again(probe, logits), _no_search_inside(probe)]
    gates.append(_enough_classes(logits.shape[1]))
    if not right.any():
        return gates
    probe = probe.only(right)
    gates.append(_slopes(probe))
    if not probe.differentiable():
        return gates

    def accuracy(scale: float, steps: int) -> float:
        return probe.after(APGD(scale * epsilon, norm, steps))

    scales = (0.25, 0.5, 1.0, 2.0)
    return [
        *gates,
        _monotone(dict(zip(scales, [accuracy(scale, 10) for scale in scales], strict=True)), probe),
        _whole_box(probe, logits.shape[1]),
        _more_steps(accuracy(1, 5), white := accuracy(1, 20), probe),
        _white_box(white, probe.after(Square(epsilon, norm, queries=100)), probe),
    ]


def judge(plan: Plan, rows: Rows, classes: int) -> list[Gate]:
    """The gates that a complete evaluation answers."""
    count = len(plan.ids)
    attacked = [rows[name, index] for name in plan.members for index in plan.ids if (name, index) in rows]
    outside = sum(not row.within for row in attacked)
    accuracy = sum(not rows[CLEAN, index].fooled for index in plan.ids) / count
    chance = 1 / classes
    lost = accuracy < chance + 0.15 * (1 - chance)
    names = list(plan.members)
    late = [name for name in plan.black_box if set(names[: names.index(name)]) - set(plan.black_box)]
    late = [name for name in late if any(row.member == name for row in attacked)]  # an image still stood
    gained = sum(row.fooled for row in attacked if row.member in late)
    masked = gained > max(1, _HELP * count)
    return [
        Gate(
            "clean",
            not lost,
            f"Clean accuracy is {accuracy:.1%}, "
            + (
                f"near the chance of {chance:.1%}: is the normalisation missing, or are labels permuted?"
                if lost
                else f"above the chance of {chance:.1%}."
            ),
        ),
        Gate(
            "budget",
            outside == 0,
            f"All {len(attacked)} points that the attacks returned keep to budget and box."
            if outside == 0
            else f"{outside} of {len(attacked)} points that the attacks returned leave budget or box; they "
            "do not count.",
        ),
        Gate(
            "masking",
            not masked if late else None,
            f"{' and '.join(late)} lowered accuracy by {gained / count:.2%} after attacks that see gradients"
            + (": gradients are masked, and the number is too high." if masked else ".")
            if late
            else "No attack without gradients had images left after those with gradients.",
        ),
    ]


def _no_probabilities(logits: Logits) -> Gate:
    alike = (logits >= -1e-5).all() & (logits <= 1 + 1e-5).all() & ((logits.sum(1) - 1).abs() < 1e-5).all()
    if alike:
        return Gate(
            "logits",
            False,
            "The model returns probabilities: return logits, or attacks see no gradients where it is sure.",
        )
    return Gate("logits", True, "The outputs are no probabilities.")


def _same_again(probe: Probe, logits: Logits) -> Gate:
    """Several more calls: a difference may need some luck to show."""
    logits = logits.nan_to_num(0, 0, 0)  # infinite twice is the same, too
    scale = logits.norm(dim=1) + 1e-10
    again = (probe.logits(probe.inputs).nan_to_num(0, 0, 0) for _ in range(4))
    most = max(float(((other - logits).norm(dim=1) / scale).max()) for other in again)
    if most <= _NOISE:
        return Gate("deterministic", True, "Calls of the model on the same images agree.")
    return Gate(
        "deterministic",
        False,
        f"Calls of the model on the same images differ by {most:.1%}: it is random, and needs attacks that "
        'average gradients, such as PyAutoAttack(version="rand").',
    )


class _Watch(TorchFunctionMode):
    """Sees whether something is differentiated, and needs no trace function."""

    def __init__(self) -> None:
        super().__init__()
        self.differentiated = False

    def __torch_function__(
        self, func: Any, types: Any, args: Any = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.differentiated |= func in _DIFFERENTIATE
        return func(*args, **(kwargs or {}))


_DIFFERENTIATE = (torch.autograd.grad, torch.autograd.backward, Tensor.backward)


def _no_search_inside(probe: Probe) -> Gate:
    with torch.no_grad(), _Watch() as watch:
        probe.model(probe.inputs[:1])
    if watch.differentiated:
        return Gate(
            "static",
            False,
            "The model computes gradients inside its forward pass: it changes with its input, and standard "
            "attacks do not follow.",
        )
    return Gate("static", True, "The model computes no gradients inside its forward pass.")


def _enough_classes(classes: int) -> Gate:
    if classes >= 4:
        return Gate("classes", True, f"{classes} classes are enough for the targeted DLR loss.")
    return Gate(
        "classes",
        None,
        f"With {classes} classes the targeted DLR loss of the standard ensemble is not defined: other losses "
        "stand in for it.",
    )


def _slopes(probe: Probe) -> Gate:
    def flat(loss: Callable[[Logits, Labels], Scores]) -> float:
        return float((probe.slopes(loss).flatten(1) == 0).all(dim=1).double().mean())

    sure, constant = flat(lambda logits, y: cross_entropy(logits, y, reduction="none")), flat(LogitMargin())
    if max(sure, constant) <= _FLAT:
        return Gate("gradients", True, "The gradients of cross entropy and margin do not vanish.")
    why = "the model is constant around them" if constant > _FLAT else "the model is sure beyond rounding"
    return Gate(
        "gradients",
        False,
        f"On {sure:.1%} of the images the gradient of the cross entropy is zero, on {constant:.1%} that of "
        f"the margin: {why}, and attacks by gradients are blind.",
    )


def _slack(probe: Probe) -> float:
    return max(_POINTS, 2 / len(probe.ids))


def _compared(probe: Probe, name: str, passed: bool, said: str, doubt: str) -> Gate:
    """A gate about shares: few images can raise a doubt, not settle it."""
    few = len(probe.ids) < _FEW
    said = f"Share of {len(probe.ids)} right images that stand: {said}"
    if not passed:
        return Gate(name, False, f"{said}: {doubt}.")
    return Gate(name, None if few else True, said + (", too few images to say more." if few else "."))


def _monotone(shares: Mapping[float, float], probe: Probe) -> Gate:
    falls = all(more <= less + _slack(probe) for less, more in pairwise(shares.values()))
    listed = ", ".join(f"{share:.1%} at {scale:g}" for scale, share in shares.items())
    doubt = "more at a larger one, so the attack does not find what is there"
    return _compared(probe, "monotone", falls, f"{listed} times epsilon", doubt)


def _whole_box(probe: Probe, classes: int) -> Gate:
    share = probe.after(APGD(1.0, Linf(), 20))
    beaten = share <= 1 / classes + _slack(probe)
    doubt = f"more than the chance of {1 / classes:.1%}, so the attack does not find what is there"
    return _compared(probe, "box", beaten, f"{share:.1%} where any image is allowed", doubt)


def _more_steps(few: float, many: float, probe: Probe) -> Gate:
    said = f"{few:.1%} after 5 gradient steps, {many:.1%} after 20"
    return _compared(probe, "steps", many <= few + _slack(probe), said, "more steps make a weaker attack")


def _white_box(white: float, black: float, probe: Probe) -> Gate:
    said = f"{white:.1%} after 20 gradient steps, {black:.1%} after 100 queries without gradients"
    return _compared(probe, "white_box", white <= black + _slack(probe), said, "gradients are masked")
