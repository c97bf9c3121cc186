"""Random neighbours: even in the cube, within the ball, the same for a sample whatever its batch."""

import pytest
import torch
from torch import nn

from lit_xai.attacks import L1, L2, Linf
from lit_xai.attacks.neighbour import RandomNeighbour
from lit_xai.randomness import keyed

MODEL = nn.Identity()
TARGET = torch.zeros(6, dtype=torch.int64)


def test_it_is_even_in_the_cube():
    inputs = torch.full((6, 3, 40, 40), 0.5, dtype=torch.float64)
    delta = RandomNeighbour(0.1)(MODEL, inputs, TARGET) - inputs
    assert delta.abs().max() <= 0.1
    shares = torch.histc(delta, 10, -0.1, 0.1) / delta.numel()
    torch.testing.assert_close(shares, torch.full_like(shares, 0.1), rtol=0, atol=0.01)


@pytest.mark.parametrize("norm", [Linf(), L2(), L1()], ids=repr)
def test_it_stays_in_ball_and_box(norm):
    inputs = torch.rand(6, 1, 8, 8).round()
    neighbours = RandomNeighbour(0.7, norm)(MODEL, inputs, TARGET)
    assert (neighbours >= 0).all()
    assert (neighbours <= 1).all()
    lengths = norm.length(neighbours - inputs)
    assert (lengths <= 0.7 + 1e-5).all()
    assert (lengths > 0).all()


def test_draws_belong_to_the_sample():
    inputs = torch.rand(6, 1, 8, 8)
    with keyed(0, torch.arange(6)):
        together = RandomNeighbour(0.1)(MODEL, inputs, TARGET)
    with keyed(0, torch.tensor([4, 2])):
        alone = RandomNeighbour(0.1)(MODEL, inputs[[4, 2]], TARGET[:2])
    assert torch.equal(alone, together[[4, 2]])


def test_no_budget_is_refused():
    with pytest.raises(ValueError, match="`epsilon` must be greater than 0, got 0"):
        RandomNeighbour(0.0)
