"""Random draws that belong to a sample, not to a batch.

A draw is a pure function of (key of the sample, stream, position), computed with a counter-based generator
(SplitMix64 finaliser). So a result does not depend on batch size, order or number of processes, nor on the
device, but for the last bits of a logarithm and a cosine; and a search that drops images from its batch keeps
the draws of those that stay. All images are drawn at once.

Source: Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3" (counter-based generators);
Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators" (the finaliser).
"""

import math
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from contextvars import ContextVar

import torch
from jaxtyping import Float, Int
from torch import Tensor

from lit_xai.types import Keys

_SAMPLES: ContextVar[tuple[int, Tensor] | None] = ContextVar("samples", default=None)
_LOW = (1 << 32) - 1
_GOLDEN = -7046029254386353131  # 0x9E3779B97F4A7C15 as a signed 64-bit integer
_MIX = (-4658895280553007687, -7723592293110705685)  # 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


@contextmanager
def keyed(seed: int, ids: Int[Tensor, " batch"]) -> Iterator[None]:
    """Within this context, draws belong to (seed, sample id), whatever the batch looks like."""
    token = _SAMPLES.set((seed, ids))
    try:
        yield
    finally:
        _SAMPLES.reset(token)


@contextmanager
def narrowed(rows: Int[Tensor, " some"]) -> Iterator[None]:
    """Within this context, draws are for these rows of the batch: each sample keeps those it has in `keyed`.

    Outside of `keyed` it changes nothing.
    """
    ambient = _SAMPLES.get()
    if ambient is None:
        yield
        return
    seed, ids = ambient
    with keyed(seed, ids[rows.to(ids.device)]):
        yield


@contextmanager
def renamed(ids: Int[Tensor, " batch"]) -> Iterator[None]:
    """Within this context, draws are those of other samples, under the same seed.

    Outside of `keyed` it changes nothing.
    """
    ambient = _SAMPLES.get()
    if ambient is None:
        yield
        return
    with keyed(ambient[0], ids):
        yield


def keys(inputs: Tensor, purpose: str) -> Keys:
    """One 64-bit key per image of the batch.

    Args:
        inputs: The batch, for its length and device.
        purpose: Who draws. Two purposes never share a stream.

    Returns:
        Keys made from the ambient (seed, id) of `keyed`; outside of it, from torch's global generator.
    """
    ambient = _SAMPLES.get()
    if ambient is None:
        low, high = -(2**63), 2**63 - 1
        base = torch.randint(low, high, (len(inputs),), device=inputs.device)
    else:
        seed, ids = ambient
        if len(ids) != len(inputs):
            raise ValueError(f"`ids` must name every image: {len(ids)} ids for {len(inputs)} images.")
        base = _finalise(ids.to(inputs.device, torch.int64) * _GOLDEN + _wrap(seed))
    return _finalise(base + _wrap(zlib.crc32(purpose.encode()) * _GOLDEN))


def bits(keys: Keys, stream: int, shape: Sequence[int]) -> Int[Tensor, "batch ..."]:
    """Uniform 64-bit integers, shape (batch, *shape)."""
    count = math.prod(shape)
    position = torch.arange(count, device=keys.device, dtype=torch.int64) * _GOLDEN
    start = _finalise(keys + _wrap(stream * _GOLDEN))
    return _finalise(start[:, None] + position).reshape(len(keys), *shape)


def uniform(
    keys: Keys, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch ..."]:
    """Uniform draws in the open interval (0, 1), shape (batch, *shape)."""
    grain = 23 if dtype == torch.float32 else 52  # one bit below the mantissa: rounding never reaches 1
    whole = (bits(keys, stream, shape) >> (64 - grain)) & ((1 << grain) - 1)
    return (whole.to(dtype) + 0.5) * 2.0**-grain


def normal(
    keys: Keys, stream: int, shape: Sequence[int], dtype: torch.dtype = torch.float32
) -> Float[Tensor, "batch ..."]:
    """Standard normal draws, shape (batch, *shape).

    Two draws come from the two halves u, v of one integer: sqrt(-2 ln u) (cos 2 pi v, sin 2 pi v).

    Source: Box and Muller 1958, "A note on the generation of random normal deviates", eq. 1.
    """
    count = math.prod(shape)
    words = bits(keys, stream, ((count + 1) // 2,))
    high, low = (words >> 32).bitwise_and_(_LOW), words.bitwise_and_(_LOW)
    radius = high.to(dtype).add_(0.5).mul_(2.0**-32).log_().mul_(-2).sqrt_()
    angle = low.to(dtype).mul_(2 * math.pi * 2.0**-32)
    pairs = torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)], dim=1)
    return pairs[:, :count].reshape(len(keys), *shape)


def _wrap(number: int) -> int:
    """A Python integer taken modulo 2^64 into the signed range, as tensor arithmetic does by itself."""
    return (number + 2**63) % 2**64 - 2**63


def _finalise(z: Tensor) -> Tensor:
    """SplitMix64: a bijection of 64-bit integers whose output bits all depend on all input bits.

    `z` is worked on in place: a large draw is a matter of memory.
    """
    for shift, factor in zip((30, 27), _MIX, strict=True):
        z = z.bitwise_xor_((z >> shift).bitwise_and_((1 << (64 - shift)) - 1)).mul_(factor)
    return z.bitwise_xor_((z >> 31).bitwise_and_((1 << 33) - 1))
