"""Square attack: random search over square windows. No gradients, so none that could be masked."""

import abc
import math
from dataclasses import dataclass, field
from typing import Final

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import LogitMargin, holds
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.randomness import bits, keys
from lit_xai.types import Epsilon, Flags, Images, Keys, Labels, require, require_at_least, require_positive

# Of the images still searched, a shrinking part of the batch.
Points = Float[Tensor, "some channel height width"]
Windows = Int[Tensor, "some place"]
Patches = Float[Tensor, "some channel spot"]
Rows = Float[Tensor, "some pixel"]

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # queries after which the windows shrink
_ROUND = 10  # queries drawn at once; images that are fooled leave in between
_NUMBERS = 5  # drawn per query beside the signs: the corners of two windows, and a turn
_POSITIVE = (1 << 62) - 1
_LEAD: Final = LogitMargin()


@dataclass(frozen=True)
class Square(Attack):
    """Square attack: change one random window of the image per query, and keep what lowers the margin.

    The window has s^2 = p h w pixels. In l-infinity, each of its channels is set to input + epsilon or
    input - epsilon; the search starts from vertical stripes of the same kind. In l2 and l1, a window receives
    two neighbouring bumps of opposite signs, paid for with what another window and the budget have left;
    the search starts from a grid of them. Kept if f_target - max_{j != target} f_j falls, or after a flip.
    Every image has windows and signs of its own.

    Returns the best point, which an image that is not of class `target` to begin with is itself.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        queries: Windows tried, at least 1; each costs one forward pass.
        p: Share of the pixels in the first windows, in (0, 1]; halved after 10, 50, 200, 500, 1000, 2000,
            4000, 6000 and 8000 queries.
        rescale: Whether these are out of 10000 queries, whatever `queries` is.

    Raises:
        TypeError: There is no rule for this norm.

    Source: Andriushchenko et al. 2020, arXiv 1912.00049, algorithms 1 to 3; l1 and the schedule: the code of
    Croce and Hein 2020, arXiv 2003.01690, and 2021, arXiv 2103.01208.
    Deviates: in that code all images share their windows, which never touch the last row and column; grids
    that leave pixels over are centred.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    queries: int = 5000
    p: float = 0.8
    rescale: bool = False

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require_at_least(1, queries=self.queries)
        require(0 < self.p <= 1, f"`p` must lie in (0, 1], got {self.p!r}.")
        if not isinstance(self.norm, Linf | L2 | L1):
            raise TypeError(f"no windows for the norm {self.norm!r}: use Linf(), L2() or L1().")

    def share(self, query: int) -> float:
        """Share of the pixels in the window of this query, counted from 0."""
        count = int(query / self.queries * 10000) if self.rescale else query
        return self.p / 2.0 ** sum(count > bound for bound in _HALVINGS)

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        answer, samples = inputs.clone(), keys(inputs, "Square")
        index = holds(model(inputs), target).nonzero()[:, 0]
        if not len(index):
            return answer
        kind = _Stripes if isinstance(self.norm, Linf) else _Bumps
        moves, target = kind(inputs[index], samples[index], self.epsilon, self.norm), target[index]
        points = moves.start()
        lead = _LEAD(model(points).to(points.dtype), target)
        for query in range(self.queries):
            turn = query % _ROUND
            if turn == 0:
                standing = lead <= 0
                if not standing.all():  # one host sync per round, for the passes it saves
                    answer[index[~standing]] = points[~standing]
                    index, target, points, lead = (rows[standing] for rows in (index, target, points, lead))
                    moves.keep(standing)
                    if not len(index):
                        break
                moves.draw(1 + query // _ROUND, [self.share(query + later) for later in range(_ROUND)])
            tried = moves.next(points, turn)
            gained = _LEAD(model(tried).to(points.dtype), target)
            better = (lead <= 0) & ~(gained <= lead)  # a fooled image moves no more; NaN fools
            points.lerp_(tried, better.to(points.dtype)[:, None, None, None])
            lead = torch.where(better, gained, lead)
        answer[index] = points
        return answer


class _Moves(abc.ABC):
    """Where the search starts and where it goes, in one norm, for the images that stand."""

    def __init__(self, inputs: Images, keys: Keys, epsilon: float, norm: Norm) -> None:
        self.inputs, self.keys, self.epsilon, self.norm = inputs.contiguous(), keys, epsilon, norm
        self.channels, self.height, self.width = inputs.shape[1:]
        self.spare = torch.empty_like(self.inputs)  # all full-sized work is done in this memory
        self._places: dict[int, Int[Tensor, " place"]] = {}

    def keep(self, standing: Flags) -> None:
        self.inputs, self.keys = self.inputs[standing], self.keys[standing]
        self.spare = torch.empty_like(self.inputs)

    @abc.abstractmethod
    def start(self) -> Points:
        """The first points."""

    @abc.abstractmethod
    def next(self, points: Points, turn: int) -> Points:
        """Points that differ in a window, as drawn for this turn; valid until the next turn."""

    @abc.abstractmethod
    def side(self, share: float) -> int:
        """Side of a window with this share of the pixels."""

    def draw(self, stream: int, shares: list[float]) -> None:
        """Draw all numbers for some turns, whose windows have these shares of the pixels."""
        numbers = (len(shares), _NUMBERS + self.channels)
        draws = bits(self.keys, stream, numbers).bitwise_and_(_POSITIVE)
        self.sides = [min(self.side(share), self.height, self.width) for share in shares]
        room = [2 * [self.height - side + 1, self.width - side + 1] for side in self.sides]
        corners = draws[..., :4] % torch.tensor(room, device=draws.device)
        self.corners = corners[..., ::2] * self.width + corners[..., 1::2]
        self.turned = draws[..., 4] & 1
        self.signs = _signs(draws[..., _NUMBERS:], self.inputs.dtype)[..., None]

    def windows(self, turn: int, which: int = 0) -> Windows:
        """Places of the pixels of the window in the flat image, channel by channel."""
        side = self.sides[turn]
        if side not in self._places:
            place = torch.arange(self.inputs[0].numel(), device=self.inputs.device)
            self._places[side] = place.view_as(self.inputs[0])[:, :side, :side].flatten()
        return self.corners[:, turn, which, None] + self._places[side]


class _Stripes(_Moves):
    """Stripes, then windows, on the surface of the l-infinity ball."""

    def side(self, share: float) -> int:
        return max(1, round(math.sqrt(share * self.height * self.width)))

    def start(self) -> Points:
        stripes = _signs(bits(self.keys, 0, (self.channels, 1, self.width)), self.inputs.dtype)
        return (self.inputs + self.epsilon * stripes).clamp_(0, 1)

    def next(self, points: Points, turn: int) -> Points:
        windows = self.windows(turn)
        patches = self.inputs.flatten(1).gather(1, windows).view(len(points), self.channels, -1)
        patches.add_(self.signs[:, turn], alpha=self.epsilon).clamp_(0, 1)
        self.spare.copy_(points).flatten(1).scatter_(1, windows, patches.flatten(1))
        return self.spare


class _Bumps(_Moves):
    """Pairs of bumps, in l2 or l1: the budget moves from one window to another."""

    def __init__(self, inputs: Images, keys: Keys, epsilon: float, norm: Norm) -> None:
        super().__init__(inputs, keys, epsilon, norm)
        self.power = 2 if isinstance(norm, L2) else 1
        self._pairs: dict[int, Float[Tensor, "turned place"]] = {}

    def side(self, share: float) -> int:
        return max(3, round(math.sqrt(share * self.height * self.width))) // 2 * 2 + 1

    def start(self) -> Points:
        side = max(1, min(self.height, self.width) // 5)
        tall, wide = self.height // side, self.width // side
        draws = bits(self.keys, 0, (self.channels + 1, tall, wide))
        pairs = self.pair(side).view(2, side, side)[draws[:, -1:] & 1]
        bumps = _signs(draws[:, :-1], self.inputs.dtype)[..., None, None] * pairs
        grid = bumps.transpose(3, 4).flatten(4, 5).flatten(2, 3)
        over, beside = self.height - tall * side, self.width - wide * side
        edges = (beside // 2, beside - beside // 2, over // 2, over - over // 2)
        return self._spend(nn.functional.pad(grid, edges).contiguous())

    def next(self, points: Points, turn: int) -> Points:
        delta = torch.sub(points, self.inputs, out=self.spare).flatten(1)
        left = (self.epsilon**self.power - self._cost(delta)[:, None]).clamp(min=0)
        here, there = self.windows(turn), self.windows(turn, 1)
        old = self._take(delta, here)
        freed = self._cost(old) + self._cost(self._take(delta, there))
        pairs = self.pair(self.sides[turn])[self.turned[:, turn]][:, None]
        new = self._unit(self._unit(old) + self.signs[:, turn] * pairs)
        budget = (left / self.channels + freed).sqrt() if self.power == 2 else left + self.channels * freed
        delta.scatter_(1, here, (new * budget[..., None]).flatten(1))
        return self._spend(self.spare)

    def pair(self, side: int) -> Float[Tensor, "turned place"]:
        """A bump above its negative, of length 1, and the same turned."""
        if side not in self._pairs:
            upright = torch.cat([self._bump(side // 2, side), -self._bump(side - side // 2, side)])
            both = torch.stack([upright.flatten(), upright.T.flatten()])
            self._pairs[side] = self._unit(both).to(self.inputs)
        return self._pairs[side]

    def _bump(self, height: int, width: int) -> Float[Tensor, "height width"]:
        """Rectangles around the middle, of length 1: the k-th reaches k - 1 pixels and adds k^-2 (l1: -4)."""
        rows, columns = torch.arange(height) - height // 2, torch.arange(width) - width // 2
        ring = torch.maximum(rows.abs()[:, None], columns.abs())
        steps = torch.arange(1, max(height // 2, width // 2) + 2, dtype=torch.float64)
        heights = (steps ** (-4 / self.power)).flip(0).cumsum(0).flip(0)
        return self._unit(heights[ring].flatten()).view(height, width)

    def _take(self, delta: Rows, windows: Windows) -> Patches:
        """What lies in the windows; 0 is left behind."""
        taken = delta.gather(1, windows)
        delta.scatter_(1, windows, 0)
        return taken.view(len(delta), self.channels, -1)

    def _cost(self, delta: Tensor) -> Tensor:
        """The sum of |delta|^power."""
        cost: Tensor = torch.linalg.vector_norm(delta, ord=self.power, dim=-1) ** self.power
        return cost

    def _unit(self, delta: Tensor) -> Tensor:
        return nn.functional.normalize(delta, p=self.power, dim=-1)

    def _spend(self, delta: Points) -> Points:
        """Inputs and perturbation, as long as the budget allows, inside the box; in the memory of `delta`."""
        if self.power == 1:
            return self.norm.confine(delta.add_(self.inputs), self.inputs, self.epsilon)
        length = self.norm.length(delta).clamp(min=torch.finfo(delta.dtype).tiny)
        scale = (self.epsilon / length)[:, None, None, None]
        return torch.addcmul(self.inputs, delta, scale, out=delta).clamp_(0, 1)


def _signs(draws: Tensor, dtype: torch.dtype) -> Tensor:
    """The last bit as 1 or -1."""
    return 1 - 2 * (draws & 1).to(dtype)
