"""Maps that add up gradients along straight paths, and so say where a change of score comes from."""

from dataclasses import dataclass, field
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution, entering, require_logits, require_one_of
from lit_xai.attributions.baselines import Baseline, FlatImage, NoiseImage, settled
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.attributions.score import Logit, Scored, gradient, named, settle
from lit_xai.types import Images, Labels, Scores, require_at_least

Rule = Literal["trapezoid", "midpoint", "official"]
Positions = Float[Tensor, " step"]


@dataclass(frozen=True)
class IntegratedGradients(Attribution):
    """Gradient of the score, averaged from a baseline image to the image, times their difference.

    (x - b) * int_0^1 grad s(b + t (x - b)) dt

    The map adds up to s(x) - s(b), as closely as the rule integrates.

    Args:
        steps: Gradients along the path, per image; at least 2, for `midpoint` 1.
        baseline: Where the path starts: the pixel value of a flat image, in [0, 1], 0 being black; or a
            `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        rule: How the integral is taken, see `nodes`.
        chunk: Largest number of images in one pass of the model.

    Source: Sundararajan, Taly and Yan 2017, arXiv 1703.01365, section 3.
    Deviates: the trapezoidal rule in place of the right Riemann sum.
    """

    steps: int = 32
    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)
    rule: Rule = "trapezoid"
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_one_of(Rule, rule=self.rule)
        require_at_least(1 if self.rule == "midpoint" else 2, steps=self.steps)
        require_at_least(1, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        start = begun(self.baseline, inputs)
        return integrate(
            model, start, entering(inputs), target, self.score, self.rule, self.steps, self.chunk
        )

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the baseline to the image, which the map splits over the pixels."""
        return rise(model, begun(self.baseline, inputs), inputs, target, self.score, self.chunk)


@dataclass(frozen=True)
class ExpectedGradients(Attribution):
    """Integrated gradients averaged over baselines: one random place on a random path per draw.

    E [(x - b) * grad s(b + t (x - b))],    b ~ baseline, t ~ U(0, 1)

    The map is an unbiased estimate of integrated gradients averaged over b, with an error that falls as
    1 / sqrt(n); in expectation it adds up to s(x) - E s(b).

    Args:
        samples: Draws of a baseline and a place, per image; at least 1.
        baseline: Where the baselines come from; of a flat image, given as such or by its pixel value in
            [0, 1], the place alone is random.
        score: What is explained: `Logit()`, `Margin()` or `Probability()`, or its name.
        chunk: Largest number of images in one pass of the model.

    Source: Erion, Janizek, Sturmfels, Lundberg and Lee 2019, arXiv 1906.10670 (expected gradients).
    Deviates: baselines are noise unless a file of images is given, `StoredImages`; the paper draws them from
        the training set.
    """

    samples: int = 64
    baseline: float | Baseline = field(default_factory=NoiseImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = entering(inputs)
        places = randomness.keys(inputs, "place")
        starts = randomness.keys(inputs, "baseline")
        draw = settled(self.baseline)

        def drawn(image: Rows, sample: Rows) -> Maps:
            x, t = inputs[image], randomness.uniform(places[image] + sample, 0, (1, 1, 1), inputs.dtype)
            start = draw(x.detach(), starts[image] + sample)
            return (x - start) * gradient(self.score, model, start.lerp(x, t), target[image])

        weights = inputs.new_full((self.samples,), 1 / self.samples)
        return packed_sum(drawn, weights, inputs, self.chunk)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score to the image, from its mean over the baselines that the map has drawn."""
        starts, draw = randomness.keys(inputs, "baseline"), settled(self.baseline)

        def begins(image: Rows, sample: Rows) -> Maps:
            points = draw(inputs[image].detach(), starts[image] + sample)
            return scores(model, points, target[image], self.score, self.chunk).view(-1, 1, 1, 1)

        weights = inputs.new_full((self.samples,), 1 / self.samples)
        mean = packed_sum(begins, weights, inputs[:, :1, :1, :1], self.chunk).flatten()
        return scores(model, inputs, target, self.score, self.chunk) - mean


def integrate(
    model: nn.Module,
    start: Images,
    end: Images,
    target: Labels,
    score: Scored,
    rule: Rule,
    steps: int,
    chunk: int,
    rival: Labels | None = None,
) -> Images:
    """Path integral of the gradient along the segment from `start` to `end`, split over the pixels."""
    positions, weights = (node.to(end) for node in nodes(rule, steps))

    def slopes(image: Rows, step: Rows) -> Maps:
        points = start[image].lerp(end[image], positions[step].view(-1, 1, 1, 1))
        return gradient(score, model, points, target[image], None if rival is None else rival[image])

    return (end - start) * packed_sum(slopes, weights, end, chunk)


def begun(baseline: float | Baseline, inputs: Images) -> Images:
    """The images where the paths to these start, none of which depends on the others."""
    return settled(baseline)(inputs.detach(), randomness.keys(inputs, "baseline"))


def rise(
    model: nn.Module,
    start: Images,
    end: Images,
    target: Labels,
    score: Scored,
    chunk: int,
    rival: Labels | None = None,
) -> Scores:
    """How much higher the score is at the end than at the start: what a map along the way adds up to."""
    high, low = (scores(model, points, target, score, chunk, rival) for points in (end, start))
    return high - low


@torch.no_grad()
def scores(
    model: nn.Module, points: Images, target: Labels, score: Scored, chunk: int, rival: Labels | None = None
) -> Scores:
    """The score itself, by one forward pass per image."""
    values = []
    for rows in torch.split(torch.arange(len(points), device=points.device), chunk):
        logits = model(points[rows])
        require_logits(logits, len(rows))
        values.append(named(score)(logits, target[rows], None if rival is None else rival[rows]))
    return torch.cat(values)


def nodes(rule: Rule, steps: int) -> tuple[Positions, Positions]:
    """Positions in [0, 1] and weights of a rule with equal spacing h.

    * `trapezoid`: k h, both ends included, h = 1 / (n - 1); weight h, halved at the ends; error of order 2;
    * `midpoint`: (k + 1/2) h, h = 1 / n; weight h; error of order 2, and half that of the trapezoid;
    * `official`: positions of the trapezoid, weight 1 / n, halved at the ends, as released by Wang et al.:
      the weights add up to (n - 1) / n, so every map is short by that factor.
    """
    if rule == "midpoint":
        positions = (torch.arange(steps, dtype=torch.float64) + 0.5) / steps
        return positions, torch.full_like(positions, 1 / steps)
    positions = torch.linspace(0, 1, steps, dtype=torch.float64)
    weights = torch.full_like(positions, 1 / (steps if rule == "official" else steps - 1))
    weights[[0, -1]] /= 2
    return positions, weights
