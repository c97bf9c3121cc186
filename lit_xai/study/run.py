"""Carries out a plan: every run a process of its own, what is finished skipped, what fails reported."""

import abc
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, TYPE_CHECKING, Any

from lit_xai.study.plan import Plan, Run
from lit_xai.study.progress import Outcome, Pace, Stopped, Watch, epochs_done
from lit_xai.study.record import read_json
from lit_xai.study.tables import write_whole

if TYPE_CHECKING:
    from rich.console import Console


class Runner(abc.ABC):
    """Carries out runs, each a process of its own; all it shares with them are their folders."""

    @abc.abstractmethod
    def __call__(self, runs: Sequence[Run], watch: Watch) -> None:
        """Carry out the runs; tell the watch of each start and end, and let it tick in between.

        A run that fails is an outcome and no exception. `watch.tick` raises `Stopped` when the study is to
        stop: whatever exception arrives, processes are ended before it goes on.
        """


def fit_command(run: Run) -> list[str]:
    """The command of a run."""
    return [sys.executable, "-m", "lit_xai", *run.arguments]


@dataclass(frozen=True)
class LocalProcesses(Runner):
    """Runs on this machine, a few at a time; the cores are split between them.

    Args:
        workers: How many at a time.
        command: Builds the command of a run.
        grace: Seconds that runs get to save their state after an interrupt.
        pause: Seconds between two looks at the processes.
    """

    workers: int = 1
    command: Callable[[Run], Sequence[str]] = fit_command
    grace: float = 60.0
    pause: float = 0.2

    def __call__(self, runs: Sequence[Run], watch: Watch) -> None:
        waiting = deque(runs)
        running: dict[Run, tuple[subprocess.Popen[bytes], float]] = {}
        threads = max(1, cores() // max(1, min(self.workers, len(runs))))
        try:
            while waiting or running:
                while waiting and len(running) < self.workers:
                    run = waiting.popleft()
                    running[run] = self.start(run, threads), time.monotonic()
                    watch.started(run)
                for run in [run for run, (process, _) in running.items() if process.poll() is not None]:
                    process, since = running.pop(run)
                    watch.ended(conclude(run, process.returncode, time.monotonic() - since))
                watch.tick()
                time.sleep(self.pause if running else 0)
        except BaseException as error:
            if running:
                watch.say(f"Stopping {len(running)} runs; they save their state first …")
            self.stop([process for process, _ in running.values()])
            for run, (process, since) in running.items():
                outcome = conclude(run, process.returncode, time.monotonic() - since)
                if outcome.state == "failed" and isinstance(error, Stopped):
                    mark(run, "interrupted")
            raise

    def start(self, run: Run, threads: int) -> "subprocess.Popen[bytes]":
        """Start a run in a process group of its own, so that an interrupt reaches it once, from here."""
        command = [str(part) for part in self.command(run)]
        environment = {"OMP_NUM_THREADS": str(threads), "PYTHONUNBUFFERED": "1"} | os.environ
        run.folder.mkdir(parents=True, exist_ok=True)
        mark(run, "running")
        with open_log(run) as log:
            log.write(f"\n$ {' '.join(command)}\n".encode())
            log.flush()
            return subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                env=environment,
                process_group=0,
            )

    def stop(self, processes: Sequence["subprocess.Popen[bytes]"]) -> None:
        """Interrupt, then terminate, then kill; a second interrupt from the user kills at once."""
        try:
            for process in processes:
                if process.poll() is None:
                    process.send_signal(signal.SIGINT)
            if not ended_within(processes, self.grace):
                for process in processes:
                    signal_group(process, signal.SIGTERM)
                ended_within(processes, self.grace / 4)
        finally:
            for process in processes:
                signal_group(process, signal.SIGKILL)
            for process in processes:
                process.wait()


def run_plan(plan: Plan, runner: Runner | None = None, console: "Console | None" = None) -> int:
    """Carry out a plan, write its report, and print where it lies and its headline table.

    Args:
        plan: What to run.
        runner: Carries out the runs; processes on this machine by default.
        console: Where to write; standard output by default.

    Returns:
        The exit status: 0; 1 if a run failed; 128 + signal if one stopped the study (130 for Ctrl-C).
    """
    from rich.console import Console

    from lit_xai.study.report import report_plan

    console = console or Console()
    runs = plan.runs()
    outcomes = [Outcome(run, "skipped") for run in runs if finished(run)]
    skipped = {outcome.run for outcome in outcomes}
    pending = [run for run in runs if run not in skipped]
    moved = prepare(plan, pending)
    pace = Pace(max(1, min(plan.workers, len(pending))), known_speeds(outcomes))
    watch = Watch(runs, outcomes, pace, console)
    for run, place in moved.items():
        watch.say(f"{run.name} was made with other settings: its folder is now {place}")
    try:
        with stoppable(watch), watch:
            (runner or LocalProcesses(plan.workers))(pending, watch)
        report_plan(plan, console)
    except (Stopped, KeyboardInterrupt) as stop:
        done = sum(finished(run) for run in runs)
        again = f"lit-xai study run {plan.source}" if plan.source else "the same command"
        watch.say(f"Stopped: {done} of {len(runs)} runs are finished and kept. To go on: {again}")
        return 128 + (stop.signum if isinstance(stop, Stopped) else signal.SIGINT)
    failed = [outcome for outcome in watch.outcomes if outcome.state not in ("finished", "skipped")]
    for outcome in failed:
        watch.say(watch.told(outcome))
    return 1 if failed else 0


