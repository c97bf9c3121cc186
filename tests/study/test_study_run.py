import io
import json
import os
import re
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest
from rich.console import Console

from lit_xai.study import LocalProcesses, Plan, run_plan
from lit_xai.study.plan import Run
from lit_xai.study.progress import Outcome, Pace, Watch, duration, remaining
from lit_xai.study.run import cores, fit_command

# Stands in for `lit-xai fit`: epochs of a given length, resumable, interruptible; regimes that end badly.
FAKE_FIT = """
import json, os, sys, time
from pathlib import Path
folder, regime, epochs, pause = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]), float(sys.argv[4])
def write(state, epoch, error=None):
    status = {"state": state, "epoch": epoch, "epochs": epochs, "seconds": epoch * pause, "error": error}
    (folder / "part").write_text(json.dumps(status)); (folder / "part").replace(folder / "status.json")
done = folder / "done.txt"
first = len(done.read_text().split()) if done.exists() else 0
print("threads", os.environ["OMP_NUM_THREADS"], "from", first)
epoch = first
try:
    write("running", epoch)
    for epoch in range(first, epochs):
        if regime == "raises" and epoch == 1:
            raise RuntimeError("the loss is not finite")
        if regime == "says" and epoch == 1:
            write("failed", epoch, "ValueError: it said so itself"); sys.exit(3)
        if regime == "killed":
            os.kill(os.getpid(), 9)
        if regime == "silent":
            sys.exit(0)
        time.sleep(pause)
        with done.open("a") as f: f.write(f"{epoch}\\n")
        write("running", epoch + 1)
    write("finished", epochs)
except KeyboardInterrupt:
    write("interrupted", epoch, None); sys.exit(1)
"""


@pytest.fixture
def plan(tmp_path):
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / "fake_fit.py").write_text(FAKE_FIT)

    def plan(*regimes, seeds=(0,), workers=2, **more):
        files = (tmp_path / "a.yaml",)
        return Plan("demo", tmp_path / "out", dict.fromkeys(regimes, files), seeds, workers=workers, **more)

    return plan


def local(plan, pause=0.02, epochs=2):
    script = Path(plan.out).parent / "fake_fit.py"

    def command(run):
        return [sys.executable, str(script), str(run.folder), run.regime, str(epochs), str(pause)]

    return LocalProcesses(plan.workers, command, grace=10, pause=0.02)


def carry_out(plan, runner=None):
    console = Console(file=io.StringIO(), width=200)
    code = run_plan(plan, runner or local(plan), console)
    return code, console.file.getvalue()


def status(plan, name):
    return json.loads((plan.out / name / "status.json").read_text())


def test_the_command_is_fit_with_this_python(plan):
    run = plan("standard").runs()[0]
    assert fit_command(run)[:4] == [sys.executable, "-m", "lit_xai", "fit"]
    assert fit_command(run)[-2:] == ["--resume", "true"]


