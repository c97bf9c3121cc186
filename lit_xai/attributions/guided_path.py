"""Maps that add up gradients along a path that the gradients themselves have chosen."""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.attributions.baselines import Baseline, FlatImage, settled
from lit_xai.attributions.path import begun, rise
from lit_xai.attributions.score import Logit, Scored, gradient, settle
from lit_xai.types import Images, Labels, Scores, require, require_at_least

Features = Float[Tensor, "batch feature"]


@dataclass(frozen=True)
class GuidedIntegratedGradients(Attribution):
    """Integrated gradients along a path that moves the features of smallest slope first.

    sum_k grad s(x_k) * (x_{k+1} - x_k),    x_0 = b,    x_n = x

    Step k brings the image the share k / n of its l1 distance nearer: the `fraction` of the features whose
    slope is smallest in magnitude goes as far as it may, then the next, and the last of these groups as far
    as is left to go. No feature gets more than `max_dist` ahead of the straight path or falls behind it by
    more. The map adds up to s(x) - s(b) in the limit of many steps.

    Args:
        steps: Gradients along the path, one after another, at least 1.
        fraction: Share of the features that moves at once, in (0, 1]; with 1 the path is straight.
        max_dist: How far a feature may be off the straight path, as a share of its own way, in [0, 1]; with 0
            the path is straight, with 1 nothing holds it.
        baseline: Where the path starts: the pixel value of a flat image, in [0, 1], 0 being black; or a
            `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Kapishnikov, Venugopalan, Avci, Wedin, Terry and Bolukbasi 2021, arXiv 2106.09788 (guided IG); the
        bound `max_dist` and the defaults of it and of `fraction` from the released code.
    Deviates: 64 steps by default, not 200.
    """

    steps: int = 64
    fraction: float = 0.25
    max_dist: float = 0.02
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, steps=self.steps, chunk=self.chunk)
        require(0 < self.fraction <= 1, f"`fraction` must lie in (0, 1], got {self.fraction!r}.")
        require(0 <= self.max_dist <= 1, f"`max_dist` must lie in [0, 1], got {self.max_dist!r}.")

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        blocks = (torch.split(each, self.chunk) for each in (begun(self.baseline, inputs), inputs, target))
        return torch.cat([self._along(model, *block) for block in zip(*blocks, strict=True)])

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the baseline to the image, which the map splits over the pixels."""
        return rise(model, begun(self.baseline, inputs), inputs, target, self.score, self.chunk)

    def _along(self, model: nn.Module, start: Images, end: Images, target: Labels) -> Images:
        """The maps of one block; `gone` is the share of its way that each feature has behind it."""
        way = (end - start).flatten(1)
        gone, maps = torch.zeros_like(way), torch.zeros_like(way)
        for share in (torch.arange(1, self.steps + 1, dtype=torch.float64) / self.steps).tolist():
            points = start + (gone * way).view_as(start)
            slopes = gradient(self.score, model, points, target).flatten(1)
            after = moved(gone, slopes.abs(), way.abs(), share, self.fraction, self.max_dist)
            maps = maps + slopes * way * (after - gone)
            gone = after
        return maps.view_as(start)


def moved(
    gone: Features, slopes: Features, lengths: Features, share: float, fraction: float, max_dist: float
) -> Features:
    """How far every feature is after a step, so that `share` of all lengths together is behind it.

    Groups are the next `fraction` of the features by slope, ties included, as often as there are any. One
    sort finds them all.

    Args:
        gone: How far each feature is, as a share of its length.
        slopes: Magnitudes of the slopes.
        lengths: How long the way of each feature is in all.
        share: How far all are to be on average, weighted by length.
        fraction: Share of the features in a group.
        max_dist: Largest distance of a feature from `share`.
    """
    if share == 1:
        return torch.ones_like(gone)
    count = gone.shape[1]
    gone = gone.clamp(min=share - max_dist)
    furthest = min(share + max_dist, 1.0)
    room = (furthest - gone) * lengths
    missing = (share * lengths.sum(1) - (gone * lengths).sum(1)).clamp(min=0)[:, None]
    ranked, order = slopes.masked_fill(room == 0, math.inf).sort(dim=1)
    filled = nn.functional.pad(room.gather(1, order).cumsum(1), (1, 0))  # room in the first k features

    size = math.floor(fraction * (count - 1)) + 1
    before = after = torch.zeros_like(order[:, :1])
    lower = upper = torch.full_like(missing, -1.0)
    for _ in range(math.ceil(count / size)):
        short = filled.gather(1, after) < missing
        cut = ranked.gather(1, (after + size - 1).clamp(max=count - 1))
        reached = torch.searchsorted(ranked, cut, right=True)
        before, lower = before.where(~short, after), lower.where(~short, upper)
        after, upper = after.where(~short, reached), upper.where(~short, cut)
    left = missing - filled.gather(1, before)
    share_of_last = (left / (filled.gather(1, after) - filled.gather(1, before))).nan_to_num(0).clamp(0, 1)
    pace = torch.where(slopes <= lower, 1.0, torch.where(slopes <= upper, share_of_last, 0.0))
    return gone.lerp(torch.full_like(gone, furthest), pace)  # exact where the pace is 1
