"""Maps that compare two images layer by layer, and so say where a difference of score comes from.

A nonlinearity counts with the slope of the chord between what it does to the one image and to the other, in
place of the slope of the tangent. So nothing of the difference of the scores is lost on the way.
"""

from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.attributions.base import Attribution, entering, keeping_graph, require_logits
from lit_xai.attributions.baselines import Baseline, FlatImage, NoiseImage, settled
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.attributions.path import begun
from lit_xai.attributions.refusal import no_meaning, no_rule
from lit_xai.attributions.score import Logit, Probability, Scored, named, settle
from lit_xai.network import MaxPool, Rectifier, Step, Tape, Unknown, record
from lit_xai.types import Images, Labels, Logits, Scores, require, require_at_least

Starts = Float[Tensor, "#batch channel height width"]  # one for each image, or one for all
SAME = 1e-10  # two activations that differ by less have no chord, but a tangent


@dataclass(frozen=True)
class DeepLift(Attribution):
    """Difference to a baseline image times the product of slopes between the two (DeepLIFT, Rescale rule).

    (x - b) * m,    m by the chain rule, with (f(v) - f(v0)) / (v - v0) for every nonlinearity f

    v and v0 are what enters f for the image and for the baseline; where they differ by less than 1e-10, f'(v)
    is taken. The map adds up to s(x) - s(b), up to rounding. Max-pooling: see `largest`.

    Args:
        baseline: What the image is compared with: the pixel value of a flat image, in [0, 1], 0 being black;
            or a `Baseline`, of which one image is drawn per image explained.
        score: What is explained: `Logit()` or "logit"; `Margin()` or "margin", with the rival at the image.

    Raises:
        ValueError: The score is not linear in the logits; the network has an activation other than ReLU,
            ReLU6 and leaky ReLU, or another layer without a rule.

    Source: Shrikumar, Greenside and Kundaje 2017, arXiv 1704.02685, section 3.5.1; as a gradient with other
        slopes, Ancona, Ceolini, Oztireli and Gross 2017, arXiv 1711.06104, section 2.
    """

    baseline: float | Baseline = field(default_factory=FlatImage)
    score: Scored = field(default_factory=Logit)

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        _require_linear(self.score)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        return rescale(self, model, inputs, self._starts(inputs), target, self.score)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score from the baseline to the image, which the map splits over the pixels."""
        return _rise(model, inputs, self._starts(inputs), target, self.score)

    def _starts(self, inputs: Images) -> Starts:
        """A flat baseline is the same for all images, so that one pass of one image will do for it."""
        starts = begun(self.baseline, inputs)
        return starts[:1] if isinstance(self.baseline, FlatImage) else starts


@dataclass(frozen=True)
class DeepLiftShap(Attribution):
    """DeepLIFT averaged over baselines: close to Shapley values where the network is close to linear.

    E [(x - b) * m(x, b)],    b ~ baseline

    The map adds up to s(x) minus the mean of s(b) over the baselines drawn.

    Args:
        samples: Baselines per image; at least 1.
        baseline: Where they come from; with a flat image, given as such or by its pixel value in [0, 1], this
            is `DeepLift`.
        score: What is explained: `Logit()` or "logit"; `Margin()` or "margin", with the rival at the image.
        chunk: Largest number of images in one pass of the model.

    Raises:
        ValueError: As for `DeepLift`.

    Source: Lundberg and Lee 2017, arXiv 1705.07874, section 4.2 (Deep SHAP).
    Deviates: baselines are noise unless a file of images is given, `StoredImages`; the paper draws them from
        the training set. Every layer has the Rescale rule, no Shapley values of its own.
    """

    samples: int = 16
    baseline: float | Baseline = field(default_factory=NoiseImage)
    score: Scored = field(default_factory=Logit)
    chunk: int = 64

    def __post_init__(self) -> None:
        settle(self)
        object.__setattr__(self, "baseline", settled(self.baseline))
        _require_linear(self.score)
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    @property
    def differentiable(self) -> bool:
        return True

    def maps(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs, draw = entering(inputs), settled(self.baseline)
        keys = randomness.keys(inputs, "baseline")

        def compared(image: Rows, sample: Rows) -> Maps:
            x = inputs[image]
            return rescale(self, model, x, draw(x.detach(), keys[image] + sample), target[image], self.score)

        weights = inputs.new_full((self.samples,), 1 / self.samples)
        return packed_sum(compared, weights, inputs, self.chunk)

    def total(self, model: nn.Module, inputs: Images, target: Labels) -> Scores:
        """The rise of the score to the image, from its mean over the baselines that the map has drawn."""
        keys, draw = randomness.keys(inputs, "baseline"), settled(self.baseline)

        def rises(image: Rows, sample: Rows) -> Maps:
            x = inputs[image]
            start = draw(x, keys[image] + sample)
            return _rise(model, x, start, target[image], self.score).view(-1, 1, 1, 1)

        weights = inputs.new_full((self.samples,), 1 / self.samples)
        return packed_sum(rises, weights, inputs[:, :1, :1, :1], self.chunk).flatten()


def rescale(
    method: Attribution,
    model: nn.Module,
    inputs: Images,
    starts: Starts,
    target: Labels,
    score: Scored,
    rival: Labels | None = None,
) -> Images:
    """Difference to the baselines times the product of slopes between the two, see `DeepLift`.

    Two forward passes, of which neither keeps a graph, and one backward pass through the slopes. Within
    `keep_graph` the result can be differentiated, with the baselines fixed.

    Args:
        method: Who asks, for what is said where there is no rule.
        model: The network.
        inputs: The images.
        starts: The baselines: one for each image, or one for all.
        target: The class explained.
        score: What is explained, linear in the logits.
        rival: The class that a margin holds against it; by default the strongest at the image.

    Raises:
        ValueError: The network has a layer without a rule, or takes other steps for the baseline.
    """
    inputs, starts = entering(inputs), starts.detach()
    with torch.set_grad_enabled(keeping_graph()):
        tape = record(model, inputs)
        require_logits(tape.output, len(inputs))
        twins = _twins(method, model, tape, starts)

        def rule(step: Step, message: Tensor) -> tuple[Tensor, ...]:
            twin, layer = twins[id(step.output)], step.layer
            if isinstance(layer, Rectifier):
                return (message * slope(layer, step, twin),)
            if isinstance(layer, MaxPool):
                return (largest(layer, step, twin, message),)
            if isinstance(layer, Unknown):
                raise no_rule(method, step)
            return layer.pull(message, *step.sources)

        seed = _weights(tape.output, target, score, rival)
        return (inputs - starts) * tape.walk([(tape.output, seed)], rule)


def slope(layer: Rectifier, step: Step, twin: Step) -> Tensor:
    """(f(v) - f(v0)) / (v - v0), or f'(v) where the two are as good as the same."""
    run = step.source - twin.source
    same = run.abs() < SAME
    chord = (step.output - twin.output) / run.masked_fill(same, 1)
    return torch.where(same, layer.derivative(step.source), chord)


