import math

import pytest
import torch
from peers import foolbox, peer_model
from rows import nearest
from subjects import linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.fmn import FMN


@pytest.mark.parametrize("classes", [2, 3, 4, 10])
def test_points_of_a_linear_classifier_lie_at_the_foot_on_the_hyperplane_of_their_class(classes):
    case = linear_case(classes)
    found = FMN(steps=60).search(case.model, case.inputs, case.target)
    logits, rows = case.model(case.inputs), torch.arange(6)
    normals = case.weight[case.target] - case.weight[found.label]
    distance = (logits[rows, case.target] - logits[rows, found.label]) / normals.norm(dim=1)
    assert_close(found.distance, distance.detach(), atol=0, rtol=5e-3)
    foot, rival = nearest(case.weight, case.bias, case.inputs, case.target)
    closest = found.label == rival  # it follows the largest logit, not the closest plane
    assert closest.float().mean() >= (1 if classes == 2 else 0.5)
    assert_close(found.points[closest], foot[closest], atol=5e-3, rtol=0)


def paper(net, image, steps, step_size, gamma, last_gamma):
    """Algorithm 1 in l2, for one image; pressed pixels are left out, and the last point is looked at, too.

    A hair makes the flip show through rounding: it is 5e-5 of the first loss, of which half must be shown.
    """
    label = int(net(image[None]).argmax())
    delta, best, radius, hair = torch.zeros_like(image), None, math.inf, None
    for step in range(steps + 1):
        share = (1 + math.cos(math.pi * step / steps)) / 2
        g_k = last_gamma + (gamma - last_gamma) * share
        a_k = step_size / 100 + (step_size - step_size / 100) * share
        point = (image + delta).requires_grad_()
        logits = net(point[None])[0]
        others = torch.cat([logits[:label], logits[label + 1 :]])
        loss = logits[label] - others.max()
        (gradient,) = torch.autograd.grad(loss, point)
        pressed = ((image + delta <= 0) & (gradient > 0)) | ((image + delta >= 1) & (gradient < 0))
        gradient = gradient.masked_fill(pressed, 0)
        length = float(delta.norm())
        loss = loss.detach()
        hair = 5e-5 * loss if hair is None else hair
        if loss >= -hair / 2:
            reach = length + float((loss.abs() + hair) / gradient.norm())
            radius = reach if best is None else radius * (1 + g_k)
        else:
            best = delta if best is None or length <= best.norm() else best
            radius = min(radius * (1 - g_k), float(best.norm()))
        delta = delta - a_k * gradient / gradient.norm()
        delta = delta * min(1.0, radius / float(delta.norm()))
        delta = (image + delta).clamp(0, 1) - image
    return image if best is None else image + best


@pytest.mark.parametrize(
    "search", [FMN(steps=30, bisections=0), FMN(30, 0.3, 0.1, 0.01, bisections=0)], ids=repr
)
def test_the_closest_flip_is_that_of_the_paper(search):
    net = tiny_net(nn.Softplus, torch.float64)
    inputs = torch.rand(10, 2, 8, 8, dtype=torch.float64)
    inputs[7:] = (1.3 * inputs[7:] - 0.15).clamp(0, 1)  # many pixels on the box
    found = search.search(net, inputs, net(inputs).argmax(1))
    settings = search.steps, search.step_size, search.gamma, search.last_gamma
    twins = torch.stack([paper(net, image, *settings) for image in inputs])
    assert found.found.all()
    assert_close(found.distance, (twins - inputs).flatten(1).norm(dim=1), atol=1e-12, rtol=0)
    assert_close(found.points, twins, atol=2e-4, rtol=0)  # two flips may be of the same length up to rounding


class Repaired(foolbox.attacks.L2FMNAttack):
    """foolbox 3.3.4 divides the norm by itself, and so projects onto no ball at all."""

    def project(self, x, x0, epsilon):
        delta = x.raw - x0.raw
        length = delta.flatten(1).norm(dim=1).clamp(min=1e-12)
        return x0 + type(x)(delta * (epsilon.raw / length).clamp(max=1)[:, None, None, None])


@pytest.mark.parametrize("steps", [20, 60])
def test_as_close_as_foolbox_at_the_same_steps(steps, relu_net):
    inputs = torch.rand(40, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    found = FMN(steps, bisections=0).search(relu_net, inputs, target)
    points = Repaired(steps=steps, max_stepsize=1.0, min_stepsize=0.01).run(
        peer_model(relu_net), inputs, target
    )
    flips = relu_net(points).argmax(1) != target
    other = (points - inputs).flatten(1).norm(dim=1)
    assert found.found.all()
    assert flips.float().mean() > 0.5
    assert_close(found.distance[flips].mean(), other[flips].mean(), rtol=5e-3, atol=0)
    assert (found.distance[flips] / other[flips] - 1).abs().median() < 1e-3


def test_images_on_the_box_do_not_stall_as_they_do_with_foolbox(relu_net):
    inputs = torch.rand(40, 2, 8, 8).round()
    target = relu_net(inputs).argmax(1)
    points = Repaired(steps=20).run(peer_model(relu_net), inputs, target)
    assert (relu_net(points).argmax(1) == target).float().mean() > 0.5
    assert FMN(20).search(relu_net, inputs, target).found.all()


def test_every_image_takes_every_step(relu_net):
    inputs = torch.rand(8, 2, 8, 8)
    found = FMN(steps=7, bisections=0).search(relu_net, inputs, relu_net(inputs).argmax(1))
    assert (found.backwards == 7).all()
    assert (found.forwards == 1 + 7 + 1).all()


def test_more_steps_come_closer():
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(24, 2, 8, 8, dtype=torch.float64)
    target = net(inputs).argmax(1)
    few, some, many = (FMN(steps).search(net, inputs, target).distance for steps in (3, 10, 60))
    assert many.isfinite().all()
    both = few.isfinite() & some.isfinite()
    assert both.float().mean() > 0.8
    assert few[both].mean() > some[both].mean() > many[both].mean()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"step_size": 0.0}, "`step_size` must be greater than 0, got 0.0"),
        ({"gamma": 1.0}, "`gamma` must lie between 0 and 1, got 1.0"),
        ({"last_gamma": -0.1}, r"`last_gamma` must lie in \[0, 1\), got -0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FMN(**arguments)
