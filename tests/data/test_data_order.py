"""Splits and orders: exact, deterministic, and complete over processes."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.overrides.distributed import UnrepeatedDistributedSampler
from sklearn.model_selection import train_test_split
from torch.utils.data import DistributedSampler, TensorDataset

from lit_xai.data.order import EvaluationOrder, TrainingOrder, shuffled, stratified


def images(count: int) -> TensorDataset:
    return TensorDataset(torch.arange(count))


def test_a_permutation_depends_on_its_arguments_alone():
    first = shuffled(1000, 3, "order", 2)
    torch.manual_seed(99)
    assert torch.equal(first, shuffled(1000, 3, "order", 2))
    assert torch.equal(first.sort().values, torch.arange(1000))
    for other in (
        shuffled(1000, 4, "order", 2),
        shuffled(1000, 3, "split", 2),
        shuffled(1000, 3, "order", 3),
    ):
        assert (first == other).float().mean() < 0.02


def test_neighbouring_seeds_do_not_share_their_orders():
    # A seed that is only added to the epoch would give seed 1 the order that seed 0 has one epoch later.
    assert not torch.equal(shuffled(50, 0, "order", 1), shuffled(50, 1, "order", 0))


def test_positions_are_uniform():
    firsts = torch.stack([shuffled(10, seed, "order", turn) for seed in range(60) for turn in range(60)])
    expected = len(firsts) / 10
    for position in firsts.T:
        square = ((position.bincount(minlength=10) - expected) ** 2 / expected).sum()
        assert square < 36  # chi squared with 9 degrees of freedom: beyond it once in 25,000


@settings(max_examples=60, deadline=None)
@given(
    counts=st.lists(st.integers(8, 60), min_size=1, max_size=6),
    share=st.floats(0.2, 0.45),
    seed=st.integers(0, 9),
)
def test_every_class_has_its_share_rounded_down_or_up(counts: list[int], share: float, seed: int):
    labels = torch.arange(len(counts)).repeat_interleave(torch.tensor(counts))[
        shuffled(sum(counts), seed, "mix")
    ]
    test, val, train = stratified(labels, seed, test=share, val=len(labels) // 4, train=None)
    assert torch.equal(torch.cat([test, val, train]).sort().values, torch.arange(len(labels)))
    assert len(test) == round(share * len(labels))
    assert len(val) == len(labels) // 4
    left = torch.tensor(counts)
    for part in (test, val, train):
        quota = left * len(part) / left.sum()
        found = labels[part].bincount(minlength=len(counts))
        assert ((found == quota.floor()) | (found == quota.ceil())).all()
        left = left - found


def test_class_counts_are_those_of_scikit_learn():
    labels = np.repeat(np.arange(5), [17, 40, 23, 61, 12])
    theirs = train_test_split(labels, test_size=31, stratify=labels, random_state=0)[1]
    ours = labels[stratified(torch.from_numpy(labels), 0, test=31, train=None)[0]]
    assert np.bincount(ours).tolist() == np.bincount(theirs).tolist()


def test_a_split_does_not_depend_on_later_sizes():
    labels = torch.arange(5).repeat(40)
    small = stratified(labels, 0, test=20, val=20, train=50)
    large = stratified(labels, 0, test=20, val=20, train=None)
    assert torch.equal(small[0], large[0])
    assert torch.equal(small[1], large[1])


def test_splits_are_shuffled_and_follow_the_seed():
    labels = torch.arange(10).repeat_interleave(50)  # sorted by class, as digits and folders are
    (val, _), (again, _), (other, _) = (stratified(labels, seed, val=200, train=None) for seed in (0, 0, 1))
    assert torch.equal(val, again)
    assert not torch.equal(val, other)
    assert len(labels[val[:40]].unique()) >= 8


@pytest.mark.parametrize(
    ("sizes", "words"),
    [
        ({"val": 0}, "`val` must be a count of at least 1 or a share between 0 and 1, got 0."),
        ({"val": -3}, "got -3"),
        ({"val": 1.0}, "got 1.0"),
        ({"val": 1.5}, "got 1.5"),
        ({"val": float("nan")}, "got nan"),
        ({"test": 30, "val": 31}, "`test` \\+ `val` must not exceed the data: asked for 61 of 60 images."),
        ({"val": 2}, "`val` must hold every class: with 2 of 60 images it has none of 2."),
        ({"val": 58, "train": None}, "`train` must hold every class: with 2 of 60"),
        ({"val": 60, "train": None}, "`train` must hold every class: with 0 of 60"),
    ],
)
def test_impossible_sizes_are_refused(sizes: dict[str, float], words: str):
    with pytest.raises(ValueError, match=words):
        stratified(torch.arange(3).repeat(20), 0, **sizes)


@pytest.mark.parametrize(
    ("labels", "missing"), [([0, 1, 3, 3], 2), ([1, 2], 0), ([0, 10**15], 1), ([-1, 0], 0)]
)
def test_a_gap_in_the_labels_is_refused(labels: list[int], missing: int):
    with pytest.raises(
        ValueError, match=f"`labels` must use every class from 0 to the largest: none is {missing}"
    ):
        stratified(torch.tensor(labels), 0, train=None)


def test_each_epoch_has_its_own_order_and_can_be_taken_up():
    order = TrainingOrder(images(65), seed=5)
    epochs = []
    for epoch in range(4):
        order.set_epoch(epoch)
        epochs.append(list(order))
    assert all(sorted(epoch) == list(range(65)) for epoch in epochs)
    assert len({tuple(epoch) for epoch in epochs}) == 4
    resumed = TrainingOrder(images(65), seed=5)
    resumed.set_epoch(3)
    assert list(resumed) == epochs[3]


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_processes_together_train_on_what_one_would(ranks: int):
    shares = [TrainingOrder(images(65), 5, ranks, rank) for rank in range(ranks)]
    for epoch in range(3):
        for share in shares:
            share.set_epoch(epoch)
        drawn = [list(share) for share in shares]
        assert {len(indices) for indices in drawn} == {65 // ranks} == {len(share) for share in shares}
        together = [index for turn in zip(*drawn, strict=True) for index in turn]
        assert together == shuffled(65, 5, "order", epoch)[: 65 - 65 % ranks].tolist()


@pytest.mark.parametrize(("count", "ranks"), [(65, 1), (65, 2), (65, 3), (64, 2), (1, 3), (2, 3), (0, 2)])
def test_evaluation_shows_every_image_once(count: int, ranks: int):
    shares = [EvaluationOrder(images(count), ranks, rank) for rank in range(ranks)]
    assert [len(share) for share in shares] == [len(list(share)) for share in shares]
    assert sorted(index for share in shares for index in share) == list(range(count))


@pytest.mark.parametrize("ranks", [2, 3])
def test_evaluation_shares_are_those_of_lightning(ranks: int):
    for rank in range(ranks):
        theirs = UnrepeatedDistributedSampler(images(65), ranks, rank, shuffle=False)
        assert list(EvaluationOrder(images(65), ranks, rank)) == list(theirs)


def test_lightning_leaves_these_orders_in_place():
    # It replaces every sampler under DDP but those of this type.
    assert issubclass(TrainingOrder, DistributedSampler)
    assert issubclass(EvaluationOrder, DistributedSampler)
