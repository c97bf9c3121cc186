"""The average of the weights: what is looked at, kept and given back, and what training does not notice."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.callbacks import BortResidual, CatastrophicOverfitting, MovingAverage, Robustness
from lit_xai.classifier import Classifier
from lit_xai.metrics import CleanAccuracy

pytestmark = pytest.mark.filterwarnings(
    "ignore:.*Checkpoint directory",
    "ignore:The checkpoint was not created with WeightAveraging",
    "ignore:You're using the WeightAveraging callback",
)
DECAY = 0.75
Weights = dict[str, Tensor]


def net(channels: int, classes: int) -> nn.Module:
    layers = (nn.Conv2d(channels, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, classes))
    return nn.Sequential(*layers)


def weights(module: nn.Module) -> Weights:
    return {key: value.clone() for key, value in module.state_dict().items()}


def equal(state: Weights, other: Weights) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)


class Watch(L.Callback):
    """Weights after each batch, and at each look of a probe."""

    def __init__(self, fail: str = "") -> None:
        self.steps: list[Weights] = []
        self.looks: list[Weights] = []
        self.fail = fail

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: Any, *_: Any) -> None:
        self.steps.append(weights(pl_module))

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if not trainer.sanity_checking:
            self.looks.append(weights(pl_module))
            if self.fail:
                raise RuntimeError(self.fail)


def fitted(folder: Path, *callbacks: L.Callback, epochs: int = 2, resume: Any = None) -> Classifier:
    torch.manual_seed(0)
    images, labels = torch.rand(24, 1, 6, 6), torch.arange(24) % 3
    data = DataLoader(TensorDataset(images, labels), batch_size=8)
    classifier = Classifier(net, optimizer=lambda p: torch.optim.SGD(p, lr=0.3), channels=1, classes=3)
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        max_epochs=epochs,
        enable_checkpointing=any(isinstance(one, ModelCheckpoint) for one in callbacks),
    )
    trainer.fit(classifier, data, data, ckpt_path=resume)
    return classifier


def last(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def averaged(steps: list[Weights]) -> Weights:
    """The recursion, tensor by tensor."""
    mean = dict(steps[0])
    for state in steps[1:]:
        for key, value in state.items():
            moved = DECAY * mean[key] + (1 - DECAY) * value if value.is_floating_point() else value
            mean[key] = moved
    return mean


@pytest.mark.parametrize("first", [True, False], ids=["before probes", "after probes"])
def test_what_is_looked_at_and_kept_is_the_average_whatever_the_order(tmp_path: Path, first: bool) -> None:
    ema, watch = MovingAverage(DECAY), Watch()
    module = fitted(tmp_path, *((ema, watch) if first else (watch, ema)), last(tmp_path))
    for count, look in ((3, watch.looks[0]), (6, watch.looks[1])):
        torch.testing.assert_close(look, averaged(watch.steps[:count]))
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert equal(kept["state_dict"], watch.looks[1])
    assert equal(kept["current_model_state"], watch.steps[-1])
    assert equal(weights(module), watch.looks[1])
    assert not torch.equal(watch.looks[1]["model.net.1.running_mean"], torch.zeros(4))
    assert int(watch.looks[1]["model.net.1.num_batches_tracked"]) == 6


def test_training_does_not_notice(tmp_path: Path) -> None:
    plain, watched = Watch(), Watch()
    fitted(tmp_path, plain)
    fitted(tmp_path, watched, MovingAverage(DECAY))
    assert all(equal(a, b) for a, b in zip(plain.steps, watched.steps, strict=True))
    assert equal(plain.looks[0], plain.steps[2])
    assert not equal(plain.looks[0], watched.looks[0])


def test_the_best_checkpoint_holds_the_average_that_was_measured(tmp_path: Path) -> None:
    watch = Watch()
    probe = Robustness({"clean": CleanAccuracy()}, samples=24)
    best = ModelCheckpoint(tmp_path, "best", monitor="robust/clean/accuracy", mode="max")
    fitted(tmp_path, MovingAverage(DECAY), probe, BortResidual(), watch, best)
    kept = torch.load(best.best_model_path, weights_only=True)
    assert equal(kept["state_dict"], watch.looks[kept["epoch"]])


def test_one_go_and_a_resume_are_the_same_bit_for_bit(tmp_path: Path) -> None:
    whole, first, second = Watch(), Watch(), Watch()
    fitted(tmp_path / "one", MovingAverage(DECAY), whole, last(tmp_path / "one"))
    folder = tmp_path / "two"
    fitted(folder, MovingAverage(DECAY), first, last(folder), epochs=1)
    module = fitted(folder, MovingAverage(DECAY), second, last(folder), resume=folder / "last.ckpt")
    assert all(equal(a, b) for a, b in zip(whole.steps, first.steps + second.steps, strict=True))
    assert equal(whole.looks[1], second.looks[0])
    assert equal(whole.looks[1], weights(module))


def test_a_resume_without_an_average_goes_on_with_the_weights(tmp_path: Path) -> None:
    first, second, plain = Watch(), Watch(), Watch()
    fitted(tmp_path, plain)
    fitted(tmp_path, MovingAverage(DECAY), first, last(tmp_path), epochs=1)
    fitted(tmp_path, MovingAverage(), second, last(tmp_path), resume=tmp_path / "last.ckpt")
    assert all(equal(a, b) for a, b in zip(plain.steps[3:], second.steps, strict=True))


def test_a_run_that_had_none_may_be_resumed_with_one(tmp_path: Path) -> None:
    first, second = Watch(), Watch()
    fitted(tmp_path, MovingAverage(), first, last(tmp_path), epochs=1)
    kept = torch.load(tmp_path / "last.ckpt", weights_only=True)
    assert "current_model_state" not in kept
    assert not any("MovingAverage" in name for name in kept["callbacks"])  # off costs nothing
    fitted(tmp_path, MovingAverage(DECAY), second, last(tmp_path), resume=tmp_path / "last.ckpt")
    torch.testing.assert_close(second.looks[0], averaged(second.steps))


def test_an_error_in_validation_gives_the_weights_back(tmp_path: Path) -> None:
    watch, ema = Watch(fail="in a probe"), MovingAverage(DECAY)
    kept: list[Weights] = []

    class After(L.Callback):
        def on_exception(self, trainer: L.Trainer, pl_module: Any, exception: BaseException) -> None:
            kept.append(weights(pl_module))

    with pytest.raises(RuntimeError, match="in a probe"):
        fitted(tmp_path, ema, watch, After())
    assert equal(kept[0], watch.steps[-1])


def test_a_guard_that_restores_is_content_where_nothing_is_averaged(tmp_path: Path) -> None:
    probe = Robustness({"clean": CleanAccuracy()}, samples=24)
    guard = CatastrophicOverfitting("restore", monitor="robust/clean/accuracy", drop=0.99)
    fitted(tmp_path, MovingAverage(), guard, probe, epochs=1)
    assert guard.note == ""


@pytest.mark.parametrize("decay", [-0.1, 1.0])
def test_a_decay_out_of_range_is_refused(decay: float) -> None:
    with pytest.raises(ValueError, match="`decay` must be at least 0 and less than 1"):
        MovingAverage(decay)
