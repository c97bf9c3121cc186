"""Learning rates over a run, read off the optimizer."""

import math

import pytest
import torch
from torch import nn

from lit_xai.optim import Cosine, Schedule, Steps, Triangle


def rates(schedule: Schedule, steps: int, lr: float = 0.5) -> list[float]:
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=lr)
    scheduler = schedule(optimizer, steps)
    seen = []
    for _ in range(steps):
        seen.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return [*seen, optimizer.param_groups[0]["lr"]]


def test_cosine_is_torchs_cosine():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=20)
    theirs = []
    for _ in range(21):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    assert rates(Cosine(), 20) == pytest.approx(theirs, abs=1e-12)


def test_cosine_rises_first():
    seen = rates(Cosine(warmup=0.25), 40)
    assert seen[:10] == pytest.approx([0.05 * (s + 1) for s in range(10)])
    assert seen[10:] == pytest.approx([0.25 * (1 + math.cos(math.pi * s / 30)) for s in range(31)])


def test_a_single_step_is_taken_at_the_full_rate():
    assert rates(Cosine(warmup=0.9), 1)[0] == 0.5


def test_steps_drop_at_their_shares():
    seen = rates(Steps(milestones=(0.5, 0.75), factor=0.1), 8)
    assert seen == pytest.approx([0.5] * 4 + [0.05] * 2 + [0.005] * 3)


def test_triangle_is_torchs_cycle():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5, momentum=0.9)
    cycle = torch.optim.lr_scheduler.CyclicLR(optimizer, 0.0, 0.5, step_size_up=6, step_size_down=14)
    theirs = []
    for _ in range(20):
        theirs.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        cycle.step()
    assert rates(Triangle(peak=0.3), 20) == pytest.approx([*theirs, 0.0], abs=1e-12)


def test_a_schedule_goes_on_from_its_state():
    optimizer = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    scheduler = Cosine(warmup=0.2)(optimizer, 10)
    for _ in range(4):
        optimizer.step()
        scheduler.step()
    again = torch.optim.SGD([nn.Parameter(torch.zeros(1))], lr=0.5)
    resumed = Cosine(warmup=0.2)(again, 10)
    resumed.load_state_dict(scheduler.state_dict())
    again.load_state_dict(optimizer.state_dict())
    for one, other in ((optimizer, scheduler), (again, resumed)):
        one.step()
        other.step()
    assert again.param_groups[0]["lr"] == optimizer.param_groups[0]["lr"]


@pytest.mark.parametrize("schedule", [Cosine(), Cosine(0.1), Steps(), Steps((0.3,), 0.5), Triangle(0.4)])
def test_the_repr_builds_the_schedule(schedule):
    assert eval(repr(schedule)) == schedule


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Cosine(warmup=1.0), "`warmup` must be at least 0 and less than 1, got 1.0"),
        (lambda: Steps(milestones=(0.75, 0.5)), "`milestones` must rise between 0 and 1"),
        (lambda: Steps(milestones=(0.5, 1.0)), "`milestones` must rise between 0 and 1"),
        (lambda: Triangle(peak=1.0), "`peak` must lie between 0 and 1, got 1.0"),
        (lambda: Steps(factor=0.0), "`factor` must be greater than 0"),
        (lambda: rates(Cosine(), 0), "`steps` must be at least 1, got 0"),
    ],
)
def test_values_out_of_range_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