def prepare(plan: Plan, pending: Sequence[Run]) -> dict[Run, Path]:
    """Make the folders of runs, or say in one line why that cannot be; answers with what was set aside."""
    try:
        moved = {run: place for run in pending if (place := set_aside(run))}
        for order, run in enumerate(plan.runs()):
            if run in pending:
                claim(run, plan, order)
    except OSError as error:
        where = error.filename or plan.out
        raise ValueError(f"`out`: nothing can be written to `{where}`: {error.strerror or error}.") from None
    return moved


def read_or_empty(path: Path) -> dict[str, Any]:
    """A JSON object, or an empty one where the file is absent or broken."""
    try:
        return read_json(path)
    except (OSError, ValueError):
        return {}


def finished(run: Run) -> bool:
    """Whether the run's folder holds this very run, finished."""
    status, study = read_or_empty(run.folder / "status.json"), read_or_empty(run.folder / "study.json")
    return status.get("state") == "finished" and study.get("fingerprint") == run.fingerprint


def set_aside(run: Run) -> Path | None:
    """Move away a folder that was made with other settings: a resume would mix two configurations."""
    study = read_or_empty(run.folder / "study.json")
    used = run.folder.is_dir() and any(run.folder.iterdir())
    if not used or study.get("fingerprint") == run.fingerprint:
        return None
    shelf = run.folder.parent / "superseded"
    shelf.mkdir(exist_ok=True)
    taken = {path.name for path in shelf.iterdir()}
    number = next(k for k in range(1, len(taken) + 2) if f"{run.folder.name}.{k}" not in taken)
    return run.folder.rename(shelf / f"{run.folder.name}.{number}")


def claim(run: Run, plan: Plan, order: int) -> None:
    """Write down whose run this is."""
    note = {
        "study": plan.name,
        "order": order,
        "regime": run.regime,
        "seed": run.seed,
        "arguments": list(run.arguments),
        "fingerprint": run.fingerprint,
    }
    write_whole(run.folder / "study.json", json.dumps(note, indent=2) + "\n")


def mark(run: Run, state: str, error: str | None = None) -> None:
    """Write a run's state while its own process is not there to do so."""
    path = run.folder / "status.json"
    status = {"epoch": 0, "epochs": 0, "seconds": 0.0} | read_or_empty(path)
    write_whole(path, json.dumps(status | {"state": state, "error": error}) + "\n")


def conclude(run: Run, code: int, seconds: float) -> Outcome:
    """How a run ended; where its process could not say so itself, its status is corrected."""
    status = read_or_empty(run.folder / "status.json")
    if code == 0 and status.get("state") == "finished":
        return Outcome(run, "finished", seconds)
    if status.get("state") == "interrupted":
        return Outcome(run, "interrupted", seconds, "interrupted from outside")
    error = status.get("error") if status.get("state") == "failed" else None
    if not error and code < 0:
        hint = ", often for want of memory" if -code == signal.SIGKILL else ""
        error = f"ended by {signal.Signals(-code).name}{hint}"
    if not error:
        error = last_line(run) or f"exit status {code}"
        error = "ended without finishing" if code == 0 else error
    mark(run, "failed", error)
    return Outcome(run, "failed", seconds, " ".join(str(error).split()))


def last_line(run: Run) -> str:
    """The last line of the log that says something."""
    try:
        text = (run.folder / "log.txt").read_bytes()[-20000:].decode(errors="replace")
    except OSError:
        return ""
    plain = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", text).replace("\r", "\n")
    lines = [line.strip() for line in plain.splitlines() if re.search(r"\w", line)]
    return lines[-1][:300] if lines and not lines[-1].startswith("$ ") else ""


def open_log(run: Run) -> IO[bytes]:
    """The run's log, which grows with each attempt."""
    return (run.folder / "log.txt").open("ab")


def known_speeds(outcomes: Sequence[Outcome]) -> dict[str, tuple[float, int]]:
    """Seconds per epoch and epochs, by regime, of runs that had finished before."""
    known = {}
    for outcome in outcomes:
        status = read_or_empty(outcome.run.folder / "status.json")
        epochs = epochs_done(outcome.run)[1]
        seconds = status.get("seconds")
        if epochs and isinstance(seconds, (int, float)) and seconds > 0:
            known[outcome.run.regime] = (seconds / epochs, epochs)
    return known


def cores() -> int:
    """Cores that this process may use."""
    affinity = getattr(os, "sched_getaffinity", None)
    return len(affinity(0)) if affinity else os.cpu_count() or 1


def ended_within(processes: Sequence["subprocess.Popen[bytes]"], seconds: float) -> bool:
    """Whether all processes end within so many seconds."""
    limit = time.monotonic() + seconds
    while any(process.poll() is None for process in processes):
        if time.monotonic() > limit:
            return False
        time.sleep(0.05)
    return True


def signal_group(process: "subprocess.Popen[bytes]", signum: signal.Signals) -> None:
    """Signal a process and all it has started."""
    try:
        os.killpg(process.pid, signum)
    except (ProcessLookupError, PermissionError):
        return


@contextmanager
def stoppable(watch: Watch) -> Iterator[None]:
    """Let SIGINT, SIGTERM and SIGHUP stop the watch at its next tick; a second signal interrupts at once.

    The first one only leaves a note, so that it never falls between the start of a process and its entry in
    the books.
    """

    def stop(signum: int, frame: FrameType | None) -> None:
        if watch.stop:
            raise Stopped(signum)
        watch.stop = signum

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.getsignal(signum) for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)}
    heard = [s for s, old in before.items() if s == signal.SIGINT or old != signal.SIG_IGN]
    try:
        for signum in heard:
            signal.signal(signum, stop)
        yield
    finally:
        for signum in heard:
            signal.signal(signum, before[signum])
