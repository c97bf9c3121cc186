"""Maps that are the coefficients of a linear model, fitted to what the network says of parts of the image.

The parts are the segments of a grid, as in `perturbation`. Which of them are shown is drawn image by image.
"""

import math
from dataclasses import dataclass, field

import torch
from jaxtyping import Bool, Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.baselines import Baseline, FlatImage, settled
from lit_xai.attributions.packing import Rows
from lit_xai.attributions.path import begun, rise
from lit_xai.attributions.perturbation import Answers, Hidden, Parts, answers, grid, spread
from lit_xai.attributions.score import Logit, Scored, settle
from lit_xai.types import Images, Keys, Labels, Scores, require_at_least, require_positive

Shown = Bool[Tensor, "batch look part"]


@dataclass(frozen=True)
class KernelShap(Attribution):
    """Shapley values of the segments of a grid, by least squares over random coalitions.

    min over v of sum_S (s(x_S) - s(b) - sum_{i in S} v_i)^2    so that    sum_i v_i = s(x) - s(b)

    x_S shows the segments in S, and b elsewhere. S has k of the M segments with probability proportional to
    1 / (k (M - k)), and is drawn together with its complement. The map adds up to s(x) - s(b), however few
    the samples. With 2 M samples or somewhat more, segments that interact in pairs at most have their exact
    values; with fewer, of all values that fit, those nearest to equal shares are taken.

    Args:
        segments: Segments per side of the image, at least 2: their sides differ by a pixel at most. An image
            with fewer pixels per side has a segment for each.
        samples: Coalitions per image, at least 1, besides the whole and the empty one.
        baseline: What is seen in place of a segment: the pixel value of a flat image, in [0, 1], 0 being
            black; or a `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Lundberg and Lee 2017, arXiv 1705.07874, theorem 2; Covert and Lee 2021, arXiv 2012.01536
    (coalitions in pairs, the constraint kept exactly).
    """

    segments: int = 7
    samples: int = 256
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(2, segments=self.segments)
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        parts, start = grid(inputs, self.segments), begun(self.baseline, inputs)
        count = len(parts[0]) * len(parts[1])
        shown = _coalitions(randomness.keys(inputs, "kernel_shap"), self.samples, count)
        whole = torch.ones_like(shown[:, :1])
        looks = torch.cat([whole, ~whole, shown], dim=1)
        seen = _answers(self, model, start, inputs, target, parts, looks)
        full, empty, inner = seen[:, :1], seen[:, 1:2], seen[:, 2:]
        # Equal shares keep the constraint; what is added to them must sum to zero, as do the rows below.
        z = shown.to(seen)
        share = z.mean(2, keepdim=True)
        rest = inner - empty - share[..., 0] * (full - empty)
        return spread(parts, (full - empty) / count + _least_squares(z - share, rest), inputs)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the baseline to the image, which the map splits over the segments."""
        return rise(model, begun(self.baseline, inputs), inputs, target, self.score, self.chunk)


@dataclass(frozen=True)
class Lime(Attribution):
    """Slopes of a linear model that imitates the score near the image, over the segments of a grid (LIME).

    min over v, c of sum_z p(z) (s(x_z) - c - z.v)^2 + ridge |v|^2
    p(z) = exp(-(1 - cos(z, 1))^2 / (2 width^2))

    z shows each segment with probability 1/2, and b in place of the others; the whole image is one more look.
    The map adds up to sum_i v_i: with `ridge` 0, and segments that do not interact, to s(x) - s(b).

    Args:
        segments: Segments per side of the image, at least 1: their sides differ by a pixel at most. An image
            with fewer pixels per side has a segment for each.
        samples: Random looks per image, at least 1; several per segment, or the penalty decides.
        width: Width of the neighbourhood in units of cosine distance, greater than 0.
        ridge: Penalty on large values, at least 0; 0 is plain least squares.
        baseline: What is seen in place of a segment: the pixel value of a flat image, in [0, 1], 0 being
            black; or a `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Ribeiro, Singh and Guestrin 2016, arXiv 1602.04938, section 3; neighbourhood and ridge regression
    as released by them.
    Deviates: a grid in place of superpixels, and every segment keeps its value.
    """

    segments: int = 7
    samples: int = 256
    width: float = 0.25
    ridge: float = 1.0
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, segments=self.segments, samples=self.samples, chunk=self.chunk)
        require_at_least(0, ridge=self.ridge)
        require_positive(width=self.width)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        parts, start = grid(inputs, self.segments), begun(self.baseline, inputs)
        count = len(parts[0]) * len(parts[1])
        keys = randomness.keys(inputs, "lime")
        shown = randomness.uniform(keys, 0, (self.samples, count), torch.float64) < 0.5
        shown = torch.cat([torch.ones_like(shown[:, :1]), shown], dim=1)
        seen = _answers(self, model, start, inputs, target, parts, shown)[..., None]
        z = shown.to(seen)
        distance = 1 - z.mean(2, keepdim=True).sqrt()
        near = (-(distance**2) / (2 * self.width**2)).exp()
        # Measured from the weighted means, c drops out. The penalty is one more look per segment, at zero.
        z, seen = (
            near.sqrt() * (part - (near * part).sum(1, keepdim=True) / near.sum(1, keepdim=True))
            for part in (z, seen)
        )
        penalty = math.sqrt(self.ridge) * torch.eye(count).to(z).expand(len(z), -1, -1)
        design, rest = torch.cat([z, penalty], dim=1), torch.cat([seen, penalty[..., :1] * 0], dim=1)
        return spread(parts, _least_squares(design, rest[..., 0]), inputs)


def _answers(
    method: KernelShap | Lime,
    model: nn.Module,
    start: Images,
    inputs: Images,
    target: Labels,
    parts: Parts,
    shown: Shown,
) -> Answers:
    """Score of every image under every look."""

    def hidden(image: Rows, look: Rows) -> Hidden:
        return ~shown[image, look]

    return answers(model, start, inputs, target, method.score, parts, shown.shape[1], hidden, method.chunk)


def _coalitions(keys: Keys, samples: int, count: int) -> Shown:
    """Random sets of segments, each followed by its complement."""
    pairs = (samples + 1) // 2
    size = torch.arange(1, count, device=keys.device, dtype=torch.float64)
    odds = (1 / (size * (count - size))).cumsum(0)
    drawn = randomness.uniform(keys, 0, (pairs, 1), torch.float64) * odds[-1:].sum()
    rank = randomness.uniform(keys, 1, (pairs, count), torch.float64).argsort(2).argsort(2)
    first = rank <= torch.searchsorted(odds, drawn)
    return torch.stack([first, ~first], dim=2).flatten(1, 2)[:, :samples]


def _least_squares(
    design: Float[Tensor, "batch look part"], values: Float[Tensor, "batch look"]
) -> Float[Tensor, "batch part"]:
    """The smallest coefficients of those that come closest to the values, image by image."""
    solved: Tensor = torch.linalg.pinv(design) @ values[..., None]
    return solved[..., 0]
