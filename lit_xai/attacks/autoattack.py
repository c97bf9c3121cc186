"""Suites: several attacks in a row, each on the images that still stand."""

import abc
from collections.abc import Mapping
from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.base import Attack
from lit_xai.attacks.fab import FAB
from lit_xai.attacks.losses import CE, DLR, Loss, holds
from lit_xai.attacks.norms import L1, Linf, Norm
from lit_xai.attacks.square import Square
from lit_xai.randomness import narrowed
from lit_xai.types import Epsilon, Flags, Images, Labels, require, require_at_least, require_positive

ROUNDING = 1e-6  # by which a perturbation may exceed the budget: pixels have 24 bits


class Suite(Attack):
    """Attacks of one budget, tried one after the other on the images that still stand.

    The answer is, per image, the first point that is of another class and within budget and box; else the
    image itself. An image draws what it would draw if it were attacked by that member alone. Concrete suites
    are final frozen dataclasses with the fields `epsilon` and `norm`.
    """

    epsilon: Epsilon
    norm: Norm

    @property
    @abc.abstractmethod
    def members(self) -> dict[str, Attack]:
        """The attacks by name, in order."""

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        answer = inputs.clone()
        standing = holds(model(inputs), target).nonzero()[:, 0]
        for attack in self.members.values():
            if not len(standing):  # one host sync per member, for the passes it saves
                break
            own, label = inputs[standing], target[standing]
            with narrowed(standing):
                points = attack(model, own, label).detach()
            clipped = points.clamp(0, 1)
            fooled = self.admits(own, points) & ~holds(model(clipped), label)
            answer[standing[fooled]] = clipped[fooled]
            standing = standing[~fooled]
        return answer

    def admits(self, inputs: Images, points: Images) -> Flags:
        """Whether the points lie in the box, and in the ball around the inputs, up to rounding."""
        delta = points.clamp(0, 1).double() - inputs.double()
        near: Flags = self.norm.length(delta) <= self.epsilon + ROUNDING * max(1, self.epsilon)
        return near & boxed(points)


def boxed(points: Images) -> Flags:
    """Whether all pixels lie in the box, up to rounding; NaN does not."""
    inside: Flags = ((points - points.clamp(0, 1)).abs() <= ROUNDING).flatten(1).all(dim=1)
    return inside


@dataclass(frozen=True)
class Members(Suite):
    """A suite of given attacks; a suite among them stands for its own members.

    Args:
        epsilon: Budget in pixel units, above 0; that of every attack which has one.
        attacks: By name, in order, at least one. A search may be among them: its points count where they lie
            within the budget.
        norm: The ball in which the neighbours lie; that of every attack which has one.

    Raises:
        ValueError: There are no attacks, two of them have the same name, or budgets or norms differ.

    Source: Croce and Hein 2020, arXiv 2003.01690, section 4 (an ensemble: the worst case per image).
    """

    epsilon: Epsilon
    attacks: Mapping[str, Attack] = field(hash=False)
    norm: Norm = field(default_factory=Linf)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require(len(self.attacks) > 0, "`attacks` must name at least one attack, got none.")
        names = [name for inner in self._groups() for name in inner]
        twice = sorted({name for name in names if names.count(name) > 1})
        require(
            not twice, f"`attacks` must have names of their own, got {', '.join(twice)} twice: rename one."
        )
        for name, attack in self.attacks.items():
            epsilon, norm = getattr(attack, "epsilon", self.epsilon), getattr(attack, "norm", self.norm)
            require(
                epsilon == self.epsilon and norm == self.norm,
                f"`attacks` must share `epsilon` {self.epsilon:g} and `norm` {self.norm!r}, but `{name}` has "
                f"{epsilon:g} and {norm!r}.",
            )

    @property
    def members(self) -> dict[str, Attack]:
        return {name: attack for inner in self._groups() for name, attack in inner.items()}

    def _groups(self) -> list[dict[str, Attack]]:
        return [
            attack.members if isinstance(attack, Suite) else {name: attack}
            for name, attack in self.attacks.items()
        ]


@dataclass(frozen=True)
class AutoAttack(Suite):
    """The standard ensemble: two gradient attacks, a minimum-norm attack and a random search, none tuned.

    APGD on the cross entropy; APGD on the targeted DLR; FAB-T; Square. In l1, APGD restarts 5 times, aims at
    5 classes, and begins in larger balls.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbours lie.
        steps: Gradient steps of APGD and FAB per run, at least 1.
        queries: Forward passes of Square, at least 1.
        targets: Classes that targeted APGD aims at, at least 1; by default 9 (5 in l1), or all if there are
            fewer.
        loss: What targeted APGD raises; a network of fewer than 4 classes needs `LogitMargin()`.

    Source: Croce and Hein 2020, arXiv 2003.01690, section 4 and 5.1; in l1, 2021, arXiv 2103.01208,
    section 5.
    Deviates: images draw their own random numbers, whatever their batch. `PyAutoAttack` is the released code.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    steps: int = 100
    queries: int = 5000
    targets: int | None = None
    loss: Loss = field(default_factory=DLR)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require_at_least(1, steps=self.steps, queries=self.queries)
        if self.targets is not None:
            require_at_least(1, targets=self.targets)

    @property
    def members(self) -> dict[str, Attack]:
        sparse = isinstance(self.norm, L1)
        epsilon, norm, steps = self.epsilon, self.norm, self.steps
        return {
            "apgd-ce": APGD(epsilon, norm, steps, restarts=5 if sparse else 1, loss=CE()),
            "apgd-t": APGD(epsilon, norm, steps, loss=self.loss, targets=self.targets),
            "fab-t": FAB(epsilon, norm, steps),
            "square": Square(epsilon, norm, self.queries),
        }
