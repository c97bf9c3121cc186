"""Looks at images from which pixels are gone: rankings, levels and what is asked of the model."""

import math

import pytest
import torch
from subjects import Recorder, tiny_net
from torch import nn

from lit_xai import randomness
from lit_xai.memory import remembering
from lit_xai.metrics import SignedSum, answers
from lit_xai.metrics.looks import area, first, last, levels, pixel_ranks, ranks_of, ranks_of_parts, seen
from lit_xai.metrics.removal import Constant

IDS = torch.tensor([7, 3, 11, 0, 5])


def test_area_is_exact_for_uneven_points():
    shares = torch.tensor([0.0, 0.3, 1.0])
    curves = torch.tensor([[1.0, 1.0, 1.0], [1.0, 0.5, 0.0], [0.0, 0.3, 1.0]])
    torch.testing.assert_close(area(shares, curves), torch.tensor([1.0, 0.225 + 0.175, 0.5]))


def test_ranks_follow_the_values_and_shuffle_what_is_equal():
    saliency = torch.tensor([[[5.0, 1.0, 3.0], [3.0, 0.0, 3.0]]]).repeat(300, 1, 1)
    ranks = pixel_ranks(saliency, randomness.keys(saliency, "ties"))
    assert (ranks.flatten(1).sort(1).values == torch.arange(6)).all()
    assert (ranks[:, 0, 0] == 0).all()
    assert (ranks[:, 0, 1] == 4).all()
    assert (ranks[:, 1, 1] == 5).all()
    for tied in (ranks[:, 0, 2], ranks[:, 1, 0], ranks[:, 1, 2]):
        counts = torch.bincount(tied, minlength=6)
        assert counts[[0, 4, 5]].sum() == 0
        assert counts[1:4].min() > 100 - 4 * math.sqrt(300 * 2 / 9)


def test_ties_belong_to_the_sample_and_leave_the_global_generator_alone():
    zero = torch.zeros(5, 8, 8)
    before = torch.get_rng_state()
    with randomness.keyed(1, IDS):
        first = pixel_ranks(zero, randomness.keys(zero, "ties"))
        again = pixel_ranks(zero, randomness.keys(zero, "ties"))
    assert torch.equal(first, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert not torch.equal(first[0], first[1])


def test_ranks_of_a_map_are_sorted_once_for_all_who_ask():
    maps, inputs = torch.randn(5, 2, 8, 8), torch.rand(5, 2, 8, 8)
    model, target = nn.Identity(), torch.zeros(5, dtype=torch.int64)
    with randomness.keyed(0, IDS), remembering():
        ranks, again = (ranks_of(maps, SignedSum(), model, inputs, target) for _ in range(2))
    assert again is ranks
    with randomness.keyed(0, IDS):
        assert torch.equal(ranks, pixel_ranks(maps.sum(1), randomness.keys(inputs, "ties")))


def test_parts_rank_as_a_whole():
    parts = torch.tensor([[[0, 0, 1], [2, 2, 1]]])
    ranks = ranks_of_parts(torch.tensor([[0.5, -1.0, 3.0]]), parts, torch.tensor([1]))
    assert ranks.tolist() == [[[1, 1, 2], [0, 0, 2]]]


def test_levels_take_one_step_per_thing_at_most_and_end_where_all_is_gone():
    assert levels(64, 4) == [0, 16, 32, 48, 64]
    assert levels(5, 2) == [0, 2, 5]
    assert levels(3, 100) == [0, 1, 2, 3]
    assert first([0, 2]) == [(0, 0), (0, 2)]
    assert last([0, 2], 5) == [(5, 5), (3, 5)]


@pytest.mark.parametrize("mixed", [1, 128, 700, 10**6])
@pytest.mark.parametrize("chunk", [1, 7, 64])
def test_however_many_are_mixed_at_once_the_model_says_the_same(monkeypatch, mixed, chunk):
    net = tiny_net(nn.ReLU, torch.float64)
    inputs = torch.rand(5, 2, 8, 8, dtype=torch.float64)
    target, grey = net(inputs).argmax(1), Constant(0.5)
    ranks = pixel_ranks(torch.randn(5, 8, 8), IDS)
    looks = [(0, 0), (3, 20), (0, 64), (0, 9), (40, 64), (3, 20), (64, 64)]
    monkeypatch.setitem(answers.MADE, "cpu", mixed)
    counted = Recorder(net)
    said = seen(counted, inputs, target, ranks, 64, looks, grey, chunk)
    assert sum(counted.calls) == 5 * 5  # two looks are twice the same
    assert max(counted.calls) <= chunk
    for column, (low, high) in enumerate(looks):
        gone = ((ranks >= low) & (ranks < high))[:, None]
        logits = net(torch.where(gone, 0.5, inputs)).detach()
        own = logits.gather(1, target[:, None])[:, 0]
        torch.testing.assert_close(said["logit"][:, column], own)
        torch.testing.assert_close(said["probability"][:, column], (own - logits.logsumexp(1)).exp())
        assert torch.equal(said["decided"][:, column].bool(), logits.argmax(1) == target)


def test_no_image_is_no_trouble():
    net, none = tiny_net(nn.ReLU), torch.rand(0, 2, 8, 8)
    target, ranks = torch.zeros(0, dtype=torch.int64), torch.zeros(0, 8, 8, dtype=torch.int64)
    said = seen(net, none, target, ranks, 64, [(0, 0), (0, 5), (0, 64)], Constant(), 4)
    assert all(column.shape == (0, 3) for column in said.values())
