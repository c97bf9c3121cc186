"""How maps and images are shown, everywhere alike: signed colours centred at 0, their scale beside them."""

import numpy as np
from jaxtyping import Float, Shaped, UInt8

PERCENTILE = 99.0  # of a map's absolute values: full colour; beyond, colours are clipped
SHADES = 127  # on each side of zero
NEGATIVE, MIDDLE, POSITIVE = (33, 86, 165), (247, 247, 245), (190, 39, 45)  # blue, white, red
UNKNOWN = (150, 150, 150)  # where a map is not finite

Picture = UInt8[np.ndarray, "height width 3"]


def _palette() -> UInt8[np.ndarray, "256 3"]:
    share = np.linspace(0, 1, SHADES + 1)[:, None]
    below, above = (np.array(MIDDLE) + (np.array(end) - MIDDLE) * share for end in (NEGATIVE, POSITIVE))
    palette: np.ndarray = np.rint(np.concatenate([below[::-1], above[1:], [UNKNOWN]])).astype(np.uint8)
    return palette


PALETTE = _palette()


def shades(
    relevance: Float[np.ndarray, "channel height width"],
) -> tuple[UInt8[np.ndarray, "height width"], float]:
    """A map as indices into `PALETTE`, and the value that full colour stands for.

    Channels are summed. Red is evidence for the class, blue against it, white none, grey not finite. Full
    colour is the map's own 99th percentile of absolute values, the same on both sides of zero, so that one
    pixel does not bleach the others; where that is zero, their maximum. A map that is zero has scale 0, one
    without a finite value NaN.
    """
    signed = relevance.astype(np.float64).sum(axis=0)
    finite = np.isfinite(signed)
    if not finite.any():
        return np.full(signed.shape, 2 * SHADES + 1, np.uint8), float("nan")
    size = np.abs(signed[finite])
    scale = float(np.percentile(size, PERCENTILE)) or float(size.max())
    share = np.clip(np.where(finite, signed, 0) / (scale or 1.0), -1, 1)
    return np.where(finite, np.rint(SHADES * share) + SHADES, 2 * SHADES + 1).astype(np.uint8), scale


def photograph(pixels: Float[np.ndarray, "channel height width"]) -> Picture:
    """An image in [0, 1]: in colour for three channels, otherwise the channels' mean in grey."""
    shown = np.rint(np.nan_to_num(pixels).clip(0, 1) * 255)
    grey = np.broadcast_to(shown.mean(axis=0), (3, *shown.shape[1:]))
    return (shown if len(shown) == 3 else grey).transpose(1, 2, 0).astype(np.uint8)


def flaw(relevance: Shaped[np.ndarray, "channel height width"], scale: float) -> str:
    """What is wrong with a map, in words; empty if nothing is."""
    lost = 1 - np.isfinite(relevance).all(axis=0).mean()
    if lost:
        return "not finite" if lost == 1 else f"{100 * lost:.0f} % not finite"
    return "" if scale else "all zero"
