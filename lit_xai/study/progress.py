"""What is left, and how it is shown: a bar on a terminal, one line per event elsewhere."""

import json
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

from lit_xai.study.plan import Run

if TYPE_CHECKING:
    from rich.console import Console


class Stopped(BaseException):
    """A signal asked the study to stop.

    Args:
        signum: Which.
    """

    def __init__(self, signum: int) -> None:
        super().__init__(signum)
        self.signum = signum


@dataclass(frozen=True)
class Outcome:
    """How a run ended.

    Args:
        run: Which.
        state: "skipped" where it had finished before.
        seconds: Wall time of this attempt.
        error: What ended it, in one line, or None.
    """

    run: Run
    state: Literal["finished", "skipped", "failed", "interrupted"]
    seconds: float = 0.0
    error: str | None = None


@dataclass
class Trip:
    """How far a run is, and since when.

    Args:
        started: Clock at its start, or None while it waits.
        first: (clock, epochs done) when it was first seen.
        latest: (clock, epochs done) when its count last changed.
        epochs: Epochs it is to do; 0 while unknown.
        ended: Clock at its end, or None.
    """

    started: float | None = None
    first: tuple[float, int] = (0.0, 0)
    latest: tuple[float, int] = (0.0, 0)
    epochs: int = 0
    ended: float | None = None


@dataclass
class Pace:
    """Estimates the seconds left from the epochs done so far, and from nothing else.

    Seconds per epoch are measured per regime; a regime that has not been measured is taken to be as slow as
    the mean of those that have. Runs that wait are dealt to the next free worker.

    Args:
        workers: How many runs train at the same time.
        known: Seconds per epoch by regime, and epochs, of runs that had finished before.
    """

    workers: int
    known: dict[str, tuple[float, int]] = field(default_factory=dict)
    trips: dict[Run, Trip] = field(default_factory=dict)

    def plan(self, run: Run) -> None:
        """Announce a run."""
        self.trips[run] = Trip()

    def start(self, run: Run, epoch: int, now: float) -> None:
        """A run has started, with some epochs done before."""
        self.trips[run] = Trip(now, (now, epoch), (now, epoch), self.trips[run].epochs)

    def observe(self, run: Run, epoch: int, epochs: int, now: float) -> None:
        """A run has done so many epochs out of so many."""
        trip = self.trips[run]
        trip.epochs = max(epochs, epoch) or trip.epochs
        if epoch > trip.latest[1]:
            trip.latest = (now, epoch)

    def end(self, run: Run, now: float) -> None:
        """A run has ended, well or not."""
        self.trips[run].ended = now

    def left(self, now: float) -> float | None:
        """Seconds until all is done; None until an epoch has been measured."""
        speeds = self.speeds()
        if not speeds:
            return None
        usual = statistics.fmean(speeds.values())
        length = max((trip.epochs for trip in self.trips.values()), default=0) or max(
            (epochs for _, epochs in self.known.values()), default=0
        )
        busy, waiting = [], []
        for run, trip in self.trips.items():
            speed = speeds.get(run.regime, usual)
            if trip.ended is not None:
                continue
            if trip.started is None:
                waiting.append(speed * (trip.epochs or length))
            else:
                since = now - trip.latest[0]
                busy.append(max(0.0, speed * ((trip.epochs or length) - trip.latest[1]) - since))
        free = sorted(busy + [0.0] * (self.workers - len(busy)))
        for seconds in waiting:
            free = sorted([free[0] + seconds, *free[1:]])
        return free[-1]

    def speeds(self) -> dict[str, float]:
        """Seconds per epoch, by regime."""
        seen: dict[str, list[float]] = {}
        for run, trip in self.trips.items():
            epochs = trip.latest[1] - trip.first[1]
            if trip.started is not None and epochs > 0:
                end = trip.ended if trip.ended is not None else trip.latest[0]
                seen.setdefault(run.regime, []).append((end - trip.started) / epochs)
        measured = {regime: statistics.fmean(values) for regime, values in seen.items()}
        return {regime: seconds for regime, (seconds, _) in self.known.items()} | measured


