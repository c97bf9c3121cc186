import pytest
import torch
from peers import foolbox, peer_model
from rows import nearest
from subjects import linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.deepfool import DeepFool


@pytest.mark.parametrize("classes", [2, 3, 4, 7, 10])
def test_linear_classifiers_take_one_jump_to_the_closest_hyperplane(classes):
    case = linear_case(classes)
    found = DeepFool().search(case.model, case.inputs, case.target)
    foot, rival = nearest(case.weight, case.bias, case.inputs, case.target)
    assert_close(found.points, foot, atol=1e-4, rtol=0)
    assert torch.equal(found.label, rival)
    assert (found.backwards == classes - 1).all()
    assert found.forwards.max() <= 1 + 2 + 2


def test_too_few_rivals_miss_the_closest_hyperplane():
    """The runner-up trails by 1 and rises by 3 per first pixel, another class by 2 and 20 per second."""
    model = nn.Sequential(nn.Flatten(), nn.Linear(2, 3))
    with torch.no_grad():
        model[1].weight.copy_(torch.tensor([[0.0, 0.0], [3.0, 0.0], [0.0, 20.0]]))
        model[1].bias.copy_(torch.tensor([0.0, -2.5, -12.0]))
    inputs, target = torch.full((1, 1, 1, 2), 0.5), torch.tensor([0])
    few, many = (DeepFool(rivals=r).search(model, inputs, target) for r in (1, 2))
    assert_close(few.points, torch.tensor([2.5 / 3, 0.5]).view_as(inputs), atol=1e-4, rtol=0)
    assert_close(many.points, torch.tensor([0.5, 0.6]).view_as(inputs), atol=1e-4, rtol=0)
    assert (few.backwards, many.backwards) == (1, 2)


def paper(net, image, steps, overshoot):
    """Algorithm 2, for one image; the overshoot within the loop."""
    label, total = int(net(image[None]).argmax()), torch.zeros_like(image)
    for _ in range(steps):
        point = (image + (1 + overshoot) * total).clamp(0, 1).requires_grad_()
        logits = net(point[None])[0]
        if int(logits.argmax()) != label:
            break
        best = None
        for rival in set(range(len(logits))) - {label}:
            lead = logits[rival] - logits[label]
            (w,) = torch.autograd.grad(lead, point, retain_graph=True)
            distance = float(lead.detach().abs() / w.norm())
            if best is None or distance < best[0]:
                best = distance, distance * w / w.norm()
        total = total + best[1]
    return point.detach()


@pytest.mark.parametrize("overshoot", [0.02, 0.2])
def test_jumps_are_those_of_the_paper(overshoot):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(12, 2, 8, 8, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    found = DeepFool(overshoot=overshoot, bisections=0).search(net, inputs, net(inputs).argmax(1))
    twins = torch.stack([paper(net, image, 50, overshoot) for image in inputs])
    assert found.found.all()
    assert found.backwards.max() > 3 * 2  # of rivals; some images need more than two jumps
    # A jump goes on by a hair, at most 5e-5 of the margin at the input.
    assert_close(found.points, twins, atol=1e-3, rtol=0)


def test_points_are_those_of_foolbox(relu_net):
    inputs = torch.rand(24, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    found = DeepFool(bisections=0).search(relu_net, inputs, target)
    peer = foolbox.attacks.L2DeepFoolAttack(steps=50, candidates=10, overshoot=0.02)
    other = peer.run(peer_model(relu_net), inputs, target)
    assert found.found.all()
    assert_close(found.points, other, atol=2e-3, rtol=0)  # it adds 1e-4 to each jump


def test_the_bisection_takes_back_the_overshoot(relu_net):
    inputs = torch.rand(24, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    far, near = (DeepFool(bisections=b).search(relu_net, inputs, target) for b in (0, 10))
    assert (near.distance <= far.distance).all()
    assert 0.95 < (near.distance / far.distance).mean() < 0.997


def test_a_jump_costs_two_forward_passes_and_a_gradient_per_rival(relu_net):
    inputs = torch.rand(24, 2, 8, 8)
    found = DeepFool(rivals=2, bisections=0).search(relu_net, inputs, relu_net(inputs).argmax(1))
    jumps = found.backwards // 2
    assert torch.equal(found.backwards, 2 * jumps)
    assert torch.equal(found.forwards, 1 + 2 * jumps)
    assert len(jumps.unique()) > 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rivals": 0}, "`rivals` must be at least 1, got 0"),
        ({"overshoot": -0.1}, "`overshoot` must be at least 0, got -0.1"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DeepFool(**arguments)
