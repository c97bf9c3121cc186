"""The course of a gradient attack in a budget: images walk, and those that are fooled may leave."""

import abc
import math

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.attacks.losses import Loss, holds
from lit_xai.attacks.norms import Norm
from lit_xai.types import Images, Labels

# Of the images still attacked, a shrinking part of the batch: `rows` names them in it.
Rows = Int[Tensor, " some"]
Points = Float[Tensor, "some channel height width"]
Values = Float[Tensor, " some"]
Truths = Bool[Tensor, " some"]


class Outcome:
    """The strongest neighbour of every image so far: one of another class, else that of the largest loss."""

    def __init__(self, inputs: Images) -> None:
        self.points = inputs.clone()
        self.loss = inputs.new_full((len(inputs),), -math.inf)
        self.fooled = torch.zeros_like(self.loss, dtype=torch.bool)

    def take(self, rows: Rows, points: Points, loss: Values, fooled: Truths) -> None:
        """Put in what is stronger; a loss that is not a number is."""
        stronger = fooled | ~(loss <= self.loss[rows])
        self.points[rows] = torch.where(column(stronger), points, self.points[rows])
        self.loss[rows] = torch.where(stronger, loss, self.loss[rows])
        self.fooled[rows] |= fooled


class Walk(abc.ABC):
    """Images on their way in box and ball: every tensor has one row per image still attacked.

    Concrete walks say how a step is made of the `slope`, the gradient of the loss at the `points`.
    """

    def __init__(
        self,
        norm: Norm,
        radius: float,
        rows: Rows,
        inputs: Images,
        target: Labels,
        aim: Labels | None,
        points: Points,
    ) -> None:
        self.norm, self.radius = norm, radius
        self.rows, self.inputs, self.target = rows, inputs[rows], target[rows]
        self.aim = None if aim is None else aim[rows]
        self.points = self.best = self.flip = points
        self.slope = torch.zeros_like(points)
        self.loss = self.peak = points.new_full((len(rows),), -math.inf)
        self.fooled = torch.zeros_like(rows, dtype=torch.bool)

    @abc.abstractmethod
    def move(self) -> None:
        """Take a step along the slope."""

    def confine(self, points: Points) -> Points:
        """Bring points back into box and ball."""
        return self.norm.confine(points, self.inputs, self.radius)

    def note(self) -> None:
        """Keep the point of the largest loss."""
        higher = self.loss > self.peak
        self.best = torch.where(column(higher), self.points, self.best)
        self.peak = torch.where(higher, self.loss, self.peak)

    def run(
        self,
        model: nn.Module,
        loss: Loss,
        steps: int,
        best: bool,
        judge: bool,
        outcome: Outcome | None = None,
    ) -> None:
        """Walk: one gradient per step.

        Args:
            model: Maps images to logits.
            loss: What is raised.
            steps: Gradient steps.
            best: Whether the best point is that of the largest loss, instead of the last.
            judge: Whether to spend a forward pass on the last point.
            outcome: Where images go as soon as they are fooled. To look who has left is a host sync; it is
                done when a fifth more steps have passed, and saves all but that share of the passes.
        """
        look = 0
        for step in range(steps):
            logits, self.slope = loss.climb(model, self.points, self.target, self.aim)
            if best:
                self.loss = loss(logits, self.target, self.aim)
                self.note()
            if outcome is not None:
                self._watch(logits)
                if step >= look:
                    look = step + 1 + step // 5
                    self._leave(outcome)
                    if not len(self.rows):
                        return
            self.move()
        if judge:
            with torch.no_grad():
                logits = model(self.points).to(self.points.dtype)
                self.loss = loss(logits, self.target, self.aim)
            if outcome is not None:
                self._watch(logits)
        if best:
            self.note()
        else:
            self.best = self.points
            self.peak = self.loss if judge else torch.full_like(self.loss, math.inf)

    def settle(self, outcome: Outcome) -> None:
        """Hand over the point that fooled the model, or the best."""
        points = torch.where(column(self.fooled), self.flip, self.best)
        outcome.take(self.rows, points, self.peak, self.fooled)

    def _watch(self, logits: Float[Tensor, "some class"]) -> None:
        flips = ~holds(logits, self.target) & ~self.fooled
        self.flip = torch.where(column(flips), self.points, self.flip)
        self.fooled = self.fooled | flips

    def _leave(self, outcome: Outcome) -> None:
        stay = (~self.fooled).nonzero()[:, 0]
        if len(stay) < len(self.rows):
            self.settle(outcome)
            for name, value in vars(self).items():
                if isinstance(value, Tensor):
                    setattr(self, name, value[stay])


def column(values: Tensor) -> Tensor:
    """One value per image, shaped to meet images."""
    return values[:, None, None, None]