class Watch:
    """Shows how a study goes on: a bar with an estimate on a terminal, one line per event elsewhere.

    Args:
        runs: All runs of the plan.
        outcomes: Those that need not be done.
        pace: Estimates what is left.
        console: Where to write.
        clock: Seconds, growing.
    """

    def __init__(
        self,
        runs: Sequence[Run],
        outcomes: Sequence[Outcome],
        pace: Pace,
        console: "Console",
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        from rich import progress

        self.outcomes = list(outcomes)
        self.count = len(runs)
        self.pace = pace
        self.console = console
        self.clock = clock
        self.stop = 0  # the signal that asked to stop
        self.bar = progress.Progress(
            progress.TextColumn("{task.description}"),
            progress.BarColumn(),
            progress.TextColumn("{task.fields[epochs]}"),
            progress.TimeElapsedColumn(),
            progress.TextColumn("{task.fields[left]}"),
            console=console,
            disable=not console.is_terminal,
            transient=True,
        )
        self.total = self.bar.add_task("", total=None, epochs="", left="")
        self.tasks: dict[Run, Any] = {}
        for run in runs:
            if run not in {outcome.run for outcome in outcomes}:
                self.pace.plan(run)
        for outcome in outcomes:
            self.say(f"{outcome.run.name} had finished before: skipped")

    def __enter__(self) -> "Watch":
        self.bar.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.bar.stop()

    def say(self, text: str) -> None:
        """One line, above the bar."""
        self.console.print(text, highlight=False, markup=False, soft_wrap=True)

    def started(self, run: Run) -> None:
        """A run has been started."""
        epoch = epochs_done(run)[0]
        self.pace.start(run, epoch, self.clock())
        again = f", goes on from epoch {epoch}" if epoch else ""
        if self.bar.disable:
            self.say(f"{run.name} started{again} ({self.place()})")
        elif again:
            self.say(f"{run.name}{again}")
        self.tasks[run] = self.bar.add_task(f"  {run.name}", total=None, epochs="starting", left="")

    def ended(self, outcome: Outcome) -> None:
        """A run has ended."""
        epoch, epochs = epochs_done(outcome.run)
        self.pace.observe(outcome.run, epoch, epochs, self.clock())
        self.pace.end(outcome.run, self.clock())
        self.outcomes.append(outcome)
        self.bar.remove_task(self.tasks.pop(outcome.run))
        self.say(f"{self.told(outcome)} ({self.place()})")

    def tick(self) -> None:
        """Look at the folders of the runs and redraw; raises `Stopped` once the study is to stop."""
        if self.stop:
            raise Stopped(self.stop)
        for run, task in self.tasks.items():
            epoch, epochs = epochs_done(run)
            self.pace.observe(run, epoch, epochs, self.clock())
            if epochs:
                self.bar.update(task, completed=epoch, total=epochs, epochs=f"{epoch}/{epochs} epochs")
        trips = self.pace.trips.values()
        usual = max((trip.epochs for trip in trips), default=0)
        total = sum(trip.epochs or usual for trip in trips)
        done = sum(trip.latest[1] if trip.ended is None else trip.epochs or usual for trip in trips)
        self.bar.update(
            self.total,
            description=f"{len(self.outcomes)} of {self.count} runs",
            completed=done,
            total=total or None,
            epochs=f"{done}/{total} epochs" if total else "",
            left=remaining(self.pace.left(self.clock())),
        )

    def told(self, outcome: Outcome) -> str:
        """How a run ended, why, and where its log lies."""
        reason = f": {outcome.error}; log: {outcome.run.folder / 'log.txt'}" if outcome.error else ""
        return f"{outcome.run.name} {outcome.state} after {duration(outcome.seconds)}{reason}"

    def place(self) -> str:
        """How many runs are done, and what is left."""
        done = f"{len(self.outcomes)} of {self.count} runs done"
        over = len(self.outcomes) == self.count
        return done if over else f"{done}, {remaining(self.pace.left(self.clock()))}"


def epochs_done(run: Run) -> tuple[int, int]:
    """(epochs done, epochs to do), as the run's folder says; zeros where it does not say."""
    try:
        status = json.loads((run.folder / "status.json").read_text(encoding="utf-8"))
        return max(0, int(status["epoch"])), max(0, int(status["epochs"]))
    except (OSError, ValueError, KeyError, TypeError):
        return 0, 0


def remaining(seconds: float | None) -> str:
    """An estimate in words."""
    if seconds is None:
        return "estimating what is left"
    return f"about {duration(seconds)} left" if seconds >= 1 else "almost done"


def duration(seconds: float) -> str:
    """Seconds, minutes or hours, whichever reads best."""
    if seconds < 90:
        return f"{seconds:.0f} s"
    if seconds < 5400:
        return f"{seconds / 60:.0f} min"
    return f"{int(seconds) // 3600} h {int(seconds) % 3600 // 60:02d} min"
