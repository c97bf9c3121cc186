"""A budget of time: looking takes no more than a share of what training took."""

import math
import time

import numpy as np
import torch

MORE = 1.25  # a look takes more images than the last one only if there is time for a quarter more


class Clock:
    """Seconds that an epoch has trained since it began, or since it was last validated."""

    def __init__(self) -> None:
        self.seconds = 0.0
        self._since: float | None = None

    def start(self) -> None:
        """Training begins, or goes on after validation."""
        self.seconds, self._since = 0.0, time.perf_counter()

    def stop(self) -> None:
        """Training rests."""
        self.seconds = 0.0 if self._since is None else time.perf_counter() - self._since


class Budget:
    """Keeps looks within a share of the training time, by looking at fewer images.

    A look ends after the batch in which its time runs out. What it has measured, seconds over images, says
    how many images the next one may take, one at least. Processes agree on each number, the slowest being
    right, so that all of them look at the same images.

    Args:
        share: Share of the seconds that were trained, above 0.
    """

    def __init__(self, share: float) -> None:
        self.share = share
        self.tried = False  # whether an earlier look tells what an image costs
        self.note = ""  # what is to be known of the last look, in one line
        self.allowed = 0.0
        self._probe = 0
        self._images, self._seconds = [0], [0.0]
        self._after = 0.0  # of a look, to gather and write
        self._start = 0.0
        self._told: tuple[int, bool] | None = None

    def begin(self, trained: float, images: int, device: torch.device) -> int:
        """Begin a look; return how many of the images it may take.

        Args:
            trained: Seconds that this process trained.
            images: Images in the probe.
            device: Where processes meet.
        """
        self._start = _now(device)
        self.allowed, self._probe = -slowest(-self.share * trained, device), images
        self.tried = len(self._images) > 1
        planned = self.plan(images)
        self._images, self._seconds = [0], [0.0]
        return planned

    def plan(self, images: int) -> int:
        """Images that the seconds allow, by what the last look measured; all of them at the first look."""
        if len(self._images) < 2:
            return images
        left, last = self.allowed - self._after, self._images[-1]
        if left <= self._seconds[-1]:
            planned = float(np.interp(left, self._seconds, self._images))
        else:  # beyond what was measured, at the pace of its last batch
            pace = (self._seconds[-1] - self._seconds[-2]) / (last - self._images[-2])
            planned = last + (left - self._seconds[-1]) / max(pace, 1e-9)
        # Looks at the same images can be compared: a few more are not worth the change.
        return last if last < planned < min(images, MORE * last) else int(min(images, max(1, planned)))

    def over(self, images: int, device: torch.device) -> bool:
        """Whether the time has run out, once so many images of the probe were looked at."""
        self._images.append(images)
        self._seconds.append(slowest(_now(device) - self._start, device))
        return self._seconds[-1] >= self.allowed

    def end(self, device: torch.device) -> str:
        """End a look, with all that it has written; return what there is to say that was not said before."""
        spent = slowest(_now(device) - self._start, device)
        self._after = spent - self._seconds[-1]
        taken, over = self._images[-1], spent > MORE * self.allowed
        time_ = "of the training time of an epoch"
        self.note = f"explained {taken} of {self._probe} images, to take {self.share:.0%} {time_} at most"
        if over:
            part = spent / self.allowed * self.share if self.allowed else math.inf
            self.note = (
                f"explained {taken} of {self._probe} images in {part:.0%} {time_}, not {self.share:.0%}"
            )
            self.note += ": not one fits, name fewer methods or metrics" if taken == 1 else ""
        elif taken == self._probe:
            self.note = ""
        before, self._told = self._told or (self._probe, False), (taken, over)
        return "" if before == self._told else self.note or f"explained all {taken} images"


def slowest(seconds: float, device: torch.device) -> float:
    """The largest of a number over all processes."""
    if not (torch.distributed.is_available() and torch.distributed.is_initialized()):
        return seconds
    shared = torch.tensor(seconds, dtype=torch.float64, device=device)
    torch.distributed.all_reduce(shared, torch.distributed.ReduceOp.MAX)
    return float(shared)


def _now(device: torch.device) -> float:
    """Seconds, once all that a device was asked to do is done."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    return time.perf_counter()
