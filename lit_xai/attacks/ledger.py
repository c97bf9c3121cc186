"""The accounting of a boundary search: every pass goes through here, and the nearest flip is kept."""

import math
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary
from lit_xai.attacks.norms import L2
from lit_xai.types import Images, Labels, require

# Of the images still searched, a shrinking part of the batch: `index` names their rows in it.
Index = Int[Tensor, " some"]
Points = Float[Tensor, "some channel height width"]
Values = Float[Tensor, " some"]
Truths = Bool[Tensor, " some"]
Rows = Float[Tensor, "some rival"]

NEAR = 5e-5  # a point is on the boundary when -margin is about this share of the input's margin
_L2 = L2()
_SHARPNESS = 3.0  # how much the nearest rival outweighs the others, in units of 1 / its distance


@dataclass(frozen=True)
class Climb:
    """What a gradient says; `gap` is the linearised distance to the nearest rival, negative beyond it."""

    gap: Values
    gradient: Points
    flips: Truths
    nearer: Truths


class Ledger:
    """The nearest flip of every image so far, and the passes spent on it: every pass goes through here."""

    def __init__(self, model: nn.Module, inputs: Images, target: Labels) -> None:
        inputs = inputs.contiguous()  # lengths are taken of flat images at every step
        logits = model(inputs).to(inputs.dtype)
        classes = logits.shape[1]
        require(classes > 1, f"a boundary needs at least 2 classes, got a model with {classes}.")
        rounding = 8 * torch.finfo(logits.dtype).eps * logits.abs().amax(dim=1)
        self.model, self.inputs, self.target = model, inputs, target
        self.margin, self.label = margin_of(logits, target), logits.argmax(dim=1)
        self.start, self.slack = self.margin.clone(), torch.maximum(NEAR / 2 * self.margin, rounding)
        # Logits that are not finite predict nothing, whichever of them `argmax` names.
        self.away = (self.label != target) | ~logits.isfinite().all(dim=1)
        self.found, self.points = self.away.clone(), inputs.clone()
        self.length = torch.full_like(self.margin, math.inf)
        self.slopes = torch.ones_like(logits)
        self.barred = torch.zeros_like(logits, dtype=torch.bool)
        self.diagonal = math.sqrt(math.prod(inputs.shape[1:]))
        self.forwards, self.backwards = torch.ones_like(target), torch.zeros_like(target)

    def look(self, index: Index, points: Points) -> tuple[Values, Truths, Truths]:
        """One forward pass: margins, which points flip beyond rounding, which of them are nearest so far."""
        self.forwards[index] += 1
        return self._keep(index, points, self.model(points).to(points.dtype))

    def gap(self, index: Index, points: Points, length: Values | None = None) -> Values:
        """One forward pass: the linearised distance to the nearest rival, as `climb` would say it."""
        self.forwards[index] += 1
        logits = self.model(points).to(points.dtype)
        self._keep(index, points, logits, length)
        return self._gaps(index, logits).amin(dim=1)

    def bar(self, labels: Labels | None) -> None:
        """From now on, look for ways to other classes than these, one per image; flips to any still count.

        Where there is but one other class, it is not barred.
        """
        self.barred.zero_()
        if labels is not None and self.barred.shape[1] > 2:
            self.barred.scatter_(1, labels[:, None], True)

    def climb(self, index: Index, points: Points, length: Values | None = None) -> Climb:
        """One forward pass and one input gradient: the way to the rivals, each at its slope of the survey.

        `length` is the distance of the points to the inputs, if known.
        """
        points, logits = self._record(index, points)
        slopes, own = self.slopes[index], self.target[index, None]
        gaps = self._gaps(index, logits.detach())
        weights = _preference(gaps) / slopes
        weights = weights.scatter(1, own, -weights.sum(dim=1, keepdim=True))
        gradient = self._gradient(index, logits, points, weights, again=False)
        _, flips, nearer = self._keep(index, points.detach(), logits.detach(), length)
        return Climb(gaps.amin(dim=1), gradient, flips, nearer)

    def survey(self, index: Index, rivals: int) -> Climb:
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
            gradient = torch.where(pressed(points, gradient), 0, gradient)
            uphill.append(_L2.steepest(gradient))
            slopes.append(inner(gradient, uphill[-1]))
        points, logits = points.detach(), logits.detach()
        slope = torch.stack(slopes, dim=1)
        mean = slope.sum(1, keepdim=True) / (slope > 0).sum(1, keepdim=True).clamp(min=1)
        mean = torch.where(mean > 0, mean, 1)
        slope = torch.where(slope > 0, slope, mean)
        self.slopes[index] = mean.expand_as(logits).scatter(1, some, slope)
        gaps = gaps_of(logits, own, self.slopes[index]).gather(1, some)
        gap, nearest = gaps.min(dim=1)
        # On a tie the linearised distance is 0, and rounding hides the flip: go as far as shows it.
        least = 2 * self.slack[index] / slope.gather(1, nearest[:, None])[:, 0]
        gap = ((gap + least) / (1 + NEAR)).clamp(min=torch.finfo(points.dtype).eps)
        towards = torch.stack(uphill)[nearest, torch.arange(len(index), device=index.device)]
        foot = points + column((1 + NEAR) * gap.clamp(max=self.diagonal)) * towards
        _, flips, nearer = self.look(index, foot.clamp(0, 1))
        weights = _preference(gaps) / slope
        together = sum((column(w) * g for w, g in zip(weights.T, raw, strict=True)), torch.zeros_like(points))
        return Climb(gap, together, flips, nearer)

    def boundary(self) -> Boundary:
        distance = _L2.length(self.points - self.inputs).masked_fill(~self.found, math.inf)
        return Boundary(self.points, distance, self.found, self.label, self.forwards, self.backwards)

    def _gaps(self, index: Index, logits: Rows) -> Rows:
        gaps = gaps_of(logits, self.target[index, None], self.slopes[index])
        return gaps.masked_fill(self.barred[index], math.inf)

    def _record(self, index: Index, points: Points) -> tuple[Points, Rows]:
        self.forwards[index] += 1
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            return points, self.model(points).to(points.dtype)

    def _gradient(self, index: Index, logits: Rows, points: Points, weights: Rows, again: bool) -> Points:
        self.backwards[index] += 1
        return torch.autograd.grad(logits, points, weights, retain_graph=again)[0]

    def _keep(
        self, index: Index, points: Points, logits: Rows, length: Values | None = None
    ) -> tuple[Values, Truths, Truths]:
        margin = margin_of(logits, self.target[index])
        if length is None:
            length = _L2.length(points - self.inputs[index])
        flips = margin < -self.slack[index]
        nearer = flips & (length < self.length[index])
        self.found[index] |= flips
        if len(index) == len(self.points):
            self.points = torch.where(column(nearer), points, self.points)
        else:
            self.points[index] = torch.where(column(nearer), points, self.points[index])
        self.length[index] = torch.where(nearer, length, self.length[index])
        self.margin[index] = torch.where(nearer, margin, self.margin[index])
        self.label[index] = torch.where(nearer, logits.argmax(dim=1), self.label[index])
        return margin, flips, nearer


