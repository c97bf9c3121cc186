import math
import threading

import pytest
import torch
from subjects import tiny_net, unchanged
from torch import nn
from torch.nn import functional as F

from lit_xai.attributions import LRP, Saliency
from lit_xai.network import Rectifier, record
from lit_xai.network.softened import softened

BETA = 3.0


class Calls(nn.Module):
    """Any function of the images as a network."""

    def __init__(self, function) -> None:
        super().__init__()
        self.function = function
        self.weight = nn.Parameter(torch.tensor([-1.0, 2.0]))
        self.eval()

    def forward(self, inputs):
        return self.function(self, inputs)


def soft(x):
    return torch.log1p((BETA * x).exp()) / BETA


def ignoring(function):
    """Work in place, whose result is not used."""

    def forward(net, x):
        x = x + 0
        function(x)
        return x

    return forward


def six(x):
    return soft(x) - soft(x - 6)


SPELLINGS = {
    "module": (lambda net, x: nn.ReLU()(x), soft),
    "module in place": (lambda net, x: nn.ReLU(inplace=True)(x + 0), soft),
    "function": (lambda net, x: F.relu(x), soft),
    "function by keyword": (lambda net, x: F.relu(input=x), soft),
    "torch": (lambda net, x: torch.relu(x), soft),
    "method": (lambda net, x: x.relu(), soft),
    "clamp": (lambda net, x: x.clamp(min=0), soft),
    "clamp_min": (lambda net, x: torch.clamp_min(x, 0), soft),
    "in place, result ignored": (ignoring(lambda x: F.relu(x, inplace=True)), soft),
    "method in place, result ignored": (ignoring(lambda x: x.relu_()), soft),
    "clamp in place, result ignored": (ignoring(lambda x: x.clamp_(0)), soft),
    "ReLU6": (lambda net, x: nn.ReLU6()(x), six),
    "relu6": (lambda net, x: F.relu6(x), six),
    "hardtanh": (lambda net, x: F.hardtanh(x, 0.0, 6.0), six),
    "leaky": (lambda net, x: nn.LeakyReLU(0.2)(x), lambda x: 0.2 * x + 0.8 * soft(x)),
    "twice": (lambda net, x: (x.relu() - 1).relu(), lambda x: soft(soft(x) - 1)),
    "other clamp": (lambda net, x: x.clamp(min=-1), lambda x: x.clamp(min=-1)),
    "tanh": (lambda net, x: x.tanh(), torch.tanh),
    "weights": (lambda net, x: x * net.weight.clamp(min=0), lambda x: x * torch.tensor([0.0, 2.0])),
}


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_relu_is_softplus(spelling, float64):
    function, expected = SPELLINGS[spelling]
    net = Calls(function)
    points = torch.linspace(-4, 9, 26).view(13, 2).requires_grad_()
    with unchanged(net, points), softened(net, BETA):
        output = net(points)
    torch.testing.assert_close(output, expected(points), rtol=1e-12, atol=1e-12)
    weight = torch.randn(13, 2)
    slopes = [torch.autograd.grad((y * weight).sum(), points)[0] for y in (output, expected(points))]
    torch.testing.assert_close(*slopes, rtol=1e-10, atol=1e-12)


def twins(activation):
    """A ReLU network and the same with an activation of its own."""
    net, twin = tiny_net(nn.ReLU, torch.float64), tiny_net(activation, torch.float64)
    twin.load_state_dict(net.state_dict())
    return net, twin


@pytest.fixture
def images():
    return torch.rand(5, 2, 8, 8, dtype=torch.float64)


def test_logits_and_maps_are_those_of_a_network_made_with_softplus(images):
    net, twin = twins(lambda: nn.Softplus(BETA, 100))
    target = torch.tensor([0, 1, 2, 3, 0])
    with unchanged(net, images):
        with softened(net, BETA):
            logits, maps = net(images), Saliency()(net, images, target)
        hard = net(images)
    torch.testing.assert_close(logits, twin(images), rtol=1e-10, atol=1e-10)
    torch.testing.assert_close(maps, Saliency()(twin, images, target), rtol=1e-9, atol=1e-10)
    assert (logits - hard).abs().max() > 0.1


def test_a_recording_has_the_same_layers_with_softened_outputs(images):
    net, twin = twins(lambda: nn.Softplus(BETA, 100))
    before = record(net, images)
    with softened(net, BETA):
        tape = record(net, images)
        maps = LRP()(net, images, torch.zeros(5, dtype=torch.int64))
    assert [step.name for step in tape.steps] == [step.name for step in before.steps]
    rectified = [step for step in tape.steps if isinstance(step.layer, Rectifier)]
    assert len(rectified) == 2
    for step in rectified:
        torch.testing.assert_close(step.output, soft(step.source))
    torch.testing.assert_close(tape.output, twin(images))
    # The rules themselves clamp weights at zero, which is no ReLU of the network. Nothing but the biases
    # takes relevance away.
    assert maps.isfinite().all()
    assert not torch.equal(maps, LRP()(net, images, torch.zeros(5, dtype=torch.int64)))


def test_the_error_is_bounded_and_vanishes_as_beta_grows(float64):
    net, points = Calls(lambda net, x: x.relu()), torch.linspace(-2, 2, 401)
    for beta in (1.0, 10.0, 1e4):
        with softened(net, beta):
            error = (net(points) - points.relu()).abs().max()
        assert error == pytest.approx(math.log(2) / beta, rel=1e-6)


def test_what_is_called_outside_of_the_network_stays():
    net, other = Calls(lambda net, x: x.relu()), Calls(lambda net, x: x.relu())
    points = torch.linspace(-1, 1, 5)
    with softened(net, BETA):
        torch.testing.assert_close(net(points), soft(points))
        assert torch.equal(points.relu(), points.clamp(min=0))
        assert torch.equal(other(points), points.relu())
    assert torch.equal(net(points), points.relu())


def failing(net, x):
    x.relu()
    raise RuntimeError("broken")


def test_all_is_as_it_was_after_a_network_that_fails():
    net, points = Calls(failing), torch.linspace(-1, 1, 5)
    with unchanged(net, points), softened(net, BETA):
        with pytest.raises(RuntimeError, match="broken"):
            net(points)
        assert torch.equal(points.relu(), points.clamp(min=0))  # the network has ended
    hooks = nn.modules.module
    before = len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)
    with pytest.raises(RuntimeError, match="broken"), softened(net, BETA):
        net(points)
    assert (len(hooks._global_forward_hooks), len(hooks._global_forward_pre_hooks)) == before
    net.function = lambda net, x: x.relu()
    assert torch.equal(net(points), points.relu())


def test_other_threads_see_the_network_as_it_is():
    net, points = Calls(lambda net, x: x.relu()), torch.linspace(-1, 1, 5)
    seen = {}
    with softened(net, BETA):
        thread = threading.Thread(target=lambda: seen.update(there=net(points)))
        thread.start()
        thread.join()
        seen["here"] = net(points)
    assert torch.equal(seen["there"], points.relu())
    torch.testing.assert_close(seen["here"], soft(points))


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_what_cannot_be_softened_is_refused():
    net = nn.Sequential(torch.jit.trace(nn.ReLU(), torch.ones(2)))
    with pytest.raises(ValueError, match="`model` must be the eager module"), softened(net, 1.0):
        pass
    with pytest.raises(ValueError, match="`beta` must be greater than 0, got 0"), softened(nn.ReLU(), 0):
        pass
