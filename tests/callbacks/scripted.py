"""A network whose robust accuracy follows a script, epoch by epoch, and runs of it."""

from pathlib import Path
from typing import Any, ClassVar

import lightning as L
import torch
from lightning.pytorch.callbacks import ModelCheckpoint
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.callbacks import Robustness
from lit_xai.classifier import Classifier
from lit_xai.metrics.base import Metric, Quantity
from lit_xai.types import Images, Labels, Scores

BATCHES = 4
KEY = "robust/pgd/accuracy"
COLLAPSE = (0.4, 0.6, 0.1, 0.5)


class Aging(nn.Module):
    """Counts the batches that it was trained on, in a buffer that goes where its weights go."""

    def __init__(self, channels: int, classes: int) -> None:
        super().__init__()
        self.layer = nn.Linear(channels * 16, classes)
        self.register_buffer("age", torch.zeros((), dtype=torch.int64))

    def forward(self, inputs: Tensor) -> Tensor:
        if self.training:
            self.age += 1
        return self.layer(inputs.flatten(1))


class Scripted(Metric):
    """An accuracy that depends on the network's age alone."""

    quantities: ClassVar = {"accuracy": Quantity("higher", (0.0, 1.0))}

    def __init__(self, script: tuple[float, ...], per: int = BATCHES) -> None:
        super().__init__()
        self.script, self.per = script, per  # batches trained on between two entries

    def score(self, model: nn.Module, inputs: Images, target: Labels) -> dict[str, Scores]:
        age = next(module.age for module in model.modules() if isinstance(module, Aging))
        return {"accuracy": torch.full((len(inputs),), self.script[int(age) // self.per - 1])}


class Looks(L.Callback):
    """Remembers the weights after each validation, before any guard has seen them."""

    def __init__(self) -> None:
        self.seen: dict[int, dict[str, Tensor]] = {}

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.seen[trainer.current_epoch] = {k: v.clone() for k, v in pl_module.state_dict().items()}


class Halt(L.Callback):
    """Ends a run after an epoch, for another to go on with it."""

    def __init__(self, epoch: int) -> None:
        self.epoch = epoch

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop = trainer.current_epoch == self.epoch


def classifier() -> Classifier:
    torch.manual_seed(0)
    return Classifier(Aging, optimizer=lambda p: torch.optim.SGD(p, lr=0.1), channels=1, classes=3)


def loader() -> DataLoader[Any]:
    images = torch.rand(12, 1, 4, 4, generator=torch.Generator().manual_seed(0))
    return DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=3)


def probe(script: tuple[float, ...], every: int = 1, per: int = BATCHES, **more: Metric) -> Robustness:
    return Robustness({"pgd": Scripted(script, per), **more}, samples=6, every_n_epochs=every)


def fitted(
    folder: Path, *callbacks: L.Callback, epochs: int = 4, resume: Any = None, **words: Any
) -> L.Trainer:
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        max_epochs=epochs,
        enable_checkpointing=any(isinstance(callback, ModelCheckpoint) for callback in callbacks),
        **words,
    )
    trainer.fit(classifier(), loader(), loader(), ckpt_path=resume)
    return trainer


def last(folder: Path) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "last", save_on_train_epoch_end=True, enable_version_counter=False)


def best(folder: Path, **words: Any) -> ModelCheckpoint:
    return ModelCheckpoint(folder, "best", monitor=KEY, mode="max", enable_version_counter=False, **words)


def equal(state: dict[str, Tensor], other: dict[str, Tensor]) -> bool:
    return state.keys() == other.keys() and all(torch.equal(state[key], other[key]) for key in state)
