"""Alignment against linear and quadratic models, explicit Hessians, and counted passes."""

import math

import numpy as np
import pytest
import scipy.special
import torch
from subjects import linear_case, tiny_net
from torch import nn
from torch.nn import functional as F

from lit_xai.attributions.similarity import cosine
from lit_xai.evaluation.passes import Counted
from lit_xai.memory import remembering
from lit_xai.metrics.alignment import (
    Alignment,
    Confidence,
    Curvature,
    GradientNorm,
    LinearisedRobustness,
    alignment,
    centred,
    cross_entropy,
    curvature,
)
from lit_xai.metrics.base import Facts


def scored(metric, model, inputs, target):
    given = {"model": model, "inputs": inputs, "target": target}
    return metric.named(**{name: given[name] for name in metric.needs})


def loss_slope(case):
    """Gradient of the cross entropy of a linear model, by hand."""
    p = (case.inputs.flatten(1) @ case.weight.T + case.bias).softmax(1)
    return (p - F.one_hot(case.target, p.shape[1])) @ case.weight, p


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_alignment_of_a_linear_model(classes):
    case = linear_case(classes)
    scores = scored(Alignment(), case.model, case.inputs, (case.target + 1) % classes)
    own = case.weight[case.target]  # the winner's, whatever the target
    x = case.inputs.flatten(1)
    torch.testing.assert_close(scores["alpha"], (x * own).sum(1).abs() / own.norm(dim=1))
    middle = (case.inputs - case.inputs.mean((2, 3), keepdim=True)).flatten(1)
    torch.testing.assert_close(scores["cosine"], torch.cosine_similarity(middle, own))
    scores = scored(Alignment(), case.model, case.inputs, case.target)
    torch.testing.assert_close(
        scores["cosine_loss"], torch.cosine_similarity(middle, -loss_slope(case)[0]), rtol=1e-6, atol=1e-9
    )


def test_alpha_of_two_opposite_logits_is_the_distance_to_the_boundary():
    w = torch.randn(32, dtype=torch.float64)
    model = nn.Sequential(nn.Flatten(), nn.Linear(32, 2, bias=False, dtype=torch.float64)).eval()
    with torch.no_grad():
        model[1].weight.copy_(torch.stack([w, -w]))
    inputs = torch.rand(5, 2, 4, 4, dtype=torch.float64)
    target = model(inputs).argmax(1)
    distance = (inputs.flatten(1) @ w).abs() / w.norm()
    torch.testing.assert_close(scored(Alignment(), model, inputs, target)["alpha"], distance)
    torch.testing.assert_close(scored(LinearisedRobustness(), model, inputs, target)[""], distance)


def test_brightness_and_colour_casts_do_not_count():
    case = linear_case()
    cast = torch.tensor([0.1, -0.2]).view(1, 2, 1, 1)
    torch.testing.assert_close(centred(case.inputs + cast), centred(case.inputs))
    plain, bright = (
        scored(Alignment(), case.model, case.inputs + shift, case.target)["cosine"]
        for shift in (0, cast / 100)
    )
    torch.testing.assert_close(bright, plain)


@pytest.mark.parametrize("classes", [2, 4, 10])
def test_linearised_robustness_of_a_linear_model_is_the_distance_to_the_boundary(classes):
    case = linear_case(classes)
    logits = case.inputs.flatten(1) @ case.weight.T + case.bias
    expected = []
    for z, c in zip(logits, case.target.tolist(), strict=True):
        others = [j for j in range(classes) if j != c]
        expected.append(min((z[c] - z[j]) / (case.weight[c] - case.weight[j]).norm() for j in others))
    seen = scored(LinearisedRobustness(competitors=20), case.model, case.inputs, case.target)[""]
    torch.testing.assert_close(seen, torch.stack(expected))
    some = scored(LinearisedRobustness(competitors=1), case.model, case.inputs, case.target)[""]
    assert (some >= seen - 1e-12).all()
    order = logits.argsort(1, descending=True)
    lead = logits.gather(1, order[:, :1]) - logits.gather(1, order[:, 1:2])
    gap = case.weight[order[:, 0]] - case.weight[order[:, 1]]
    torch.testing.assert_close(some, lead[:, 0] / gap.norm(dim=1))


