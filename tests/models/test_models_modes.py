"""Modes that come back as they were."""

import pytest
import torch
from torch import nn

from lit_xai.models.modes import crafting, evaluating, unnoticed


@pytest.fixture
def net() -> nn.Module:
    kept = nn.BatchNorm2d(2)
    return nn.Sequential(
        nn.BatchNorm2d(2),
        kept,
        kept,
        nn.BatchNorm2d(2, momentum=None),
        nn.BatchNorm2d(2, track_running_stats=False),
    )


def snapshot(net: nn.Module) -> list[tuple[bool, bool]]:
    return [(part.training, getattr(part, "track_running_stats", False)) for part in net.modules()]


def test_unnoticed_batches_are_normalised_by_themselves_and_leave_no_trace(net):
    net[3].eval()  # this one keeps to its running statistics
    images, before = torch.randn(6, 2, 3, 3) + 1, snapshot(net)
    state = {name: value.clone() for name, value in net.state_dict().items()}
    with unnoticed(net):
        seen = net(images)
    assert all(torch.equal(value, state[name]) for name, value in net.state_dict().items())
    assert snapshot(net) == before
    assert torch.equal(net(images), seen)  # as any forward pass in that mode
    assert net[0].num_batches_tracked == 1
    assert net[3].num_batches_tracked == 0


@pytest.mark.parametrize("mode", ["eval", "train", "frozen"])
def test_modes_of_crafting_end_also_with_an_error(net, mode):
    before, inside = snapshot(net), []

    def fail() -> None:
        inside.append((net.training, net[0].track_running_stats))
        raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"), crafting(net, mode):
        fail()
    assert inside == [(mode != "eval", mode != "frozen")]
    assert snapshot(net) == before


def test_evaluating_keeps_what_was_frozen(net):
    net[1].eval()
    before = snapshot(net)
    with evaluating(net):
        assert not any(part.training for part in net.modules())
    assert snapshot(net) == before
