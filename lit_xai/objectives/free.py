"""Adversarial training for the price of standard training: one backward pass serves weights and images."""

from functools import partial

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from lit_xai.objectives.base import Objective, Terms, Views
from lit_xai.types import Epsilon, Images, Labels, require_at_least, require_positive


class FreeAdversarial(Objective):
    """Cross-entropy on images with a perturbation that is carried on, and grows with every backward pass.

    delta <- clip(delta + step_size sign(g), -epsilon, epsilon),    g = grad_x CE(f(x'), y),
    x' = clip(x + delta)

    Every batch is replayed: `replays` optimizer steps in a row see it. Each takes the gradients of weights
    and images from the same backward pass, and costs what a step of standard training costs; divide the
    number of epochs by `replays`. The perturbation has the shape of a batch. It begins at 0 and is never
    reset: the next batch begins with what the last one left behind, and a shorter one with the first rows of
    it. Checkpoints keep it.

    Args:
        epsilon: Budget in pixel units, above 0.
        replays: Optimizer steps on each batch, at least 1.
        step_size: Length of a step in pixel units, above 0; `epsilon` by default.

    Source: Shafahi et al. 2019, arXiv 1904.12843, algorithm 1.
    Deviates: the gradient is the one at x', as in the paper; the released code takes it before the clipping
    to [0, 1], where a pixel that has been clipped has none and stays as it is.
    """

    def __init__(self, epsilon: Epsilon, replays: int = 4, step_size: Epsilon | None = None) -> None:
        super().__init__()
        self.epsilon = epsilon
        self.replays = replays
        self.step_size = epsilon if step_size is None else step_size
        require_positive(epsilon=epsilon, step_size=self.step_size)
        require_at_least(1, replays=replays)
        self.updates = replays

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        delta = torch.zeros_like(inputs)
        if self.carried is not None and self.carried.shape[1:] == inputs.shape[1:]:
            left = self.carried[: len(inputs)]
            delta[: len(left)] = left.to(inputs)
        return (inputs + delta).clamp_(0, 1), delta

    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        attacked, delta = views
        points = attacked.detach().requires_grad_()
        # Called by `.backward()`, which goes on to the images; not by gradients of the weights alone.
        points.register_hook(partial(self._climb, delta))  # type: ignore[no-untyped-call]
        logits = model(points).to(points.dtype)
        return {"adversarial_cross_entropy": F.cross_entropy(logits, target)}

    def _climb(self, delta: Images, gradient: Tensor) -> None:
        """Carry on from `delta`; where a scaled gradient has overflowed to no number, stay."""
        moved = delta + self.step_size * gradient.detach().nan_to_num().sign()
        moved.clamp_(-self.epsilon, self.epsilon)
        rest = self.carried
        if rest is not None and rest.shape[1:] == moved.shape[1:]:
            moved = torch.cat([moved, rest[len(moved) :].to(moved)])
        self.carried = moved