def test_gradient_norms_are_those_of_the_cross_entropy(smooth_net):
    inputs, target = torch.rand(5, 2, 8, 8, dtype=torch.float64), torch.tensor([0, 1, 2, 3, 0])
    points = inputs.clone().requires_grad_()
    loss = F.cross_entropy(smooth_net(points), target, reduction="none")
    torch.testing.assert_close(cross_entropy(smooth_net(inputs), target), loss)
    slope = torch.autograd.grad(loss.sum(), points)[0].flatten(1)
    scores = scored(GradientNorm(), smooth_net, inputs, target)
    torch.testing.assert_close(scores["l1"], slope.abs().sum(1))
    torch.testing.assert_close(scores["l2"], slope.norm(dim=1))


def test_a_model_that_is_sure_of_itself_keeps_its_gradient_and_curvature():
    case = linear_case()
    louder = nn.Sequential(case.model, Times(60.0)).eval()
    exact = {**scored(GradientNorm(), louder, case.inputs, case.target)}
    exact["norm"], exact["relative"] = curvature(louder, case.inputs, case.target)
    assert exact["l2"].min() < 1e-9 * exact["l2"].max()
    louder.float()
    single = {**scored(GradientNorm(), louder, case.inputs.float(), case.target)}
    single["norm"], single["relative"] = curvature(louder, case.inputs.float(), case.target)
    for name, column in exact.items():
        assert (column > 0).all()
        torch.testing.assert_close(single[name], column, rtol=2e-2, atol=0)


def test_curvature_does_not_vanish_where_the_model_is_sure_and_wrong():
    case = linear_case(2)
    gap = case.model(case.inputs).detach().diff(dim=1).abs()
    sure = nn.Sequential(case.model, Times(30 / gap.max())).eval()
    assert (curvature(sure, case.inputs, 1 - case.target)[0] > 0).all()


class Times(nn.Module):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def forward(self, logits):
        return logits * self.factor


def test_curvature_of_the_loss_of_a_linear_model():
    case = linear_case()
    slope, p = loss_slope(case)
    norm, relative = curvature(case.model, case.inputs, case.target)
    for image in range(len(p)):
        spread = torch.diag(p[image]) - torch.outer(p[image], p[image])
        hessian = case.weight.T @ spread @ case.weight
        bend = (hessian @ (slope[image] / slope[image].norm())).norm()
        torch.testing.assert_close(norm[image], bend, rtol=1e-6, atol=1e-12)
        torch.testing.assert_close(relative[image], bend / slope[image].norm(), rtol=1e-6, atol=1e-12)


def test_curvature_is_that_of_the_whole_hessian(smooth_net):
    inputs, target = torch.rand(2, 2, 8, 8, dtype=torch.float64), torch.tensor([1, 3])
    norm, _ = curvature(smooth_net, inputs, target)
    for image in range(2):

        def loss(x, label=target[image : image + 1]):
            return F.cross_entropy(smooth_net(x.view(1, 2, 8, 8)), label)

        point = inputs[image].flatten()
        slope = torch.autograd.functional.jacobian(loss, point)
        hessian = torch.autograd.functional.hessian(loss, point)
        torch.testing.assert_close(norm[image], (hessian @ (slope / slope.norm())).norm())


class Bowl(nn.Module):
    """Two logits whose loss rises as log(1 + e^h), h = k/2 ||x||^2."""

    def forward(self, inputs):
        height = 1.5 * inputs.flatten(1).square().sum(1)
        return torch.stack([-height, 0 * height], dim=1)


def test_curvature_of_a_bowl_and_its_scale():
    inputs, target = torch.rand(3, 1, 3, 4, dtype=torch.float64), torch.zeros(3, dtype=torch.int64)
    norm, relative = curvature(Bowl().eval(), inputs, target)
    r = inputs.flatten(1).norm(dim=1)
    share = torch.sigmoid(1.5 * r.square())
    # g = s k x along x, and H x = (s (1 - s) k^2 r^2 + s k) x, with k = 3.
    expected = share * (1 - share) * 9 * r.square() + share * 3
    torch.testing.assert_close(norm, expected)
    torch.testing.assert_close(relative, expected / (share * 3 * r))


def test_curvature_sees_what_a_logit_of_a_relu_network_does_not(relu_net, batch):
    norm, _ = curvature(relu_net, *batch)
    assert (norm > 0).all()


