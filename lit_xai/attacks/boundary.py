"""Closest-boundary searches: the nearest image of another class, in l2."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal
from lit_xai.types import Images, Labels, require, require_at_least

# Of the images still searched, a shrinking part of the batch: `index` names their rows in it.
Index = Int[Tensor, " some"]
Points = Float[Tensor, "some channel height width"]
Values = Float[Tensor, " some"]
Truths = Bool[Tensor, " some"]
Rows = Float[Tensor, "some rival"]

_L2 = L2()
_NEAR = 5e-5  # a point is on the boundary when -margin is about this share of the input's margin
_SHARPNESS = 3.0  # how much the nearest rival outweighs the others, in units of 1 / its distance
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
        ledger = _Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            feet = self._descend(ledger, index)
            ledger.look(index, feet[index])
            _bisect(ledger, self.bisections)
        return ledger.boundary()

    def _descend(self, ledger: "_Ledger", index: Index) -> Images:
        """Walk these images to the boundary; return the feet of the inputs on the tangent planes there."""
        feet = ledger.inputs.clone()
        inputs = points = ledger.inputs[index]
        radius = inputs.new_ones(len(index))
        for step in range(self.steps):
            climb = ledger.climb(index, points) if step else ledger.survey(index, self.rivals)
            found, delta, pressed = ledger.found[index], points - inputs, _pressed(points, climb.gradient)
            gradient, free = torch.where(pressed, 0, climb.gradient), torch.where(pressed, 0, delta)
            uphill = _L2.steepest(gradient)
            slope = _inner(gradient, uphill)
            # How far the input is from the plane on which the linearised gap vanishes.
            plane = torch.where(slope > 0, (climb.gap + _inner(gradient, free)) / slope, radius)
            plane = plane.clamp(0, ledger.diagonal)
            foot = torch.where(pressed, points, inputs + _column((1 + _NEAR) * plane) * uphill).clamp(0, 1)
            feet[index] = torch.where(_column(climb.nearer | ~found), foot, feet[index])
            if step == 0:
                radius, uphill = plane, _off_plateau(ledger, index, slope, uphill)
            else:
                factor = torch.where(found, 1 + self.gamma, _GROWTH).masked_fill(climb.flips, 1 - self.gamma)
                radius = (radius * factor).clamp(max=ledger.diagonal)
            turn = 0.01 + 0.99 * (1 + math.cos(math.pi * step / self.steps)) / 2
            direction = torch.addcmul(turn * uphill, delta, _column(1 / _length(delta)))
            points = torch.addcmul(inputs, direction, _column(radius / _length(direction))).clamp_(0, 1)
            stay = ~found | (_inner(free, uphill) < (1 - self.tolerance) * _length(free))
            if not stay.all():  # one host sync per step, for the passes it saves
                index, inputs, points, radius = index[stay], inputs[stay], points[stay], radius[stay]
                if not len(index):
                    break
        return feet


@dataclass(frozen=True)
class _Climb:
    """What a gradient says; `gap` is the linearised distance to the nearest rival, negative beyond it."""

    gap: Values
    gradient: Points
    flips: Truths
    nearer: Truths


class _Ledger:
    """The nearest flip of every image so far, and the passes spent on it: every pass goes through here."""

    def __init__(self, model: nn.Module, inputs: Images, target: Labels) -> None:
        logits = model(inputs).to(inputs.dtype)
        classes = logits.shape[1]
        require(classes > 1, f"a boundary needs at least 2 classes, got a model with {classes}.")
        rounding = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
        self.model, self.inputs, self.target = model, inputs, target
        self.margin, self.label = _margin(logits, target), logits.argmax(dim=1)
        self.start, self.slack = self.margin.clone(), torch.maximum(_NEAR / 2 * self.margin, rounding)
        # Logits that are not finite predict nothing, whichever of them `argmax` names.
        self.away = (self.label != target) | ~logits.isfinite().all(dim=1)
        self.found, self.points = self.away.clone(), inputs.clone()
        self.length = torch.full_like(self.margin, math.inf)
        self.slopes = torch.ones_like(logits)
        self.diagonal = math.sqrt(math.prod(inputs.shape[1:]))
        self.forwards, self.backwards = torch.ones_like(target), torch.zeros_like(target)

    def look(self, index: Index, points: Points) -> tuple[Values, Truths, Truths]:
        """One forward pass: margins, which points flip beyond rounding, which of them are nearest so far."""
        self.forwards[index] += 1
        return self._keep(index, points, self.model(points).to(points.dtype))

    def climb(self, index: Index, points: Points) -> _Climb:
        """One forward pass and one input gradient: the way to the rivals, each at its slope of the survey."""
        points, logits = self._record(index, points)
        slopes, own = self.slopes[index], self.target[index, None]
        gaps = _gaps(logits.detach(), own, slopes)
        weights = _preference(gaps) / slopes
        weights = weights.scatter(1, own, -weights.sum(dim=1, keepdim=True))
        gradient = self._gradient(index, logits, points, weights, again=False)
        _, flips, nearer = self._keep(index, points.detach(), logits.detach())
        return _Climb(gaps.amin(dim=1), gradient, flips, nearer)

    def survey(self, index: Index, rivals: int) -> _Climb:
        """From the inputs: one gradient for each rival gives its slope, and the nearest foot is tried.

        gap_j = (f_target - f_j) / slope_j, slope_j = ||grad (f_target - f_j)|| over the pixels that can move;
        classes beyond the `rivals` nearest logits get the mean slope.
        """
        points, logits = self._record(index, self.inputs[index])
        own = self.target[index, None]
        some = logits.detach().scatter(1, own, -math.inf).topk(min(rivals, logits.shape[1] - 1)).indices
        raw, uphill, slopes = [], [], []
        for rival in some.T:
            weights = torch.zeros_like(logits).scatter(1, rival[:, None], 1).scatter(1, own, -1)
            gradient = self._gradient(index, logits, points, weights, again=True)
            raw.append(gradient)
            gradient = torch.where(_pressed(points, gradient), 0, gradient)
            uphill.append(_L2.steepest(gradient))
            slopes.append(_inner(gradient, uphill[-1]))
        points, logits = points.detach(), logits.detach()
        slope = torch.stack(slopes, dim=1)
        mean = slope.sum(1, keepdim=True) / (slope > 0).sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(mean > 0, mean, 1)
        slope = torch.where(slope > 0, slope, mean)
        self.slopes[index] = mean.expand_as(logits).scatter(1, some, slope)
        gaps = _gaps(logits, own, self.slopes[index]).gather(1, some)
        gap, nearest = gaps.min(dim=1)
        # On a tie the linearised distance is 0, and rounding hides the flip: go as far as shows it.
        least = 2 * self.slack[index] / slope.gather(1, nearest[:, None])[:, 0]
        gap = ((gap + least) / (1 + _NEAR)).clamp(min=torch.finfo(points.dtype).eps)
        towards = torch.stack(uphill)[nearest, torch.arange(len(index), device=index.device)]
        foot = points + _column((1 + _NEAR) * gap.clamp(max=self.diagonal)) * towards
        _, flips, nearer = self.look(index, foot.clamp(0, 1))
        weights = _preference(gaps) / slope
        together = sum(
            (_column(w) * g for w, g in zip(weights.T, raw, strict=True)), torch.zeros_like(points)
        )
        return _Climb(gap, together, flips, nearer)

    def boundary(self) -> Boundary:
        distance = _L2.length(self.points - self.inputs).masked_fill(~self.found, math.inf)
        return Boundary(self.points, distance, self.found, self.label, self.forwards, self.backwards)

    def _record(self, index: Index, points: Points) -> tuple[Points, Rows]:
        self.forwards[index] += 1
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            return points, self.model(points).to(points.dtype)

    def _gradient(self, index: Index, logits: Rows, points: Points, weights: Rows, again: bool) -> Points:
        self.backwards[index] += 1
        return torch.autograd.grad(logits, points, weights, retain_graph=again)[0]

    def _keep(self, index: Index, points: Points, logits: Rows) -> tuple[Values, Truths, Truths]:
        margin, length = _margin(logits, self.target[index]), _L2.length(points - self.inputs[index])
        flips = margin < -self.slack[index]
        nearer = flips & (length < self.length[index])
        self.found[index] |= flips
        self.points[index] = torch.where(_column(nearer), points, self.points[index])
        self.length[index] = torch.where(nearer, length, self.length[index])
        self.margin[index] = torch.where(nearer, margin, self.margin[index])
        self.label[index] = torch.where(nearer, logits.argmax(dim=1), self.label[index])
        return margin, flips, nearer


def _bisect(ledger: _Ledger, rounds: int) -> None:
    """Move every flip along its line to the input onto the boundary; a point that flips is always kept."""
    index = (ledger.found & ~ledger.away).nonzero()[:, 0]
    inputs, slack = ledger.inputs[index], ledger.slack[index]
    direction = _L2.steepest(ledger.points[index] - inputs)
    far, below = ledger.length[index], ledger.margin[index]
    near, above = torch.zeros_like(far), ledger.start[index]
    streak = torch.zeros_like(index)  # how often in a row the same end has moved
    for _ in range(rounds):
        left = below < -4 * slack
        if not left.all():
            index, inputs, direction, slack = index[left], inputs[left], direction[left], slack[left]
            far, below, near, above, streak = far[left], below[left], near[left], above[left], streak[left]
        if not len(index):
            break
        chord = near + (far - near) * (above + 2 * slack) / (above - below)
        length = torch.where(streak.abs() > 1, (near + far) / 2, chord)
        margin, flips, _ = ledger.look(index, (inputs + _column(length) * direction).clamp(0, 1))
        far, below = torch.where(flips, length, far), torch.where(flips, margin, below)
        near, above = torch.where(flips, near, length), torch.where(flips, above, margin)
        streak = torch.where(flips, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)


def _off_plateau(ledger: _Ledger, index: Index, slope: Values, uphill: Points) -> Points:
    """Where the model is flat at the input, leave it in a random direction."""
    if (slope > 0).all():
        return uphill
    inputs = ledger.inputs
    noise = normal(keys(inputs, "DDN"), 0, inputs.shape[1:], inputs.dtype)[index]
    return torch.where(_column(slope > 0), uphill, _L2.steepest(noise))


def _margin(logits: Rows, target: Index) -> Values:
    """Logit of the target less the largest other logit."""
    own = target[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -math.inf).amax(dim=1)


def _gaps(logits: Rows, own: Tensor, slopes: Rows) -> Rows:
    """Linearised distance to each class; infinite to one's own."""
    return ((logits.gather(1, own) - logits) / slopes).scatter(1, own, math.inf)


def _preference(gaps: Rows) -> Rows:
    """Weights of the rivals: far from the boundary of several, on the boundary of the nearest alone."""
    gap = gaps.amin(dim=1, keepdim=True)
    return ((gap - gaps) * (_SHARPNESS / gap.abs().clamp(min=1e-30))).softmax(dim=1)


def _pressed(points: Points, gradient: Points) -> Bool[Tensor, "some channel height width"]:
    """Pixels on the box that the gradient would push out of it."""
    return ((points <= 0) & (gradient < 0)) | ((points >= 1) & (gradient > 0))


def _inner(first: Points, second: Points) -> Values:
    return (first * second).flatten(1).sum(dim=1)


def _length(delta: Points) -> Values:
    """A length to divide by: not 0."""
    return _L2.length(delta).clamp(min=1e-30)


def _column(values: Tensor) -> Tensor:
    """One value per image, shaped to meet images."""
    return values[:, None, None, None]
