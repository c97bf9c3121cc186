"""The default boundary search: several walks from different starts, the nearest point of all."""

from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.boundary_walk import depart, walk
from lit_xai.attacks.ledger import Index, Ledger, Values, bisect, column
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal
from lit_xai.types import Images, Keys, Labels, require, require_at_least, require_positive

_L2 = L2()
_CYCLE = 5  # of so many random starts, two lie around the input and the others around the nearest flip
_TURN, _EXPECTED, _LAST_TURN = 3.0, 1.2, 1.0


@dataclass(frozen=True)
class ClosestBoundary(Search):
    """Closest boundary point in l2 by boundary walks from several starts: the nearest flip of all.

    First a walk from the input. Then one from each random start c + noise * r * unit(n), n ~ N(0, I), r the
    distance of the nearest flip so far: of five, the first has c = the input; the second too, but looks for
    classes other than that of the nearest flip; the other three have c = the nearest flip. Last, a walk from
    the nearest flip and bisection onto the boundary.

    A walk from noise ends in a nearer local minimum than one from the input, which follows the normals next
    to it. Starts around the nearest flip explore and polish at once. An image leaves a walk halfway when its
    boundary is more than `leave` times as far as the nearest flip, and any walk that has nothing to gain.

    The default costs about 40 input gradients, never more than 41, and 85 forward passes for an image.
    `THOROUGH` costs some 275 and 565.

    Args:
        starts: Random starts, at least 0.
        steps: Gradient steps from each, at least 1; each costs two forward passes and one input gradient.
        first: Gradient steps from the input, at least 1.
        last: Gradient steps from the nearest flip in the end, at least 0.
        noise: Distance of a random start from its centre, as a multiple of the distance so far, above 0.
        leave: How much further than the nearest flip a walk may be halfway, as a factor, at least 1.
        tolerance: Share of the distance that a walk may leave ungained when it stops early, in [0, 1).
        rivals: Other classes whose distance is estimated at the input, at least 1; the first step costs one
            input gradient for each.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: each walk is a `BoundaryWalk`, with the direction of Rony et al. 2019, arXiv 1811.09600,
    algorithm 1; random starts as in Croce and Hein 2020, arXiv 1907.02044, section 3.
    """

    starts: int = 5
    steps: int = 5
    first: int = 6
    last: int = 8
    noise: float = 2.0
    leave: float = 1.1
    tolerance: float = 1e-3
    rivals: int = 3
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, first=self.first, rivals=self.rivals, leave=self.leave)
        require_at_least(0, starts=self.starts, last=self.last, bisections=self.bisections)
        require_positive(noise=self.noise)
        require(0 <= self.tolerance < 1, f"`tolerance` must lie in [0, 1), got {self.tolerance!r}.")

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        draws = keys(inputs, "ClosestBoundary")
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        if len(index):
            climb = ledger.survey(index, self.rivals)
            noise = _L2.steepest(normal(draws[index], 0, inputs.shape[1:], inputs.dtype))
            depart(ledger, index, climb, noise, self.first, 2.0, self.tolerance)
            for start in range(self.starts):
                self._restart(ledger, index, start, draws[index], climb.gap * 2 ** (start + 1))
            index = index[ledger.found[index]]
            if self.last and len(index):
                walk(ledger, index, ledger.points[index], self.last, _LAST_TURN, self.tolerance)
            bisect(ledger, self.bisections)
        return ledger.boundary()

    def _restart(self, ledger: Ledger, index: Index, start: int, draws: Keys, guess: Values) -> None:
        """Walk from a random start; `guess` is the distance for images without a flip so far."""
        inputs, kind = ledger.inputs[index], start % _CYCLE
        distance = torch.where(ledger.found[index], ledger.length[index], guess).clamp(max=ledger.diagonal)
        noise = _L2.steepest(normal(draws, start + 1, inputs.shape[1:], inputs.dtype))
        centre = inputs if kind < 2 else ledger.points[index]
        points = (centre + column(self.noise * distance) * noise).clamp(0, 1)
        ledger.bar(ledger.label if kind == 1 else None)
        walk(ledger, index, points, self.steps, _TURN, self.tolerance, _EXPECTED * distance, self.leave)
        ledger.bar(None)


THOROUGH = ClosestBoundary(starts=20, steps=10, first=10, last=80)
