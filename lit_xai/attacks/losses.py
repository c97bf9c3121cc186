"""What a gradient attack raises, and which class a targeted one moves to."""

import abc
import math
from dataclasses import dataclass

import torch
from jaxtyping import Int
from torch import Tensor, nn

from lit_xai.randomness import keys, uniform
from lit_xai.types import Flags, Images, Labels, Logits, Scores, require, require_at_least


class Loss(abc.ABC):
    """How far logits are from the class `target`, or, with an aim, how close to the class `aim`.

    Larger is further. Only the order of values and the direction of gradients count: attacks take steps that
    have a length of their own. Concrete losses are final frozen dataclasses.
    """

    @abc.abstractmethod
    def __call__(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Scores:
        """Return one number per row of logits."""

    def slope(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Logits:
        """Gradient of the loss with respect to the logits."""
        with torch.enable_grad():
            logits = logits.detach().requires_grad_()
            return torch.autograd.grad(self(logits, target, aim).sum(), logits)[0]

    def climb(
        self, model: nn.Module, points: Images, target: Labels, aim: Labels | None = None
    ) -> tuple[Logits, Images]:
        """Logits and input gradient: one forward pass and one backward pass.

        The loss is summed over the batch, so that images do not see each other. Where the gradient is not a
        number it is 0: the image stays where it is.
        """
        with torch.enable_grad():
            points = points.detach().requires_grad_()
            output = model(points).to(points.dtype)
        logits = output.detach()
        (gradient,) = torch.autograd.grad(output, points, self.slope(logits, target, aim))
        return logits, gradient.nan_to_num()


@dataclass(frozen=True)
class CE(Loss):
    """Cross entropy, as the log odds that it stands for.

    h = log sum_{j != y} exp f_j - f_y, and CE = log(1 + e^h); with an aim t: f_t - log sum_{j != t} exp f_j,
    where CE of class t falls.

    Source: Madry et al. 2018, arXiv 1706.06083, eq. 2.1.
    Deviates: h rises with CE and its gradient has the same direction, but where the model is sure of itself
    that of CE rounds to zero, first in f_y, then in all.
    """

    def __call__(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Scores:
        own = (target if aim is None else aim)[:, None]
        odds = logits.scatter(1, own, -math.inf).logsumexp(dim=1) - logits.gather(1, own)[:, 0]
        return odds if aim is None else -odds

    def slope(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Logits:
        own = (target if aim is None else aim)[:, None]
        slope = logits.scatter(1, own, -math.inf).softmax(dim=1).scatter_(1, own, -1.0)
        return slope if aim is None else -slope


@dataclass(frozen=True)
class DLR(Loss):
    """Difference of logits ratio: the lead of another class, in units of the spread of the largest logits.

    (max_{j != y} f_j - f_y) / (f_(1) - f_(3)); with an aim t: (f_t - f_y) / (f_(1) - (f_(3) + f_(4)) / 2),
    f_(k) the k-th largest logit. Shifting or scaling all logits changes nothing.

    Raises:
        ValueError: Fewer than 3 classes, or with an aim fewer than 4.

    Source: Croce and Hein 2020, arXiv 2003.01690, eq. 6 and 7 (1e-12 in the denominator: the authors' code).
    """

    def __call__(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Scores:
        least, classes = (3 if aim is None else 4), logits.shape[1]
        require(
            classes >= least,
            f"DLR {'' if aim is None else 'with an aim '}needs at least {least} classes, got a model with "
            f"{classes}: take the loss LogitMargin or CE.",
        )
        top = logits.topk(least, dim=1).values
        spread = top[:, 0] - top[:, 2:].mean(dim=1)
        return LogitMargin()(logits, target, aim) / (spread + 1e-12)


@dataclass(frozen=True)
class LogitMargin(Loss):
    """The lead of another class over the target; 0 on the decision boundary.

    max_{j != y} f_j - f_y; with an aim t: f_t - f_y.

    Source: Carlini and Wagner 2017, arXiv 1608.04644, section V-A, f_6 without its floor.
    """

    def __call__(self, logits: Logits, target: Labels, aim: Labels | None = None) -> Scores:
        own = target[:, None]
        if aim is None:
            other = logits.scatter(1, own, -math.inf).amax(dim=1)
        else:
            other = logits.gather(1, aim[:, None])[:, 0]
        return other - logits.gather(1, own)[:, 0]


class Aim(abc.ABC):
    """The class that a targeted attack moves to, never the target. Concrete aims are frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, logits: Logits, target: Labels) -> Labels:
        """Return one class per image, from the logits of the images as they are."""


@dataclass(frozen=True)
class RunnerUp(Aim):
    """The other class with the largest logit, or the next ones.

    Args:
        rank: 1 for the largest logit, 2 for the second largest, and so on; at most the number of classes - 1.

    Source: Croce and Hein 2020, arXiv 2003.01690, section 5.1 (targets of the targeted attacks).
    """

    rank: int = 1

    def __post_init__(self) -> None:
        require_at_least(1, rank=self.rank)

    def __call__(self, logits: Logits, target: Labels) -> Labels:
        return ranking(logits, target, rank=self.rank)[:, -1]


@dataclass(frozen=True)
class LeastLikely(Aim):
    """The class with the smallest logit.

    Source: Kurakin et al. 2017, arXiv 1607.02533, section 2.3.
    """

    def __call__(self, logits: Logits, target: Labels) -> Labels:
        return logits.scatter(1, target[:, None], math.inf).argmin(dim=1)


@dataclass(frozen=True)
class RandomClass(Aim):
    """A class drawn evenly from the others, by the key of the sample.

    Source: Carlini and Wagner 2017, arXiv 1608.04644, section III-A ("average case").
    """

    def __call__(self, logits: Logits, target: Labels) -> Labels:
        others = logits.shape[1] - 1
        drawn = (others * uniform(keys(logits, "RandomClass"), 0, (), torch.float64)).long()
        return drawn + (drawn >= target)


@dataclass(frozen=True)
class FixedClass(Aim):
    """One class for all; an image of that very class moves to its runner-up.

    Args:
        label: The class, at least 0.

    Source: Szegedy et al. 2014, arXiv 1312.6199, section 4.1.
    """

    label: int

    def __post_init__(self) -> None:
        require_at_least(0, label=self.label)

    def __call__(self, logits: Logits, target: Labels) -> Labels:
        classes = logits.shape[1]
        require(
            self.label < classes,
            f"`label` must be at most {classes - 1} for a model with {classes} classes, got {self.label}.",
        )
        return torch.where(target == self.label, RunnerUp()(logits, target), self.label)


def ranking(logits: Logits, target: Labels, **count: int) -> Int[Tensor, "batch rank"]:
    """As many other classes as the one keyword says, largest logit first; errors call it by its name."""
    ((name, number),) = count.items()
    others = logits.shape[1] - 1
    require(
        number <= others,
        f"`{name}` must be at most {others} for a model with {others + 1} classes, got {number}.",
    )
    return logits.scatter(1, target[:, None], -math.inf).topk(number, dim=1).indices


def holds(logits: Logits, target: Labels) -> Flags:
    """Whether the decision is still `target`; logits that are not finite decide nothing."""
    return (logits.argmax(dim=1) == target) & logits.isfinite().all(dim=1)
