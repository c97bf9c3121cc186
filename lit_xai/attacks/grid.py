"""The grid of radii of the released boundary attributions: projected gradient ascent, ball after ball."""

import math
from dataclasses import dataclass

import torch
from torch import nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import Index, Ledger, Points, bisect
from lit_xai.attacks.norms import L2
from lit_xai.randomness import keys, normal, uniform
from lit_xai.types import Eps, Epsilon, Images, Keys, Labels, require, require_at_least, require_positive

_L2 = L2()


@dataclass(frozen=True)
class PGDGrid(Search):
    """Boundary point in l2 by ascent in ball after ball until one flips, then bisection onto the boundary.

    point <- clip(project(point + eta g / ||g||, radius)), g = grad CE(f(point), y), from a random point of
    each ball; the last iterate alone is asked. An image leaves with the first ball in which it flips.

    Args:
        radii: Balls in the order in which they are tried, in pixel units, above 0, at least one.
        steps: Gradient steps per ball, at least 1; each costs one forward pass and one input gradient.
        released: Whether a step has the length of the released code, 2 radius^2 / steps, which does not cross
            balls below 0.5; else 2 radius / steps, which is what it sets out to do.
        bisections: Forward passes at most between input and boundary, at least 0; most images need three.

    Source: Wang, Fredrikson and Datta 2021, arXiv 2103.11257, released code (the stage `PGDs`); the ascent is
    that of Madry et al. 2018, arXiv 1706.06083, section 2.1.

    Deviates: released points stay on their sphere, here they are bisected onto the boundary. An image that no
    ball flips is not found, where the released code keeps the last iterate of the first ball. Images that
    have flipped leave, which changes none of them. The gradient is of log sum_{j != y} exp f_j - f_y: the
    same direction, which does not round to zero where the model is sure of itself.
    """

    radii: tuple[Epsilon, ...] = (Eps("36/255"), Eps("64/255"), 0.3, 0.5, 0.7, 0.9, 1.1)
    steps: int = 40
    released: bool = False
    bisections: int = 10

    def __post_init__(self) -> None:
        require(len(self.radii) > 0, "`radii` must name at least one radius, got none.")
        for radius in self.radii:
            require_positive(radii=radius)
        require_at_least(1, steps=self.steps)
        require_at_least(0, bisections=self.bisections)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        draws = keys(inputs, "PGDGrid")
        for stream, radius in enumerate(self.radii):
            if not len(index):
                break
            delta = _even(draws[index], stream, inputs.shape[1:], inputs.dtype)
            _, flips, _ = ledger.look(index, self._ascend(ledger, index, radius * delta, radius))
            index = index[~flips]  # one host sync per ball, for the passes it saves
        bisect(ledger, self.bisections)
        return ledger.boundary()

    def _ascend(self, ledger: Ledger, index: Index, delta: Points, radius: float) -> Points:
        """The last iterate in the ball, from the input plus `delta`."""
        step_size = 2 * radius / self.steps * (radius if self.released else 1)
        inputs, own = ledger.inputs[index], ledger.target[index, None]
        points = (inputs + delta).clamp(0, 1)
        for _ in range(self.steps):
            points, logits = ledger._record(index, points)
            weights = logits.detach().scatter(1, own, -math.inf).softmax(dim=1).scatter(1, own, -1)
            uphill = _L2.steepest(ledger._gradient(index, logits, points, weights, again=False))
            delta = _L2.project(points.detach() + step_size * uphill - inputs, radius)
            points = (inputs + delta).clamp(0, 1)
        return points


def _even(draws: Keys, stream: int, shape: torch.Size, dtype: torch.dtype) -> Points:
    """One point per key, drawn evenly from the unit ball: in many dimensions nearly on its sphere."""
    direction = _L2.steepest(normal(draws, 2 * stream, shape, dtype))
    return direction * uniform(draws, 2 * stream + 1, (1, 1, 1), dtype) ** (1 / math.prod(shape))
