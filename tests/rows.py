"""One row per algorithm: an instance, its closed form on the linear classifier, and its flags."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai import attacks, metrics, objectives
from lit_xai import attributions as a
from lit_xai.types import Images, Labels

ClosedForm = Callable[[Tensor, Tensor, Images, Labels], Images]


@dataclass(frozen=True)
class Row:
    """An algorithm under the laws.

    Args:
        instance: The algorithm, small enough for a test.
        linear: Its exact answer for (weight, bias, inputs, target) of a linear classifier.
        classes: Classes of the linear classifier for which the closed form holds.
        tolerance: Absolute error allowed against the closed form, in double precision.
        draws: Whether the answer depends on the random state.
    """

    instance: Any
    linear: ClosedForm | None = None
    classes: int = 4
    tolerance: float = 1e-9
    draws: bool = False

    def __str__(self) -> str:
        return repr(self.instance)


def own(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """w_c, in the shape of the images."""
    return w[c].view_as(x)


def lead(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """w_c - w_j, where j is the runner-up."""
    logits = x.flatten(1) @ w.T + b
    return (w[c] - w[logits.argsort(1)[:, -2]]).view_as(x)


def nearest(w: Tensor, b: Tensor, x: Images, c: Labels) -> tuple[Images, Labels]:
    """Foot of x on the closest of the hyperplanes f_c = f_j, and that j."""
    logits = x.flatten(1) @ w.T + b
    margins = logits.gather(1, c[:, None]) - logits
    normals = w[c][:, None] - w
    distances = (margins / normals.norm(dim=2)).scatter(1, c[:, None], torch.inf)
    rival = distances.argmin(1)
    rows = torch.arange(len(x))
    normal = normals[rows, rival]
    step = margins[rows, rival] / normal.square().sum(1)
    return x - (step[:, None] * normal).view_as(x), rival


def to_boundary(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    return nearest(w, b, x, c)[0]


def to_rival(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """w_c - w_j, where j is the class on the other side of the closest hyperplane."""
    return (w[c] - w[nearest(w, b, x, c)[1]]).view_as(x)


def worst_in_cube(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """The corner of the cube of radius 0.1 where the other one of two classes leads most."""
    return x - 0.1 * (w[c] - w[1 - c]).sign().view_as(x)


def worst_in_ball(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """The point of the ball of radius 0.1 where the other one of two classes leads most."""
    return x - 0.1 * nn.functional.normalize(w[c] - w[1 - c]).view_as(x)


SEARCH = attacks.DDN(steps=15)


ATTRIBUTIONS: list[Row] = [
    Row(a.Saliency(), own),
    Row(a.Saliency(score=a.Margin()), lead),
    Row(a.InputXGradient(), lambda w, b, x, c: x * own(w, b, x, c)),
    Row(a.IntegratedGradients(steps=5), lambda w, b, x, c: x * own(w, b, x, c)),
    Row(
        a.IntegratedGradients(steps=4, baseline=0.5, rule="midpoint", chunk=3),
        lambda w, b, x, c: (x - 0.5) * own(w, b, x, c),
    ),
    Row(a.IntegratedGradients(steps=4, rule="official"), lambda w, b, x, c: 0.75 * x * own(w, b, x, c)),
    Row(a.SmoothGrad(sigma=0.2, samples=3), own, draws=True),
    Row(a.SmoothGrad(samples=3, base=a.SmoothGrad(samples=2, chunk=4), chunk=7), own, draws=True),
    Row(a.BoundarySaliency(search=SEARCH), own),
    Row(a.BoundarySaliency(search=SEARCH, score=a.Margin()), to_rival),
    Row(
        a.BoundaryIntegratedGradients(search=SEARCH, steps=3),
        lambda w, b, x, c: (x - to_boundary(w, b, x, c)) * own(w, b, x, c),
        tolerance=1e-4,
    ),
    Row(
        a.BoundaryIntegratedGradients(search=SEARCH, steps=3, score=a.Margin(), rule="midpoint", chunk=4),
        lambda w, b, x, c: (x - to_boundary(w, b, x, c)) * to_rival(w, b, x, c),
        tolerance=1e-4,
    ),
    Row(metrics.RandomMap(), draws=True),
    Row(metrics.EdgeMap()),
]

ATTACKS: list[Row] = [
    Row(attacks.FGSM(epsilon=0.1), worst_in_cube, classes=2),
    Row(attacks.FGSM(epsilon=0.1, norm=attacks.L2(), step_size=0.05, random_start=True), draws=True),
    Row(attacks.LinfPGD(epsilon=0.1, steps=3), worst_in_cube, classes=2, draws=True),
    Row(attacks.L2PGD(epsilon=0.1, random_start=False), worst_in_ball, classes=2),
    Row(attacks.L2PGD(epsilon=0.1, steps=3), draws=True),
    Row(SEARCH, to_boundary, tolerance=1e-4),
]

OBJECTIVES: list[Row] = [
    Row(objectives.CrossEntropy()),
    Row(objectives.CrossEntropy(label_smoothing=0.1)),
    Row(objectives.AdversarialTraining(attack=attacks.L2PGD(epsilon=0.5, steps=2)), draws=True),
    Row(objectives.GaussianAugmentation(sigma=0.25), draws=True),
]

METRICS: list[Row] = [
    Row(metrics.Perturbation(steps=5)),
    Row(metrics.Perturbation(steps=3, removal=metrics.ImageMean(), reduction=metrics.AbsoluteSum(), chunk=4)),
    Row(metrics.Gini()),
    Row(metrics.Closeness()),
    Row(metrics.Flags()),
    Row(metrics.Missing()),
    Row(metrics.CleanAccuracy()),
    Row(metrics.RobustAccuracy(attack=attacks.LinfPGD(epsilon=0.1, steps=2))),
    Row(metrics.BoundaryDistance(search=SEARCH)),
]
