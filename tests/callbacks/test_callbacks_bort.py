"""What is logged of the weights, by layer and epoch."""

import math
from pathlib import Path

import lightning as L
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.callbacks import BortResidual
from lit_xai.classifier import Classifier
from lit_xai.optim import Layout, bort, measures, residual

QUANTITIES = {"residual", "orthogonality", "boundedness", "sigma_min", "sigma_max", "cosine"}


def net(channels: int, classes: int) -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(channels, 4, 3, padding=1),
        nn.BatchNorm2d(4),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Conv2d(8, 4, 3, padding=1),
        nn.Conv2d(4, 8, 3, padding=1, groups=2),
        nn.Flatten(),
        nn.Linear(8 * 16, classes),
    )


def logged(folder: Path, *callbacks: L.Callback, epochs: int = 1) -> tuple[Classifier, dict[str, float]]:
    torch.manual_seed(0)
    images = torch.rand(12, 2, 4, 4)
    loader = DataLoader(TensorDataset(images, torch.arange(12) % 3), batch_size=3)
    model = Classifier(
        net,
        optimizer=lambda p: bort(torch.optim.Adamax)(p, lr=0.02, gamma=20.0, amplitude="ada"),
        channels=2,
        classes=3,
    )
    trainer = L.Trainer(
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        enable_checkpointing=False,
        log_every_n_steps=1,
        default_root_dir=folder,
        max_epochs=epochs,
    )
    trainer.fit(model, loader, loader)
    return model, {key: float(value) for key, value in trainer.callback_metrics.items()}


def test_every_layer_has_its_quantities_and_they_are_those_of_its_weights(tmp_path: Path) -> None:
    model, values = logged(tmp_path, BortResidual())
    seen = [key for key in values if key.startswith("bort/")]
    assert set(seen) == {f"bort/{layer}/{name}" for layer in (0, 2, 3, 4, 6) for name in QUANTITIES}
    depths = [int(key.split("/")[1]) for key in seen]
    assert depths == sorted(depths)  # though 2 and 4 are measured as one stack
    for layer, groups in ((0, 1), (2, 2), (3, 1), (4, 2), (6, 1)):
        weight = model.model.net[layer].weight.detach()
        for name, value in measures(Layout(groups).matrices(weight), "ada").items():
            torch.testing.assert_close(torch.tensor(values[f"bort/{layer}/{name}"]), value.float())


def test_the_amplitude_may_be_given(tmp_path: Path) -> None:
    model, values = logged(tmp_path, BortResidual(2.0))
    expected = residual(model.model.net[3].weight, 2.0)
    torch.testing.assert_close(torch.tensor(values["bort/3/residual"]), expected)


def test_any_optimizer_constrains_the_groups_of_a_convolution_under_the_classifier(tmp_path: Path) -> None:
    _, values = logged(tmp_path, BortResidual(), epochs=12)
    assert all(values[f"bort/{layer}/residual"] < 0.15 for layer in (0, 2, 3, 4, 6))


def test_weights_that_are_not_finite_stop_nothing(tmp_path: Path) -> None:
    class Break(L.Callback):
        def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
            if not trainer.sanity_checking:
                with torch.no_grad():
                    pl_module.model.net[3].weight.fill_(torch.nan)

    _, values = logged(tmp_path, Break(), BortResidual())
    assert math.isnan(values["bort/3/sigma_max"])
    assert values["bort/4/sigma_max"] > 0
