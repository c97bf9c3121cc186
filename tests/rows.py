"""One row per algorithm: an instance, its closed form on the linear classifier, and its flags."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise
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
        smooth: Whether its gradient is tested on a smooth network; a method made for ReLUs sets it to False.
        companions: Whether its answer depends on the other images of the batch: released code may do that.
    """

    instance: Any
    linear: ClosedForm | None = None
    classes: int = 4
    tolerance: float = 1e-9
    draws: bool = False
    smooth: bool = True
    companions: bool = False

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


def beyond_boundary(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """As far beyond the closest hyperplane as 5 % of the way to it."""
    return x + 1.05 * (nearest(w, b, x, c)[0] - x)


def to_rival(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """w_c - w_j, where j is the class on the other side of the closest hyperplane."""
    return (w[c] - w[nearest(w, b, x, c)[1]]).view_as(x)


def worst_in_cube(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """The corner of the cube of radius 0.1 where the other one of two classes leads most."""
    return x - 0.1 * (w[c] - w[1 - c]).sign().view_as(x)


def worst_in_ball(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """The point of the ball of radius 0.1 where the other one of two classes leads most."""
    return x - 0.1 * nn.functional.normalize(w[c] - w[1 - c]).view_as(x)


def middle(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """A Gaussian in the middle of the image, half of it in either channel."""
    place = torch.arange(5, dtype=x.dtype) - 2
    slope = torch.exp(-place.square() / (2 * 1.25**2))
    return (slope[:, None] * slope / 2).expand_as(x)


def per_segment(baseline: float, segments: int) -> ClosedForm:
    """(x - b) w_c, summed over each segment and divided evenly over it."""

    def form(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
        effect, maps = (x - baseline) * own(w, b, x, c), torch.zeros_like(x)
        cuts = [math.ceil(x.shape[-1] * k / segments) for k in range(segments + 1)]
        for top, bottom in pairwise(cuts):
            for left, right in pairwise(cuts):
                part = effect[:, :, top:bottom, left:right]
                maps[:, :, top:bottom, left:right] = part.mean((1, 2, 3), keepdim=True)
        return maps

    return form


def flux_in_cube(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """|w_c| / sqrt(n): the gradient times the unit vector to the lowest corner of a cube."""
    return (w[c].abs() / w.shape[1] ** 0.5).view_as(x)


def flux_in_ball(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """w_c^2 / ||w_c||: the gradient times the unit vector to the lowest point of a ball."""
    return (w[c].square() / w[c].norm(dim=1, keepdim=True)).view_as(x)


def ways_to_all(epsilon: float, steps: int, accumulate: bool) -> ClosedForm:
    """-epsilon sum_i K_i w_c * sign(w_i), over all false classes i; the way to i has K_i steps in the box."""

    def maps(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
        total = torch.zeros_like(x.flatten(1))
        for false, way in enumerate(w.sign()):
            points = x.flatten(1) + torch.arange(steps)[:, None, None] * (epsilon * way)
            if not accumulate:
                points[1:] = x.flatten(1) + epsilon * way
            seen = (points @ w.T + b).argmax(2)
            going = (seen != false).cumprod(0).sum(0) * (c != false)
            total -= going[:, None] * (epsilon * w[c] * way)
        return total.view_as(x)

    return maps


def way_down(size: float, steps: int, euclidean: bool) -> ClosedForm:
    """size K w_c * unit(w_c), after the K steps it takes to leave class c, in the box."""

    def maps(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
        step = size * (nn.functional.normalize(w[c]) if euclidean else w[c].sign())
        points = x.flatten(1) - torch.arange(steps)[:, None, None] * step
        going = ((points @ w.T + b).argmax(2) == c).cumprod(0).sum(0)
        return (going[:, None] * w[c] * step).view_as(x)

    return maps


def influence(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """The logit, shared out in proportion to the size of every product of weight and pixel."""
    logits = x.flatten(1) @ w.T + b
    sizes = (x * own(w, b, x, c)).abs()
    return logits.gather(1, c[:, None])[:, :, None, None] * sizes / sizes.sum((1, 2, 3), keepdim=True)


def shared(parts: Callable[[Tensor, Tensor, Tensor], Tensor]) -> ClosedForm:
    """The logit, in proportion to the parts of (weight row, bias, pixels)."""

    def maps(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
        logit = (x.flatten(1) @ w.T + b).gather(1, c[:, None])
        return (logit * parts(w[c], b[c][:, None], x.flatten(1))).view_as(x)

    return maps


def by_contribution(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    total = (w * x).sum(1, keepdim=True) + b
    return w * x / (total + 1e-6 * total.sign())


def by_positive_contribution(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return (w * x).clamp(min=0) / (w * x).clamp(min=0).sum(1, keepdim=True)


def by_square(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return w.square() / (w.square().sum(1, keepdim=True) + b.square())


def by_box(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    reach = w * x - w.clamp(max=0)
    return reach / reach.sum(1, keepdim=True)


def evenly(w: Tensor, b: Tensor, x: Tensor) -> Tensor:
    return torch.full_like(x, 1 / x.shape[1])


def shared_by_norm(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """<w_cp, x_p>, and of b_c a part in proportion to |W_p x_p|, per place p; even over channels."""
    added = torch.einsum("ocp,ncp->nop", w.view(len(w), *x.flatten(2).shape[1:]), x.flatten(2))
    norms = added.norm(dim=1)
    places = added[torch.arange(len(x)), c] + b[c, None] * norms / norms.sum(1, keepdim=True)
    return (places / x.shape[1]).view_as(x[:, 0])[:, None].expand_as(x)


def traced_back(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
    """sum_i <w_i, x> w_i / |w_i|^2 over all classes, where that is positive."""
    units = nn.functional.normalize(w)
    return (x.flatten(1) @ units.T @ units).clamp(min=0).view_as(x)


def along_rows(epsilon: float, steps: int, finest: float) -> ClosedForm:
    """Along w_j / |w_j|^2 - w_c / |w_c|^2, j the runner-up: the first of the lengths at which x is not c."""

    def form(w: Tensor, b: Tensor, x: Images, c: Labels) -> Images:
        logits = x.flatten(1) @ w.T + b
        rows = w / w.square().sum(1, keepdim=True)
        unit = nn.functional.normalize(rows[logits.argsort(1)[:, -2]] - rows[c]).view_as(x)
        points = x
        for step in reversed(range(steps)):
            there = (x + epsilon * finest ** (1 - step / (steps - 1)) * unit).clamp(0, 1)
            left = (there.flatten(1) @ w.T + b).argmax(1) != c
            points = torch.where(left[:, None, None, None], there, points)
        return points

    return form


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
    Row(a.BoundarySmoothGrad(search=SEARCH, samples=3), own, draws=True),
    Row(a.BoundarySmoothGrad(search=SEARCH, samples=2, score=a.Margin(), chunk=3), to_rival, draws=True),
    Row(
        a.BoundaryDeepLift(search=SEARCH),
        lambda w, b, x, c: (x - to_boundary(w, b, x, c)) * own(w, b, x, c),
        tolerance=1e-4,
    ),
    Row(
        a.BoundaryDeepLift(search=SEARCH, score=a.Margin()),
        lambda w, b, x, c: (x - to_boundary(w, b, x, c)) * to_rival(w, b, x, c),
        tolerance=1e-4,
    ),
    Row(a.Saliency(score=a.Probability())),
    Row(a.NegativeFlux(points=2, steps=1), draws=True),
    Row(a.NegativeFlux(points=3, steps=1, score=a.Logit(), chunk=5), flux_in_cube, draws=True),
    Row(
        a.NegativeFlux(points=2, steps=12, norm=attacks.L2(), score=a.Logit(), eta=9.0),
        flux_in_ball,
        draws=True,
    ),
    Row(a.AdversarialGradientIntegration(steps=3, classes=2, chunk=7), draws=True),
    Row(
        a.AdversarialGradientIntegration(epsilon=0.002, steps=6, score=a.Logit()),
        ways_to_all(0.002, 6, accumulate=False),
    ),
    Row(
        a.AdversarialGradientIntegration(path="accumulate", epsilon=0.002, steps=6, score=a.Logit(), chunk=5),
        ways_to_all(0.002, 6, accumulate=True),
    ),
    Row(a.MFABA(steps=4)),
    Row(a.MFABA(steps=4, step_size=0.01, score=a.Logit(), chunk=4), way_down(0.01, 4, euclidean=True)),
    Row(a.MFABA(mode="smooth", steps=4, score=a.Logit()), way_down(0.001, 4, euclidean=False)),
    Row(a.GradCam()),
    Row(a.GradCam(relu=False, score=a.Margin())),
    Row(a.GuidedGradCam(), smooth=False),
    Row(
        a.Occlusion(window=1, stride=1),
        lambda w, b, x, c: (x * own(w, b, x, c)).mean(1, keepdim=True).expand_as(x),
    ),
    Row(a.Occlusion(window=3, stride=2, baseline=0.5, score=a.Margin(), chunk=7)),
    Row(a.FeatureAblation(segments=3), per_segment(0.0, 3)),
    Row(a.KernelShap(segments=3, samples=60, baseline=0.5, chunk=16), per_segment(0.5, 3), draws=True),
    Row(a.Lime(segments=2, samples=24, ridge=0.0), per_segment(0.0, 2), draws=True),
    Row(a.Lime(segments=3, samples=12, chunk=7), draws=True),
    Row(a.IntegratedGradients(steps=3, baseline=a.NoiseImage()), draws=True),
    Row(a.ExpectedGradients(samples=4), draws=True),
    Row(
        a.ExpectedGradients(samples=3, baseline=0.25, chunk=4),
        lambda w, b, x, c: (x - 0.25) * own(w, b, x, c),
        draws=True,
    ),
    Row(a.GuidedIntegratedGradients(steps=5), lambda w, b, x, c: x * own(w, b, x, c)),
    Row(
        a.GuidedIntegratedGradients(steps=4, fraction=0.1, max_dist=1.0, baseline=0.5, chunk=3),
        lambda w, b, x, c: (x - 0.5) * own(w, b, x, c),
    ),
    Row(a.SteinGradient(sigma=1.0, samples=40), draws=True),
    Row(a.GuidedBackprop(), own),
    Row(a.Deconvolution(score=a.Margin()), lead),
    Row(a.RectifiedGradient(percentile=80), lambda w, b, x, c: x * own(w, b, x, c)),
    Row(a.RectifiedGradient(percentile=60, times_input=False, redistribute=True, mask_border=True), own),
    Row(a.RectifiedGradient(threshold=0.0, score=a.Margin()), lambda w, b, x, c: x * lead(w, b, x, c)),
    Row(a.DeepLift(), lambda w, b, x, c: x * own(w, b, x, c), smooth=False),
    Row(
        a.DeepLift(baseline=0.5, score=a.Margin()),
        lambda w, b, x, c: (x - 0.5) * lead(w, b, x, c),
        smooth=False,
    ),
    Row(a.DeepLift(baseline=a.NoiseImage(), score=a.Margin()), draws=True, smooth=False),
    Row(a.DeepLiftShap(samples=3, chunk=7), draws=True, smooth=False),
    Row(
        a.DeepLiftShap(samples=2, baseline=0.5),
        lambda w, b, x, c: (x - 0.5) * own(w, b, x, c),
        smooth=False,
    ),
    Row(a.LRP(), shared(by_contribution), smooth=False),
    Row(a.LRP(a.AlphaBeta(), first=a.Flat()), shared(evenly), smooth=False),
    Row(a.LRP(a.Gamma(), first=a.ZBox(), bias="ignore"), shared(by_box), tolerance=1e-7, smooth=False),
    Row(
        a.LRP(a.WSquare(), a.ZPlus(), bias="ignore"),
        shared(by_positive_contribution),
        tolerance=1e-7,
        smooth=False,
    ),
    Row(a.LRP(a.Epsilon(1e-3), first=a.WSquare()), shared(by_square), tolerance=1e-7, smooth=False),
    Row(a.SharingRatio(), shared_by_norm, smooth=False),
    Row(a.SharingRatio(head="grad_cam", joint_pool=True), smooth=False),
    Row(a.SharingRatio(head="sharing", contrast=True, bias=False, per_channel=True), smooth=False),
    Row(a.RAP(), influence),
    Row(a.RAP(addition="released"), influence),
    Row(a.RSP()),  # refuses the linear classifier, which has no ReLU with places
    Row(a.SaliencyByTracing()),  # refuses the linear classifier, which has no layer with places
    Row(a.SaliencyByTracing(features=5, threshold=1.5, skip_border=False, pooling="indices", chunk=7)),
    Row(a.TraceBack(), traced_back),
    Row(a.TraceBack(pooling="indices", guided=True), traced_back),
    Row(metrics.RandomMap(), draws=True),
    Row(metrics.CentreMap(), middle),
    Row(metrics.EdgeMap()),
    Row(metrics.Untrained(method=a.InputXGradient(), seed=1)),
    Row(metrics.OtherImage(), companions=True),
    Row(metrics.OtherImage(method=a.SmoothGrad(samples=2)), draws=True, companions=True),
]

ATTACKS: list[Row] = [
    Row(attacks.FGSM(epsilon=0.1), worst_in_cube, classes=2),
    Row(attacks.FGSM(epsilon=0.1, norm=attacks.L2(), step_size=0.05, random_start=True), draws=True),
    Row(attacks.LinfPGD(epsilon=0.1, steps=3), worst_in_cube, classes=2, draws=True),
    Row(attacks.L2PGD(epsilon=0.1, random_start=False), worst_in_ball, classes=2),
    Row(attacks.L2PGD(epsilon=0.1, steps=3), draws=True),
    Row(attacks.NudgedPGD(epsilon=0.1, steps=3), worst_in_cube, classes=2, draws=True),
    Row(
        attacks.NudgedPGD(epsilon=0.1, norm=attacks.L2(), steps=3, spread=1e-6),
        worst_in_ball,
        classes=2,
        tolerance=1e-4,
        draws=True,
    ),
    Row(attacks.RandomNeighbour(epsilon=0.1), draws=True),
    Row(attacks.RandomNeighbour(epsilon=0.5, norm=attacks.L2()), draws=True),
    Row(SEARCH, to_boundary, tolerance=1e-4),
    Row(
        attacks.LinfPGD(0.1, 4, restarts=2, loss=attacks.LogitMargin(), best=True),
        worst_in_cube,
        classes=2,
        draws=True,
    ),
    Row(attacks.L2PGD(0.1, 4, loss=attacks.DLR(), aim=attacks.RandomClass(), stop_early=True), draws=True),
    Row(attacks.MomentumPGD(epsilon=0.1, steps=3), worst_in_cube, classes=2),
    Row(attacks.MomentumPGD(epsilon=0.1, norm=attacks.L2(), steps=3, momentum=0.5), worst_in_ball, classes=2),
    Row(attacks.APGD(epsilon=0.1, steps=10, stop_early=False), worst_in_cube, classes=2, draws=True),
    Row(
        attacks.APGD(epsilon=0.1, norm=attacks.L2(), stop_early=False),
        worst_in_ball,
        classes=2,
        tolerance=1e-4,
        draws=True,
    ),
    Row(attacks.APGD(epsilon=0.5, norm=attacks.L1(), steps=12, loss=attacks.DLR(), targets=None), draws=True),
    Row(attacks.BoundaryWalk(), to_boundary, tolerance=1e-4),
    Row(
        attacks.ClosestBoundary(starts=3, steps=2, first=1, last=0, bisections=0),
        to_boundary,
        tolerance=1e-4,
        draws=True,
    ),
    Row(attacks.DeepFool(), to_boundary, classes=10, tolerance=1e-4),
    Row(attacks.DeepFool(steps=20, rivals=1, overshoot=0.1), to_boundary, classes=2, tolerance=1e-4),
    Row(attacks.FMN(steps=20), to_boundary, classes=2, tolerance=5e-3),
    Row(attacks.CarliniWagner(steps=20, rounds=3, constant=10.0, step_size=0.5)),
    Row(attacks.PGDGrid(radii=(0.5, 2.0, 8.0), steps=8), draws=True),
    Row(attacks.PGDGrid(radii=(0.5, 2.0, 8.0), steps=8, released=True, bisections=0), draws=True),
    Row(attacks.FABProjection(steps=6, rivals=3), to_boundary, tolerance=1e-4),
    Row(attacks.FAB(epsilon=2.0, norm=attacks.L2(), steps=4), beyond_boundary, classes=2),
    Row(attacks.FAB(epsilon=0.05, steps=4)),
    Row(attacks.Square(epsilon=0.1, queries=20), draws=True),
    Row(attacks.Square(epsilon=0.5, norm=attacks.L2(), queries=20, rescale=True), draws=True),
    Row(attacks.Square(epsilon=1.0, norm=attacks.L1(), queries=20), draws=True),
    Row(attacks.Members(0.3, {"fgsm": attacks.FGSM(0.3), "pgd": attacks.LinfPGD(0.3, 2)})),
    Row(attacks.AutoAttack(0.3, steps=3, queries=5), draws=True),
    Row(attacks.PyAutoAttackMember(0.3, name="fab-t", steps=3), companions=True),
    Row(attacks.PyAutoAttack(epsilon=0.1), companions=True),
    Row(a.TargetedManipulation(epsilon=0.1, steps=4), lambda w, b, x, c: x, draws=True),
    Row(
        a.TargetedManipulation(
            epsilon=0.5,
            norm=attacks.L2(),
            method=a.SmoothGrad(samples=2),
            steps=6,
            goal=a.MapOf(image=a.NoiseImage()),
            weight=1.0,
            unsoftened=False,
        ),
        draws=True,
    ),
    Row(
        a.TargetedManipulation(
            epsilon=0.1,
            method=a.InputXGradient(),
            steps=4,
            random_start=False,
            goal=a.Drawing(image=a.FlatImage(value=0.5)),
        )
    ),
    Row(a.TopKAttack(epsilon=0.1, steps=4), lambda w, b, x, c: x, draws=True),
    Row(
        a.MassCentreAttack(epsilon=0.1, method=a.IntegratedGradients(steps=3), steps=4, betas=None),
        draws=True,
    ),
    Row(attacks.SemanticPattern(epsilon=9.0, steps=12, finest=0.002), along_rows(9.0, 12, 0.002)),
    Row(attacks.SemanticPattern(epsilon=9.0, features=3, strength=0.5, subtract=False, pooling="indices")),
    Row(attacks.SemanticPattern(epsilon=9.0, aim=attacks.RandomClass(), guided=True), draws=True),
]

OBJECTIVES: list[Row] = [
    Row(objectives.CrossEntropy()),
    Row(objectives.CrossEntropy(label_smoothing=0.1)),
    Row(objectives.AdversarialTraining(attack=attacks.L2PGD(epsilon=0.5, steps=2)), draws=True),
    Row(
        objectives.AdversarialTraining(attacks.LinfPGD(0.1, 2), "frozen", warmup=0.5, label_smoothing=0.1),
        draws=True,
    ),
    Row(objectives.Trades(attacks.NudgedPGD(0.1, steps=2)), draws=True),
    Row(
        objectives.Trades(attacks.L2PGD(0.5, steps=2), beta=1.0, batch_norm="frozen", joint=True), draws=True
    ),
    Row(objectives.Mart(attacks.NudgedPGD(0.5, attacks.L2(), steps=2)), draws=True),
    Row(objectives.Mart(attacks.LinfPGD(0.1, steps=2), batch_norm="train", joint=True), draws=True),
    Row(objectives.AdversarialLogitPairing(attacks.L2PGD(0.5, steps=2)), draws=True),
    Row(objectives.AdversarialLogitPairing(attacks.FGSM(0.1), clean=0.0, batch_norm="frozen")),
    Row(objectives.GaussianAugmentation(sigma=0.25), draws=True),
    Row(objectives.StabilityTraining(sigma=0.25, weight=2.0), draws=True),
    Row(objectives.StabilityTraining(sigma=0.25, weight=1.0, entropy=1.0), draws=True),
    Row(objectives.Consistency(sigma=0.25, samples=2, weight=10.0, entropy=0.5), draws=True),
    Row(objectives.Consistency(sigma=0.25, samples=3, weight=1.0, chunked=True), draws=True),
    Row(objectives.SmoothAdv(sigma=0.25, epsilon=0.5, steps=2, samples=2), draws=True),
    Row(objectives.SmoothAdv(0.25, 0.5, steps=1, samples=2, all_noises=False), draws=True),
    Row(objectives.SmoothAdv(0.25, 0.5, steps=1, samples=2, consistency=1.0, entropy=0.5), draws=True),
    Row(objectives.Macer(sigma=0.25, samples=4, weight=1.0, gamma=8.0, beta=1.0), draws=True),
    Row(objectives.FastAdversarial(epsilon=0.1), draws=True),
    Row(objectives.GradAlign(epsilon=0.1), draws=True),
    Row(objectives.GradAlign(epsilon=0.1, beta=1.0, batch_norm="train", warmup=0.5), draws=True),
    Row(objectives.FreeAdversarial(epsilon=0.01, replays=2)),
    Row(objectives.GradientPenalty(beta=0.01)),
    Row(
        objectives.GradientPenalty(beta=0.01, objective=objectives.GaussianAugmentation(sigma=0.25)),
        draws=True,
    ),
    Row(
        objectives.AttributionAlignment(
            attribution=a.Saliency(), attack=attacks.L2PGD(epsilon=0.5, steps=2, random_start=False)
        )
    ),
    Row(
        objectives.AttributionAlignment(
            attribution=a.SmoothGrad(samples=2),
            attack=attacks.RandomNeighbour(epsilon=0.1),
            objective=objectives.FastAdversarial(epsilon=0.1),
            softplus=10.0,
        ),
        draws=True,
    ),
    Row(objectives.WeightPerturbed(objective=objectives.CrossEntropy())),
    Row(
        objectives.WeightPerturbed(
            objective=objectives.FastAdversarial(epsilon=0.1), gamma=0.005, warmup=0.2
        ),
        draws=True,
    ),
    Row(objectives.DBort()),
    Row(objectives.DBort(objectives.GaussianAugmentation(sigma=0.2), weight=0.1, power=0.5), draws=True),
]

NEIGHBOURS = metrics.Neighbourhood(radius=0.1, samples=2)

METRICS: list[Row] = [
    Row(metrics.Perturbation(steps=5)),
    Row(metrics.Perturbation(steps=3, removal=metrics.ImageMean(), reduction=metrics.AbsoluteSum(), chunk=4)),
    Row(metrics.Gini()),
    Row(metrics.Closeness()),
    Row(metrics.Flags()),
    Row(metrics.Missing()),
    Row(metrics.Residual()),
    Row(metrics.Accepted()),
    Row(metrics.CleanAccuracy()),
    Row(metrics.RobustAccuracy(attack=attacks.LinfPGD(epsilon=0.1, steps=2))),
    Row(metrics.BoundaryDistance(search=SEARCH)),
    Row(metrics.RobustnessCurve(search=SEARCH, epsilons=(0.1, 0.5))),
    Row(
        metrics.GradientMasking(
            attack=attacks.LinfPGD(epsilon=0.1, steps=2), one_step=attacks.FGSM(epsilon=0.1)
        )
    ),
    Row(metrics.GradientAlignment(epsilon=0.1, norm=attacks.L2())),
    Row(metrics.Manipulability(attack=a.TopKAttack(epsilon=0.1, steps=3))),
    Row(metrics.Entropy()),
    Row(metrics.ParticipationRatio(mass=0.5)),
    Row(metrics.TotalVariation()),
    Row(metrics.HighFrequency(cutoff=0.5)),
    Row(metrics.PointingGame()),
    Row(metrics.PointingGame(tolerance=15.0, side=60, reduction=metrics.AbsoluteSum())),
    Row(metrics.EnergyGame()),
    Row(metrics.RelevanceRank()),
    Row(metrics.TopKIntersection(share=0.1)),
    Row(metrics.BoundaryLocalisation()),
    Row(metrics.GridPointingGame(grid=2, chunk=4)),
    Row(metrics.SRG(steps=4)),
    Row(metrics.SRG(steps=4, removal=metrics.Constant(value=(0.4, 0.5)), chunk=3)),
    Row(metrics.ROAD(shares=(0.2, 0.6))),
    Row(metrics.PixelFlipping(steps=4)),
    Row(metrics.AOPC(region=3, steps=4)),
    Row(metrics.IROF(segments=3)),
    Row(metrics.FaithfulnessCorrelation(samples=6, share=0.2)),
    Row(metrics.FaithfulnessCorrelation(samples=5, baseline=a.NoiseImage(), reduction=metrics.AbsoluteSum())),
    Row(metrics.SensitivityN(samples=5, shares=(0.1, 0.5))),
    Row(metrics.FaithfulnessEstimate(segments=3, baseline=0.5)),
    Row(metrics.Infidelity(samples=6)),
    Row(metrics.Infidelity(disturbance=metrics.RandomSquares(largest=3), samples=6)),
    Row(metrics.Monotonicity(steps=5)),
    Row(metrics.Misclassified()),
    Row(metrics.ModelRandomisation(layers=2)),
    Row(metrics.ModelRandomisation(layers=2, samples=2, sigma=0.1, reduction=metrics.SignedSum())),
    Row(metrics.EfficientRandomisation()),
    Row(metrics.RandomLogit()),
    Row(metrics.Alignment()),
    Row(metrics.LinearisedRobustness(competitors=2)),
    Row(metrics.GradientNorm()),
    Row(metrics.Curvature()),
    Row(metrics.Confidence()),
    Row(metrics.Drift()),
    Row(metrics.PatternOnlyAccuracy()),
    Row(metrics.BlindColour()),
    Row(metrics.BlindColour(colour=(0.2, 0.7), other=1.0, share=0.1)),
    Row(metrics.Polarity()),
    Row(metrics.ColourSweep(steps=3)),
    Row(metrics.Reparameterisation()),
    Row(metrics.Reparameterisation(shift=-0.25)),
    Row(metrics.BaselineSensitivity(noise=1, searches=2)),
    Row(metrics.BaselineSensitivity(baselines=(0.25,), noise=1)),
    Row(metrics.Sensitivity(NEIGHBOURS)),
    Row(
        metrics.LocalLipschitz(metrics.Neighbourhood(radius=0.1, samples=2, noise=metrics.Normal(), chunk=3))
    ),
    Row(metrics.RelativeStability(metrics.Neighbourhood(0.1, 2, metrics.InBall(norm=attacks.L2())))),
    Row(metrics.NeighbourSimilarity(NEIGHBOURS)),
    Row(metrics.NeighbourSimilarity(NEIGHBOURS, share=0.2, window=3, reduction=metrics.SignedSum())),
    Row(metrics.AttackedStability(attack=attacks.LinfPGD(epsilon=0.1, steps=2), halvings=3)),
]