def test_one_failing_run_does_not_stop_the_others(plan, monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    study = plan("raises", "says", "killed", "silent", "standard")
    code, text = carry_out(study)
    assert code == 1
    assert status(study, "standard-seed0")["state"] == "finished"
    log = study.out / "raises-seed0" / "log.txt"
    assert f"s: RuntimeError: the loss is not finite; log: {log}" in text
    for name, error in {
        "says": "ValueError: it said so itself",
        "killed": "ended by SIGKILL, often for want of memory",
        "silent": "ended without finishing",
    }.items():
        assert re.search(rf"{name}-seed0 failed after \d+ s: {error}; log: ", text)
    assert status(study, "raises-seed0")["error"] == "RuntimeError: the loss is not finite"
    assert f"threads {max(1, cores() // 2)} from 0" in log.read_text()
    report = (study.out / "report.html").read_text()
    assert "the loss is not finite" in report
    assert f"Report: {study.out / 'report.html'}" in text


def test_finished_runs_are_skipped_and_said_so(plan):
    study = plan("standard", "robust")
    assert carry_out(study)[0] == 0
    before = (study.out / "standard-seed0" / "done.txt").stat().st_mtime_ns
    code, text = carry_out(study)
    assert code == 0
    assert "standard-seed0 had finished before: skipped" in text
    assert "started" not in text
    assert (study.out / "standard-seed0" / "done.txt").stat().st_mtime_ns == before


def test_failed_runs_are_tried_again_and_go_on(plan, tmp_path):
    study = plan("raises", "standard")
    assert carry_out(study)[0] == 1
    (tmp_path / "fake_fit.py").write_text(FAKE_FIT.replace('"raises" and', '"mended" and'))
    code, text = carry_out(study)
    assert code == 0
    assert "raises-seed0 started, goes on from epoch 1" in text
    assert "from 1" in (study.out / "raises-seed0" / "log.txt").read_text()


def test_other_settings_start_afresh_and_nothing_is_lost(plan):
    carry_out(plan("standard"))
    changed = plan("standard", overrides={"trainer.max_epochs": 3})
    code, text = carry_out(changed)
    assert code == 0
    old = changed.out / "superseded" / "standard-seed0.1"
    assert f"standard-seed0 was made with other settings: its folder is now {old}" in text
    assert (old / "done.txt").read_text() == "0\n1\n"
    assert "from 0" in (changed.out / "standard-seed0" / "log.txt").read_text()
    carry_out(plan("standard"))
    assert (changed.out / "superseded" / "standard-seed0.2").is_dir()


def test_an_unwritable_folder_is_one_line(plan):
    study = plan("standard")
    study.out.write_text("a file where the folder should be")
    with pytest.raises(ValueError, match="`out`: nothing can be written to"):
        carry_out(study)


DRIVER = """
import sys
sys.path.insert(0, {tests!r})
from pathlib import Path
from test_study_run import local
from lit_xai.study import load_plan, run_plan
plan = load_plan({plan!r})
sys.exit(run_plan(plan, local(plan, pause=float(sys.argv[1]), epochs=int(sys.argv[2]))))
"""


@pytest.mark.slow
@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupt_keeps_what_is_done_and_the_next_run_goes_on(tmp_path, signum):
    (tmp_path / "fake_fit.py").write_text(FAKE_FIT)
    (tmp_path / "a.yaml").write_text("a: 1\n")
    (tmp_path / "b.yaml").write_text("b: 1\n")
    path = tmp_path / "plan.yaml"
    path.write_text(
        f"out: {tmp_path}/out\nregimes: {{one: a.yaml, two: b.yaml}}\nseeds: [0, 1]\nworkers: 2\n"
    )
    driver = DRIVER.format(tests=str(Path(__file__).parent), plan=str(path))
    out = tmp_path / "out"

    def state(name):
        try:
            return json.loads((out / name / "status.json").read_text())
        except (OSError, ValueError):
            return {"state": "none", "epoch": 0}

    process = subprocess.Popen(
        [sys.executable, "-c", driver, "0.25", "4"],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )
    limit = time.monotonic() + 60
    while time.monotonic() < limit and not (
        state("one-seed0")["state"] == state("two-seed0")["state"] == "finished"
        and all(1 <= state(f"{name}-seed1")["epoch"] < 4 for name in ("one", "two"))
    ):
        time.sleep(0.02)
    process.send_signal(signum)
    text, _ = process.communicate(timeout=60)
    assert process.returncode == 128 + signum, text
    assert f"Stopped: 2 of 4 runs are finished and kept. To go on: lit-xai study run {path}" in text
    assert "Traceback" not in text
    kept = state("one-seed1")["epoch"]
    assert (state("one-seed0")["state"], state("one-seed1")["state"]) == ("finished", "interrupted")
    assert kept >= 1

    again = subprocess.run(
        [sys.executable, "-c", driver, "0", "4"], capture_output=True, text=True, check=False
    )
    assert again.returncode == 0, again.stdout + again.stderr
    assert "one-seed0 had finished before: skipped" in again.stdout
    assert "one-seed1 started, goes on from epoch" in again.stdout
    assert state("one-seed1")["state"] == "finished"
    assert (out / "one-seed1" / "done.txt").read_text() == "0\n1\n2\n3\n"  # no epoch was done twice
    assert (out / "report.html").is_file()


@pytest.mark.slow
def test_a_run_that_will_not_stop_is_ended_with_all_it_started(plan, tmp_path):
    study = plan("standard", workers=1)
    stubborn = textwrap.dedent(
        """
        import os, signal, subprocess, sys, time
        signal.signal(signal.SIGINT, signal.SIG_IGN); signal.signal(signal.SIGTERM, signal.SIG_IGN)
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        open(sys.argv[1], "w").write(f"{os.getpid()} {child.pid}")
        time.sleep(60)
        """
    )
    note = tmp_path / "pids"
    runner = LocalProcesses(1, lambda run: [sys.executable, "-c", stubborn, str(note)], grace=0.2, pause=0.02)

    class Impatient(Watch):
        def tick(self):
            if note.exists() and note.read_text().count(" "):
                self.stop = signal.SIGINT
            super().tick()

    run = study.runs()[0]
    watch = Impatient([run], [], Pace(1), Console(file=io.StringIO()))
    with pytest.raises(BaseException, match="2"):
        runner([run], watch)
    for pid in map(int, note.read_text().split()):
        assert gone(pid)
    assert status(study, run.name)["state"] == "interrupted"


def gone(pid):
    for _ in range(100):
        try:
            os.kill(pid, 0)
            if Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0] == "Z":
                return True
        except (ProcessLookupError, FileNotFoundError):
            return True
        time.sleep(0.02)
    return False


