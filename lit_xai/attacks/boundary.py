"""Closest-boundary searches: the nearest image of another class, in l2."""

import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal
from lit_xai.types import Flags, Images, Labels, Logits, Scores, require, require_at_least

Some = Int[Tensor, " some"]
Points = Float[Tensor, "some channel height width"]
Values = Float[Tensor, " some"]

_L2 = L2()
_NEAR = 5e-5  # on the boundary: -margin is this share of the input's margin, give or take a factor of two
_SHARPNESS = 4.0  # preference for the nearest rival class, in units of 1 / |margin|
_GROWTH = 1.2  # growth of the radius per step until the first flip
_OVERSHOOT = 1.005  # how far beyond the tangent plane, in distances of that plane, its foot is tried


@dataclass(frozen=True)
class DDN(Search):
    """Closest boundary point in l2 by decoupled direction and norm, then bisection onto the boundary.

    d <- unit(unit(d) + a_k unit(g)),  r <- r (1 - gamma) after a flip, else r (1 + gamma),
    point <- clip(input + r d), where g leads to the other classes and a_k falls from 1 to 0.01 along a cosine.

    Each image stops by itself, and from then on costs nothing: at its first forward pass if it is not of class
    `target`; in the search once it has flipped with d and g parallel within `tolerance`, which leaves nothing to
    gain if the boundary is flat; in the bisection once it lies on the boundary.

    Args:
        steps: Gradient steps at most, at least 1; each costs one forward pass and one input gradient.
        gamma: Relative change of the radius per step, in (0, 1).
        tolerance: Share of the distance that an image may leave ungained when it stops early, in [0, 1).
        bisections: Forward passes at most between input and boundary, at least 0; most images use about three.

    Source: Rony et al. 2019, arXiv 1811.09600, algorithm 1.

    Deviates: g is a gradient of logits that sharpens towards the boundary (`_pull`), not of the cross entropy: it
    does not saturate, and scaling all logits changes nothing. Pixels that g presses against the box are left
    out of it. Radius and step are relative: r starts at the distance of the linearised boundary instead of
    1, grows by 1.2 until the first flip, and a_k is in units of r. The last point tried is the foot of the
    perpendicular on the tangent plane. Images leave early; no quantisation. The bisection first tries where
    the chord of the margin crosses zero, and halves where that does not help.
    """

    steps: int = 20
    gamma: float = 0.05
    tolerance: float = 1e-3
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps)
        require(0 < self.gamma < 1, f"`gamma` must lie between 0 and 1, got {self.gamma!r}.")
        require(0 <= self.tolerance < 1, f"`tolerance` must lie in [0, 1), got {self.tolerance!r}.")
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = _Ledger(model, inputs.detach(), target)
        searched = (~ledger.away).nonzero()[:, 0]
        if len(searched):
            feet = self._descend(ledger, searched)
            ledger.look(searched, feet[searched])
            _bisect(ledger, self.bisections)
        return ledger.boundary()

    def _descend(self, ledger: "_Ledger", index: Some) -> Images:
        """Walk every image of `index` to the boundary; return the foot on its tangent plane there."""
        feet = ledger.inputs.clone()
        inputs = points = ledger.inputs[index]
        limit = _L2.length(torch.maximum(inputs, 1 - inputs))
        radius = torch.ones_like(limit)
        for step in range(self.steps):
            margin, flips, nearer, gradient = ledger.climb(index, points)
            found = ledger.found[index]
            delta = points - inputs
            pressed = ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))
            gradient, free = gradient.masked_fill(pressed, 0), delta.masked_fill(pressed, 0)
            uphill = _L2.steepest(gradient)
            slope = _inner(gradient, uphill)
            # Distance of the input to the plane on which the linearised margin vanishes.
            plane = torch.where(slope > 0, (margin + _inner(gradient, free)) / slope, radius)
            plane = torch.minimum(plane, limit).clamp(min=0)
            foot = torch.where(pressed, points, inputs + _column(_OVERSHOOT * plane) * uphill).clamp(0, 1)
            feet[index] = torch.where(_column(nearer | ~found), foot, feet[index])
            if step == 0:
                radius, uphill = plane, _off_plateau(ledger, index, slope, uphill)
            else:
                factor = torch.where(found, 1 + self.gamma, _GROWTH).masked_fill(flips, 1 - self.gamma)
                radius = torch.minimum(radius * factor, limit)
            turn = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            direction = _L2.steepest(_L2.steepest(delta) + turn * uphill)
            points = (inputs + _column(radius) * direction).clamp(0, 1)
            stay = ~found | (_inner(_L2.steepest(free), uphill) < 1 - self.tolerance)
            if not stay.all():
                index, inputs, points = index[stay], inputs[stay], points[stay]
                limit, radius = limit[stay], radius[stay]
                if not len(index):
                    break
        return feet


class _Look(NamedTuple):
    margin: Values  # logit of the target less the largest other logit
    flips: Flags  # whether another class wins, clearly enough for rounding not to undo it
    nearer: Flags  # whether this flip is the nearest so far


