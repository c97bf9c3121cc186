import math

import pytest
import torch
from peers import foolbox, peer_model
from subjects import linear_case, tiny_net
from torch import nn
from torch.testing import assert_close

from lit_xai.attacks.carlini_wagner import CarliniWagner


@pytest.mark.parametrize("classes", [2, 3, 4])
def test_points_of_a_linear_classifier_lie_at_the_foot_on_the_hyperplane_of_their_class(classes):
    case = linear_case(classes)
    search = CarliniWagner(steps=60, rounds=4, constant=0.03, step_size=0.004)
    found = search.search(case.model, case.inputs, case.target)
    logits, rows = case.model(case.inputs).detach(), torch.arange(6)
    normals = case.weight[case.target] - case.weight[found.label]
    distance = (logits[rows, case.target] - logits[rows, found.label]) / normals.norm(dim=1)
    assert (found.distance >= distance - 1e-9).all()
    assert (found.distance <= 1.03 * distance + 1e-3).all()  # steps of Adam are coarse where it is near


def paper(net, image, search):
    """Section VI.A with f_6 for one image, by torch's Adam; rounds and early abort of the authors' code."""
    label = int(net(image[None]).argmax())
    constant, low, high = search.constant, 0.0, math.inf
    best = image, math.inf
    start = ((2 * image - 1) * 0.999999).atanh()
    origin = start.tanh() / 2 + 0.5
    for _ in range(search.rounds):
        space = start.clone().requires_grad_()
        adam = torch.optim.Adam([space], lr=search.step_size)
        last, flipped = math.inf, False
        for step in range(search.steps):
            point = space.tanh() / 2 + 0.5
            logits = net(point[None])[0]
            others = torch.cat([logits[:label], logits[label + 1 :]])
            margin = logits[label] - others.max()
            loss = (point - origin).square().sum() + constant * margin.clamp(min=0)
            adam.zero_grad()
            (space.grad,) = torch.autograd.grad(loss, space)
            adam.step()
            if margin < 0:
                flipped = True
                near = point.detach(), float((point.detach() - image).norm())
                best = min(best, near, key=lambda pair: pair[1])
            if step % math.ceil(search.steps / 10) == 0:
                if loss.detach() > 0.9999 * last:
                    break
                last = float(loss.detach())
        low, high = (low, constant) if flipped else (constant, high)
        constant = 10 * constant if math.isinf(high) else (low + high) / 2
    return best[0]


@pytest.mark.parametrize(
    "search",
    [
        CarliniWagner(steps=30, rounds=4, constant=0.03, bisections=0),
        CarliniWagner(steps=25, rounds=4, constant=0.3, step_size=0.03, bisections=0),
    ],
    ids=repr,
)
def test_the_closest_flip_is_that_of_the_paper(search):
    net = tiny_net(nn.Softplus, torch.float64)
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64).mul(1.2).sub(0.1).clamp(0, 1)
    found = search.search(net, inputs, net(inputs).argmax(1))
    twins = torch.stack([paper(net, image, search) for image in inputs])
    assert found.found.any()
    assert len(found.backwards.unique()) > 1  # images leave one by one
    assert_close(found.points, twins, atol=1e-5, rtol=0)


def test_points_are_those_of_foolbox_for_one_image_at_a_time(relu_net):
    inputs = torch.rand(4, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    search = CarliniWagner(steps=40, rounds=4, constant=0.1, bisections=0)
    found = search.search(relu_net, inputs, target)
    peer = foolbox.attacks.L2CarliniWagnerAttack(4, 40, 0.01, 0, 0.1)
    model = peer_model(relu_net)
    pairs = zip(inputs.split(1), target.split(1), strict=True)
    other = torch.cat([peer.run(model, image, label) for image, label in pairs])
    distance = (other - inputs).flatten(1).norm(dim=1)
    assert found.found.all()
    assert_close(found.distance, distance, atol=0, rtol=2e-3)


def test_more_rounds_come_closer_and_the_bisection_closer_still(relu_net):
    inputs = torch.rand(8, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    searches = [CarliniWagner(30, r, constant=1.0, bisections=b) for r, b in ((1, 0), (5, 0), (5, 10))]
    few, many, bisected = (search.search(relu_net, inputs, target).distance for search in searches)
    assert many.mean() < 0.95 * few.mean()
    assert (bisected <= many).all()


def test_steps_and_rounds_bound_the_passes(relu_net):
    inputs = torch.rand(8, 2, 8, 8)
    target = relu_net(inputs).argmax(1)
    found = CarliniWagner(steps=20, rounds=3, bisections=0).search(relu_net, inputs, target)
    assert torch.equal(found.forwards, found.backwards + 1)
    assert found.backwards.max() <= 20 * 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"rounds": 0}, "`rounds` must be at least 1, got 0"),
        ({"constant": 0.0}, "`constant` must be greater than 0, got 0.0"),
        ({"step_size": -1.0}, "`step_size` must be greater than 0, got -1.0"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CarliniWagner(**arguments)