def runs(*names):
    return [Run(name, 0, Path(name), ()) for name in names]


def test_the_estimate_starts_when_something_was_measured():
    a, b, c = runs("a", "b", "c")
    pace = Pace(workers=2)
    for run in (a, b, c):
        pace.plan(run)
    pace.start(a, 0, now=0)
    pace.start(b, 0, now=0)
    pace.observe(a, 0, 10, now=5)
    assert pace.left(now=5) is None
    pace.observe(a, 1, 10, now=6)
    # a: 6 s per epoch, 9 left: 54 s. b is taken to be as slow: 60 s, of which 6 are over. c: 60 s after them.
    assert pace.left(now=6) == pytest.approx(54 + 60)
    pace.observe(b, 1, 10, now=12)
    pace.observe(a, 2, 10, now=12)
    # a: 6 s per epoch, 8 left: 48. b: 12 s per epoch, 9 left: 108. c: the mean, 9 s, 10 epochs, after a: 138.
    assert pace.left(now=12) == pytest.approx(138)


def test_the_estimate_counts_down_and_is_never_negative():
    (a,) = runs("a")
    pace = Pace(workers=1)
    pace.plan(a)
    pace.start(a, 0, now=0)
    pace.observe(a, 1, 2, now=10)
    assert pace.left(now=14) == pytest.approx(6)
    assert pace.left(now=1000) == 0
    pace.end(a, now=1000)
    assert pace.left(now=1000) == 0


def test_a_resumed_run_is_measured_from_where_it_goes_on():
    (a,) = runs("a")
    pace = Pace(workers=1)
    pace.plan(a)
    pace.start(a, 7, now=0)
    pace.observe(a, 7, 10, now=3)
    assert pace.left(now=3) is None
    pace.observe(a, 8, 10, now=4)
    assert pace.left(now=4) == pytest.approx(8)


def test_earlier_runs_are_a_measure_too():
    (a,) = runs("a")
    pace = Pace(workers=1, known={"a": (2.0, 10)})
    pace.plan(a)
    assert pace.left(now=0) == pytest.approx(20)


def test_without_a_terminal_each_event_is_one_line(tmp_path):
    a, b = (Run(name, 0, tmp_path / name, ()) for name in "ab")
    a.folder.mkdir()
    time_now = [0.0]
    console = Console(file=io.StringIO(), width=200)
    watch = Watch([a, b], [Outcome(b, "skipped")], Pace(1), console, clock=lambda: time_now[0])
    with watch:
        watch.started(a)
        (a.folder / "status.json").write_text(json.dumps({"epoch": 1, "epochs": 2}))
        time_now[0] = 5.0
        watch.tick()
        (a.folder / "status.json").write_text("{ torn")
        watch.tick()
        watch.ended(Outcome(a, "failed", 6.0, "it broke"))
    assert console.file.getvalue().splitlines() == [
        "b-seed0 had finished before: skipped",
        "a-seed0 started (1 of 2 runs done, estimating what is left)",
        f"a-seed0 failed after 6 s: it broke; log: {a.folder / 'log.txt'} (2 of 2 runs done)",
    ]


def test_a_terminal_gets_a_bar(tmp_path):
    (a,) = (Run("a", 0, tmp_path / "a", ()),)
    a.folder.mkdir()
    time_now = [0.0]
    console = Console(file=io.StringIO(), width=120, force_terminal=True, color_system=None)
    with Watch([a], [], Pace(1), console, clock=lambda: time_now[0]) as watch:
        watch.started(a)
        watch.tick()
        watch.bar.refresh()
        (a.folder / "status.json").write_text(json.dumps({"epoch": 1, "epochs": 4}))
        time_now[0] = 5.0
        watch.tick()
        watch.bar.refresh()
    text = console.file.getvalue()
    assert "estimating what is left" in text
    assert "1/4 epochs" in text
    assert "about 15 s left" in text


def test_remaining():
    texts = ["estimating what is left", "almost done", "about 12 s left"]
    assert [remaining(left) for left in (None, 0.0, 12.0)] == texts


@pytest.mark.parametrize(
    ("seconds", "text"), [(0, "0 s"), (89, "89 s"), (130, "2 min"), (7260, "2 h 01 min")]
)
def test_duration(seconds, text):
    assert duration(seconds) == text
