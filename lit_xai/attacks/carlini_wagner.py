"""The attack of Carlini and Wagner: distance and margin, minimised together without constraints."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import Index, Ledger, Truths, Values, bisect
from lit_xai.types import Images, Labels, require_at_least, require_positive

_INSIDE = 0.999999  # pixels on the box would lie at infinity
_MEAN, _SQUARE, _FLOOR = 0.9, 0.999, 1e-8  # Adam: decay of its two averages, and what it adds to a root
_CHECKS, _PROGRESS = 10, 0.9999  # looks at the loss per round, and the share of the last one to get below


@dataclass(frozen=True)
class CarliniWagner(Search):
    """Boundary point in l2 by descent on distance and margin, then bisection onto the boundary.

    min_w ||x' - x||^2 + c max(0, f_y(x') - max_{j != y} f_j(x')),  x' = (1 + tanh w) / 2,

    by Adam from the input, anew for each c. After a round in which the image flipped, c becomes the middle of
    the smallest c that flipped and the largest that did not; before the first flip it grows tenfold. At every
    tenth of a round, an image whose loss is not below 0.9999 of that at the last check leaves the round.

    Args:
        steps: Steps of Adam per round at most, at least 1; each costs one forward pass and input gradient.
        rounds: Values of c, at least 1.
        constant: The first c, above 0, in units of squared distance per logit.
        step_size: Learning rate of Adam in the space of w, above 0.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Carlini and Wagner 2017, arXiv 1608.04644, section VI.A with the objective f_6; the rounds, the
    early abort and all defaults but for `steps`, there 10,000, are those of the authors' code.

    Deviates: confidence is 0, and the bisection is no part of the paper. Images leave a round one by one,
    where the authors' code leaves it with the whole batch, by the sum of the losses. The margin counts until
    the flip shows through rounding.
    """

    steps: int = 100
    rounds: int = 9
    constant: float = 1e-3
    step_size: float = 0.01
    bisections: int = 10

    def __post_init__(self) -> None:
        require_at_least(1, steps=self.steps, rounds=self.rounds)
        require_positive(constant=self.constant, step_size=self.step_size)
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        constant = torch.full_like(ledger.length[index], self.constant)
        low, high = torch.zeros_like(constant), torch.full_like(constant, math.inf)
        for _ in range(self.rounds if len(index) else 0):
            flipped = self._minimise(ledger, index, constant)
            low, high = torch.where(flipped, low, constant), torch.where(flipped, constant, high)
            constant = torch.where(high.isinf(), 10 * constant, (low + high) / 2)
        bisect(ledger, self.bisections)
        return ledger.boundary()

    def _minimise(self, ledger: Ledger, index: Index, constant: Values) -> Truths:
        """Descend with these constants; return who flipped on the way."""
        everyone, flipped = index, torch.zeros_like(ledger.away)
        space = ((2 * ledger.inputs[index] - 1) * _INSIDE).atanh()
        origin = (1 + space.tanh()) / 2
        mean, square = torch.zeros_like(space), torch.zeros_like(space)
        last = torch.full_like(constant, math.inf)
        for step in range(self.steps):
            points, logits = ledger._record(index, (1 + space.tanh()) / 2)
            own, scores = ledger.target[index, None], logits.detach()
            _, flips, _ = ledger._keep(index, points.detach(), scores)
            flipped[index] |= flips
            rival = scores.scatter(1, own, -math.inf).argmax(dim=1, keepdim=True)
            price = torch.where(flips, 0, constant)[:, None]
            weights = torch.zeros_like(scores).scatter(1, rival, -price).scatter(1, own, price)
            slope = ledger._gradient(index, logits, points, weights, again=False)
            points = points.detach()
            delta = points - origin
            # The slope in w: dx'/dw = (1 - tanh^2 w) / 2 = 2 x' (1 - x').
            slope = (2 * delta + slope) * 2 * points * (1 - points)
            mean, square = mean.lerp(slope, 1 - _MEAN), square.lerp(slope.square(), 1 - _SQUARE)
            root = (square / (1 - _SQUARE ** (step + 1))).sqrt() + _FLOOR
            space = space - self.step_size / (1 - _MEAN ** (step + 1)) * mean / root
            if step % math.ceil(self.steps / _CHECKS) == 0:  # the host sync that lets images leave
                loss = delta.flatten(1).square().sum(dim=1) + (weights * scores).sum(dim=1)
                stay = loss <= _PROGRESS * last
                index, constant, last = index[stay], constant[stay], loss[stay]
                space, origin, mean, square = space[stay], origin[stay], mean[stay], square[stay]
                if not len(index):
                    break
        return flipped[everyone]
