"""Keyed draws: what they depend on, and that they are distributed as they say."""

import pytest
import torch
from scipy import stats
from torch.testing import assert_close

from lit_xai import randomness
from lit_xai.randomness import bits, keyed, keys, narrowed, normal, uniform

FLOATS = [torch.float32, torch.float64]


def some_keys(count, seed=0, purpose="test", first=0):
    with keyed(seed, torch.arange(first, first + count)):
        return keys(torch.zeros(count, 1), purpose)


def finaliser(z):
    """SplitMix64's, in Python's integers, as Steele, Lea and Flood print it."""
    z = ((z ^ (z >> 30)) * 0xBF58476D1CE4E5B9) % 2**64
    z = ((z ^ (z >> 27)) * 0x94D049BB133111EB) % 2**64
    return z ^ (z >> 31)


@pytest.mark.parametrize("number", [0, 1, 12345, 2**63 - 1, 2**63, 2**64 - 1, 0x9E3779B97F4A7C15])
def test_tensor_arithmetic_is_that_of_unsigned_64_bit_integers(number):
    signed = number - 2**64 if number >= 2**63 else number
    assert int(randomness._finalise(torch.tensor(signed))) % 2**64 == finaliser(number)


def test_bits_are_the_published_sequence():
    start = torch.tensor([0, -5])
    drawn = bits(start, 0, (3,))
    for key, row in zip((0, 2**64 - 5), drawn.tolist(), strict=True):
        seed = finaliser(key)
        assert [b % 2**64 for b in row] == [
            finaliser((seed + i * 0x9E3779B97F4A7C15) % 2**64) for i in range(3)
        ]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_uniform_draws_are_uniform(dtype):
    drawn = uniform(some_keys(40), 0, (5, 100), dtype)
    assert drawn.dtype == dtype
    assert drawn.shape == (40, 5, 100)
    assert stats.kstest(drawn.flatten().numpy(), "uniform").pvalue > 0.01


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
@pytest.mark.parametrize("word", [0, -1, 1 << 63, (1 << 63) - 1], ids=hex)
def test_the_extreme_words_stay_inside_the_open_interval(dtype, word, monkeypatch):
    word = word - 2**64 if word >= 2**63 else word
    monkeypatch.setattr(randomness, "bits", lambda keys, stream, shape: torch.full((1, *shape), word))
    drawn = uniform(torch.zeros(1, dtype=torch.int64), 0, (2,), dtype)
    assert (drawn > 0).all()
    assert (drawn < 1).all()
    assert normal(torch.zeros(1, dtype=torch.int64), 0, (2,), dtype).isfinite().all()


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_normal_draws_are_normal(dtype):
    drawn = normal(some_keys(40), 0, (5, 101), dtype)
    assert drawn.dtype == dtype
    assert drawn.shape == (40, 5, 101)
    flat = drawn.flatten().double()
    assert stats.kstest(flat.numpy(), "norm").pvalue > 0.01
    count = len(flat)
    for power, moment, variance in ((1, 0, 1), (2, 1, 2), (3, 0, 15), (4, 3, 96)):
        assert abs(flat.pow(power).mean() - moment) < 3.5 * (variance / count) ** 0.5


def test_pixels_of_an_image_are_independent():
    drawn = normal(some_keys(4000), 0, (20,), torch.float64)
    correlation = torch.corrcoef(drawn.T) - torch.eye(20)
    assert correlation.abs().max() < 5 / 4000**0.5


def test_streams_purposes_seeds_and_images_are_independent():
    base = normal(some_keys(200), 0, (100,))
    others = {
        "stream": normal(some_keys(200), 1, (100,)),
        "far stream": normal(some_keys(200), 2**40, (100,)),
        "purpose": normal(some_keys(200, purpose="other"), 0, (100,)),
        "seed": normal(some_keys(200, seed=1), 0, (100,)),
        "image": normal(some_keys(200, first=1), 0, (100,)),
        "position": base.roll(1, dims=1),
    }
    if not torch.equal(others["image"][:-1], base[1:]):
        pytest.fail("an image's draws must follow its id")
    for name, other in others.items():
        correlation = float((base * other).mean())
        assert abs(correlation) < 4 / 20000**0.5, name