def largest(pool: MaxPool, step: Step, twin: Step, message: Tensor) -> Tensor:
    """The message at every window, passed to the one place in it that explains the difference.

    (max x - max x0) / (x_i - x0_i),    i = the place of the larger of the two maxima

    Times x_i - x0_i this is the difference of the maxima. It lies in [0, 1], and is 1 where both maxima have
    the same place. Where windows overlap, what arrives at a place adds up.

    Deviates: the paper gives no rule. That of Captum 0.9 is the same where no windows overlap and no ReLU
        comes right before; otherwise it no longer adds up.
    """
    shape = (pool.kernel, pool.stride, pool.padding, pool.dilation, pool.ceil)
    places, others = (F.max_pool2d(part.source, *shape, return_indices=True)[1] for part in (step, twin))
    chosen = torch.where(step.output >= twin.output, places, others)
    run = (step.source - twin.source).flatten(2).gather(2, chosen.flatten(2)).reshape_as(message)
    same = run.abs() < SAME
    share = torch.where(same, 1, (step.output - twin.output) / run.masked_fill(same, 1))
    back: Tensor = torch.ops.aten.max_pool2d_with_indices_backward(
        message * share, step.source.detach(), *shape, chosen
    )
    return back


def _twins(method: Attribution, model: nn.Module, tape: Tape, starts: Starts) -> dict[int, Step]:
    """The step that did the same for the baseline, by the output of each step."""
    for some in (starts, starts.expand_as(tape.inputs)):
        other = record(model, some)
        pairs = list(zip(tape.steps, other.steps, strict=False))
        if len(tape.steps) == len(other.steps) and all(_same(step, twin) for step, twin in pairs):
            return {id(step.output): twin for step, twin in pairs}
    raise no_meaning(method, "needs a network that takes the same steps for an image and its baseline")


def _same(step: Step, twin: Step) -> bool:
    """Whether both are the same step, so that their values can be compared where a rule does so."""
    compared = isinstance(step.layer, Rectifier | MaxPool)
    (rows, *shape), (many, *other) = step.output.shape, twin.output.shape
    return step.name == twin.name and (not compared or (shape == other and many in (1, rows)))


def _weights(logits: Logits, target: Labels, score: Scored, rival: Labels | None = None) -> Logits:
    """How much each logit counts in the score."""
    with torch.enable_grad():
        points = logits.detach().requires_grad_()
        return torch.autograd.grad(named(score)(points, target, rival).sum(), points)[0]


@torch.no_grad()
def _rise(model: nn.Module, inputs: Images, starts: Starts, target: Labels, score: Scored) -> Scores:
    """How much higher the score is at the images than at the baselines, with the rival at the images."""
    logits: Logits = model(inputs)
    require_logits(logits, len(inputs))
    rise: Scores = (_weights(logits, target, score) * (logits - model(starts))).sum(1)
    return rise


def _require_linear(score: Scored) -> None:
    """Refuse a score that the rule would not add up to."""
    require(
        not isinstance(score, Probability),
        f"`score` must be linear in the logits, Logit() or Margin(), got {score!r}.",
    )
