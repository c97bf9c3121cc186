"""Adversarial patterns that can be read: features of another class, traced back to the image."""

from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from lit_xai.attacks.base import Boundary, Search
from lit_xai.attacks.ledger import Ledger
from lit_xai.attacks.losses import Aim, RunnerUp
from lit_xai.attacks.norms import L2
from lit_xai.models.backtracking import Backtracking, Pooling, feature_map
from lit_xai.network import record
from lit_xai.randomness import narrowed
from lit_xai.types import Epsilon, Images, Labels, require, require_at_least, require_positive

_L2 = L2()


@dataclass(frozen=True)
class SemanticPattern(Search):
    """The features of another class, put in at a layer and traced back to the image: no step of descent.

    delta = T(z + a (sum_c e_c - sum_d e_d)) - T(z),    point = clip(input + s unit(delta))

    T runs the network backwards from the features z of the image at a late layer. Entries c are those of the
    channels with the largest gradient of f_b - f_y, for the aim b, each at the place of its largest gradient,
    of several such places at that of the largest feature; entries d, likewise, those with the lowest. The
    smallest s of a geometric grid that changes the decision is kept. Where weights are orthogonal, the
    pattern is meant to look like what speaks for b and against y.

    Args:
        epsilon: The largest s, in l2, above 0.
        layer: Name of a module; by default the last that still tells places apart, and without one the
            logits.
        features: Channels that are raised at most, at least 1.
        strength: What is added to each, a, in units of the image's largest feature, above 0.
        subtract: Whether as many channels, those of the lowest gradient, are lowered by as much; without,
            the pattern only adds what is seen of b.
        aim: Which class b is.
        steps: Lengths s that are tried, at least 2, each at the cost of one forward pass.
        finest: The smallest s as a share of `epsilon`, in (0, 1].
        pooling: What a max pool becomes, see `Backtracking`.
        guided: Whether a ReLU passes on only what it had let through, see `Backtracking`.

    Raises:
        ValueError: The layer does not exist or does not lead to the logits, or one on the way back has no
            inverse.

    Source: Zhang et al. 2023, arXiv 2212.09062 (explainable adversarial samples).
    Deviates: the paper has no algorithm for it; how entries are chosen, scaled and put in is ours.
    """

    epsilon: Epsilon
    layer: str | None = None
    features: int = 16
    strength: float = 1.0
    subtract: bool = True
    aim: Aim = field(default_factory=RunnerUp)
    steps: int = 32
    finest: float = 0.02
    pooling: Pooling = "nearest"
    guided: bool = False

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon, strength=self.strength)
        require_at_least(1, features=self.features)
        require_at_least(2, steps=self.steps)
        require(0 < self.finest <= 1, f"`finest` must lie in (0, 1], got {self.finest!r}.")
        Backtracking(self.pooling, self.guided)

    @torch.no_grad()
    def find(self, model: nn.Module, inputs: Images, target: Labels) -> Boundary:
        ledger = Ledger(model, inputs.detach(), target)
        index = (~ledger.away).nonzero()[:, 0]
        starts = unit = ledger.inputs[index]
        if len(index):
            with narrowed(index):
                unit = _L2.steepest(self.pattern(model, starts, target[index]))
            ledger.forwards[index] += 1
            ledger.backwards[index] += 1
        for number in range(self.steps):
            if not len(index):
                break
            length = self.epsilon * self.finest ** (1 - number / (self.steps - 1))
            _, flips, _ = ledger.look(index, (starts + length * unit).clamp(0, 1))
            # One host sync per length: an image that has flipped would cost a pass for each further one.
            index, starts, unit = index[~flips], starts[~flips], unit[~flips]
        return ledger.boundary()

    def pattern(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        """The change of the image that the change of the features stands for, as long as it came out."""
        with torch.enable_grad():
            points = inputs.detach().requires_grad_()
            tape = record(model, points)
            aim = self.aim(tape.output.detach(), target)
            lead = tape.output.gather(1, aim[:, None]) - tape.output.gather(1, target[:, None])
            value = feature_map(tape) if self.layer is None else tape.value(self.layer)
            value = tape.output if value is None else value
            (gradient,) = torch.autograd.grad(lead.sum(), value, allow_unused=True)
        require(
            gradient is not None,
            f"`layer` must lead to the logits, but {self.layer!r} does not: name another, or none.",
        )
        features = value.detach()
        change = self._raised(gradient, features)
        if self.subtract:
            change = change - self._raised(-gradient, features)
        back = Backtracking(self.pooling, self.guided)
        edited, plain = back(tape, value, torch.stack([features + change, features]))
        pattern: Tensor = edited - plain
        return pattern

    def _raised(self, gradient: Tensor, value: Tensor) -> Tensor:
        """What is added to the features: one entry of each of some channels."""
        slopes, features = (
            part.flatten(2) if part.ndim > 2 else part[..., None] for part in (gradient, value)
        )
        peaks = slopes.amax(2)
        places = features.masked_fill(slopes < peaks[:, :, None], -torch.inf).argmax(2)
        best, channels = peaks.topk(min(self.features, peaks.shape[1]))
        size = features.abs().amax((1, 2))
        size = self.strength * torch.where(size > 0, size, 1)
        entries = channels * slopes.shape[2] + places.gather(1, channels)
        raised = torch.zeros_like(value.flatten(1)).scatter_(1, entries, size[:, None] * (best > 0))
        return raised.reshape(value.shape)
