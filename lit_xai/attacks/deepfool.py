"""DeepFool: jump to the nearest linearised boundary until the decision has changed."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import Index, Ledger, Points, Values, bisect, column, inner
from lit_xai.attacks.norms import L2
from lit_xai.types import Images, Labels, require_at_least

_L2 = L2()


@dataclass(frozen=True)
class DeepFool(Search):
    """Boundary point in l2 by jumps to the nearest linearised boundary, then bisection onto the boundary.

    r <- r + |f_l - f_y| / ||w_l||^2 w_l,  point <- clip(input + (1 + overshoot) r),
    w_j = grad (f_j - f_y),  l = argmin_j |f_j - f_y| / ||w_j||.

    An image leaves at its first flip; also where all w_j are zero, which nothing can change.

    Args:
        steps: Jumps at most, at least 1; each costs two forward passes and an input gradient per rival.
        rivals: Other classes j that are looked at, those of the largest logits, at least 1.
        overshoot: Share by which the perturbation is longer than to the linearised boundary, at least 0.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Moosavi-Dezfooli et al. 2016, arXiv 1511.04599, algorithm 2; `rivals` and the overshoot within the
    loop are those of the authors' code.

    Deviates: points stay in the box. A jump goes beyond the linearised boundary by as much as shows the flip
    through rounding, not by an absolute amount as in the authors' code, and no further than the diagonal of
    the box. The rivals are those at the point, not at the input. The bisection is no part of the paper.
    """

    steps: int = 50
    rivals: int = 9
    overshoot: float = 0.02
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rivals=self.rivals)
        require_at_least(0, overshoot=self.overshoot, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        start = points = ledger.inputs[index]
        total = torch.zeros_like(start)
        for _ in range(self.steps):
            if not len(index):
                break
            gap, normal = nearest(ledger, index, points, self.rivals)
            uphill = _L2.steepest(normal)
            distance = torch.where(gap > 0, gap / inner(normal, uphill), 0).clamp(max=ledger.diagonal)
            total = total - column(distance) * uphill
            points = (start + (1 + self.overshoot) * total).clamp(0, 1)
            _, flips, _ = ledger.look(index, points)
            # One host sync per jump: an image that has arrived would cost a gradient per rival otherwise.
            stay = ~flips & (gap > 0)
            index, start, points, total = index[stay], start[stay], points[stay], total[stay]
        bisect(ledger, self.bisections)
        return ledger.boundary()


def nearest(ledger: Ledger, index: Index, points: Points, rivals: int) -> tuple[Values, Points]:
    """The nearest boundary if the logits were affine: value and gradient of f_y - f_l, which vanishes there.

    Nearest by |f_y - f_l| / ||grad (f_y - f_l)||, of the `rivals` classes of the largest logits: one forward
    pass, and one input gradient per rival. The value is larger than f_y - f_l by a hair: by as much as lets
    the flip show through rounding where it vanishes. Both are 0 where no gradient is left.
    """
    points, logits = ledger._record(index, points)
    own, scores = ledger.target[index, None], logits.detach()
    others = scores.scatter(1, own, -math.inf).topk(min(rivals, scores.shape[1] - 1)).indices
    closest = torch.full_like(scores[:, 0], math.inf)
    gap, normal = torch.zeros_like(closest), torch.zeros_like(points)
    for rival in others.T:
        weights = torch.zeros_like(scores).scatter(1, rival[:, None], -1).scatter(1, own, 1)
        gradient = ledger._gradient(index, logits, points, weights, again=True)
        slope = inner(gradient, _L2.steepest(gradient))
        hair = torch.maximum(2 * ledger.slack[index], torch.finfo(slope.dtype).eps * slope)
        lead = (weights * scores).sum(dim=1) + hair
        nearer = (slope > 0) & (lead.abs() < closest * slope)
        closest = torch.where(nearer, lead.abs() / slope, closest)
        gap, normal = torch.where(nearer, lead, gap), torch.where(column(nearer), gradient, normal)
    return gap, normal
