"""Objectives that train the explanation: closed forms on the linear model, and gradients by differences."""

from dataclasses import dataclass

import pytest
import torch
from subjects import Linear, linear_case, tiny_net
from torch import Tensor, nn
from torch.nn import functional as F
from units import units

from lit_xai import attributions as a
from lit_xai import objectives, randomness
from lit_xai.attacks import L2PGD
from lit_xai.attacks.base import Attack
from lit_xai.attacks.neighbour import RandomNeighbour
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import RandomMap
from lit_xai.objectives import CrossEntropy, GaussianAugmentation
from lit_xai.objectives.explanation import AttributionAlignment, GradientPenalty, misalignment
from lit_xai.objectives.weight_perturbation import WeightPerturbed
from lit_xai.types import Images, Labels

TARGET = torch.tensor([0, 1, 2, 3, 0])


@dataclass(frozen=True)
class Shift(Attack):
    """A neighbour that draws nothing."""

    size: float

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        rows = torch.linspace(-self.size, self.size, inputs[0].numel(), dtype=inputs.dtype)
        return (inputs + rows.view(inputs.shape[1:])).clamp(0, 1)


@pytest.fixture
def images() -> Tensor:
    return torch.rand(5, 2, 8, 8, dtype=torch.float64)


@pytest.fixture
def linear() -> Linear:
    return linear_case()


def test_penalty_of_a_linear_model(linear):
    """grad_x CE = W^T (p - e_y)."""
    terms = GradientPenalty(0.3)(linear.model, linear.inputs, linear.target)
    weight, bias = linear.model[1].weight, linear.model[1].bias
    logits = linear.inputs.flatten(1) @ weight.T + bias
    error = logits.softmax(1) - F.one_hot(linear.target, 4)
    expected = 0.3 * (error @ weight).square().sum(1).mean()
    assert list(terms) == ["cross_entropy", "gradient_penalty"]
    torch.testing.assert_close(terms["cross_entropy"], F.cross_entropy(logits, linear.target))
    torch.testing.assert_close(terms["gradient_penalty"], expected)
    for ours, theirs in zip(
        torch.autograd.grad(terms["gradient_penalty"], [weight, bias]),
        torch.autograd.grad(expected, [weight, bias]),
        strict=True,
    ):
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("activation", [nn.ReLU, nn.Softplus], ids=["relu", "softplus"])
def test_penalty_image_by_image(activation, images):
    net = tiny_net(activation, torch.float64)
    penalties = []
    for image, label in zip(images, TARGET, strict=True):
        point = image[None].clone().requires_grad_()
        loss = F.cross_entropy(net(point), label[None])
        (slope,) = torch.autograd.grad(loss, point, create_graph=True)
        penalties.append(slope.square().sum())
    expected = torch.stack(penalties).mean()
    term = GradientPenalty(1.0)(net, images, TARGET)["gradient_penalty"]
    torch.testing.assert_close(term, expected, rtol=1e-10, atol=1e-12)
    for parameter in net.parameters():
        ours, theirs = (
            torch.autograd.grad(value, parameter, retain_graph=True, materialize_grads=True)[0]
            for value in (term, expected)
        )
        torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


def test_penalty_beside_another_objective(images):
    net = tiny_net(nn.ReLU, torch.float64)
    alone = GradientPenalty(0.5)(net, images, TARGET)
    beside = GradientPenalty(0.5, CrossEntropy())(net, images, TARGET)
    assert beside.keys() == alone.keys()
    assert all(torch.equal(beside[name], alone[name]) for name in alone)
    torch.manual_seed(1)
    noisy = GradientPenalty(0.5, GaussianAugmentation(0.25))(net, images, TARGET)
    torch.manual_seed(1)
    expected = GaussianAugmentation(0.25)(net, images, TARGET)["noisy_cross_entropy"]
    assert torch.equal(noisy["noisy_cross_entropy"], expected)
    assert torch.equal(noisy["gradient_penalty"], alone["gradient_penalty"])


