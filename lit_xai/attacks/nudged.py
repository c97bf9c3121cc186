"""Projected gradient ascent that sets out right beside the image."""

from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import CE, Loss
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.randomness import keys, normal
from lit_xai.types import Epsilon, Images, Labels, require_at_least, require_positive


@dataclass(frozen=True)
class NudgedPGD(Attack):
    """Projected gradient ascent from the image plus a little noise: the attack that TRADES and MART train on.

    x_0 = x + spread N(0, I),  x <- clip(project(x + step_size d(g))), with d the steepest direction of the
    ball: the sign in l-infinity, g / ||g|| in l2. Only the start may lie a hair outside of [0, 1].

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; 2 epsilon / steps by default.
        spread: Standard deviation of the noise in pixel units, above 0.
        loss: What is raised.

    Source: Zhang et al. 2019, arXiv 1901.08573, algorithm 1, with the start and the l2 step of the authors'
    code.
    Deviates: in l2 the authors' code clips to the box first and projects after, and takes a random step where
    there is no gradient; here the image stays where it is. The loss `CE` does not saturate.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    steps: int = 10
    step_size: Epsilon | None = None
    spread: float = 0.001
    loss: Loss = field(default_factory=CE)

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, spread=self.spread)
        require_at_least(1, steps=self.steps)
        if self.step_size is not None:
            require_positive(step_size=self.step_size)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        step_size = 2 * self.epsilon / self.steps if self.step_size is None else self.step_size
        points = normal(keys(inputs, "NudgedPGD"), 0, inputs.shape[1:], inputs.dtype)
        points = points.mul_(self.spread).add_(inputs)
        for _ in range(self.steps):
            _, slope = self.loss.climb(model, points, target)
            points = torch.add(points, self.norm.steepest(slope), alpha=step_size)
            points = self.norm.confine(points, inputs, self.epsilon)
        return points
