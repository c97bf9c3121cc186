"""What is explained: one number per image, and its gradient with respect to the pixels."""

import abc
import math
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import nn

from lit_xai.attributions.base import entering, keeping_graph, require_logits
from lit_xai.types import Images, Labels, Logits, Scores, require


class Score(abc.ABC):
    """The number whose rise counts as evidence for a class. Concrete scores are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, logits: Logits, target: Labels, rival: Labels | None = None) -> Scores:
        """Return one number per row of logits; `rival` fixes the class that `target` is held against."""


@dataclass(frozen=True)
class Logit(Score):
    """The output of the target class as the network returns it.

    f_c(x)

    Source: Simonyan, Vedaldi and Zisserman 2013, arXiv 1312.6034, section 3; the score that the released
    code of Wang, Fredrikson and Datta 2021, arXiv 2103.11257, differentiates.
    """

    def __call__(self, logits: Logits, target: Labels, rival: Labels | None = None) -> Scores:
        return logits.gather(1, target[:, None])[:, 0]


@dataclass(frozen=True)
class Margin(Score):
    """The lead of the target class over one other class; zero on the decision boundary.

    f_c(x) - f_j(x)

    The rival j is the strongest other class at the point where the score is taken, or the one given: boundary
    methods hold it fixed at the class on the other side. Only the gradient of the margin is normal to the
    boundary; that of the logit is so where the gradients of f_c and f_j are parallel.

    Source: Moosavi-Dezfooli, Fawzi and Frossard 2016, arXiv 1511.04599, section 3 (zero on the boundary).
    """

    def __call__(self, logits: Logits, target: Labels, rival: Labels | None = None) -> Scores:
        chosen = target[:, None]
        if rival is None:
            rival = logits.detach().scatter(1, chosen, -math.inf).argmax(1)
        return (logits.gather(1, chosen) - logits.gather(1, rival[:, None]))[:, 0]


@dataclass(frozen=True)
class Probability(Score):
    """The softmax probability of the target class, in [0, 1].

    p_c(x) = 1 / (1 + exp(-h)),    h = f_c(x) - log sum_{j != c} exp f_j(x)

    Its gradient p_c (1 - p_c) grad h vanishes where the model is sure of itself. It is computed from h, which
    keeps all its digits as long as it does not underflow; 1 - p_c by itself rounds to zero from h = 17 on in
    single precision.

    Source: Bridle 1990, "Probabilistic interpretation of feedforward classification network outputs".
    """

    def __call__(self, logits: Logits, target: Labels, rival: Labels | None = None) -> Scores:
        own = target[:, None]
        others = logits.scatter(1, own, -math.inf).logsumexp(1)
        # The derivative of a sigmoid is computed from 1 - p, that of its logarithm from exp(-|h|).
        odds = nn.functional.logsigmoid(logits.gather(1, own)[:, 0] - others)
        return odds.exp()


Scored = Score | Literal["logit", "margin", "probability"]


def named(score: Scored) -> Score:
    """The score that a name stands for; a score stands for itself.

    Raises:
        ValueError: There is no score of that name.
    """
    if isinstance(score, Score):
        return score
    names: dict[str, Score] = {
        "logit": Logit(),
        "margin": Margin(),
        "probability": Probability(),
    }
    known = ", ".join(map(repr, names))
    require(score in list(names), f"`score` must be {known}, or a Score, got {score!r}.")
    return names[score]


def settle(method: Any) -> None:
    """Replace the name of a method's score by the score, so that equal methods are equal."""
    object.__setattr__(method, "score", named(method.score))


def gradient(
    score: Scored, model: nn.Module, points: Images, target: Labels, rival: Labels | None = None
) -> Images:
    """Gradient of the score with respect to the points: one forward pass and one input gradient.

    Parameters receive no gradient, and the points stay as they were. Within `keep_graph` the gradient can be
    differentiated, and reaches whatever the points were made from.

    Raises:
        ValueError: The model does not return one row of logits per image.
    """
    with torch.enable_grad():
        points = entering(points)
        points = points if points.requires_grad else points.detach().requires_grad_()
        logits = model(points)
        require_logits(logits, len(points))
        total = named(score)(logits, target, rival).sum()
        return torch.autograd.grad(total, points, create_graph=keeping_graph())[0]