def test_alignment_on_a_linear_model(linear):
    """The gradient is the same everywhere; times the pixels, it is not."""
    attack, beta = Shift(0.2), 0.7
    given = linear.model, linear.inputs, linear.target
    flat = AttributionAlignment(a.Saliency(), attack, beta)(*given)["attribution_misalignment"]
    assert flat.abs() < 1e-12
    term = AttributionAlignment(a.InputXGradient(), attack, beta)(*given)["attribution_misalignment"]
    weight = linear.model[1].weight
    shifted = attack(*given)
    first = linear.inputs.flatten(1) * weight[linear.target].detach()
    second = shifted.flatten(1) * weight[linear.target]
    expected = beta * (1 - F.cosine_similarity(first, second, eps=0).mean())
    torch.testing.assert_close(term, expected)
    ours, theirs = (torch.autograd.grad(value, weight)[0] for value in (term, expected))
    torch.testing.assert_close(ours, theirs, rtol=1e-10, atol=1e-12)


METHODS = [
    a.Saliency(),
    a.Saliency(score="margin"),
    a.InputXGradient(),
    a.IntegratedGradients(steps=3),
    a.SmoothGrad(samples=2),
    a.GradCam(),
    a.Occlusion(window=3, stride=2),
    a.LRP(),
    a.DeepLift(),
    a.DeepLiftShap(samples=2),
]


@pytest.mark.parametrize("method", METHODS, ids=repr)
def test_alignment_reaches_the_weights(method, images):
    """Derivative along a random direction of all weights, by differences, with the clean map held still."""
    net = tiny_net(nn.ReLU, torch.float64)
    objective = AttributionAlignment(method, Shift(0.2), beta=1.0, softplus=None)
    torch.manual_seed(4)
    term = objective(net, images, TARGET)["attribution_misalignment"]
    slopes = torch.autograd.grad(term, list(net.parameters()), materialize_grads=True)
    directions = [torch.randn_like(parameter) for parameter in net.parameters()]
    shifted = Shift(0.2)(net, images, TARGET)

    def maps(points: Tensor) -> Tensor:
        torch.manual_seed(4)
        with randomness.keyed(0, randomness.keys(images, "AttributionAlignment")):
            return method(net, points, TARGET)

    seen = maps(images)
    assert misalignment(seen, maps(shifted)) == pytest.approx(term.item(), abs=1e-12)
    values = []
    for step in (1e-6, -2e-6):
        with torch.no_grad():
            for parameter, direction in zip(net.parameters(), directions, strict=True):
                parameter += step * direction
        values.append(misalignment(seen, maps(shifted)).item())
    expected = sum((slope * direction).sum() for slope, direction in zip(slopes, directions, strict=True))
    assert (values[0] - values[1]) / 2e-6 == pytest.approx(expected.item(), rel=1e-4, abs=1e-8)


def test_both_maps_have_the_same_draws(images):
    net = tiny_net(nn.ReLU, torch.float64)
    still = AttributionAlignment(a.SmoothGrad(samples=2), Shift(0.0))
    assert still(net, images, TARGET)["attribution_misalignment"].abs() < 1e-12


def test_it_leaves_the_model_as_it_is_and_maps_are_those_of_eval_mode(images):
    net = tiny_net(nn.ReLU, torch.float64).train()
    AttributionAlignment(a.Saliency(), L2PGD(0.5, steps=2))(net, images, TARGET)
    assert int(net[1].num_batches_tracked) == 1
    assert net.training
    net.eval()
    expected = misalignment(
        a.Saliency()(net, images, TARGET), a.Saliency()(net, Shift(0.2)(net, images, TARGET), TARGET)
    )
    net.train()
    momentum, net[1].momentum = net[1].momentum, 0.0  # the cross-entropy comes first, and moves statistics
    terms = AttributionAlignment(a.Saliency(), Shift(0.2), softplus=None)(net, images, TARGET)
    net[1].momentum = momentum
    torch.testing.assert_close(terms["attribution_misalignment"], expected)


