"""Attacks on explanations: images that look the same, are classified the same, and are explained otherwise.

What they show about a method is only what they find: one that they do not move may be robust, or may hide
its gradient. `comparison.manipulated` reports both.
"""

import abc
import math
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, field

import torch
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attacks.base import Attack
from lit_xai.attacks.norms import Linf, Norm
from lit_xai.attributions.base import Attribution, keep_graph
from lit_xai.attributions.goals import Frame, Goal
from lit_xai.attributions.gradient import Saliency
from lit_xai.attributions.score import Margin
from lit_xai.attributions.similarity import Places, most, shares, top
from lit_xai.network.softened import softened
from lit_xai.types import (
    Epsilon,
    Images,
    Keys,
    Labels,
    Logits,
    Scores,
    require,
    require_at_least,
    require_positive,
)

Objective = Callable[[Places, Logits], Scores]

MOMENTUM = 0.9


@dataclass(frozen=True)
class Manipulation(Attack):
    """An attack that lowers a number made of map and logits, in a ball around the image and in the box.

    p <- clip(project(p - eta_k steepest(m_k))),    m_k = 0.9 m_(k-1) + g_k / mean |g_k|

    with eta_k falling from `step_size` to 0 along half a cosine. For the gradient g of the map the ReLUs of
    the network are softplus, whose beta grows from step to step; logits are always those of the network. Its
    own map and decision judge every point: returned is the best that has the class of the image, which is the
    image itself where none is better. A point that has another class turns back first, by the slope of its
    margin. Maps are read as shares, h_p = sum_c |M_cp| / total.

    A method that draws has fresh draws for every gradient, and the same ones for every judgement.

    A step of either search costs a forward and a backward pass, the map, and the map with its gradient: some
    5 times the map in time, and the memory of the graph of all its passes, for the whole batch.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the point lies.
        method: The explanation that is attacked, one that is `differentiable`.
        steps: Gradients, at least 1.
        step_size: Length of the first step in pixel units, above 0; a quarter of `epsilon` by default.
        betas: First and last sharpness of the softplus, growing evenly in its logarithm, see `softened`; None
            leaves the ReLUs as they are.
        unsoftened: Whether to search a second time with the ReLUs as they are, and to return the better
            point. A method with rules of its own, such as LRP, has a gradient there too, and softplus may
            spoil it: where a rule divides by what enters a ReLU, it explodes.
        random_start: Whether to begin at a random point of the ball instead of the image.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    method: Attribution = field(default_factory=Saliency)
    steps: int = 100
    step_size: Epsilon | None = None
    betas: tuple[float, float] | None = (10.0, 100.0)
    unsoftened: bool = True
    random_start: bool = True

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require(
            self.method.differentiable,
            f"`method` must have a gradient, but `{type(self.method).__name__}` cannot be differentiated: "
            "take one with `differentiable` set.",
        )
        require_at_least(1, steps=self.steps)
        if self.step_size is not None:
            require_positive(step_size=self.step_size)
        if self.betas is not None:
            first, last = self.betas
            require(0 < first <= last, f"`betas` must be above 0 and not fall, got {self.betas!r}.")

    @abc.abstractmethod
    def aim(self, model: nn.Module, inputs: Images, seen: Places, logits: Logits) -> Objective:
        """What is to be lowered, as a function of the map's shares and the logits at a point.

        Args:
            model: The network.
            inputs: The images.
            seen: Shares of their maps.
            logits: Their logits.
        """

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        own = randomness.keys(inputs, "manipulation")
        seen, logits, objective = self._begin(model, inputs, target, own)
        predicted, least, best = logits.argmax(1), objective(seen, logits), inputs

        def guide(there: Places, changed: Logits) -> Scores:
            inside = changed.argmax(1) == predicted
            return torch.where(inside, objective(there, changed), -Margin()(changed, predicted))

        for betas in dict.fromkeys((self.betas, None) if self.unsoftened else (self.betas,)):
            points, momentum = self._start(inputs, own), torch.zeros_like(inputs)
            for step in range(self.steps + 1):
                leaf, logits = _entered(model, points)
                value = objective(self._seen(model, points, target, own), logits.detach())
                better = (value < least) & (logits.argmax(1) == predicted)
                least = torch.where(better, value, least)
                best = torch.where(better[:, None, None, None], points, best)
                if step == self.steps:
                    break
                beta = betas and betas[0] * math.pow(betas[1] / betas[0], step / max(1, self.steps - 1))
                with randomness.keyed(step + 1, own):
                    gradient = self._gradient(model, leaf, target, logits, guide, beta)
                gradient = gradient.nan_to_num(0, 0, 0)  # where there is none, nothing moves
                size = gradient.abs().mean((1, 2, 3), keepdim=True)
                momentum = MOMENTUM * momentum + gradient / torch.where(size > 0, size, 1)
                moved = points - self._length(step) * self.norm.steepest(momentum) - inputs
                points = (inputs + self.norm.project(moved, self.epsilon)).clamp(0, 1)
        return best

    def value(self, model: nn.Module, inputs: Images, points: Images, target: Labels) -> Scores:
        """What is to be lowered, at points near the images, by the network itself."""
        own = randomness.keys(inputs, "manipulation")
        _, _, objective = self._begin(model, inputs.detach(), target, own)
        with torch.no_grad():
            logits = model(points).to(points.dtype)
        return objective(self._seen(model, points.detach(), target, own), logits)

    def slope(self, model: nn.Module, inputs: Images, target: Labels, beta: float | None) -> Scores:
        """l2 norm of the gradient that the attack begins with, by the map alone; at 0, nothing can be found.

        Args:
            model: The network.
            inputs: The images.
            target: The class explained.
            beta: Sharpness of the softplus; None leaves the ReLUs as they are.
        """
        own = randomness.keys(inputs, "manipulation")
        _, logits, objective = self._begin(model, inputs.detach(), target, own)
        leaf = self._start(inputs.detach(), own).requires_grad_()
        with randomness.keyed(1, own):
            gradient = self._gradient(model, leaf, target, logits, objective, beta)
        length: Tensor = torch.linalg.vector_norm(gradient.flatten(1), dim=1)
        return length

    def _begin(
        self, model: nn.Module, inputs: Images, target: Labels, own: Keys
    ) -> tuple[Places, Logits, Objective]:
        """Shares and logits of the images, and what is to be lowered."""
        with randomness.keyed(0, own):
            seen = shares(self.method(model, inputs, target))
            with torch.no_grad():
                logits = model(inputs).to(inputs.dtype)
            return seen, logits, self.aim(model, inputs, seen, logits)

    def _start(self, inputs: Images, own: Keys) -> Images:
        if not self.random_start:
            return inputs.clone()
        delta = self.norm.start(own, 0, inputs.shape[1:], self.epsilon, inputs.dtype)
        return (inputs + delta).clamp(0, 1)

    def _length(self, step: int) -> float:
        first = self.epsilon / 4 if self.step_size is None else self.step_size
        return first * (1 + math.cos(math.pi * step / self.steps)) / 2

    def _seen(self, model: nn.Module, points: Images, target: Labels, own: Keys) -> Places:
        """Shares of the maps, as points are judged by."""
        with randomness.keyed(0, own):
            return shares(self.method.maps(model, points, target))

    def _gradient(
        self,
        model: nn.Module,
        leaf: Images,
        target: Labels,
        logits: Logits,
        objective: Objective,
        beta: float | None,
    ) -> Images:
        """Gradient of what is to be lowered, the map being that of the softened network."""
        with nullcontext() if beta is None else softened(model, beta), keep_graph():
            seen = shares(self.method.maps(model, leaf, target))
            total = objective(seen, logits).sum()
            if not total.requires_grad:  # neither map nor logits depend on the image
                return torch.zeros_like(leaf)
            (gradient,) = torch.autograd.grad(total, leaf, allow_unused=True, materialize_grads=True)
        return gradient


@dataclass(frozen=True)
class TargetedManipulation(Manipulation):
    """Puts a chosen map in place of an image's own, and keeps the logits.

    ||h(p) - g||^2 / ||h(x) - g||^2 + weight ||f(p) - f(x)||^2 / ||f(x) - mean f(x)||^2

    with the shares h of the map and g of the goal. At the image it is 1.

    Args:
        goal: The map to be put in place.
        weight: What a change of the logits costs, 0 or more. At 1, a change as large as the logits' own
            spread costs as much as the distance to the goal.

    Source: Dombrowski, Alber, Anders, Ackermann, Mueller and Kessel 2019, arXiv 1906.07983, section 2.
    Deviates: both terms are relative, so that `weight` does not depend on sizes of image and logits; a ball,
        and steps of a length in pixels, in place of Adam with the box alone; the logits are those of the
        network with ReLUs; the class is kept, and the best point of all steps is returned.
    """

    goal: Goal = field(default_factory=Frame)
    weight: float = 10.0

    def __post_init__(self) -> None:
        super().__post_init__()
        require_at_least(0, weight=self.weight)

    def aim(self, model: nn.Module, inputs: Images, seen: Places, logits: Logits) -> Objective:
        goal = self.goal(self.method, model, inputs)
        apart, spread = _squared(seen - goal), _squared(logits - logits.mean(1, keepdim=True))
        apart, spread = (torch.where(size > 0, size, 1) for size in (apart, spread))

        def objective(there: Places, changed: Logits) -> Scores:
            return _squared(there - goal) / apart + self.weight * _squared(changed - logits) / spread

        return objective


@dataclass(frozen=True)
class TopKAttack(Manipulation):
    """Takes the relevance away from the pixels that had most of it, and keeps the class.

    sum over p in B of h_p,    B = the k pixels with the largest shares in the map of the image

    Args:
        share: k over the number of pixels, in (0, 1]; k is at least 1.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547, algorithm 1 (top-k attack).
    Deviates: momentum, steps that get shorter, a random start, a softplus that gets sharper; k is a share.
    """

    share: float = 0.1

    def __post_init__(self) -> None:
        super().__post_init__()
        most(self.share, 1)

    def aim(self, model: nn.Module, inputs: Images, seen: Places, logits: Logits) -> Objective:
        chosen = top(seen, self.share)
        return lambda there, changed: (there * chosen).sum((1, 2))


@dataclass(frozen=True)
class MassCentreAttack(Manipulation):
    """Moves the centre of the relevance as far as it can, and keeps the class.

    -|C(h(p)) - C(h(x))|,    C(h) = sum_p h_p (row, column of p)

    in pixels. At the image itself it has no slope: begin at a random point.

    Source: Ghorbani, Abid and Zou 2019, arXiv 1710.10547, algorithm 1 (mass-center attack).
    Deviates: as for `TopKAttack`.
    """

    def __post_init__(self) -> None:
        super().__post_init__()
        require(
            self.random_start, "`random_start` must be True: the centre has no slope at the image itself."
        )

    def aim(self, model: nn.Module, inputs: Images, seen: Places, logits: Logits) -> Objective:
        before = _centre(seen)
        return lambda there, changed: -torch.linalg.vector_norm(_centre(there) - before, dim=1)


def _entered(model: nn.Module, points: Images) -> tuple[Images, Logits]:
    """Points that have a gradient, and their logits."""
    with torch.enable_grad():
        leaf = points.detach().requires_grad_()
        return leaf, model(leaf).to(leaf.dtype)


def _squared(rows: Tensor) -> Scores:
    return rows.flatten(1).square().sum(1)


def _centre(seen: Places) -> Float[Tensor, "batch 2"]:
    """Row and column of the centre of mass."""
    down, across = (torch.arange(side, device=seen.device, dtype=seen.dtype) for side in seen.shape[1:])
    return torch.stack([seen.sum(2) @ down, seen.sum(1) @ across], dim=1)
