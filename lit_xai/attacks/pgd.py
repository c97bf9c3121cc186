"""Projected gradient ascent: the worst neighbour within a budget, found with steps of one length."""

from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai.attacks.ascent import Outcome, Points, Walk, column
from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import CE, Aim, Loss
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.randomness import keys
from lit_xai.types import Epsilon, Images, Labels, require, require_at_least, require_positive

_CE = CE()
_L1 = L1()


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

    x <- clip(project(x + step_size sign(grad CE(f(x), y)))). The last point is judged, at the cost of one
    forward pass, only if there are several starts or the best iterate is wanted; an aim costs another one.

    Args:
        epsilon: Budget in pixel units, above 0.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; 2.5 epsilon / steps by default.
        random_start: Whether to begin at a random point of the ball instead of the input.
        restarts: Random starts, at least 1; the neighbour of the largest loss is kept.
        loss: What is raised.
        aim: The class to move to; without it, any other.
        best: Keep the iterate of the largest loss instead of the last.
        stop_early: Spend no more on an image once it is of another class, whatever the aim: for evaluation.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1.
    Deviates: the loss is `CE`, which does not saturate.
    """

    epsilon: Epsilon
    steps: int = 10
    step_size: Epsilon | None = None
    random_start: bool = True
    restarts: int = 1
    loss: Loss = field(default_factory=CE)
    aim: Aim | None = None
    best: bool = False
    stop_early: bool = False

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.step_size, self.restarts, self.random_start)

    @property
    def norm(self) -> Linf:
        """The ball in which the neighbour lies."""
        return Linf()

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return ascend(model, inputs, target, self.norm, **vars(self))


@dataclass(frozen=True)
class L2PGD(Attack):
    """Projected gradient ascent in the l2 ball: normalised steps, last iterate.

    x <- clip(project(x + step_size g / ||g||)), g = grad CE(f(x), y). It costs what `LinfPGD` does.

    Args:
        epsilon: Budget in pixel units, above 0.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; 2.5 epsilon / steps by default.
        random_start: Whether to begin at a random point of the ball instead of the input.
        restarts: Random starts, at least 1; the neighbour of the largest loss is kept.
        loss: What is raised.
        aim: The class to move to; without it, any other.
        best: Keep the iterate of the largest loss instead of the last.
        stop_early: Spend no more on an image once it is of another class, whatever the aim: for evaluation.

    Source: Madry et al. 2018, arXiv 1706.06083, section 2.1, with the l2 ball.
    Deviates: the loss is `CE`, which does not saturate; an image whose gradient is exactly zero stays where
    it is.
    """

    epsilon: Epsilon
    steps: int = 10
    step_size: Epsilon | None = None
    random_start: bool = True
    restarts: int = 1
    loss: Loss = field(default_factory=CE)
    aim: Aim | None = None
    best: bool = False
    stop_early: bool = False

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.step_size, self.restarts, self.random_start)

    @property
    def norm(self) -> L2:
        """The ball in which the neighbour lies."""
        return L2()

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return ascend(model, inputs, target, self.norm, **vars(self))


@dataclass(frozen=True)
class MomentumPGD(Attack):
    """Projected gradient ascent whose direction is a running sum of gradients, each of l1 length 1.

    v <- momentum v + g / ||g||_1,  x <- clip(project(x + step_size d(v))), d(v) the steepest direction: the
    sign in l-infinity, v / ||v|| in l2. It costs what `LinfPGD` does.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: Length of a step in pixel units, above 0; epsilon / steps by default.
        random_start: Whether to begin at a random point of the ball instead of the input.
        restarts: Random starts, at least 1; the neighbour of the largest loss is kept.
        loss: What is raised.
        aim: The class to move to; without it, any other.
        best: Keep the iterate of the largest loss instead of the last.
        stop_early: Spend no more on an image once it is of another class, whatever the aim: for evaluation.
        momentum: Share of the sum that stays from step to step, at least 0.

    Source: Dong et al. 2018, arXiv 1710.06081, eq. 6 and 7, algorithm 1.
    Deviates: the loss is `CE`, which does not saturate.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    steps: int = 10
    step_size: Epsilon | None = None
    random_start: bool = False
    restarts: int = 1
    loss: Loss = field(default_factory=CE)
    aim: Aim | None = None
    best: bool = False
    stop_early: bool = False
    momentum: float = 1.0

    def __post_init__(self) -> None:
        _check(self.epsilon, self.steps, self.step_size, self.restarts, self.random_start)
        require_at_least(0, momentum=self.momentum)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        step_size = self.epsilon / self.steps if self.step_size is None else self.step_size
        return ascend(model, inputs, target, **{**vars(self), "step_size": step_size})


def ascend(
    model: nn.Module,
    inputs: Images,
    target: Labels,
    norm: Norm,
    epsilon: float,
    steps: int,
    step_size: float | None = None,
    random_start: bool = True,
    restarts: int = 1,
    loss: Loss = _CE,
    aim: Aim | None = None,
    best: bool = False,
    stop_early: bool = False,
    momentum: float = 0.0,
) -> Images:
    """Raise a loss for `steps` steps inside ball and box: by default one gradient per step and nothing more.

    The model runs in the mode in which it is given: in train mode, batch statistics move.
    """
    inputs = inputs.detach()
    aims = None
    if aim is not None:
        with torch.no_grad():
            aims = aim(model(inputs).to(inputs.dtype), target)
    step_size = 2.5 * epsilon / steps if step_size is None else step_size
    draw = keys(inputs, "ascend") if random_start else None
    rows = torch.arange(len(inputs), device=inputs.device)
    outcome = Outcome(inputs)
    for run in range(restarts):
        points = inputs[rows]
        if draw is not None:
            noise = norm.start(draw[rows], run, points.shape[1:], epsilon, points.dtype)
            points = noise.add_(points).clamp_(0, 1)
        walk = _Ascent(norm, epsilon, rows, inputs, target, aims, points)
        walk.step_size, walk.momentum, walk.velocity = step_size, momentum, walk.slope
        walk.run(model, loss, steps, best, best or restarts > 1, outcome if stop_early else None)
        if restarts == 1 and not stop_early:
            return walk.best
        walk.settle(outcome)
        rows = (~outcome.fooled).nonzero()[:, 0]  # a host sync per start: images that are fooled are done
    return outcome.points


class _Ascent(Walk):
    """Steps of one length along the gradient, or along what momentum makes of it."""

    step_size: float
    momentum: float
    velocity: Points

    def move(self) -> None:
        if self.momentum:
            length = _L1.length(self.slope)
            unit = self.slope / column(torch.where(length > 0, length, 1))
            self.velocity = unit + self.momentum * self.velocity
        else:
            self.velocity = self.slope
        step = self.norm.steepest(self.velocity)
        self.points = self.confine(torch.add(self.points, step, alpha=self.step_size))


def _check(
    epsilon: float, steps: int, step_size: float | None, restarts: int = 1, random_start: bool = True
) -> None:
    require_positive(epsilon=epsilon)
    require_at_least(1, steps=steps, restarts=restarts)
    if step_size is not None:
        require_positive(step_size=step_size)
    require(
        random_start or restarts == 1, "`restarts` above 1 need a `random_start`: set it, or restart once."
    )
