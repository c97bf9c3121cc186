"""Certificates of the probe: what is logged, in one process and in two, and that training is not touched."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import MagicMock

import lightning as L
import numpy as np
import pytest
import torch
from scripted import Looks, classifier, equal, fitted, loader

from lit_xai import randomness
from lit_xai.callbacks.certify import Certify
from lit_xai.callbacks.run_folder import RunFolder
from lit_xai.models import Smoothed


def certify(**words: Any) -> Certify:
    return Certify(**{"sigma": 0.1, "n": 200, "n0": 10, "samples": 6, "batch_size": 4} | words)


def look(callback: Certify, module: Any, rank: int = 0, ranks: int = 1) -> Any:
    trainer = MagicMock(spec=L.Trainer, testing=False, global_rank=rank, world_size=ranks)
    trainer.received_sigterm, trainer.val_dataloaders = False, loader()
    callback._share = None
    table, _ = callback._look(trainer, module)
    return table


def test_what_is_logged_is_what_certify_finds(tmp_path: Path) -> None:
    callback = certify(radii=[0, 0.05, 3])
    trainer = fitted(tmp_path, callback, RunFolder(tmp_path, 0), epochs=2)
    module, share = trainer.lightning_module, callback._share
    with randomness.keyed(0, share.ids):
        found = Smoothed(module.model, 0.1).certify(share.inputs, 10, 200, 0.001)
    right = found.label == share.target
    logged = trainer.callback_metrics
    for radius in (0, 0.05, 3):
        expected = (right & (found.radius >= radius)).double().mean()
        assert logged[f"certified/{radius:g}"] == pytest.approx(float(expected))
    assert logged["certified/average_radius"] == pytest.approx(float((found.radius * right).mean()))
    assert logged["certified/abstained"] == pytest.approx(float(found.abstained.double().mean()))
    assert logged["certified/0"] >= logged["certified/0.05"] >= logged["certified/3"] == 0
    assert logged["time/certify"] > 0
    assert '"certified/0.05"' in (tmp_path / "quantities.json").read_text()


def test_training_is_the_same_bit_for_bit(tmp_path: Path) -> None:
    plain, observed, callback = Looks(), Looks(), certify()
    state = fitted(tmp_path, plain).lightning_module.state_dict()
    assert equal(fitted(tmp_path, observed, callback).lightning_module.state_dict(), state)
    assert all(equal(plain.seen[epoch], observed.seen[epoch]) for epoch in plain.seen)
    assert callback.values


def test_without_sigma_nothing_is_done(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Certify, "_look", lambda *_: pytest.fail("looked"))
    trainer = fitted(tmp_path, Certify(), epochs=1)
    assert not any(key.startswith(("certified", "time/certify")) for key in trainer.callback_metrics)
    assert Certify().quantities() == {}


def test_every_n_epochs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[int] = []
    before = Certify._look
    monkeypatch.setattr(
        Certify,
        "_look",
        lambda self, trainer, module: seen.append(trainer.current_epoch) or before(self, trainer, module),
    )
    fitted(tmp_path, certify(every_n_epochs=3), epochs=6)
    assert seen == [0, 3, 5]


def test_shares_of_two_processes_are_the_probe_of_one(monkeypatch: pytest.MonkeyPatch) -> None:
    module, callback = classifier(), certify(samples=5, batch_size=2)
    module.eval()
    whole = look(callback, module)
    parts = [look(callback, module, rank, 2) for rank in (0, 1)]
    assert [len(part["ids"]) for part in parts] == [3, 2]

    def all_gather(tables: list[Any], mine: Any) -> None:
        tables[:] = parts if isinstance(mine, dict) else [mine, mine]  # tables, or what was read

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    together = look(callback, module, 1, 2)
    for key, values in whole.items():
        np.testing.assert_array_equal(together[key], values)
    assert callback._averages(together) == callback._averages(whole)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ({"sigma": -0.1}, "`sigma` must be at least 0"),
        ({"n": 0}, "`n` must be at least 1"),
        ({"alpha": 1.0}, "`alpha` must lie between 0 and 1"),
        ({"radii": [-1.0]}, "`radii` must be at least 0"),
        ({"radii": [0.1, 0.1]}, "`radii` must differ"),
        ({"samples": 0}, "`samples` must be at least 1"),
    ],
)
def test_wrong_numbers_are_refused(words: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        certify(**words)


def work(folder: Path) -> None:
    """One of two processes: it writes what it logged, and what its last weights certify if it looks alone."""
    callback = certify(samples=5, batch_size=2, radii=[0, 0.05], n=500)
    trainer = fitted(folder, callback, epochs=2, devices=2, strategy="ddp")
    logged = {key: float(value) for key, value in trainer.callback_metrics.items() if "certified" in key}
    images, target = loader().dataset.tensors
    ids = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:5].sort().values
    with randomness.keyed(0, ids):
        found = Smoothed(trainer.lightning_module.model, 0.1).certify(images[ids], 10, 500, 0.001)
    alone = {"radius": found.radius, "right": found.label == target[ids], "none": found.abstained}
    said = {"seen": callback.values, "logged": logged, "alone": callback._averages(alone)}
    (folder / f"{trainer.global_rank}.json").write_text(json.dumps(said))


@pytest.mark.slow
def test_two_processes_of_a_fit_log_what_one_would_see(tmp_path: Path) -> None:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    words = [sys.executable, __file__, str(tmp_path)]
    done = subprocess.run(words, capture_output=True, text=True, env=environment, timeout=120)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / f"{rank}.json").read_text()) for rank in (0, 1))
    assert len(first["alone"]) == 4
    assert first["alone"]["certified/average_radius"] > 0
    assert first["seen"] == second["seen"] == first["alone"] == second["alone"]
    assert first["logged"] == second["logged"] == pytest.approx(first["alone"], rel=1e-6)


if __name__ == "__main__":
    work(Path(sys.argv[1]))