class _Ledger:
    """The nearest flip of every image so far, and the passes spent on it. All passes go through it."""

    def __init__(self, model: nn.Module, inputs: Images, target: Labels) -> None:
        logits = model(inputs)
        self.model, self.inputs, self.target = model, inputs, target
        self.start = _margin(logits, target).to(inputs.dtype)
        self.margin, self.label = self.start.clone(), logits.argmax(dim=1)
        self.away = self.label != target
        self.found, self.points = self.away.clone(), inputs.clone()
        self.length = torch.full_like(self.start, math.inf)
        self.forwards, self.backwards = torch.ones_like(target), torch.zeros_like(target)

    def look(self, index: Some, points: Points) -> _Look:
        """One forward pass."""
        return self._keep(index, points, self.model(points))

    def climb(self, index: Some, points: Points) -> tuple[Values, Flags, Flags, Points]:
        """One forward pass and one input gradient: what `look` says, and the way to the other classes."""
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            logits = self.model(points)
        (gradient,) = torch.autograd.grad(logits, points, _pull(logits.detach(), self.target[index]))
        self.backwards[index] += 1
        return *self._keep(index, points.detach(), logits.detach()), gradient

    def _keep(self, index: Some, points: Points, logits: Logits) -> _Look:
        self.forwards[index] += 1
        margin = _margin(logits, self.target[index]).to(points.dtype)
        length = _L2.length(points - self.inputs[index])
        flips = margin < -_NEAR / 2 * self.start[index]
        nearer = flips & (length < self.length[index])
        self.found[index] |= flips
        self.points[index] = torch.where(_column(nearer), points, self.points[index])
        self.length[index] = torch.where(nearer, length, self.length[index])
        self.margin[index] = torch.where(nearer, margin, self.margin[index])
        self.label[index] = torch.where(nearer, logits.argmax(dim=1), self.label[index])
        return _Look(margin, flips, nearer)

    def boundary(self) -> Boundary:
        length = _L2.length(self.points - self.inputs)
        distance = length.masked_fill(~self.found, math.inf)
        return Boundary(self.points, distance, self.found, self.label, self.forwards, self.backwards)


def _bisect(ledger: _Ledger, rounds: int) -> None:
    """Move every flip along its line to the input onto the boundary, and always keep a point that flips."""
    index = (ledger.found & ~ledger.away).nonzero()[:, 0]
    inputs, start = ledger.inputs[index], ledger.start[index]
    direction = _L2.steepest(ledger.points[index] - inputs)
    far, below = ledger.length[index], ledger.margin[index]
    near, above = torch.zeros_like(far), start
    streak = torch.zeros_like(index)  # how often in a row the same end has moved
    for _ in range(rounds):
        left = below < -2 * _NEAR * start
        if not left.all():
            index, inputs, direction, start = index[left], inputs[left], direction[left], start[left]
            far, near, below, above, streak = far[left], near[left], below[left], above[left], streak[left]
        if not len(index):
            break
        chord = near + (far - near) * (above + _NEAR * start) / (above - below)
        length = torch.where(streak.abs() > 1, (near + far) / 2, chord)
        margin, flips, _ = ledger.look(index, (inputs + _column(length) * direction).clamp(0, 1))
        far, below = torch.where(flips, length, far), torch.where(flips, margin, below)
        near, above = torch.where(flips, near, length), torch.where(flips, above, margin)
        streak = torch.where(flips, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)


def _off_plateau(ledger: _Ledger, index: Some, slope: Values, uphill: Points) -> Points:
    """Where the model is flat at the input, leave in a random direction."""
    if (slope > 0).all():
        return uphill
    inputs = ledger.inputs
    noise = normal(keys(inputs, "DDN"), 0, inputs.shape[1:], inputs.dtype)[index]
    return torch.where(_column(slope > 0), uphill, _L2.steepest(noise))


def _margin(logits: Logits, target: Labels) -> Scores:
    own = target[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -math.inf).amax(dim=1)


def _pull(logits: Logits, target: Labels) -> Logits:
    """Weights of the logits whose gradient leads to the other classes: a softmax over these, less the target.

    The softmax is of the logits in units of |margin| / 4: far from the boundary it looks at several classes, at
    the boundary at the nearest alone, so that the gradient becomes the normal.
    """
    scale = logits.abs().amax(dim=1) * torch.finfo(logits.dtype).eps
    unit = torch.maximum(_margin(logits, target).abs(), scale).clamp(min=torch.finfo(logits.dtype).tiny)
    rivals = logits.scatter(1, target[:, None], -math.inf)
    return (rivals * (_SHARPNESS / unit)[:, None]).softmax(dim=1).scatter(1, target[:, None], -1)


def _inner(first: Points, second: Points) -> Values:
    return (first * second).flatten(1).sum(dim=1)


def _column(values: Tensor) -> Tensor:
    """One value per image, shaped to meet images."""
    return values[:, None, None, None]
