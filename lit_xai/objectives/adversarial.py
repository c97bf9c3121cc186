"""Objectives that train on attacked images."""

import dataclasses
from typing import Any, TypeVar, get_args

import torch.nn.functional as F
from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.models.modes import BatchNorm, crafting
from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.types import Images, Labels, require

Sized = TypeVar("Sized")  # an attack, or what else has an `epsilon`
_LEAST = 0.01  # of the budget, where a warm-up begins: an attack needs one


def warmed(attack: Sized, progress: float, warmup: float) -> Sized:
    """The attack with the budget that a run has come to: `epsilon` and `step_size` times progress / warmup.

    Args:
        attack: A dataclass; steps that have no length of their own follow its budget by themselves.
        progress: Share of the run that is done.
        warmup: Share of the run after which the budget is whole. It begins at a hundredth.
    """
    if progress >= warmup:
        return attack
    factor = max(progress / warmup, _LEAST)
    lengths = {name: getattr(attack, name, None) for name in ("epsilon", "step_size")}
    shorter: Any = {name: factor * length for name, length in lengths.items() if length is not None}
    return dataclasses.replace(attack, **shorter)  # type: ignore[type-var]


def require_warmup(attack: object, warmup: float) -> None:
    """Refuse a warm-up that is no share of the run, or that the attack has no budget for."""
    require(0 <= warmup <= 1, f"`warmup` must be at least 0 and at most 1, got {warmup!r}.")
    require(
        warmup == 0 or "epsilon" in fields_of(attack),
        f"`warmup` must be 0 for an attack without an `epsilon`, got {warmup!r} for {type(attack).__name__}.",
    )


def fields_of(attack: object) -> set[str]:
    """Names of what an attack is built with."""
    return {field.name for field in dataclasses.fields(attack)} if dataclasses.is_dataclass(attack) else set()


class Attacked(Objective):
    """An objective that attacks the model before it trains it.

    The attack leaves the gradients of the parameters alone, and each submodule in the mode it had.

    Args:
        attack: What the model is trained against.
        batch_norm: How the attack meets the model, see `crafting`: in eval mode ("eval"), as it is ("train"),
            or as it is, without a trace in the running statistics ("frozen").
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.
    """

    def __init__(self, attack: Attack, batch_norm: BatchNorm, warmup: float) -> None:
        known = get_args(BatchNorm)
        require(batch_norm in known, f"`batch_norm` must be one of {known}, got {batch_norm!r}.")
        require_warmup(attack, warmup)
        super().__init__()
        self.attack = attack
        self.batch_norm: BatchNorm = batch_norm
        self.warmup = warmup

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return inputs, self.neighbours(model, inputs, target)

    def neighbours(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """The attacked images."""
        with crafting(model, self.batch_norm):
            return self.attack_on(model, inputs)(model, inputs, target).detach()

    def attack_on(self, model: nn.Module, inputs: Images) -> Attack:
        """The attack, with the budget that the run has come to."""
        return warmed(self.attack, self.progress, self.warmup)


class AdversarialTraining(Attacked):
    """Cross-entropy on attacked images: the mean of -log softmax(f(attack(x)))_y.

    Only attacked images pass the model in train mode; the parameters' gradients are untouched by the attack.

    Args:
        attack: What the model is trained against.
        batch_norm: How the attack meets the model: in eval mode ("eval"); as it is, so that batch norms learn
            their statistics from every step of the attack as well ("train"); or as it is, with the statistics
            of the batch, of which batch norms keep nothing ("frozen").
        warmup: Share of the run over which the budget of the attack grows to its full size, from 0 to 1.
        label_smoothing: Share of the target spread evenly over all classes, from 0 to less than 1; the attack
            knows nothing of it.

    Source: Madry, Makelov, Schmidt, Tsipras and Vladu 2018, arXiv 1706.06083, eq. 2.1.
    """

    def __init__(
        self,
        attack: Attack,
        batch_norm: BatchNorm = "eval",
        warmup: float = 0.0,
        label_smoothing: float = 0.0,
    ) -> None:
        require(
            0 <= label_smoothing < 1,
            f"`label_smoothing` must be at least 0 and less than 1, got {label_smoothing!r}.",
        )
        super().__init__(attack, batch_norm, warmup)
        self.label_smoothing = label_smoothing

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return (self.neighbours(model, inputs, target),)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (attacked,) = views
        logits = model(attacked).to(attacked.dtype)
        loss = F.cross_entropy(logits, target, label_smoothing=self.label_smoothing)
        return {"adversarial_cross_entropy": loss}
