"""Objectives that train on attacked images."""

from contextlib import nullcontext

import torch.nn.functional as F
from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.models.modes import evaluating
from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.types import Images, Labels


class AdversarialTraining(Objective):
    """Cross-entropy on attacked images: the mean of -log softmax(f(attack(x)))_y.

    Only attacked images pass the model in train mode; the parameters' gradients are untouched by the attack.

    Args:
        attack: What the model is trained against.
        train_mode_attack: Attack the model in train mode; batch norm statistics then move with each step of
            the attack. By default it is attacked in eval mode, and each submodule returns to the mode it had.

    Source: Madry, Makelov, Schmidt, Tsipras and Vladu 2018, arXiv 1706.06083, eq. 2.1.
    """

    def __init__(self, attack: Attack, train_mode_attack: bool = False) -> None:
        super().__init__()
        self.attack = attack
        self.train_mode_attack = train_mode_attack

    def extra_repr(self) -> str:
        return f"attack={self.attack!r}, train_mode_attack={self.train_mode_attack!r}"

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        with nullcontext() if self.train_mode_attack else evaluating(model):
            return (self.attack(model, inputs, target).detach(),)

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        (attacked,) = views
        return {"adversarial_cross_entropy": F.cross_entropy(model(attacked), target)}
