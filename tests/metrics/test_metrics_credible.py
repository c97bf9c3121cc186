"""The default menu: what it costs is what it says."""

import pytest
import torch
from torch import nn

from lit_xai.attributions import InputXGradient, Saliency
from lit_xai.evaluation.passes import Counted
from lit_xai.metrics import Companions, credible
from lit_xai.observe import explain

MAPS = 20  # per method: its own, 8 neighbours twice, an attacked twin, a mosaic, another class
AWAY = 1  # the map of a network without training, of which `Counted` sees nothing


def cost(methods):
    """Passes per image of 28 x 28, forward and backward, that the menu takes for some methods."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 10)
        )
    counted, inputs = Counted(net).eval(), torch.rand(3, 1, 28, 28)
    target = net(inputs).argmax(1)
    others = (target[:, None] + torch.arange(1, 9)) % 10
    companions = Companions(torch.rand(3, 8, 1, 28, 28), others, torch.arange(24).reshape(3, 8) + 3)
    explain(counted, inputs, target, methods, credible(), 0, companions=companions)
    return counted.forwards / 3, counted.backwards / 3


def test_it_costs_what_its_docstring_says():
    """Both methods take a forward and a backward pass per map."""
    one, two = cost({"a": Saliency()}), cost({"a": Saliency(), "b": InputXGradient()})
    each = [more - less for more, less in zip(two, one, strict=True)]
    together = [first - more for first, more in zip(one, each, strict=True)]
    said = " ".join(str(credible.__doc__).split())
    assert f"about 135 forward passes and {MAPS + AWAY} maps for each method" in said
    assert each == [pytest.approx(135 + MAPS, rel=0.03), MAPS]
    assert "some 90 forward and 15 backward passes for all methods together" in said
    assert together == [pytest.approx(90, rel=0.03), 15]
