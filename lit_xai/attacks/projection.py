"""The fast adaptive boundary attack as a search: projections onto the nearest linearised boundary."""

from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.deepfool import nearest
from lit_xai.attacks.hyperplane import foot
from lit_xai.attacks.ledger import Index, Ledger, bisect, column, inner
from lit_xai.attacks.norms import L2
from lit_xai.types import Images, Labels, require, require_at_least

_L2 = L2()


@dataclass(frozen=True)
class FABProjection(Search):
    """Closest boundary point in l2 by projections onto the nearest linearised boundary, then bisection.

    z <- clip((1 - a) (z + eta (p(z) - z)) + a (x + eta (p(x) - x))),  a = min(d(z) / (d(z) + d(x)), alpha),

    where p projects the iterate z and the input x inside the box onto the plane on which f_y = f_l if the
    logits were affine at z, l is the class of the nearest such plane, and d is the length of a projection.
    After a flip, z <- x + beta (z - x).

    Args:
        steps: Steps, at least 1; each costs two forward passes and an input gradient per rival.
        rivals: Other classes l that are looked at, those of the largest logits at z, at least 1.
        alpha: Largest weight of the projected input, in [0, 1].
        eta: How far to go, 1 being onto the plane, at least 1.
        beta: Share of the perturbation kept after a flip, in (0, 1).
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Croce and Hein 2020, arXiv 1907.02044, algorithm 1 (untargeted, l2).

    Deviates: the bisection takes the place of the final search of three secant steps. No restarts from random
    points. A plane lies beyond the boundary by as much as shows the flip through rounding.
    """

    steps: int = 100
    rivals: int = 9
    alpha: float = 0.1
    eta: float = 1.05
    beta: float = 0.9
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rivals=self.rivals, eta=self.eta)
        require(0 <= self.alpha <= 1, f"`alpha` must lie in [0, 1], got {self.alpha!r}.")
        require(0 < self.beta < 1, f"`beta` must lie between 0 and 1, got {self.beta!r}.")
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            self._descend(ledger, index)
            bisect(ledger, self.bisections)
        return ledger.boundary()

    def _descend(self, ledger: Ledger, index: Index) -> None:
        start = points = ledger.inputs[index]
        for _ in range(self.steps):
            gap, normal = nearest(ledger, index, points, self.rivals)
            way = foot(_L2, points, normal, gap) - points
            anew = foot(_L2, start, normal, gap + inner(normal, start - points)) - start
            here, there = _L2.length(way), _L2.length(anew)
            share = torch.where(here > 0, here / (here + there), 0).clamp(max=self.alpha)
            points = (points + self.eta * way).lerp(start + self.eta * anew, column(share)).clamp(0, 1)
            _, flips, _ = ledger.look(index, points)
            points = torch.where(column(flips), start.lerp(points, self.beta), points)
