"""The boundary walk: images slide along the decision boundary towards their foot on it, in l2."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import (
    NEAR,
    Climb,
    Index,
    Ledger,
    Points,
    Truths,
    Values,
    bisect,
    column,
    divisor,
    inner,
    pressed,
)
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal
from lit_xai.types import Images, Labels, require, require_at_least, require_positive

_L2 = L2()
_OVER = 1e-3  # how far beyond the boundary a step aims, as a share of the distance
_STRETCH = 1.5  # most that a radius changes at once
_GROWTH = 1.2  # least growth of the radius at once until the first flip
_ON = 0.01  # share of the distance within which a point counts as on the boundary
_LEAST = 0.2  # least cosine between direction and normal for which the plane is believed


@dataclass(frozen=True)
class BoundaryWalk(Search):
    """Closest boundary point in l2 by sliding along the boundary, then bisection onto it.

    d <- unit(unit(z - x) + a_k u),  u = unit(g) over the pixels that g does not press against the box,
    r <- the length at which clip(x + r d) meets the plane where the margin, linearised at z, is zero,
    z <- clip(x + r' d), r' = r corrected by the margin at clip(x + r d), slope as at z.

    u is the direction of the foot of the input x on that plane. a_k falls from `turn` to 0.01 as a cosine:
    the direction is a mean over the normals met on the way, so that it settles at kinks of the boundary,
    where a single normal leads astray. An image leaves once d and u are parallel within `tolerance`.

    Args:
        steps: Gradient steps, at least 1; each costs two forward passes and one input gradient.
        turn: a_0, weight of the first foot against the direction so far, above 0.
        tolerance: Share of the distance that an image may leave ungained when it stops early, in [0, 1).
        rivals: Other classes whose distance is estimated at the input, at least 1; the first step costs one
            input gradient for each.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: the averaged direction is that of Rony et al. 2019, arXiv 1811.09600, algorithm 1; the plane of
    the input that of Croce and Hein 2020, arXiv 1907.02044, section 3.

    Deviates: the norm follows from the linearised margin and one forward pass, not from a schedule; the loss
    is that of `DDN`, as is the start of an image at which the model is flat.
    """

    steps: int = 20
    turn: float = 2.0
    tolerance: float = 1e-3
    rivals: int = 3
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rivals=self.rivals)
        require_positive(turn=self.turn)
        require(0 <= self.tolerance < 1, f"`tolerance` must lie in [0, 1), got {self.tolerance!r}.")
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            climb = ledger.survey(index, self.rivals)
            noise = _L2.steepest(
                normal(keys(inputs, "BoundaryWalk")[index], 0, inputs.shape[1:], inputs.dtype)
            )
            depart(ledger, index, climb, noise, self.steps, self.turn, self.tolerance)
            bisect(ledger, self.bisections)
        return ledger.boundary()


def depart(
    ledger: Ledger, index: Index, climb: Climb, noise: Points, steps: int, turn: float, tolerance: float
) -> None:
    """Walk from the inputs, of which the survey is known; where the model is flat, along the noise."""
    inputs = ledger.inputs[index]
    uphill = _L2.steepest(torch.where(pressed(inputs, climb.gradient), 0, climb.gradient))
    flat = inner(uphill, uphill) == 0
    radius = torch.where(flat, 1, climb.gap).clamp(max=ledger.diagonal)
    direction = torch.where(column(flat), noise, uphill)
    points = (inputs + column((1 + NEAR) * radius) * direction).clamp(0, 1)
    if steps > 1:
        walk(ledger, index, points, steps - 1, turn, tolerance)
    else:
        ledger.look(index, points)


def walk(
    ledger: Ledger,
    index: Index,
    points: Points,
    steps: int,
    turn: float,
    tolerance: float,
    radius: Values | None = None,
    leave: float = math.inf,
) -> None:
    """Slide along the boundary from these points.

    Args:
        ledger: Keeps the nearest flips.
        index: The images.
        points: Where they start, one for each.
        steps: Gradient steps; each costs two forward passes and one input gradient.
        turn: Weight of the foot against the direction so far; it falls to 0.01.
        tolerance: Share of the distance at which an image has no more to gain.
        radius: Distance at which the boundary is expected, if the points lie anywhere.
        leave: Halfway, images leave whose plane is further than this multiple of their nearest flip.
    """
    inputs = ledger.inputs[index]
    parallel = 1 - max(tolerance, 16 * torch.finfo(inputs.dtype).eps)
    for step in range(steps):
        delta = points - inputs
        length = _L2.length(delta)
        climb = ledger.climb(index, points, length)
        free = (~pressed(points, climb.gradient)).to(delta.dtype)
        gradient = climb.gradient * free
        free *= delta
        slope, reach = divisor(gradient), divisor(free)
        along, found = inner(gradient, free) / slope, ledger.found[index]
        flat = slope <= 1e-30
        plane = torch.where(flat, length, climb.gap / slope + along)
        # Nothing to gain: on the boundary, and the input straight ahead.
        settled = (along >= parallel * reach) & (climb.gap.abs() <= _ON * slope * length)
        stay = plane.isfinite() & ~(found & settled)
        if 2 * step in (steps, steps - 1):
            stay &= plane < leave * ledger.length[index]
        if not stay.all():  # one host sync per step, for the passes it saves
            index, inputs, delta, gradient = index[stay], inputs[stay], delta[stay], gradient[stay]
            length, slope, along, found = length[stay], slope[stay], along[stay], found[stay]
            flat, plane = flat[stay], plane[stay]
            radius = None if radius is None else radius[stay]
            if not len(index):
                return
        # The unit vector along unit(z - x) + share u, and its cosine with u, with no more passes over images.
        share = 0.01 + (turn - 0.01) * (1 + math.cos(math.pi * step / steps)) / 2
        slant = along / length.clamp(min=1e-30)
        norm = (1 + 2 * share * slant + share**2).clamp(min=0.01).sqrt()
        direction = torch.addcmul(
            gradient * column(share / (norm * slope)), delta, column(1 / (norm * length.clamp(min=1e-30)))
        )
        cosine = ((slant + share) / norm).clamp(min=_LEAST)
        if step or radius is None:
            goal = ((1 + _OVER) * plane / cosine).clamp(length / _STRETCH, length * _STRETCH)
        else:
            goal, length = radius, radius
        goal = _onward(goal, length, found, ledger.diagonal)
        points = torch.addcmul(inputs, direction, column(goal)).clamp_(0, 1)
        gap = ledger.gap(index, points)
        further = torch.where(flat, 0, gap / (slope * cosine)) + _OVER * goal
        further = (goal + further).clamp(goal / _STRETCH, goal * _STRETCH)
        goal = _onward(further, goal, ledger.found[index], ledger.diagonal)
        points = torch.addcmul(inputs, direction, column(goal)).clamp_(0, 1)
    ledger.look(index, points)


def _onward(goal: Values, length: Values, found: Truths, diagonal: float) -> Values:
    """Until the first flip, the radius grows whatever the plane says."""
    return torch.where(found, goal, torch.maximum(goal, _GROWTH * length)).clamp(max=diagonal)
