"""The pass meter: what an explanation costs, in passes of the model, and how well the time is spent.

One unit is one image through the model once: a forward pass costs 1, an input gradient 1 more. Gradients of
weights are not counted. Meter the module that does the work, not a wrapper that calls it several times.
"""

import platform
import statistics
import subprocess
import time
from collections.abc import Callable
from contextlib import AbstractContextManager
from dataclasses import dataclass
from datetime import UTC, datetime
from types import TracebackType
from typing import Any

import torch
from torch import Tensor, nn

import lit_xai


class Meter(AbstractContextManager["Meter"]):
    """Counts the images that pass a model, forwards and backwards, while the context is open.

    A backward pass counts when a gradient arrives at the output of the model, once for each gradient taken,
    with all images of that call, whether or not their gradient is zero: that is what it costs. Gradients
    taken several at once (`is_grads_batched`) count once.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.forwards = 0
        self.backwards = 0
        self.calls = 0

    @property
    def units(self) -> int:
        return self.forwards + self.backwards

    def __enter__(self) -> "Meter":
        self._handle = self.model.register_forward_hook(self._seen)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._handle.remove()

    def _seen(self, model: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        images = len(output)
        self.calls += 1
        self.forwards += images
        if output.requires_grad:
            output.register_hook(lambda gradient: self._returned(images))

    def _returned(self, images: int) -> None:
        self.backwards += images


@dataclass(frozen=True)
class Efficiency:
    """How much of the measured time the model itself would need for the same passes.

    Args:
        forwards: Images passed forwards by one call of the function.
        backwards: Images passed backwards by one call.
        bare_forward: Seconds of one forward pass of the batch without gradients, median.
        bare_gradient: Seconds of one forward pass and input gradient of the batch, median.
        seconds: Seconds of one call of the function, median.
        batch: Images in the batch of the bare passes.
    """

    forwards: int
    backwards: int
    bare_forward: float
    bare_gradient: float
    seconds: float
    batch: int

    @property
    def units(self) -> int:
        return self.forwards + self.backwards

    @property
    def ratio(self) -> float:
        """Counted passes times the time of a bare pass, by the measured time.

        Forward passes have the price of a bare one, gradients what a bare gradient takes on top of that.
        """
        bare = (self.forwards - self.backwards) * self.bare_forward + self.backwards * self.bare_gradient
        return bare / self.batch / self.seconds

    def row(self) -> dict[str, float]:
        return {name: getattr(self, name) for name in self.__dataclass_fields__} | {
            "units": self.units,
            "ratio": self.ratio,
        }


def efficiency(fn: Callable[[], object], model: nn.Module, batch: Tensor, repeats: int = 7) -> Efficiency:
    """Meter one call of `fn`, then time it in turn with bare passes of the batch.

    All three are timed in each round, so that a machine that speeds up or slows down does so for all of them.
    Threads are as set (`torch.get_num_threads`); the benchmarks here run with one.
    """
    with Meter(model) as meter:
        fn()
    # Each is called as often in a round as it takes to be long enough for the clock.
    parts = (lambda: bare_forward(model, batch), lambda: bare_gradient(model, batch), fn)
    for part in parts:
        part()
    times = [max(1, round(0.2 / max(clock(part), 1e-6))) for part in parts]
    rounds = [[clock(*part) for part in zip(parts, times, strict=True)] for _ in range(repeats)]
    forward, gradient, seconds = (statistics.median(column) for column in zip(*rounds, strict=True))
    return Efficiency(meter.forwards, meter.backwards, forward, gradient, seconds, len(batch))


def bare_forward(model: nn.Module, batch: Tensor) -> None:
    with torch.no_grad():
        model(batch)


def bare_gradient(model: nn.Module, batch: Tensor) -> None:
    with torch.enable_grad():
        points = batch.detach().requires_grad_()
        logits = model(points)
        torch.autograd.grad(logits, points, torch.ones_like(logits))


def clock(fn: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call, from `times` calls in a row, with the accelerator waited for."""
    _wait()
    start = time.perf_counter()
    for _ in range(times):
        fn()
    _wait()
    return (time.perf_counter() - start) / times


def machine() -> dict[str, str | int]:
    """Where and with what a figure was measured; it stands in every file of results."""
    return {
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "processor": _processor(),
        "device": torch.cuda.get_device_name() if torch.cuda.is_available() else "cpu",
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "lit_xai": lit_xai.__version__,
        "commit": _commit(),
    }


def _wait() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


def _processor() -> str:
    try:
        with open("/proc/cpuinfo") as lines:
            return next(line.split(":", 1)[1].strip() for line in lines if line.startswith("model name"))
    except (OSError, StopIteration):
        return platform.processor() or platform.machine()


def _commit() -> str:
    try:
        done = subprocess.run(["git", "describe", "--always", "--dirty"], capture_output=True, text=True)
    except OSError:
        return "unknown"
    return done.stdout.strip() or "unknown"
