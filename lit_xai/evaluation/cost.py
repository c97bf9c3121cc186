"""What a training regime costs: its steps and those of standard training, on copies, side by side."""

import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from copy import deepcopy
from dataclasses import dataclass

import torch
from torch import nn
from torch.optim import Optimizer

from lit_xai.evaluation.passes import Counted
from lit_xai.objectives import CrossEntropy, Objective
from lit_xai.types import Images, Labels

Precision = Callable[[], AbstractContextManager[object]]


@dataclass
class Regime:
    """What takes a training step: a network, what it minimises, what moves it.

    Args:
        model: The network, unwrapped.
        objective: Says how many optimizer steps one batch is good for.
        optimizer: Holds the network's parameters.
        precision: Makes the context that losses are computed in, such as autocast.
    """

    model: nn.Module
    objective: Objective
    optimizer: Optimizer
    precision: Precision = nullcontext

    def copy(self) -> "Regime":
        """The same with tensors of its own, compiled as the original is, warmed up in whatever warms up."""
        model, objective, optimizer = deepcopy((self.model, self.objective, self.optimizer))
        for ours, theirs in zip(model.modules(), self.model.modules(), strict=True):
            if theirs._compiled_call_impl is not None:
                ours.compile()
        for part in objective.modules():
            if isinstance(part, Objective):
                part.progress = 1.0
        return Regime(model, objective, optimizer, self.precision)

    def standard(self) -> "Regime":
        """A copy that minimises the cross entropy by the same optimizer, without Bort's constraint."""
        plain = self.copy()
        plain.objective = CrossEntropy()
        for group in plain.optimizer.param_groups:
            group |= {"gamma": 0.0} if "gamma" in group else {}
        return plain

    def is_standard(self) -> bool:
        """Whether there is nothing to compare."""
        constrained = any(group.get("gamma") for group in self.optimizer.param_groups)
        return type(self.objective) is CrossEntropy and not constrained

    def step(self, inputs: Images, target: Labels) -> None:
        """Do all that one batch of the loader is good for."""
        for update in range(self.objective.updates):
            seen, labels = self.objective.share(inputs, target, update)
            self.optimizer.zero_grad()
            with self.precision():
                terms = self.objective(self.model, seen, labels)
                loss = torch.stack(list(terms.values())).sum()
            loss.backward()  # type: ignore[no-untyped-call]
            self.optimizer.step()


@dataclass(frozen=True)
class Cost:
    """What one batch costs under a regime.

    Args:
        relative: Time over that of a standard training step.
        standard: Seconds of the latter.
        forwards: Images passed forward, per image of the batch.
        backwards: Images passed backward, likewise.
    """

    relative: float
    standard: float
    forwards: float
    backwards: float


def cost(regime: Regime, inputs: Images, target: Labels, seconds: float = 1.0) -> Cost:
    """Try one batch on copies: the regime, and standard training, turn by turn.

    The median of some turns, timed where they run: counts of passes or operations, which know neither caches
    nor launches, are 25 % off for small networks. Nothing of the run moves, nor its random state.

    Args:
        regime: What a run is about to do.
        inputs: A training batch.
        target: Its labels.
        seconds: Time to spend beyond the first steps, which warm up; one turn is always timed.
    """
    with aside(inputs.device):
        tried, plain = regime.copy(), regime.standard()
        counted = Counted(tried.model)
        Regime(counted, tried.objective, tried.optimizer, tried.precision).step(inputs, target)
        plain.step(inputs, target)
        ours: list[float] = []
        theirs: list[float] = []
        while not ours or (len(ours) < 30 and sum(ours) + sum(theirs) < seconds):
            theirs.append(timed(plain, inputs, target))
            ours.append(timed(tried, inputs, target))
    size = len(inputs)
    relative = statistics.median(one / other for one, other in zip(ours, theirs, strict=True))
    return Cost(relative, statistics.median(theirs), counted.forwards / size, counted.backwards / size)


def timed(regime: Regime, inputs: Images, target: Labels) -> float:
    """Seconds of one batch: on a CPU those of this process, which no other one moves."""
    if inputs.device.type != "cuda":
        start = time.process_time()
        regime.step(inputs, target)
        return time.process_time() - start
    torch.cuda.synchronize(inputs.device)
    start = time.perf_counter()
    regime.step(inputs, target)
    torch.cuda.synchronize(inputs.device)
    return time.perf_counter() - start


@contextmanager
def aside(device: torch.device) -> Iterator[None]:
    """Gradients on, and the random state forked: what is drawn inside is not missed outside."""
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices), torch.enable_grad():
        yield