def test_confidence_is_that_of_scipy(relu_net, batch):
    scores = scored(Confidence(), relu_net, *batch)
    p = np.sort(scipy.special.softmax(relu_net(batch[0]).detach().double().numpy(), axis=1))
    np.testing.assert_allclose(scores["probability"], p[:, -1])
    np.testing.assert_allclose(scores["margin"], p[:, -1] - p[:, -2], atol=1e-12)


@pytest.mark.parametrize("scale", [1e-30, 1e-9, 1.0, 1e9, 1e30])
def test_a_cosine_has_no_scale(scale):
    first, second = torch.rand(3, 2, 4, 5) - 0.3, torch.rand(3, 2, 4, 5) - 0.3
    expected = torch.cosine_similarity(first.flatten(1).double(), second.flatten(1).double())
    torch.testing.assert_close(cosine(first * scale, second / scale), expected, rtol=1e-6, atol=1e-7)
    torch.testing.assert_close(
        alignment(first, second * scale), alignment(first, second), rtol=1e-6, atol=1e-7
    )


def test_what_has_no_direction_has_no_score():
    maps = torch.rand(4, 2, 3, 3)
    other = maps.clone()
    other[0], other[1, 0, 0, 0], other[2, 0, 0, 0] = 0, math.nan, math.inf
    assert cosine(maps, other).isnan().tolist() == [True, True, True, False]
    assert alignment(maps, other).isnan().tolist() == [True, True, True, False]


class Flat(nn.Module):
    """Decides, but has no slope."""

    def forward(self, inputs):
        return inputs.flatten(1)[:, :3] * 0 + torch.tensor([1.0, 0.0, 0.5])


def test_a_model_without_slopes_has_no_score():
    inputs, target = torch.rand(3, 1, 4, 4), torch.tensor([0, 1, 2])
    for metric in (Alignment(), LinearisedRobustness(), Curvature()):
        for column in scored(metric, Flat().eval(), inputs, target).values():
            assert column.shape == (3,)
            assert column.isnan().all()
    assert (scored(GradientNorm(), Flat().eval(), inputs, target)["l2"] == 0).all()


def test_a_grey_image_looks_like_nothing(relu_net):
    inputs, target = torch.full((1, 2, 8, 8), 0.5), torch.tensor([0])
    scores = scored(Alignment(), relu_net, inputs, target)
    assert scores["cosine"].isnan().all()
    assert scores["cosine_loss"].isnan().all()
    assert scores["alpha"].isfinite().all()


METRICS = (Alignment(), LinearisedRobustness(), GradientNorm(), Curvature())


@pytest.mark.parametrize(
    ("metrics", "forwards", "backwards"),
    [
        (METRICS[:1], 1, 2),
        (METRICS[1:2], 1, 3),
        (METRICS[2:3], 1, 2),
        (METRICS[3:], 1, 2),
        ((METRICS[0], METRICS[2]), 1, 2),
        (METRICS[:3], 2, 5),
        (METRICS, 3, 7),
        ((Confidence(),), 1, 0),
    ],
)
def test_passes_per_image(metrics, forwards, backwards):
    model = Counted(tiny_net(nn.ReLU)).eval()
    inputs, target = torch.rand(5, 2, 8, 8), torch.tensor([0, 1, 2, 3, 0])
    with remembering():
        for metric in metrics:
            scored(metric, model, inputs, target)
    assert (model.forwards / 5, model.backwards / 5) == (forwards, backwards)


def test_half_precision_networks_are_scored_in_single(relu_net, batch):
    class Half(nn.Module):
        def forward(self, inputs):
            return relu_net(inputs).to(torch.bfloat16)

    for metric in METRICS:
        assert all(column.isfinite().all() for column in scored(metric, Half().eval(), *batch).values())


def test_bad_input():
    with pytest.raises(ValueError, match="`competitors` must be at least 1, got 0"):
        LinearisedRobustness(competitors=0)
    facts = Facts(nn.Identity(), (1, 2, 2), 1, 5, 1, False, torch.device("cpu"))
    for metric in (LinearisedRobustness(), Confidence()):
        with pytest.raises(ValueError, match="`rho` needs at least 2 classes, got 1"):
            metric.check("rho", facts)
