"""Closest-boundary searches: the nearest image of another class, in l2."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import (
    NEAR,
    Index,
    Ledger,
    Points,
    Values,
    bisect,
    column,
    divisor,
    inner,
    pressed,
)
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal
from lit_xai.types import Images, Labels, require, require_at_least

_L2 = L2()
_GROWTH = 1.2  # growth of the radius per step until the first flip


@dataclass(frozen=True)
class DDN(Search):
    """Closest boundary point in l2 by decoupled direction and norm, then bisection onto the boundary.

    d <- unit(unit(d) + a_k unit(g)),  r <- r (1 - gamma) after a flip, else r (1 + gamma),
    point <- clip(input + r d), where g leads to the other classes and a_k falls from 1 to 0.01 as a cosine.

    Each image stops by itself, and from then on costs nothing: at its first forward pass if it is not of
    class `target`; in the search once it has flipped with d and g parallel within `tolerance`, which leaves
    nothing to gain if the boundary is flat; in the bisection once it lies on the boundary.

    Args:
        steps: Gradient steps at most, at least 1; each costs one forward pass and one input gradient.
        gamma: Relative change of the radius per step, in (0, 1).
        tolerance: Share of the distance that an image may leave ungained when it stops early, in [0, 1).
        rivals: Other classes whose distance is estimated at the input, at least 1; the first step costs one
            input gradient for each.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Rony et al. 2019, arXiv 1811.09600, algorithm 1. Distances to rivals: Moosavi-Dezfooli et al.
    2016, arXiv 1511.04599, algorithm 2.

    Deviates: g is not the gradient of the cross entropy but of the linearised distance to the other classes,
    a softmax over these that sharpens towards the boundary: it does not saturate, is normal to the boundary
    in the end, and scaling all logits changes nothing. Pixels that g presses against the box are left out of
    it. Radius and step are relative: r starts at the distance of the linearised boundary instead of 1, grows
    by 1.2 until the first flip, and a_k is in units of r. The feet of the input on the linearised boundary,
    seen from the input and from the nearest flip, are tried as well. Images leave early; no quantisation.
    The bisection first tries where the chord of the margin crosses zero, and halves where that does not help.
    """

    steps: int = 20
    gamma: float = 0.05
    tolerance: float = 1e-3
    rivals: int = 3
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rivals=self.rivals)
        require(0 < self.gamma < 1, f"`gamma` must lie between 0 and 1, got {self.gamma!r}.")
        require(0 <= self.tolerance < 1, f"`tolerance` must lie in [0, 1), got {self.tolerance!r}.")
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            feet = self._descend(ledger, index)
            ledger.look(index, feet[index])
            bisect(ledger, self.bisections)
        return ledger.boundary()

    def _descend(self, ledger: "Ledger", index: Index) -> Images:
        """Walk these images to the boundary; return the feet of the inputs on the tangent planes there."""
        feet = ledger.inputs.clone()
        inputs = points = ledger.inputs[index]
        radius = inputs.new_ones(len(index))
        for step in range(self.steps):
            climb = ledger.climb(index, points) if step else ledger.survey(index, self.rivals)
            found, delta, held = ledger.found[index], points - inputs, pressed(points, climb.gradient)
            loose = (~held).to(delta.dtype)
            gradient, free = climb.gradient * loose, delta * loose
            uphill = _L2.steepest(gradient)
            slope = inner(gradient, uphill)
            # How far the input is from the plane on which the linearised gap vanishes.
            plane = torch.where(slope > 0, (climb.gap + inner(gradient, free)) / slope, radius)
            plane = plane.clamp(0, ledger.diagonal)
            foot = torch.where(held, points, inputs + column((1 + NEAR) * plane) * uphill).clamp(0, 1)
            feet[index] = torch.where(column(climb.nearer | ~found), foot, feet[index])
            if step == 0:
                radius, uphill = plane, _off_plateau(ledger, index, slope, uphill)
            else:
                factor = torch.where(found, 1 + self.gamma, _GROWTH).masked_fill(climb.flips, 1 - self.gamma)
                radius = (radius * factor).clamp(max=ledger.diagonal)
            turn = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            direction = torch.addcmul(turn * uphill, delta, column(1 / divisor(delta)))
            points = torch.addcmul(inputs, direction, column(radius / divisor(direction))).clamp_(0, 1)
            stay = ~found | (inner(free, uphill) < (1 - self.tolerance) * divisor(free))
            if not stay.all():  # one host sync per step, for the passes it saves
                index, inputs, points, radius = index[stay], inputs[stay], points[stay], radius[stay]
                if not len(index):
                    break
        return feet


def _off_plateau(ledger: Ledger, index: Index, slope: Values, uphill: Points) -> Points:
    """Where the model is flat at the input, leave it in a random direction."""
    if (slope > 0).all():
        return uphill
    inputs = ledger.inputs
    noise = normal(keys(inputs, "DDN"), 0, inputs.shape[1:], inputs.dtype)[index]
    return torch.where(column(slope > 0), uphill, _L2.steepest(noise))
