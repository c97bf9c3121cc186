"""FAB: the closest point of another class, in any norm, by projections onto linearised decisions."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor, nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.hyperplane import foot
from lit_xai.attacks.losses import LogitMargin, holds, ranking
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.types import Epsilon, Images, Labels, Scores, require, require_at_least, require_positive

# Of the images still searched, a shrinking part of the batch: `index` names their rows in it.
Index = Int[Tensor, " some"]
Points = Float[Tensor, "some channel height width"]
Truths = Bool[Tensor, " some"]

_LEAD = LogitMargin()
_LEAST = 1e-8  # so that the two lengths are never both 0
_FINAL = 3  # steps of the final search
_BEYOND = 1e-4  # how far beyond the boundary it aims, in units of the lead at the input


@dataclass(frozen=True)
class FAB(Attack):
    """Fast adaptive boundary attack, targeted: minimum-norm points, of which those within the budget count.

    One run for each of the `targets` other classes with the largest logits. In the run to class t,
    f_t - f_target is linearised at the iterate z, and iterate and input x are projected onto the plane where
    it vanishes, inside the box, as p(z) and p(x):

    z <- clip((1 - a) (z + eta (p(z) - z)) + a (x + eta (p(x) - x))),
    a = min(d(z) / (d(z) + d(x)), alpha), d the length of a projection;

    after a flip, z <- x + beta (z - x). The closest flip is kept. Nothing is random.

    Where no flip within the budget is known, the call returns the input itself. `closest` returns closest
    points and their lengths, without a budget.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The norm to be minimised.
        steps: Steps per run, at least 1; each costs two forward passes and one input gradient.
        targets: Runs, at least 1; one per other class if there are fewer.
        alpha: Largest weight of the projected input, in [0, 1].
        eta: How far to go, 1 being onto the plane, at least 1.
        beta: Share of the perturbation kept after a flip, in (0, 1).

    Source: Croce and Hein 2020, arXiv 1907.02044, algorithm 1 and its final search; in its targeted form
    arXiv 2003.01690, section 4.
    Deviates: an image leaves at its first flip within the budget, from which the authors' code goes on to
    the end of the run. The final search, secant steps between flip and input, is in the paper, but not in
    that code. No restarts from random points.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    steps: int = 100
    targets: int = 9
    alpha: float = 0.1
    eta: float = 1.05
    beta: float = 0.9

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require_at_least(1, steps=self.steps, targets=self.targets, eta=self.eta)
        require(0 <= self.alpha <= 1, f"`alpha` must lie in [0, 1], got {self.alpha!r}.")
        require(0 < self.beta < 1, f"`beta` must lie between 0 and 1, got {self.beta!r}.")

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        points, length = self._search(model, inputs.detach(), target, self.epsilon)
        return torch.where(_column(length <= self.epsilon), points, inputs.detach())

    def closest(self, model: nn.Module, inputs: Images, target: Labels) -> tuple[Images, Scores]:
        """Closest points found of another class, and how far they are in `norm`, whatever the budget.

        Where none was found: the input, and infinity. For an input of another class: itself, and 0.
        """
        return self._search(model, inputs.detach(), target, budget=0.0)

    @torch.no_grad()
    def _search(
        self, model: nn.Module, inputs: Images, target: Labels, budget: float
    ) -> tuple[Images, Scores]:
        """An image is done once it has a flip within the budget."""
        logits = model(inputs).to(inputs.dtype)
        length = torch.where(holds(logits, target), math.inf, 0).to(inputs.dtype)
        kept = _Kept(inputs, target, self.norm, budget, inputs.clone(), length)
        for rival in ranking(logits, target, targets=min(self.targets, logits.shape[1] - 1)).T:
            index = (kept.length > budget).nonzero()[:, 0]
            if len(index):  # one host sync per class, for the passes it saves
                self._run(model, kept, index, rival[index])
        index = ((kept.length > budget) & kept.length.isfinite()).nonzero()[:, 0]
        if len(index):
            _shorten(model, kept, index, _LEAD(logits, target)[index])
        return kept.points, kept.length

    def _run(self, model: nn.Module, kept: "_Kept", index: Index, rival: Index) -> None:
        """Search for the boundary to one class."""
        start, target = kept.inputs[index], kept.target[index]
        points = start
        for _ in range(self.steps):
            logits, normal = _LEAD.climb(model, points, target, rival)
            gap = _LEAD(logits, target, rival)
            gap_at_start = gap + (normal * (start - points)).flatten(1).sum(dim=1)
            both, gaps = torch.cat([points, start]), torch.cat([gap, gap_at_start])
            way = foot(self.norm, both, normal.repeat(2, 1, 1, 1), gaps).sub_(both)
            here, there = self.norm.length(way).clamp(min=_LEAST).chunk(2)
            share = (here / (here + there)).clamp(max=self.alpha)
            beyond, anew = way.mul_(self.eta).add_(both).chunk(2)
            points = beyond.lerp(anew, _column(share)).clamp_(0, 1)
            flips = ~holds(model(points), target)
            kept.note(index, points, flips)
            points = torch.where(_column(flips), start.lerp(points, self.beta), points)
            stay = kept.length[index] > kept.budget
            if not stay.all():  # one host sync per step, for the passes it saves
                index, rival, target = index[stay], rival[stay], target[stay]
                points, start = points[stay], start[stay]
                if not len(index):
                    break


@dataclass
class _Kept:
    """The closest flip of every image so far, and its length."""

    inputs: Images
    target: Labels
    norm: Norm
    budget: float
    points: Images
    length: Scores

    def note(self, index: Index, points: Points, flips: Truths) -> None:
        length = self.norm.length(points - self.inputs[index])
        nearer = flips & (length < self.length[index])
        self.points[index] = torch.where(_column(nearer), points, self.points[index])
        self.length[index] = torch.where(nearer, length, self.length[index])


def _shorten(model: nn.Module, kept: _Kept, index: Index, lead: Float[Tensor, " some"]) -> None:
    """Final search: where the chord of the lead, below 0 at the input, crosses 0 on the way to the flip."""
    start, target = kept.inputs[index], kept.target[index]
    way, aim = kept.points[index] - start, -_BEYOND * lead
    near, far = torch.zeros_like(lead), torch.ones_like(lead)
    below, above = lead, _LEAD(model(start + way).to(way.dtype), target)
    for _ in range(_FINAL):
        share = near + (far - near) * ((aim - below) / (above - below)).clamp(0, 1)
        points = torch.addcmul(start, _column(share), way)
        logits = model(points).to(points.dtype)
        flips, seen = ~holds(logits, target), _LEAD(logits, target)
        near, below = torch.where(flips, near, share), torch.where(flips, below, seen)
        far, above = torch.where(flips, share, far), torch.where(flips, seen, above)
        kept.note(index, points, flips)


def _column(values: Float[Tensor, " some"] | Truths) -> Tensor:
    """One value per image, shaped to meet images."""
    return values[:, None, None, None]
