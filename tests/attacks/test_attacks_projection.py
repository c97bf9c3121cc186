import math

import pytest
import torch
from rows import nearest
from subjects import linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.projection import FABProjection


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 10])
def test_distance_of_a_linear_classifier_is_that_of_the_closest_hyperplane(classes):
    case = linear_case(classes)
    found = FABProjection(steps=5).search(case.model, case.inputs, case.target)
    foot, rival = nearest(case.weight, case.bias, case.inputs, case.target)
    assert_close(found.points, foot, atol=1e-4, rtol=0)
    assert torch.equal(found.label, rival)


def project(point, w, gap):
    """Closest point in the box of the plane gap + w (z - point) = 0: z = clip(point - t w), t by halving."""
    side = 1.0 if gap > 0 else -1.0
    low, high = 0.0, 1.0 / float(w[w != 0].abs().min())
    for _ in range(200):
        middle = (low + high) / 2
        z = (point - side * middle * w).clamp(0, 1)
        short = side * float(gap + (w * (z - point)).sum()) > 0
        low, high = (middle, high) if short else (low, middle)
    return (point - side * high * w).clamp(0, 1)


def paper(net, image, search):
    """Algorithm 1 without restarts, for one image."""
    label, best = int(net(image[None]).argmax()), (image, math.inf)
    z = image
    for _ in range(search.steps):
        point = z.clone().requires_grad_()
        logits = net(point[None])[0]
        planes = []
        for rival in set(range(len(logits))) - {label}:
            lead = logits[label] - logits[rival]
            (w,) = torch.autograd.grad(lead, point, retain_graph=True)
            planes.append((float(lead.detach().abs() / w.norm()), lead.detach(), w))
        _, gap, w = min(planes, key=lambda plane: plane[0])
        here, there = project(z, w, gap) - z, project(image, w, gap + (w * (image - z)).sum()) - image
        share = min(float(here.norm() / (here.norm() + there.norm())), search.alpha)
        z = (1 - share) * (z + search.eta * here) + share * (image + search.eta * there)
        z = z.clamp(0, 1)
        if int(net(z[None]).argmax()) != label:
            best = min(best, (z, float((z - image).norm())), key=lambda pair: pair[1])
            z = (1 - search.beta) * image + search.beta * z
    return best[0]


@pytest.mark.parametrize(
    "search",
    [FABProjection(12, bisections=0), FABProjection(8, 3, 0.4, 1.2, 0.7, bisections=0)],
    ids=repr,
)
def test_the_closest_flip_is_that_of_the_paper(search):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(8, 2, 8, 8, dtype=torch.float64).mul(1.3).sub(0.15).clamp(0, 1)
    found = search.search(net, inputs, net(inputs).argmax(1))
    twins = torch.stack([paper(net, image, search) for image in inputs])
    assert found.found.all()
    assert_close(found.points, twins, atol=2e-3, rtol=0)


def test_as_close_as_the_released_attack():
    pytest.importorskip("pyautoattack")
    from pyautoattack.fab_pt import FABAttack_PT

    net = tiny_net(nn.ReLU)
    inputs = torch.rand(24, 2, 8, 8)
    target = net(inputs).argmax(1)
    search = FABProjection(steps=15, bisections=0)
    found = search.search(net, inputs, target)
    peer = FABAttack_PT(net.requires_grad_(False), norm="L2", n_iter=15)
    other = (peer.attack_single_run(inputs, target) - inputs).flatten(1).norm(dim=1)
    assert found.found.all()
    assert_close(found.distance, other, atol=0, rtol=0.02)
    assert (found.distance / other - 1).abs().median() < 1e-3


def test_the_box_bends_the_way():
    """Two pixels, of which the steep one is already white: all of the way falls to the other."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 2))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[-2.0, -1.0], [2.0, 1.0]]))
        model[1].bias.copy_(torch.tensor([2.5, -2.5]))  # class 1 where 2 a + b > 2.5
    inputs = torch.tensor([1.0, 0.2]).view(1, 1, 1, 2)
    found = FABProjection(steps=1).search(model, inputs, torch.tensor([0]))
    assert_close(found.points.flatten(), torch.tensor([1.0, 0.5]), atol=1e-4, rtol=0)


def test_a_step_costs_two_forward_passes_and_a_gradient_per_rival(relu_net):
    inputs = torch.rand(8, 2, 8, 8)
    found = FABProjection(7, rivals=2, bisections=0).search(relu_net, inputs, relu_net(inputs).argmax(1))
    assert (found.forwards == 1 + 2 * 7).all()
    assert (found.backwards == 2 * 7).all()


def test_more_steps_come_closer(relu_net):
    inputs = torch.rand(24, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    few, many = (FABProjection(steps).search(relu_net, inputs, target).distance for steps in (2, 15))
    assert many.mean() < 0.98 * few.mean()
    assert (many <= few * 1.001).all()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rivals": 0}, "`rivals` must be at least 1, got 0"),
        ({"alpha": 1.1}, r"`alpha` must lie in \[0, 1\], got 1.1"),
        ({"eta": 0.9}, "`eta` must be at least 1, got 0.9"),
        ({"beta": 1.0}, "`beta` must lie between 0 and 1, got 1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        FABProjection(**arguments)
