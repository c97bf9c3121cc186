"""The probe: who looks at what, and how shares come together."""

from typing import Any
from unittest.mock import MagicMock

import lightning as L
import numpy as np
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from lightning.pytorch.strategies import SingleDeviceStrategy
from torch import nn
from torch.utils.data import DataLoader, IterableDataset, TensorDataset

from lit_xai.attacks import DDN
from lit_xai.attributions import Saliency
from lit_xai.callbacks import Explain, Robustness
from lit_xai.callbacks.look import gather, refuse_sharded
from lit_xai.callbacks.probe import Probe
from lit_xai.classifier import Classifier
from lit_xai.metrics import BoundaryDistance, CleanAccuracy, Gini


def net(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(nn.Conv2d(channels, 2, 3), nn.Flatten(), nn.LazyLinear(classes))


def fitter(folder: Any, *callbacks: L.Callback, **words: Any) -> L.Trainer:
    return L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=words.pop("logger", False),
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        **words,
    )


def classifier() -> Classifier:
    module = Classifier(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), channels=1, classes=3)
    module(torch.rand(1, 1, 6, 8))
    return module


def loader(seed: int = 0) -> DataLoader[Any]:
    images = torch.rand(12, 1, 6, 8, generator=torch.Generator().manual_seed(seed))  # not square
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=4)


def test_parts_come_together_sorted_by_id() -> None:
    parts = [
        {"ids": torch.tensor([4, 9]), "a": torch.tensor([0.4, 0.9])},
        {"ids": torch.tensor([2]), "a": torch.tensor([0.2])},
    ]
    table = gather(parts)
    assert table["ids"].tolist() == [2, 4, 9]
    assert table["a"].tolist() == [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.9)]


def test_a_process_without_images_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"ids": np.array([1, 0]), "a": np.array([1.0, 0.0])}

    def all_gather(tables: list[Any], mine: Any) -> None:
        tables[:] = [other, mine]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    table = gather([])
    assert table["ids"].tolist() == [0, 1]
    assert table["a"].tolist() == [0.0, 1.0]


