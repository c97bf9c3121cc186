"""What tests of the command line share: a small run, networks of one's own, and the one line of a refusal."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from small_runs import WORDS

from lit_xai.cli import main
from lit_xai.data import SklearnDigits

OWN = """
import torch
from lightning import LightningDataModule
from sklearn.datasets import load_digits
from torch import nn
from torch.utils.data import DataLoader, TensorDataset


def plain():
    return nn.Sequential(nn.Flatten(), nn.Linear(64, 10))


def wide(channels: int, classes: int, width: int = 8):
    return nn.Sequential(nn.Flatten(), nn.Linear(64 * channels, width), nn.ReLU(), nn.Linear(width, classes))


class Odd(nn.Module):
    def __init__(self, kind: str = "probabilities"):
        super().__init__()
        self.net, self.kind = plain(), kind

    def forward(self, inputs):
        logits = self.net(inputs)
        match self.kind:
            case "probabilities":
                return logits.softmax(1)
            case "random":
                return logits + 0.1 * torch.randn_like(logits)
            case "few":
                return logits[:, :3]
            case "pair":
                return logits, logits


class Digits(LightningDataModule):
    def __init__(self, scale: float = 1.0, classes: int = 10, shift: int = 0):
        super().__init__()
        self.scale, self.below, self.shift = scale, classes, shift

    def test_dataloader(self):
        pixels, labels = load_digits(return_X_y=True)
        images = torch.tensor(pixels).float().reshape(-1, 1, 8, 8) / 16 * self.scale
        kept = torch.tensor(labels) < self.below
        return DataLoader(TensorDataset(images[kept], torch.tensor(labels)[kept] + self.shift))
"""


@pytest.fixture(scope="session")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("cli") / "run"
    assert main(["fit", *WORDS, "--out", str(folder)]) == 0
    return folder


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str]) -> Callable[[list[str]], str]:
    def ask(words: list[str]) -> str:
        assert main(words) == 2
        said = capsys.readouterr().err
        assert said.count("\n") == 1, said
        return said

    return ask


@pytest.fixture(scope="session")
def workshop(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with `mine.py`, the file of its networks, and weights for them, trained on real digits."""
    folder = tmp_path_factory.mktemp("workshop")
    (folder / "mine.py").write_text(OWN)
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10))
        train = SklearnDigits().splits.train
        inputs, target = train.__getitems__(list(range(len(train))))
        optimizer = torch.optim.Adam(net.parameters(), 0.02)
        for _ in range(150):
            optimizer.zero_grad()
            torch.nn.functional.cross_entropy(net(inputs), target).backward()
            optimizer.step()
    weights = net.state_dict()
    torch.save(weights, folder / "net.pt")
    torch.save({f"net.{name}": value for name, value in weights.items()}, folder / "odd.pt")
    wrapped = {f"model.module.{name}": value for name, value in weights.items()}
    torch.save({"state_dict": wrapped, "epoch": 3}, folder / "wrapped.pt")
    torch.save(net, folder / "whole.pt")
    return folder


@pytest.fixture
def at_work(workshop: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The workshop as the current directory."""
    monkeypatch.chdir(workshop)
    return workshop
