"""The pass meter of the benchmarks, against counts known in advance."""

import pytest
import torch
from torch import nn

from benchmarks.passes import Meter, efficiency, machine
from lit_xai.attacks import DDN, LinfPGD


def test_forward_passes_and_input_gradients_are_counted_by_image(relu_net):
    inputs = torch.rand(5, 2, 8, 8)
    with Meter(relu_net) as meter:
        with torch.no_grad():
            relu_net(inputs)
        assert (meter.forwards, meter.backwards) == (5, 0)
        points = inputs.requires_grad_()
        torch.autograd.grad(relu_net(points).sum(), points)
        assert (meter.forwards, meter.backwards) == (10, 5)
        logits = relu_net(points)
        for column in logits.T:
            torch.autograd.grad(column.sum(), points, retain_graph=True)
        assert (meter.forwards, meter.backwards) == (15, 25)
        relu_net(points)  # a graph that nobody uses
        for part in points.split(2):
            torch.autograd.grad(relu_net(part).sum(), points)
    assert (meter.forwards, meter.backwards, meter.calls) == (25, 30, 7)
    assert meter.units == 55
    relu_net(inputs)
    assert meter.forwards == 25


def test_the_hook_goes_also_after_an_error(relu_net):
    with pytest.raises(RuntimeError), Meter(relu_net):
        relu_net(torch.rand(1, 3, 8, 8))
    assert not relu_net._forward_hooks


def test_pgd_costs_two_units_a_step_and_the_search_what_it_says(relu_net, batch):
    with Meter(relu_net) as meter:
        LinfPGD(epsilon=0.1, steps=7)(relu_net, *batch)
    assert meter.units == 5 * 2 * 7
    with Meter(relu_net) as meter:
        found = DDN().search(relu_net, *batch)
    assert meter.forwards == int(found.forwards.sum())
    assert meter.backwards == int(found.backwards.sum())


def test_efficiency_prices_the_passes_that_it_counts(relu_net, batch):
    inputs, target = batch
    seen = efficiency(lambda: LinfPGD(epsilon=0.1, steps=2)(relu_net, inputs, target), relu_net, inputs, 2)
    assert (seen.forwards, seen.backwards, seen.units, seen.batch) == (10, 10, 20, 5)
    assert seen.ratio == pytest.approx(2 * seen.bare_gradient / seen.seconds)
    assert seen.row()["ratio"] == seen.ratio
    assert seen.bare_forward > 0
    idle = efficiency(lambda: nn.Identity()(inputs), relu_net, inputs, 2)
    assert idle.ratio == 0


def test_every_figure_comes_with_its_machine():
    assert {"date", "processor", "device", "threads", "torch", "lit_xai", "commit"} <= set(machine())
