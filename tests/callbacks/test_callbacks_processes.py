"""One process or many, one node or two: what is logged is the same, and nobody waits for anybody."""

import csv
import json
import os
import socket
import subprocess
import sys
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from probed import Beside, Broken, Level, Moved, classifier, fitted, loader, trainer
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.attacks import DDN
from lit_xai.attributions import BoundarySaliency, Saliency, SmoothGrad
from lit_xai.callbacks import Explain
from lit_xai.metrics import BoundaryDistance, Closeness, Flags, Gini, Perturbation

ROOT = Path(__file__).resolve().parents[2]
SEARCH = DDN(steps=3)
CLOSE = {"rel": 1e-6, "abs": 1e-7}  # absolute for an overshoot, which is what a ratio of 1 leaves over


class Kept(Explain):
    """Remembers the values of every look."""

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        super().on_validation_epoch_end(trainer, pl_module)
        if not trainer.sanity_checking:
            self.history: list[dict[str, float]] = [*getattr(self, "history", []), dict(self.values)]


def watcher(samples: int, **words: Any) -> Kept:
    return Kept(
        {"saliency": Saliency(), "smooth": SmoothGrad(samples=2), "boundary": BoundarySaliency(SEARCH)},
        {
            "perturbation": Perturbation(steps=3),
            "gini": Gini(),
            "flag": Flags(),
            "closeness": Closeness(),
            "distance": BoundaryDistance(SEARCH),
            "moved": Moved(),
            "beside": Beside(),
        },
        **{"samples": samples, "batch_size": 16, "control_samples": 20, "on_error": "raise", **words},
    )


def many() -> DataLoader[Any]:
    images = torch.rand(65, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(65) % 3), batch_size=8)


class Full(Explain):
    """Has no room to write, which only the first process does."""

    def keep(self, trainer: L.Trainer, table: Any, pictures: Any) -> None:
        if trainer.is_global_zero:
            raise OSError("disk full")


def failing(kind: str, folder: Path, **words: Any) -> None:
    """Validates with what fails on one process alone: that which has the brightest image, or the first."""
    images = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 1, 6, 8)
    module = classifier()
    if kind == "data":
        images = images * 1.1
    if kind == "model":
        module.model.register_forward_pre_hook(lambda _, given: {}[1] if given[0].max() > 0.95 else None)
    data = DataLoader(TensorDataset(images, torch.arange(9) % 3), batch_size=3)
    look = (Full if kind == "disk" else Explain)({"saliency": Saliency()}, {}, 9, 1, controls={})
    trainer(folder, look, limit_val_batches=1, **words).validate(module, data, verbose=False)


def raised(action: Callable[[], object]) -> str:
    """What an action raises, in words."""
    try:
        action()
    except Exception as error:
        return f"{type(error).__name__}: {error}"
    return ""


def work(folder: Path, task: str, count: int) -> None:
    """One process of `count`: looks at the same weights twice, or fails alone, or has little time."""
    words = {"devices": count, "strategy": "ddp" if count > 1 else "auto"}
    own: dict[str, Any] = {}
    if task == "look":
        looks = [watcher(65), watcher(1, controls={}, seed=3)]
        for number, look in enumerate(looks):
            run = trainer(folder / f"look{number}", look, max_epochs=2, **words)
            run.fit(classifier(rate=0.0), loader(), many())
            own[str(number)] = look.history
            own[f"logged{number}"] = {
                k: float(v) for k, v in run.callback_metrics.items() if k in look.values
            }
    if task == "fail":
        # Images are as bright as their place: only the last ones are beyond the bound.
        images = torch.linspace(0, 1, 9)[:, None, None, None].expand(9, 1, 6, 8)
        data = DataLoader(TensorDataset(images, torch.arange(9) % 3), batch_size=3)
        look = Kept({"saliency": Saliency()}, {"broken": Broken(0.95), "level": Level()}, 9, 1, controls={})
        run = fitted(folder, look, data=data, max_epochs=2, **words)
        own = {"history": look.history, "failed": look.failed}
        strict = Explain(
            {"saliency": Saliency()}, {"broken": Broken(0.95)}, 9, 1, controls={}, on_error="raise"
        )
        own["raised"] = raised(lambda: trainer(folder, strict, **words).validate(classifier(), data))
    if task == "alone":
        kinds = ("data", "model", "disk")
        own = {kind: raised(partial(failing, kind, folder, **words)) for kind in kinds}
    if task == "thin":
        look = watcher(65, batch_size=2, max_share_of_epoch=1e-9, controls={})
        run = trainer(folder, look, max_epochs=2, **words)
        run.fit(classifier(rate=0.0), loader(), many())
        own = {"history": look.history}
    (folder / f"{task}{count}_{os.environ.get('LOCAL_RANK', '0')}.json").write_text(json.dumps(own))


