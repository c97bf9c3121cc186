"""Learning rates over a run, stepped once per optimizer step."""

import abc
import math
from dataclasses import dataclass
from itertools import pairwise

from torch.optim import Optimizer
from torch.optim.lr_scheduler import LambdaLR, LRScheduler

from lit_xai.types import require, require_at_least, require_positive


class Schedule(abc.ABC):
    """How the learning rate of every parameter group changes over the steps of a run.

    Concrete schedules are final frozen dataclasses.
    """

    @abc.abstractmethod
    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        """Return the scheduler for a run of `steps` optimizer steps."""


@dataclass(frozen=True)
class Cosine(Schedule):
    """Linear rise over the warm-up, then half a cosine down to zero.

    lr * (s + 1) / w for the w steps of the warm-up, then lr * (1 + cos(pi (s - w) / (steps - w))) / 2.

    Args:
        warmup: Share of the steps, from 0 to less than 1.

    Source: Loshchilov and Hutter 2017, arXiv 1608.03983, eq. 5 (one period, down to zero).
    """

    warmup: float = 0.0

    def __post_init__(self) -> None:
        require(0 <= self.warmup < 1, f"`warmup` must be at least 0 and less than 1, got {self.warmup!r}.")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        require_at_least(1, steps=steps)
        rise = min(round(self.warmup * steps), steps - 1)

        def factor(step: int) -> float:
            if step < rise:
                return (step + 1) / rise
            return (1 + math.cos(math.pi * min(1.0, (step - rise) / (steps - rise)))) / 2

        return LambdaLR(optimizer, factor)


@dataclass(frozen=True)
class Steps(Schedule):
    """A constant learning rate that is multiplied by a factor at each milestone.

    Args:
        milestones: Shares of the steps, rising, between 0 and 1.
        factor: Greater than 0.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2 (divided by 10 at half and at three
    quarters).
    """

    milestones: tuple[float, ...] = (0.5, 0.75)
    factor: float = 0.1

    def __post_init__(self) -> None:
        require(
            all(a < b for a, b in pairwise((0.0, *self.milestones, 1.0))),
            f"`milestones` must rise between 0 and 1, got {self.milestones!r}.",
        )
        require_positive(factor=self.factor)

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        require_at_least(1, steps=steps)
        drops = [round(share * steps) for share in self.milestones]
        return LambdaLR(optimizer, lambda step: self.factor ** sum(step >= drop for drop in drops))


@dataclass(frozen=True)
class Triangle(Schedule):
    """Linear rise from zero to the learning rate, and linear fall back to zero.

    lr * s / (peak * steps) up to step peak * steps, then lr * (steps - s) / (steps - peak * steps).

    Args:
        peak: Share of the steps at which the learning rate is reached, between 0 and 1.

    Source: Wong, Rice and Kolter 2020, arXiv 2001.03994, section 5 (after Smith 2017, arXiv 1506.01186).
    """

    peak: float = 0.5

    def __post_init__(self) -> None:
        require(0 < self.peak < 1, f"`peak` must lie between 0 and 1, got {self.peak!r}.")

    def __call__(self, optimizer: Optimizer, steps: int) -> LRScheduler:
        require_at_least(1, steps=steps)
        top = self.peak * steps
        return LambdaLR(optimizer, lambda step: max(0.0, min(step / top, (steps - step) / (steps - top))))