@pytest.mark.parametrize("softplus", [None, 10.0])
def test_training_aligns_the_maps_of_a_network_with_kinks(softplus):
    """Judged by the network itself: with softplus in training, too, its own maps come closer."""
    net, images = tiny_net(nn.ReLU), torch.rand(32, 2, 8, 8)
    with torch.no_grad():
        target = net(images).argmax(1)
    objective = AttributionAlignment(a.Saliency(), RandomNeighbour(0.2), beta=5.0, softplus=softplus)

    def apart() -> float:
        torch.manual_seed(9)
        near = RandomNeighbour(0.2)(net, images, target)
        return misalignment(a.Saliency()(net, images, target), a.Saliency()(net, near, target)).item()

    before = apart()
    optimizer = torch.optim.SGD(net.parameters(), 0.01)
    for _ in range(20):
        optimizer.zero_grad()
        sum(objective(net, images, target).values()).backward()
        optimizer.step()
    assert apart() < 0.7 * before
    with torch.no_grad():
        assert (net(images).argmax(1) == target).float().mean() > 0.9


def test_one_inside_the_other_has_the_gradients_of_both(images):
    """The pass in train mode that comes last must not disturb the graph of the maps."""

    def fresh() -> nn.Module:
        net = tiny_net(nn.ReLU, torch.float64).train()
        net[6].eval()
        return net

    inner = AttributionAlignment(a.Saliency(), Shift(0.2))
    nets = [fresh() for _ in range(3)]
    sum(GradientPenalty(0.1, inner)(nets[0], images, TARGET).values()).backward()
    sum(inner(nets[1], images, TARGET).values()).backward()
    GradientPenalty(0.1)(nets[2], images, TARGET)["gradient_penalty"].backward()
    for both, one, other in zip(*(net.parameters() for net in nets), strict=True):
        rest = 0 if other.grad is None else other.grad
        torch.testing.assert_close(both.grad, one.grad + rest, rtol=1e-9, atol=1e-12)


def test_objectives_are_read_back_from_their_names():
    names = {**vars(a), **vars(objectives), **globals()}
    for objective in (
        WeightPerturbed(GradientPenalty(0.1, AttributionAlignment(a.Saliency(), Shift(0.1))), gamma=0.1),
        GradientPenalty(0.1),
    ):
        again = eval(repr(objective), names)
        assert repr(again) == repr(objective)
        assert again.state_dict() == {}


@pytest.mark.parametrize(
    ("objective", "forwards", "backwards", "cost"),
    [
        (GradientPenalty(0.1), 1, 2, 6),
        (GradientPenalty(0.1, CrossEntropy()), 2, 3, 9),
        (AttributionAlignment(a.Saliency(), RandomNeighbour(0.1)), 3, 3, 11),
        (AttributionAlignment(a.Saliency(), RandomNeighbour(0.1), softplus=None), 3, 3, 11),
    ],
    ids=repr,
)
def test_cost(objective, forwards, backwards, cost, images):
    model = Counted(tiny_net(nn.ReLU, torch.float64))
    sum(objective(model, images, TARGET).values()).backward()
    assert (model.forwards, model.backwards) == (forwards * 5, backwards * 5)
    assert cost - 0.3 < units(objective) <= cost


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: GradientPenalty(0.1, WeightPerturbed(GradientPenalty(0.1))),
            "`objective` must not have another GradientPenalty inside",
        ),
        (lambda: GradientPenalty(-0.1), "`beta` must be at least 0, got -0.1"),
        (
            lambda: AttributionAlignment(RandomMap(), Shift(0.1)),
            "`attribution` must have a gradient, but `RandomMap` cannot be differentiated",
        ),
        (
            lambda: AttributionAlignment(a.SteinGradient(), Shift(0.1)),
            "`attribution` must have a gradient, but `SteinGradient` cannot be differentiated",
        ),
        (lambda: AttributionAlignment(a.Saliency(), Shift(0.1), beta=-1.0), "`beta` must be at least 0"),
        (
            lambda: AttributionAlignment(a.Saliency(), Shift(0.1), softplus=0.0),
            "`softplus` must be greater than 0, got 0.0",
        ),
    ],
)
def test_what_cannot_be_is_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