def started(folder: Path, task: str, count: int) -> list[dict[str, Any]]:
    """What each of the processes says."""
    folder.mkdir(exist_ok=True)
    done = subprocess.run(
        [sys.executable, "-W", "ignore", __file__, str(folder), task, str(count)],
        capture_output=True,
        text=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads((folder / f"{task}{count}_{rank}.json").read_text()) for rank in range(count)]


@pytest.mark.slow
def test_every_logged_value_is_that_of_one_process(tmp_path: Path) -> None:
    (one,) = started(tmp_path / "1", "look", 1)
    assert len(one["0"][1]) > 60
    assert len(one["1"][1]) > 20  # one image: a rank of two has none
    for count in (2, 3):
        said = started(tmp_path / str(count), "look", count)
        for number in ("0", "1"):
            for epoch in range(2):
                first = said[0][number][epoch]
                assert all(
                    other[number][epoch] == pytest.approx(first, rel=0, abs=0, nan_ok=True) for other in said
                )
                assert first == pytest.approx(one[number][epoch], **CLOSE, nan_ok=True)
            assert said[0][f"logged{number}"] == pytest.approx(one[f"logged{number}"], **CLOSE, nan_ok=True)
        for number, images in ((0, 65), (1, 1)):
            with np.load(tmp_path / str(count) / f"look{number}" / "explanations" / "epoch_001.npz") as kept:
                assert len(set(kept["probe_ids"].tolist())) == len(kept["probe_ids"]) == images


@pytest.mark.slow
def test_what_fails_on_one_process_is_flagged_on_all(tmp_path: Path) -> None:
    said = started(tmp_path, "fail", 2)
    for one in said:
        assert one["history"] == said[0]["history"]
        assert one["history"][1]["explain/saliency/flag/failed"] == pytest.approx(1 / 9)
        assert one["failed"] == {"saliency/broken": "RuntimeError: out of\nmemory"}
        assert one["raised"] == "ValueError: failed: `saliency/broken` (RuntimeError: out of memory)."


@pytest.mark.slow
def test_no_process_waits_for_one_that_fails_alone(tmp_path: Path) -> None:
    said = started(tmp_path, "alone", 2)
    for one in said:
        assert one["data"].startswith("ValueError: pixels must lie in [0, 1]")
    assert sorted(one["disk"] for one in said) == ["OSError: disk full", "RuntimeError: disk full"]
    assert sorted(one["model"] for one in said) == ["KeyError: 1", "RuntimeError: 1"]


@pytest.mark.slow
def test_processes_thin_alike(tmp_path: Path) -> None:
    said = started(tmp_path, "thin", 3)
    assert [values["explain/samples"] for values in said[0]["history"]] == [1, 1]
    for other in said[1:]:
        for mine, first in zip(other["history"], said[0]["history"], strict=True):
            assert mine == pytest.approx(first, rel=0, abs=0, nan_ok=True)


@pytest.mark.slow
def test_two_nodes_by_torchrun(tmp_path: Path) -> None:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    words = [
        f"--config={ROOT / 'configs' / 'quickstart.yaml'}",
        f"--config={ROOT / 'configs' / 'data' / 'sklearn_digits.yaml'}",
        *("--trainer.max_epochs=1", "--trainer.limit_train_batches=2", "--trainer.accelerator=cpu"),
        *("--explain.samples=5", "--explain.control_samples=3", "--robustness.samples=5", "--wandb=disabled"),
        *(
            "--trainer.devices=1",
            "--trainer.num_nodes=2",
            "--trainer.strategy=ddp",
            f"--out={tmp_path / 'run'}",
        ),
    ]
    agents = [
        subprocess.Popen(
            [
                *(sys.executable, "-m", "torch.distributed.run", "--nnodes=2", "--nproc-per-node=1"),
                *(f"--node-rank={node}", "--rdzv-backend=c10d", f"--rdzv-endpoint=127.0.0.1:{port}"),
                *("-m", "lit_xai", "fit", *words),
            ],
            env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": os.pathsep.join(sys.path)},
            cwd=tmp_path,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )
        for node in range(2)
    ]
    said = [agent.communicate(timeout=300)[0] for agent in agents]
    assert [agent.returncode for agent in agents] == [0, 0], said[0][-3000:] + said[1][-3000:]
    with (tmp_path / "run" / "explanations" / "epoch_000.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {row["count"] for row in rows if row["kind"] == "score"} == {"5"}
    assert {row["count"] for row in rows if row["kind"] == "control"} == {"3"}
    with np.load(tmp_path / "run" / "explanations" / "epoch_000.npz") as kept:
        assert len(set(kept["probe_ids"].tolist())) == 5


if __name__ == "__main__":
    work(Path(sys.argv[1]), sys.argv[2], int(sys.argv[3]))
