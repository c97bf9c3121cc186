"""Runs of seconds in which a probe looks: a small net, twelve images, and whatever a test wants to know."""

from typing import Any, ClassVar

import lightning as L
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.classifier import Classifier
from lit_xai.metrics import Metric, Quantity
from lit_xai.types import Images, Scores


def net(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 3, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(12, classes)
    )


def classifier(rate: float = 0.1) -> Classifier:
    torch.manual_seed(0)
    return Classifier(net, optimizer=lambda p: torch.optim.SGD(p, lr=rate), channels=1, classes=3)


def loader(count: int = 12, masks: Tensor | None = None) -> DataLoader[Any]:
    images = torch.rand(count, 1, 6, 8, generator=torch.Generator().manual_seed(0))
    columns = [images, torch.arange(count) % 3]
    return DataLoader(TensorDataset(*columns, *([] if masks is None else [masks])), batch_size=4)


def trainer(folder: Any, *callbacks: L.Callback, **words: Any) -> L.Trainer:
    return L.Trainer(
        **{
            "accelerator": "cpu",
            "callbacks": list(callbacks),
            "logger": False,
            "enable_progress_bar": False,
            "enable_model_summary": False,
            "enable_checkpointing": False,
            "log_every_n_steps": 1,
            "default_root_dir": folder,
            "max_epochs": 1,
            **words,
        }
    )


def fitted(
    folder: Any, *callbacks: L.Callback, data: Any = None, ckpt_path: Any = None, **words: Any
) -> L.Trainer:
    fitter = trainer(folder, *callbacks, **words)
    fitter.fit(classifier(), loader(), data or loader(), ckpt_path=ckpt_path)
    return fitter


class Level(Metric):
    """The mean of a map: tells which image and which method a map is of."""

    quantities: ClassVar = {"": Quantity("higher")}

    def score(self, attributions: Images) -> Scores:
        return attributions.flatten(1).mean(1)


class Moved(Metric):
    """How far a map has moved since the last look."""

    quantities: ClassVar = {"": Quantity("lower")}

    def score(self, attributions: Images, previous: Tensor) -> Scores:
        return (attributions.sum(1) - previous).flatten(1).norm(dim=1)


class Beside(Metric):
    """A number made of all companions, in their order."""

    quantities: ClassVar = {"": Quantity(None)}

    def score(self, inputs: Images, attributions: Images, companions: Any) -> Scores:
        weights = torch.arange(1, companions.ids.shape[1] + 1, dtype=inputs.dtype)
        return (companions.images.mean((2, 3, 4)) * companions.target * weights).sum(1)


class Broken(Metric):
    """Fails on images that are brighter than a bound."""

    quantities: ClassVar = {"": Quantity("higher")}

    def __init__(self, bound: float = 0.0) -> None:
        super().__init__()
        self.bound = bound

    def score(self, inputs: Images, attributions: Images) -> Scores:
        brightest = float(inputs.flatten(1).mean(1).max())
        if brightest > self.bound:
            raise RuntimeError("out of\nmemory")
        return inputs.flatten(1).mean(1)
