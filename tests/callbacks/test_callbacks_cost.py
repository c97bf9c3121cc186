"""The line about the cost of a regime: before and after, and no trace in between."""

import re
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from lit_xai.attacks import L2PGD
from lit_xai.callbacks import RegimeCost
from lit_xai.classifier import Classifier
from lit_xai.objectives import AdversarialTraining, CrossEntropy, GaussianAugmentation, Objective
from lit_xai.objectives.base import Views
from lit_xai.types import Images, Labels


def net(channels: int, classes: int) -> nn.Module:
    conv = nn.Conv2d(channels, 4, 3)
    return nn.Sequential(
        conv, nn.BatchNorm2d(4), nn.ReLU(), nn.Dropout(0.5), nn.Flatten(), nn.Linear(144, classes)
    )


def fitted(folder: Path, objective: Objective, *callbacks: L.Callback) -> dict[str, Any]:
    L.seed_everything(1, verbose=False)
    images, labels = torch.rand(24, 1, 8, 8), torch.arange(24) % 3
    classifier = Classifier(
        net, lambda p: torch.optim.SGD(p, lr=0.1, momentum=0.9), objective, channels=1, classes=3
    )
    trainer = L.Trainer(
        max_epochs=2,
        accelerator="cpu",
        callbacks=list(callbacks),
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        log_every_n_steps=1,
        default_root_dir=folder,
    )
    data = TensorDataset(images, labels)
    trainer.fit(classifier, DataLoader(data, batch_size=8, shuffle=True), DataLoader(data, batch_size=24))
    return classifier.state_dict()


def attacked() -> Objective:
    return AdversarialTraining(L2PGD(epsilon=0.5, steps=2, random_start=True))


def test_weights_are_the_same_with_and_without(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    plain, said = fitted(tmp_path, attacked()), RegimeCost()
    watched = fitted(tmp_path, attacked(), said)
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    first, last = capsys.readouterr().out.splitlines()
    assert re.fullmatch(
        r"regime: [\d.]+ x a standard training step, predicted: 3 forward and 3 backward passes an image",
        first,
    )
    assert re.fullmatch(r"regime: [\d.]+ x a standard training step, measured; [\d.]+ predicted", last)
    assert said.predicted is not None
    assert said.predicted.relative > 1.2
    assert said.measured is not None
    assert said.measured > 1.2


def test_standard_training_says_and_tries_nothing(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    fitted(tmp_path, CrossEntropy(0.1), RegimeCost())
    assert capsys.readouterr().out == ""


class Fussy(GaussianAugmentation):
    """Takes part in a run alone."""

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        if self.progress == 1.0:
            raise RuntimeError("not for a trial\nat all")
        return super().views(model, inputs, target)


def test_a_trial_that_fails_is_told_and_leaves_the_run_alone(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    plain = fitted(tmp_path, Fussy(0.1))
    watched = fitted(tmp_path, Fussy(0.1), RegimeCost())
    assert all(torch.equal(plain[key], watched[key]) for key in plain)
    assert capsys.readouterr().out == "regime: not tried, RuntimeError: not for a trial\n"
