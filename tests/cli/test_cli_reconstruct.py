"""`lit-xai reconstruct`: numbers and pictures of a run, beside those of another, and what is refused."""

import csv
import importlib
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from PIL import Image
from small_runs import CONFIGS

from lit_xai.cli import main
from lit_xai.data import SklearnDigits
from lit_xai.models.backtracking import reconstructions, relative_error

SUMS = """
import torch
from torch import nn
from lightning import LightningDataModule
from torch.utils.data import DataLoader, TensorDataset


class Sum(nn.Module):
    def __init__(self):
        super().__init__()
        self.conv = nn.Conv2d(2, 2, 3, padding=1)

    def forward(self, inputs):
        return inputs + 9 * self.conv(inputs)


def net():
    return nn.Sequential(nn.Conv2d(1, 2, 3), nn.LeakyReLU(0.5), Sum(), nn.Flatten(), nn.Linear(72, 3))


class Black(LightningDataModule):
    classes = 3

    def val_dataloader(self):
        images = torch.linspace(0, 1, 256).reshape(4, 1, 8, 8).clone()
        images[1] = 0
        return DataLoader(TensorDataset(images, torch.arange(4) % 3))
"""

DIGITS = str(CONFIGS / "data" / "sklearn_digits.yaml")


def table(folder: Path) -> list[dict[str, str]]:
    with (folder / "reconstruction.tsv").open(newline="") as file:
        return list(csv.DictReader(file, delimiter="\t"))


def summary(folder: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((folder / "reconstruction.json").read_text())
    return found


def test_reconstruct_writes_numbers_and_pictures(run: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["reconstruct", "--run", str(run), "--images=9", "--batch_size=4"]) == 0
    folder = run / "reconstruction"
    rows = table(folder)
    assert [row["layer"] for row in rows] == [
        "net.relu1", "net.relu2", "net.relu3", "net.pool", "net.linear",
    ]  # fmt: skip
    (one,) = summary(folder)["networks"]
    assert one["stopped"] == ""
    assert 0 <= one["pattern"]["aimed"] <= one["pattern"]["success"] <= 1
    assert one["pattern"]["images"] == 9
    for row in rows:
        assert float(row["psnr"]) == pytest.approx(one["layers"][row["layer"]]["psnr"], rel=1e-5)
        assert -1 <= float(row["correlation"]) <= 1
        assert float(row["relative_error_sd"]) > 0
    for name in ("reconstruction.png", "pattern.png"):
        with Image.open(folder / name) as picture:
            assert min(picture.size) > 300
    said = capsys.readouterr().out
    assert "net.relu3" in said
    assert "pattern changes" in said


def test_another_run_stands_beside(run: Path) -> None:
    words = ["reconstruct", "--run", str(run), "--images=5", "--layers", "net.conv2", "net.relu1"]
    assert main([*words, "--against", str(run)]) == 0
    first, second = summary(run / "reconstruction")["networks"]
    assert first == second
    assert list(first["layers"]) == ["net.conv2", "net.relu1"]
    assert len(table(run / "reconstruction")) == 4


def test_a_network_of_ones_own_is_traced_as_far_as_it_goes_back(at_work: Path, tmp_path: Path) -> None:
    words = ["reconstruct", "--model", "mine.plain", "--weights", "net.pt", "--data", DIGITS, "--images=6"]
    assert main([*words, "--out", str(tmp_path)]) == 0
    folder = tmp_path / "reconstruction"
    net = torch.nn.Sequential(torch.nn.Flatten(), torch.nn.Linear(64, 10)).eval()
    net.load_state_dict(torch.load("net.pt", weights_only=True))
    val = SklearnDigits().splits.val
    inputs, _ = val.__getitems__([k * len(val) // 6 for k in range(6)])
    expected = relative_error(reconstructions(net, inputs)["1"], inputs).mean()
    assert float(table(folder)[0]["relative_error"]) == pytest.approx(float(expected), rel=1e-4)
    odd = ["reconstruct", "--model", "mine.Odd", "--weights", "odd.pt", "--data", DIGITS, "--images=2"]
    assert main([*odd, "--out", str(tmp_path)]) == 2  # softmax, at the end, has no inverse


def test_where_the_way_back_ends_the_pattern_is_that_of_the_layer_before(
    at_work: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A sum whose branch is no contraction; and a black image, whose error is not finite."""
    Path("sums.py").write_text(SUMS)
    torch.manual_seed(0)
    net = importlib.import_module("sums").net()
    torch.save(net.state_dict(), "sums.pt")
    words = ["reconstruct", "--model", "sums.net", "--weights", "sums.pt", "--data", "sums.Black"]
    assert main([*words, "--images=4", "--out", str(tmp_path)]) == 0
    found = json.loads(
        (tmp_path / "reconstruction/reconstruction.json").read_text(), parse_constant=pytest.fail
    )
    (one,) = found["networks"]
    assert list(one["layers"]) == ["1"]
    assert one["layers"]["1"]["relative_error"] > 0
    assert one["pattern"]["layer"] == "1"
    assert "`addition` (layer '2.addition') has no inverse" in one["stopped"]
    assert "pattern of 1 changes" in capsys.readouterr().out
    assert main([*words, "--images=2", "--layers=0", "--out", str(tmp_path)]) == 0
    assert main([*words, "--layers=4", "--out", str(tmp_path)]) == 2


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--images=0"], "`images` must be at least 1, got 0"),
        (["--layers", "net.relu9"], "`layer` must be one of the network's, got 'net.relu9'"),
        (["--epsilon=-1"], "`epsilon` must be greater than 0"),
        (["--epsilon=0"], "`epsilon` must be greater than 0"),
        (["--against", "nowhere"], "nowhere is not a folder"),
        (["--layer", "net.relu1"], "there is no option '--layer': did you mean '--layers'?"),
    ],
)
def test_what_cannot_be_is_refused(
    run: Path, refused: Callable[[list[str]], str], words: list[str], message: str
) -> None:
    assert message in refused(["reconstruct", "--run", str(run), *words])
