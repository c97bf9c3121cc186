"""Projected gradient ascent on the cross entropy: the worst neighbour within a budget."""

import math
from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.norms import L2, Linf, Norm
from lit_xai.randomness import keys
from lit_xai.types import Epsilon, Images, Labels, require_at_least, require_positive


@dataclass(frozen=True)
class FGSM(Attack):
    """Fast gradient sign method: one steepest step of the length of the budget.

    x' = clip(x + epsilon sign(grad CE(f(x), y))); with a random start, the step is taken from there and the
    sum is projected onto the ball.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        step_size: Length of the step in pixel units, above 0; `epsilon` by default.
        random_start: Whether to step from a random point of the ball.

    Source: Goodfellow et al. 2015, arXiv 1412.6572, section 4; with a random start and a `step_size` of 1.25
    epsilon it is the attack of Wong et al. 2020, arXiv 2001.03994, algorithm 3.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    step_size: Epsilon | None = None
    random_start: bool = False

    def __post_init__(self) -> None:
        _check(self.epsilon, 1, self.step_size)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        step_size = self.epsilon if self.step_size is None else self.step_size
        return ascend(model, inputs, target, self.norm, self.epsilon, 1, step_size, self.random_start)


@dataclass(frozen=True)
class LinfPGD(Attack):
    """Projected gradient ascent in the l-infinity ball: signed steps, last iterate.

    x <- clip(project(x + step_size sign(grad CE(f(x), y)))).

    Args:
        epsilon: Budget in pixel units, above 0.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; 2.5 epsilon / steps by default.
        random_start: Whether to begin at a random point of the ball instead of the input.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1.
    """

    epsilon: Epsilon
    steps: int = 10
    step_size: Epsilon | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.step_size)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        step_size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        return ascend(model, inputs, target, Linf(), self.epsilon, self.steps, step_size, self.random_start)


@dataclass(frozen=True)
class L2PGD(Attack):
    """Projected gradient ascent in the l2 ball: normalised steps, last iterate.

    x <- clip(project(x + step_size g / ||g||)), g = grad CE(f(x), y).

    Args:
        epsilon: Budget in pixel units, above 0.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; 2.5 epsilon / steps by default.
        random_start: Whether to begin at a random point of the ball instead of the input.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1, with the l2 ball.
    Deviates: the gradient of `ascend`; an image whose gradient is exactly zero stays where it is.
    """

    epsilon: Epsilon
    steps: int = 10
    step_size: Epsilon | None = None
    random_start: bool = True

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.step_size)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        step_size = 2.5 * self.epsilon / self.steps if self.step_size is None else self.step_size
        return ascend(model, inputs, target, L2(), self.epsilon, self.steps, step_size, self.random_start)


def ascend(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    norm: Norm,
    epsilon: float,
    steps: int,
    step_size: float,
    random_start: bool,
) -> Images:
    """Raise the cross entropy for `steps` steps inside ball and box: exactly one gradient per step.

    Steps have a length of their own, so only the direction of the gradient counts. It is taken of
    h = log sum_{j != y} exp f_j - f_y instead of CE = log(1 + e^h): the same direction, but where the model
    is sure of itself the gradient of CE rounds to zero, first in f_y, then in all. Summed over the batch, so
    that images do not see each other. The model runs in the mode in which it is given: in train mode, batch
    statistics move.
    """
    inputs = inputs.detach()
    points = inputs
    if random_start:
        delta = norm.start(keys(inputs, "ascend"), 0, inputs.shape[1:], epsilon, inputs.dtype)
        points = (inputs + delta).clamp(0, 1)
    for _ in range(steps):
        gradient = _loss_gradient(model, points, target)
        delta = norm.project(points + step_size * norm.steepest(gradient) - inputs, epsilon)
        points = (inputs + delta).clamp(0, 1)
    return points


def _check(epsilon: float, steps: int, step_size: float | None) -> None:
    require_positive(epsilon=epsilon)
    require_at_least(1, steps=steps)
    if step_size is not None:
        require_positive(step_size=step_size)


def _loss_gradient(model: nn.Module, points: Images, target: Labels) -> Images:
    with torch.enable_grad():
        points = points.detach().requires_grad_()
        logits, own = model(points).to(points.dtype), target[:, None]
        others = logits.scatter(1, own, -math.inf).logsumexp(dim=1)
        (gradient,) = torch.autograd.grad((others - logits.gather(1, own)[:, 0]).sum(), points)
    return gradient
