"""Several processes of one command that need nothing of each other: which one this is, and starting them."""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress

# Of torchrun and `launch`; of srun, within a step: a batch script by itself is one process.
_NAMES = (("RANK", "WORLD_SIZE"), ("SLURM_PROCID", "SLURM_STEP_NUM_TASKS"))


def place(environment: Mapping[str, str] = os.environ) -> tuple[int, int]:
    """(rank, ranks) of this process, as torchrun, srun or `launch` say it; (0, 1) for one that is alone."""
    for rank, ranks in _NAMES:
        if rank in environment and ranks in environment:
            return int(environment[rank]), int(environment[ranks])
    return 0, 1


def launch(words: Sequence[str], count: int) -> int:
    """Run a command in `count` processes of this machine, which share its cores.

    Returns:
        0, or the status of the first process that failed: the others are then stopped.
    """
    threads = str(max(1, (os.cpu_count() or 1) // count))
    shared = {"OMP_NUM_THREADS": threads, **os.environ, "WORLD_SIZE": str(count)}
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))
    children = [
        subprocess.Popen(
            [sys.executable, "-m", "lit_xai", *words],
            env={**shared, "RANK": str(rank), "LOCAL_RANK": str(rank)},
        )
        for rank in range(count)
    ]
    try:
        return _outcome(children)
    except KeyboardInterrupt:  # the terminal has told the children too: they end by themselves
        with suppress(subprocess.TimeoutExpired):
            for child in children:
                child.wait(10)
        return 130
    finally:
        for child in children:
            child.terminate()  # does nothing to one that has ended
            child.wait()
        signal.signal(signal.SIGTERM, before)


def _outcome(children: Sequence["subprocess.Popen[bytes]"]) -> int:
    while True:
        states = [child.poll() for child in children]
        failed = next((state for state in states if state), 0)
        if failed or None not in states:
            return failed if failed >= 0 else 128 - failed  # as a shell counts signals
        time.sleep(0.1)
