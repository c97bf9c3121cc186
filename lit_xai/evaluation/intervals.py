"""How far a share measured on some images may be from that of all."""

import math

_Z = 1.959963984540054  # 97.5 % quantile of the standard normal distribution


def wilson(successes: int, count: int) -> tuple[float, float]:
    """95 % interval (low, high) of a share; (0, 1) where there are no images.

    (p + z²/2n ± z sqrt(p (1 - p) / n + z²/4n²)) / (1 + z²/n), p = successes / n.

    Source: Wilson 1927, "Probable inference, the law of succession, and statistical inference".
    """
    if count == 0:
        return 0.0, 1.0
    share, weight = successes / count, _Z * _Z / count
    centre = (share + weight / 2) / (1 + weight)
    reach = math.sqrt(share * (1 - share) * weight + weight * weight / 4) / (1 + weight)
    # Rounding must not push the interval off the share at 0 and at 1.
    low = 0.0 if successes == 0 else max(0.0, centre - reach)
    return low, 1.0 if successes == count else min(1.0, centre + reach)