def test_a_process_without_images_looks_at_nothing(tmp_path: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    explain = Explain({"saliency": Saliency()}, {"gini": Gini()}, samples=1)
    trainer, module = MagicMock(spec=L.Trainer, testing=False, global_rank=1, world_size=2), classifier()
    trainer.val_dataloaders, trainer.state = loader(), MagicMock()
    table = {"ids": np.array([3]), "explain/saliency/gini": np.array([0.5])}
    said = [None, (0, torch.tensor([1]), (1, 6, 8), False), None, {}, table, table]
    others = iter(said)  # no error, read; no error, nothing failed, scores and pictures
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(
        torch.distributed,
        "all_gather_object",
        lambda tables, mine: tables.__setitem__(slice(None), [next(others), mine]),
    )
    assert len(explain.share(trainer, module).ids) == 0
    table, _ = explain._look(trainer, module)
    assert table["explain/saliency/gini"].tolist() == [0.5]


class Recorder(Probe):
    """A probe that remembers what it was shown."""

    def keep(self, trainer: L.Trainer, table: Any, pictures: Any) -> None:
        self.seen = getattr(self, "seen", [])
        self.seen.append(pictures["inputs"])


def recorder(**words: Any) -> Recorder:
    given: dict[str, Any] = {
        "samples": 4,
        "batch_size": 3,
        "every_n_epochs": 1,
        "seed": 0,
        "target": "label",
        "pictures": 4,
    }
    return Recorder({"saliency": Saliency()}, {"gini": Gini()}, **given | words)


@pytest.mark.filterwarnings("ignore:.*Checkpoint directory")
def test_an_epoch_that_is_not_looked_at_logs_nothing_and_checkpoints_go_on(tmp_path: Any) -> None:
    rows: list[dict[str, float]] = []
    log = MagicMock(spec=L.pytorch.loggers.Logger)
    log.log_metrics.side_effect = lambda metrics, step: rows.append(metrics)
    log.name, log.version, log.save_dir = "log", "0", str(tmp_path)
    key = "explain/saliency/gini"
    best = ModelCheckpoint(tmp_path / "best", monitor=key)
    look = recorder(every_n_epochs=2)
    fitter(tmp_path, look, best, max_epochs=4, logger=log).fit(classifier(), loader(), loader())
    seconds = {row["epoch"]: row["time/recorder"] for row in rows if "time/recorder" in row}
    assert [row["epoch"] for row in rows if key in row] == [0, 2, 3]  # the last one always
    assert [epoch for epoch, spent in seconds.items() if spent == 0] == [1]
    assert len(look.seen) == 3
    assert best.best_model_path


def test_each_verb_looks_at_its_own_images(tmp_path: Any) -> None:
    look, module = recorder(), classifier()
    trainer = fitter(tmp_path, look, enable_checkpointing=False)
    trainer.validate(module, loader(seed=1), verbose=False)
    trainer.test(module, loader(seed=2), verbose=False)
    first, second = look.seen
    assert first.shape == second.shape == (4, 1, 6, 8)
    assert not np.array_equal(first, second)


def test_maps_are_kept_without_metrics(tmp_path: Any) -> None:
    trainer = fitter(tmp_path, Explain({"saliency": Saliency()}, {}, samples=3), enable_checkpointing=False)
    trainer.validate(classifier(), loader(), verbose=False)
    with np.load(tmp_path / "explanations" / "validate.npz") as kept:
        assert kept["maps/saliency"].shape == (3, 1, 6, 8)


def test_a_number_that_two_callbacks_would_log_is_refused(tmp_path: Any) -> None:
    distance = {"boundary": BoundaryDistance(DDN(steps=2))}
    trainer = fitter(tmp_path, Explain({}, distance), Robustness(distance), enable_checkpointing=False)
    with pytest.raises(ValueError, match="two callbacks would log `robust/boundary/"):
        trainer.validate(classifier(), loader(), verbose=False)


@pytest.mark.filterwarnings("ignore:.*IterableDataset")
def test_a_stream_of_images_is_refused(tmp_path: Any) -> None:
    class Stream(IterableDataset[Any]):
        def __iter__(self) -> Any:
            return iter(loader().dataset)

    trainer = fitter(tmp_path, Robustness({"clean": CleanAccuracy()}), enable_checkpointing=False)
    with pytest.raises(TypeError, match="DataLoader over a map-style set"):
        trainer.validate(classifier(), DataLoader(Stream(), batch_size=4), verbose=False)


@pytest.mark.parametrize("precision", ["16-true", "bf16-true"])
def test_weights_of_half_precision_are_refused(precision: str) -> None:
    trainer = MagicMock(spec=L.Trainer, precision=precision)
    with pytest.raises(ValueError, match=f"at least float32, and precision {precision}"):
        refuse_sharded(trainer)


class FSDPStrategy(SingleDeviceStrategy):
    """As far as its name goes."""


@pytest.mark.parametrize("verb", ["fit", "validate", "test"])
def test_weights_that_are_split_are_refused_by_every_verb_that_looks(verb: str, tmp_path: Any) -> None:
    def begin(look: L.Callback) -> list[Any]:
        words: dict[str, Any] = {"strategy": FSDPStrategy("cpu"), "max_epochs": 1}
        trainer = fitter(tmp_path, look, enable_checkpointing=False, **words)
        module, trained = classifier(), []
        module.on_train_batch_start = lambda *_: trained.append(1)
        sets = [loader(), loader()] if verb == "fit" else [loader()]
        with pytest.raises(ValueError, match="whole weights on each device, and FSDPStrategy") as refusal:
            getattr(trainer, verb)(module, *sets)
        assert "\n" not in str(refusal.value)
        return trained

    assert not begin(Explain({"saliency": Saliency()}, {}))
    with pytest.raises(pytest.fail.Exception):  # where nothing is looked at, nothing is refused
        begin(Explain({}))


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_split_weights_are_refused(name: str) -> None:
    trainer = MagicMock(spec=L.Trainer, strategy=type(name, (), {})())
    with pytest.raises(ValueError, match=f"whole weights on each device, and {name}"):
        refuse_sharded(trainer)


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"batch_size": 0}, {"every_n_epochs": 0}, {"pictures": -1}]
)
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        Explain({}, {"gini": Gini()}, **wrong)


def test_robustness_takes_metrics_of_the_model_alone() -> None:
    with pytest.raises(ValueError, match="`gini` needs an attribution"):
        Robustness({"gini": Gini()})
