"""Projected gradient ascent that chooses its own steps: the strongest neighbour within a budget, untuned."""

import abc
import math
from dataclasses import dataclass, field

import torch
from torch import nn

from lit_xai.attacks.ascent import Outcome, Points, Truths, Values, Walk, column
from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import CE, Loss, holds, ranking
from lit_xai.attacks.norms import L1, Linf, Norm
from lit_xai.randomness import keys, normal
from lit_xai.types import Epsilon, Images, Keys, Labels, require_at_least, require_positive


@dataclass(frozen=True)
class APGD(Attack):
    """Auto-PGD: ascent with momentum whose step is halved where the loss no longer rises.

    u = P(x + eta d(g)),  x' = P(x + 3/4 (u - x) + 1/4 (x - x_before)), from a random point of the surface of
    the ball and eta = 2 epsilon; d is the steepest direction, P goes to ball and box. After 22, then 19, 16,
    ... 6 % of the steps, eta is halved and the search goes on from the point of the largest loss, if the loss
    rose in at most 3/4 of the steps since, or if eta was kept the last time and nothing was gained since.

    In l1 a step changes a share of the pixels, by the signs of their gradients, without momentum: 2/3 of
    those in which the best point differs from the input. Each 4 % of the steps, eta falls by 1.5, from
    epsilon down to epsilon / 10, or starts anew from the best point where that has become sparser by 5 %.

    Returned is an iterate of another class, or the image itself if it is of another class; where the attack
    fails, the point of the largest loss.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        steps: Gradient steps of a run, at least 1; a run costs as many input gradients, and one forward pass
            more.
        restarts: Runs from different points, at least 1.
        loss: What is raised.
        targets: Runs once towards each of so many other classes, those of the largest logits at the input.
            0: untargeted. None: 9, in l1 5, or all if there are fewer.
        stop_early: Spend no more on an image once it is of another class. Without it every image takes every
            step, and the point of the largest loss is returned: for training.
        shrinking: Move in a ball of radius 3 epsilon for 30 % of the steps, 2 epsilon for 30 %, then epsilon;
            by default in l1 alone.

    Raises:
        ValueError: More targets than other classes, or fewer classes than the loss needs.

    Source: Croce and Hein 2020, arXiv 2003.01690, algorithm 1 and section 5.1 (targets); in l1, Croce and
    Hein 2021, arXiv 2103.01208, algorithm 1, with the constants of the authors' code.
    Deviates: the first rise is counted from the starting point, where the authors' code compares with a loss
    of 0; no gradient is taken after the last step.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    steps: int = 100
    restarts: int = 1
    loss: Loss = field(default_factory=CE)
    targets: int | None = 0
    stop_early: bool = True
    shrinking: bool | None = None

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require_at_least(1, steps=self.steps, restarts=self.restarts)
        require_at_least(0, targets=self.targets or 0)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        outcome = Outcome(inputs)
        aims: list[Labels | None] = [None]
        if self.stop_early or self.targets != 0:
            with torch.no_grad():
                logits = model(inputs).to(inputs.dtype)
            if self.targets != 0:
                most = 5 if isinstance(self.norm, L1) else 9
                count = min(most, logits.shape[1] - 1) if self.targets is None else self.targets
                aims = list(ranking(logits, target, targets=count).T)
            if self.stop_early:
                outcome.fooled = ~holds(logits, target)
        draw, balls = keys(inputs, "APGD"), self._balls()
        kind = _Sparse if isinstance(self.norm, L1) else _Halving
        for run, aim in enumerate(aim for aim in aims for _ in range(self.restarts)):
            rows = (~outcome.fooled).nonzero()[:, 0]  # a host sync per run: images that are fooled are done
            if not len(rows):
                break
            points = kind.start(self.norm, balls[0][0], draw[rows], run, inputs[rows])
            for radius, steps in balls:
                points = self.norm.confine(points, inputs[rows], radius)
                walk = kind(self.norm, radius, rows, inputs, target, aim, points)
                walk.pace(steps, alone=len(balls) == 1)
                early = self.stop_early and radius == self.epsilon
                walk.run(model, self.loss, steps, best=True, judge=True, outcome=outcome if early else None)
                points = walk.best
            walk.settle(outcome)
        return outcome.points

    def _balls(self) -> list[tuple[float, int]]:
        """Radius and steps of one ball after the other."""
        shrinking = isinstance(self.norm, L1) if self.shrinking is None else self.shrinking
        early = min(math.ceil(0.3 * self.steps), (self.steps - 1) // 2) if shrinking else 0
        balls = [(3 * self.epsilon, early), (2 * self.epsilon, early), (self.epsilon, self.steps - 2 * early)]
        return [(radius, steps) for radius, steps in balls if steps]


class _Climb(Walk):
    """A walk that now and then adapts its step, and goes back to the best point and the slope there.

    `window` steps lie between two checks.
    """

    window: int
    eta: Values
    best_slope: Points
    since: int = 0

    @staticmethod
    @abc.abstractmethod
    def start(norm: Norm, radius: float, draw: Keys, run: int, inputs: Images) -> Images:
        """Random points, to be brought into box and ball."""

    @abc.abstractmethod
    def pace(self, steps: int, alone: bool) -> None:
        """Set out for so many steps; `alone` says that there is no other ball."""

    @abc.abstractmethod
    def check(self) -> Truths:
        """Adapt the step, and say which images go back."""

    @abc.abstractmethod
    def step(self) -> Points:
        """Where the next step leads."""

    def note(self) -> None:
        self.best_slope = torch.where(column(self.loss > self.peak), self.slope, self.best_slope)
        super().note()

    def move(self) -> None:
        if self.since == self.window:
            back, self.since = column(self.check()), 0
            self.points = torch.where(back, self.best, self.points)
            self.slope = torch.where(back, self.best_slope, self.slope)
        self.points, self.since = self.step(), self.since + 1


class _Halving(_Climb):
    """With momentum, and a step that is halved where the loss no longer rises."""

    @staticmethod
    def start(norm: Norm, radius: float, draw: Keys, run: int, inputs: Images) -> Images:
        delta = norm.start(draw, run, inputs.shape[1:], radius, inputs.dtype)
        return inputs + delta * column(radius / norm.length(delta))

    def pace(self, steps: int, alone: bool) -> None:
        self.window, self.least, self.less = (max(int(part * steps), 1) for part in (0.22, 0.06, 0.03))
        self.best_slope, self.eta = self.slope, torch.full_like(self.peak, 2 * self.radius)
        self.rises = torch.zeros_like(self.peak)
        self.last = torch.full_like(self.peak, math.inf)  # so that the starting point is no rise
        self.kept, self.then = self.fooled, self.peak  # at the check before: step kept, largest loss
        self.before: Points | None = None

    def note(self) -> None:
        self.rises, self.last = self.rises + (self.loss > self.last), self.loss
        super().note()

    def check(self) -> Truths:
        stuck = (self.rises <= 0.75 * self.window) | (self.kept & (self.peak <= self.then))
        self.kept, self.then, self.rises = ~stuck, self.peak, torch.zeros_like(self.rises)
        self.eta = torch.where(stuck, self.eta / 2, self.eta)
        self.window = max(self.window - self.less, self.least)
        return stuck

    def step(self) -> Points:
        here, before, self.before = self.points, self.before, self.points
        ahead = self.confine(here + column(self.eta) * self.norm.steepest(self.slope))
        if before is None:
            return ahead
        return self.confine(here + 0.75 * (ahead - here) + 0.25 * (here - before))


class _Sparse(_Climb):
    """In l1: the signs of a share of the pixels, which follows the sparsity of the best point."""

    @staticmethod
    def start(norm: Norm, radius: float, draw: Keys, run: int, inputs: Images) -> Images:
        return inputs + normal(draw, run, inputs.shape[1:], inputs.dtype)

    def pace(self, steps: int, alone: bool) -> None:
        self.window = max(int(0.04 * steps), 1)
        self.best_slope, self.eta = self.slope, torch.full_like(self.peak, self.radius)
        self.spread = torch.ones_like(self.peak) if alone else self._spread()
        self.share = torch.full_like(self.peak, 0.2) if alone else self.spread / 1.5

    def check(self) -> Truths:
        spread = self._spread()
        sparser = spread < 0.95 * self.spread
        self.eta = torch.where(sparser, self.radius, (self.eta / 1.5).clamp(min=self.radius / 10))
        self.spread, self.share = spread, spread / 1.5
        return sparser

    def step(self) -> Points:
        return self.confine(self.points + column(self.eta) * L1().sparse(self.slope, self.share))

    def _spread(self) -> Values:
        """Share of the pixels in which the best point differs from the input."""
        return (self.best != self.inputs).flatten(1).to(self.peak.dtype).mean(dim=1)