def bisect(ledger: Ledger, rounds: int) -> None:
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
        margin, flips, _ = ledger.look(index, (inputs + column(length) * direction).clamp(0, 1))
        far, below = torch.where(flips, length, far), torch.where(flips, margin, below)
        near, above = torch.where(flips, near, length), torch.where(flips, above, margin)
        streak = torch.where(flips, streak.clamp(min=0) + 1, streak.clamp(max=0) - 1)


def margin_of(logits: Rows, target: Index) -> Values:
    """Logit of the target less the largest other logit."""
    own = target[:, None]
    return logits.gather(1, own)[:, 0] - logits.scatter(1, own, -math.inf).amax(dim=1)


def gaps_of(logits: Rows, own: Tensor, slopes: Rows) -> Rows:
    """Linearised distance to each class; infinite to one's own."""
    return ((logits.gather(1, own) - logits) / slopes).scatter(1, own, math.inf)


def _preference(gaps: Rows) -> Rows:
    """Weights of the rivals: far from the boundary of several, on the boundary of the nearest alone."""
    gap = gaps.amin(dim=1, keepdim=True)
    return ((gap - gaps) * (_SHARPNESS / gap.abs().clamp(min=1e-30))).softmax(dim=1)


def pressed(points: Points, gradient: Points) -> Bool[Tensor, "some channel height width"]:
    """Pixels on the box that the gradient would push out of it."""
    # As pixel and sign add up to -1 or 2, four of seven passes over the images are spared.
    return gradient.sign().add_(points).sub_(0.5).abs_() >= 1.5


def inner(first: Points, second: Points) -> Values:
    product: Tensor = torch.linalg.vecdot(first.flatten(1), second.flatten(1))
    return product


def divisor(delta: Points) -> Values:
    """A length to divide by: not 0."""
    return _L2.length(delta).clamp(min=1e-30)


def column(values: Tensor) -> Tensor:
    """One value per image, shaped to meet images."""
    return values[:, None, None, None]
