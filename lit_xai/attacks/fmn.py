"""The fast minimum-norm attack: descent on the margin inside a ball that adapts to the boundary."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import Index, Ledger, Points, bisect, column, inner, pressed
from lit_xai.attacks.norms import L2
from lit_xai.types import Epsilon, Images, Labels, require, require_at_least, require_positive

_L2 = L2()


@dataclass(frozen=True)
class FMN(Search):
    """Closest boundary point in l2 by descent inside a ball that adapts, then bisection onto the boundary.

    d <- clip(project(d - a_k g / ||g||, epsilon)),  g = grad L,  L = f_y - max_{j != y} f_j,

    where epsilon shrinks by 1 - gamma_k after a flip, to the shortest flip at most, and else grows by
    1 + gamma_k; before the first flip it is the distance to the linearised boundary, ||d|| + L / ||g||. Both
    a_k and gamma_k fall as a cosine, a_k to a hundredth.

    Args:
        steps: Gradient steps, at least 1; each costs one forward pass and one input gradient.
        step_size: First length of a step in pixel units, above 0.
        gamma: First relative change of the radius per step, in (0, 1).
        last_gamma: What it falls to, in [0, 1).
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Pintor et al. 2021, arXiv 2102.12827, algorithm 1; defaults are those of the authors' code.

    Deviates: pixels that g presses against the box are left out of it; with them, a walk can stall before its
    first flip, since the box takes away what the ball has left. The point after the last step, too, is looked
    at; the bisection is no part of the paper. A flip counts where it shows through rounding.
    """

    steps: int = 100
    step_size: Epsilon = 1.0
    gamma: float = 0.05
    last_gamma: float = 0.001
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps)
        require_positive(step_size=self.step_size)
        require(0 < self.gamma < 1, f"`gamma` must lie between 0 and 1, got {self.gamma!r}.")
        require(0 <= self.last_gamma < 1, f"`last_gamma` must lie in [0, 1), got {self.last_gamma!r}.")
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            ledger.look(index, self._descend(ledger, index))
            bisect(ledger, self.bisections)
        return ledger.boundary()

    def _descend(self, ledger: Ledger, index: Index) -> Points:
        """Walk these images; return the last points, which nobody has looked at."""
        inputs = points = ledger.inputs[index]
        own = ledger.target[index, None]
        radius = torch.full_like(ledger.length[index], math.inf)
        for step in range(self.steps):
            fall = (1 + math.cos(math.pi * step / self.steps)) / 2
            gamma = self.last_gamma + (self.gamma - self.last_gamma) * fall
            step_size = self.step_size * (0.01 + 0.99 * fall)
            points, logits = ledger._record(index, points)
            scores = logits.detach()
            rival = scores.scatter(1, own, -math.inf).argmax(dim=1, keepdim=True)
            weights = torch.zeros_like(scores).scatter(1, rival, 1).scatter(1, own, -1)
            gradient = ledger._gradient(index, logits, points, weights, again=False)
            points = points.detach()
            margin, flips, _ = ledger._keep(index, points, scores)
            gradient = torch.where(pressed(points, gradient), 0, gradient)
            uphill, delta = _L2.steepest(gradient), points - inputs
            slope = inner(gradient, uphill)
            # On a tie the boundary is no way off: at least as far as shows the flip through rounding.
            way = (margin.abs() + 2 * ledger.slack[index]).div(slope).clamp(min=torch.finfo(slope.dtype).eps)
            reach = _L2.length(delta) + torch.where(slope > 0, way, ledger.diagonal)
            widened = torch.where(ledger.found[index], radius * (1 + gamma), reach)
            narrowed = torch.minimum(radius * (1 - gamma), ledger.length[index])
            radius = torch.where(flips, narrowed, widened).clamp(max=ledger.diagonal)
            # The ball of any radius is the unit ball at another scale.
            scale = column(radius)
            points = (inputs + scale * _L2.project((delta + step_size * uphill) / scale, 1.0)).clamp(0, 1)
        return points
