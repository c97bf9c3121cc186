"""What is left of the decision when only the pattern is kept."""

import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.attributions import NoiseImage
from lit_xai.attributions.patterns import activation_pattern_only
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics.base import Facts
from lit_xai.metrics.patterns import PatternOnlyAccuracy

IDS = torch.tensor([7, 3, 11, 0, 5])


def scored(metric, model, inputs, target):
    with randomness.keyed(0, IDS):
        return metric.named(model=model, inputs=inputs, target=target)


def facts(model):
    return Facts(model, (2, 8, 8), 4, 5, 4, False, torch.device("cpu"))


class Gate(nn.Module):
    """Class 1 where the mean of the left half is above a quarter, class 0 elsewhere: one unit decides."""

    def __init__(self):
        super().__init__()
        self.unit = nn.Linear(128, 2)
        left = torch.zeros(2, 8, 8)
        left[:, :, :4] = 1 / 64
        with torch.no_grad():
            self.unit.weight.copy_(torch.stack([-left.flatten(), left.flatten()]))
            self.unit.bias.copy_(torch.tensor([0.25, -0.25]))

    def forward(self, inputs):
        return torch.relu(self.unit(inputs.flatten(1)))


def test_a_pattern_that_decides_keeps_the_decision():
    inputs = torch.zeros(5, 2, 8, 8)
    inputs[1::2, :, :, :4] = 1.0
    model, target = Gate().eval(), torch.tensor([0, 1, 0, 1, 0])
    # White is seen as 0.75 by the unit that is on for class 1, and as -0.75 by the one for class 0, which is
    # beaten by a unit that is off: so class 0 is lost. Black is the other way round.
    assert scored(PatternOnlyAccuracy(1.0), model, inputs, target)["accuracy"].tolist() == [0, 1, 0, 1, 0]
    assert scored(PatternOnlyAccuracy(0.0), model, inputs, target)["accuracy"].tolist() == [1, 0, 1, 0, 1]


@pytest.mark.parametrize("surrogate", [0.5, NoiseImage()], ids=repr)
def test_accuracy_is_that_of_the_logits(relu_net, batch, surrogate):
    inputs, target = batch
    scores = scored(PatternOnlyAccuracy(surrogate), relu_net, inputs, target)
    with randomness.keyed(0, IDS):
        own = activation_pattern_only(relu_net, inputs, surrogate)
        shuffled = activation_pattern_only(relu_net, inputs, surrogate, shuffled=True)
    assert torch.equal(scores["accuracy"], (own.argmax(1) == target).float())
    assert torch.equal(scores["shuffled"], (shuffled.argmax(1) == target).float())


def test_logits_that_are_not_finite_predict_nothing(batch):
    net = tiny_net(nn.ReLU)
    with torch.no_grad():
        net[-1].bias[1] = torch.nan
    for column in scored(PatternOnlyAccuracy(), net, batch[0], torch.ones(5, dtype=torch.int64)).values():
        assert (column == 0).all()


def test_it_costs_four_passes(relu_net, batch):
    counted = Counted(relu_net).eval()
    scored(PatternOnlyAccuracy(), counted, *batch)
    assert (counted.forwards, counted.backwards) == (20, 0)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
def test_networks_of_relus_are_accepted_without_a_draw(dtype):
    before = torch.get_rng_state()
    PatternOnlyAccuracy(NoiseImage()).check("patterns", facts(tiny_net(nn.ReLU, dtype)))
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("activation", [nn.GELU, nn.Identity])
def test_networks_without_patterns_are_refused_in_one_line(activation):
    with pytest.raises(
        ValueError, match="`apop` cannot be had for this network: `activation_pattern_only` "
    ) as e:
        PatternOnlyAccuracy().check("apop", facts(tiny_net(activation)))
    assert "\n" not in str(e.value)