def test_no_two_of_many_keys_agree():
    made = torch.cat([some_keys(2000, seed, purpose) for seed in range(5) for purpose in "ab"])
    assert len(made.unique()) == len(made) == 20000
    assert len(bits(made, 0, (5,)).unique()) == 100000


def test_draws_do_not_depend_on_batch_or_order():
    whole = normal(some_keys(8), 2, (3, 4))
    order = torch.tensor([6, 1, 3])
    with keyed(0, order):
        part = normal(keys(torch.zeros(3, 1), "test"), 2, (3, 4))
    assert torch.equal(part, whole[order])
    assert torch.equal(normal(some_keys(8)[order], 2, (3, 4)), whole[order])


def test_the_first_draws_do_not_depend_on_how_many_follow():
    assert torch.equal(uniform(some_keys(3), 0, (5,)), uniform(some_keys(3), 0, (9,))[:, :5])


@pytest.mark.parametrize("seed", [0, -1, 2**31, 2**63 - 1, 2**63, 2**64 - 1, 10**30])
def test_any_integer_is_a_seed_and_any_id_is_a_name(seed):
    ids = torch.tensor([0, -1, 2**63 - 1, -(2**63)])
    with keyed(seed, ids):
        drawn = normal(keys(torch.zeros(4, 1), "test"), 0, (8,))
    assert drawn.isfinite().all()
    assert len(drawn.flatten().unique()) == 32


def test_inside_the_context_the_global_generator_is_not_touched():
    before = torch.random.get_rng_state()
    normal(some_keys(3), 0, (4,))
    assert torch.equal(torch.random.get_rng_state(), before)


def test_outside_of_it_draws_come_from_the_global_generator():
    inputs = torch.zeros(3, 1)
    torch.manual_seed(5)
    first, second = keys(inputs, "test"), keys(inputs, "test")
    torch.manual_seed(5)
    assert torch.equal(keys(inputs, "test"), first)
    assert not torch.equal(first, second)
    assert len(first.unique()) == 3


def test_contexts_nest_and_end_with_an_error():
    outer = some_keys(2)

    def fail():
        with keyed(0, torch.arange(2)):
            with keyed(1, torch.arange(2)):
                assert not torch.equal(keys(torch.zeros(2, 1), "test"), outer)
            assert torch.equal(keys(torch.zeros(2, 1), "test"), outer)
            raise RuntimeError("stop")

    with pytest.raises(RuntimeError, match="stop"):
        fail()
    assert randomness._SAMPLES.get() is None


def test_some_rows_of_a_batch_keep_their_draws():
    with keyed(3, torch.tensor([8, 5, 9, 2])):
        whole = keys(torch.zeros(4, 1), "test")
        with narrowed(torch.tensor([3, 0, 1])):
            assert torch.equal(keys(torch.zeros(3, 1), "test"), whole[[3, 0, 1]])
            with narrowed(torch.tensor([1])):
                assert torch.equal(keys(torch.zeros(1, 1), "test"), whole[[0]])
        with pytest.raises(KeyError), narrowed(torch.tensor([], dtype=torch.int64)):
            raise KeyError
        assert torch.equal(keys(torch.zeros(4, 1), "test"), whole)


def test_without_a_context_there_is_nothing_to_narrow():
    with torch.random.fork_rng():
        torch.manual_seed(1)
        expected = keys(torch.zeros(2, 1), "test")
        torch.manual_seed(1)
        with narrowed(torch.tensor([7, 4])):
            assert torch.equal(keys(torch.zeros(2, 1), "test"), expected)


def test_ids_must_name_every_image():
    with (
        keyed(0, torch.arange(3)),
        pytest.raises(ValueError, match="`ids` must name every image: 3 ids for 2 images"),
    ):
        keys(torch.zeros(2, 1), "test")


def test_precisions_agree_on_the_same_draw():
    assert_close(
        uniform(some_keys(9), 0, (7,), torch.float64),
        uniform(some_keys(9), 0, (7,)).double(),
        atol=1e-6,
        rtol=0,
    )
    assert_close(
        normal(some_keys(9), 0, (7,), torch.float64),
        normal(some_keys(9), 0, (7,)).double(),
        atol=1e-4,
        rtol=0,
    )
