"""What maps cannot highlight because of its colour: `python -m benchmarks.input_bias [--save]`.

The polarity test: the same small network is trained on scikit-learn's digits as they are (bright strokes on
black) and inverted (dark strokes on white), each with pixels in [0, 1] and in [-1, 1], which are what the
network reads. Every method then explains the same test digits. Beside it, on the networks for [0, 1], the
metrics of a run; and what integrated gradients owe to their baseline, and boundary maps to their search.
"""

import argparse
import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from sklearn.datasets import load_digits
from torch import Tensor, nn

from benchmarks.passes import machine
from lit_xai import attributions as a
from lit_xai import randomness
from lit_xai.attacks import PGDGrid
from lit_xai.attributions.rules import AlphaBeta, Epsilon, Flat, ZBox
from lit_xai.attributions.similarity import spearman
from lit_xai.metrics.baseline_sensitivity import BaselineSensitivity
from lit_xai.metrics.input_bias import BlindColour, ColourSweep, colour_curve, highlight, patches
from lit_xai.metrics.reparameterisation import Reparameterisation
from lit_xai.observe import explain
from lit_xai.pictures import PALETTE, shades

RESULTS = Path(__file__).parent / "results" / "input_bias.json"
PAGE = Path(__file__).parents[1] / "docs" / "input_bias.md"
PICTURE = PAGE.with_suffix(".png")
TABLES = "<!-- tables -->"
SEEDS = (0, 1, 2)
TRAIN = 1400
EPOCHS = 8
SCALES: dict[str, Callable[[Tensor], Tensor]] = {"[0, 1]": lambda x: x, "[-1, 1]": lambda x: 2 * x - 1}
POLARITIES: dict[str, Callable[[Tensor], Tensor]] = {"bright": lambda x: x, "dark": lambda x: 1 - x}
STROKE = 0.5  # a pixel of the digit is one at least as bright as this
# |a| on strokes and Spearman(|x|, |a|) of another training: bright and dark in [0, 1], then in [-1, 1].
REFERENCE = {
    "Gradient": ((0.361, 0.34), (0.334, -0.17), (0.287, -0.11), (0.390, -0.26)),
    "Gradient x input": ((0.709, 0.87), (0.143, 0.30), (0.198, 0.37), (0.298, 0.27)),
    "IG (0)": ((0.735, 0.88), (0.130, 0.31), (0.194, 0.38), (0.300, 0.26)),
    "RectGrad": ((0.870, 0.65), (0.071, 0.02), (0.207, 0.07), (0.414, -0.10)),
    "RectGrad, no x input": ((0.646, 0.54), (0.201, -0.05), (0.267, -0.01), (0.472, -0.20)),
}
Row = dict[str, Any]


def methods(low: float) -> dict[str, a.Attribution]:
    """The maps of the tables; `low` is the lowest pixel value."""
    return {
        "Gradient": a.Saliency(),
        "Gradient x input": a.InputXGradient(),
        "IG (0)": a.IntegratedGradients(steps=16),
        "RectGrad": a.RectifiedGradient(percentile=90),
        "RectGrad, no x input": a.RectifiedGradient(percentile=90, times_input=False),
        "LRP epsilon": a.LRP(Epsilon(), Epsilon()),
        "LRP alpha2 beta1": a.LRP(AlphaBeta()),
        "LRP z+": a.LRP(),
        "LRP z+, flat": a.LRP(first=Flat()),
        "LRP z+, z-box": a.LRP(first=ZBox(low, 1.0)),
    }


def network() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 16, 3, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, stride=2, padding=1),
        nn.ReLU(),
        nn.Conv2d(16, 16, 3, padding=1),
        nn.ReLU(),
        nn.Flatten(),
        nn.Linear(256, 10),
    )


def digits() -> tuple[Tensor, Tensor]:
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


def trained(seed: int, inputs: Tensor, labels: Tensor) -> nn.Module:
    torch.manual_seed(seed)
    net = network()
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    for _ in range(EPOCHS):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[index]), labels[index]).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def polarity(seed: int) -> tuple[list[Row], dict[tuple[str, str], nn.Module]]:
    """Every method on both polarities and both scales, and the networks."""
    images, labels = digits()
    strokes = images[TRAIN:, 0] >= STROKE
    rows, nets = [], {}
    for scale, scaled in SCALES.items():
        for colour, turned in POLARITIES.items():
            inputs = scaled(turned(images))
            net = nets[scale, colour] = trained(seed, inputs[:TRAIN], labels[:TRAIN])
            test, target = inputs[TRAIN:], labels[TRAIN:]
            with torch.no_grad():
                accuracy = float((net(test).argmax(1) == target).double().mean())
            for name, method in methods(float(inputs.min())).items():
                maps = method(net, test, target)
                rank = spearman(test.abs().sum(1), maps.abs().sum(1))
                mass = highlight(maps, strokes) * strokes.double().mean((1, 2))
                rows.append(
                    {
                        "seed": seed, "scale": scale, "digit": colour, "method": name, "accuracy": accuracy,
                        "mass": float(mass.nanmean()), "spearman": float(rank.nanmean()),
                        "area": float(strokes.double().mean()),
                    }
                )  # fmt: skip
    return rows, nets


def metrics(seed: int, net: nn.Module, colour: str, count: int = 64) -> list[Row]:
    """The metrics of a run, on a network for [0, 1]."""
    images, labels = (part[TRAIN : TRAIN + count] for part in digits())
    asked = {"blind": BlindColour(), "sweep": ColourSweep(), "reparameterisation": Reparameterisation()}
    seen = explain(net, POLARITIES[colour](images), labels, methods(0.0), asked, seed)
    return [
        {"seed": seed, "digit": colour, "method": name}
        | {
            f"{metric}/{quantity}": float(asked[metric].quantities[quantity].average(column))
            for metric, table in tables.items()
            for quantity, column in table.items()
        }
        for name, tables in seen.scores.items()
        if name
    ]


def sensitivity(seed: int, net: nn.Module, colour: str, count: int = 64) -> list[Row]:
    """Maps under other baselines, and under other random states of the search: median and quartiles."""
    images, labels = (part[TRAIN : TRAIN + count] for part in digits())
    subjects = {
        "IntegratedGradients": a.IntegratedGradients(steps=16),
        "DeepLift": a.DeepLift(),
        "ExpectedGradients": a.ExpectedGradients(samples=64),
        "BoundaryIntegratedGradients": a.BoundaryIntegratedGradients(steps=16),
        "BIG, PGD grid": a.BoundaryIntegratedGradients(search=PGDGrid(steps=20), steps=16),
        "BoundarySaliency": a.BoundarySaliency(),
    }
    asked = {"baseline": BaselineSensitivity(searches=6)}
    seen = explain(net, POLARITIES[colour](images), labels, subjects, asked, seed).scores
    return [
        {"seed": seed, "digit": colour, "method": name, "quantity": quantity}
        | {
            key: float(seen[name]["baseline"][quantity].nanquantile(share))
            for key, share in (("low", 0.25), ("median", 0.5), ("high", 0.75))
        }
        | {"mean": float(seen[name]["baseline"][quantity].nanmean())}
        for name in subjects
        for quantity in ("cosine", "spearman")
    ]


def claims(rows: list[Row], extra: list[Row], sensitive: list[Row]) -> list[tuple[str, bool, str]]:
    """What the papers say, whether it holds here, and the numbers."""
    found: list[tuple[str, bool, str]] = []

    def judge(said: str, holds: bool, numbers: dict[str, float]) -> None:
        found.append((said, holds, ", ".join(f"{name} {number:.2g}" for name, number in numbers.items())))

    def masses(digit: str, names: Iterable[str]) -> dict[str, float]:
        same = {"digit": digit, "scale": "[0, 1]"}
        return {name: mean(rows, "mass", method=name, **same) for name in names}

    area, multiplied = rows[0]["area"], ("Gradient x input", "IG (0)", "RectGrad")
    bright, dark = (masses(digit, multiplied) for digit in POLARITIES)
    judge("With the factor, bright strokes have more than their area", min(bright.values()) > area, bright)
    judge("... and dark ones less", max(dark.values()) < area, dark)
    for plain, product in (("RectGrad, no x input", "RectGrad"), ("Gradient", "Gradient x input")):
        bright, dark = (masses(digit, (plain, product)) for digit in POLARITIES)
        lead = {name: bright[name] - dark[name] for name in dark}
        judge(f"Without it ({plain}) dark strokes have more", dark[plain] > dark[product], dark)
        judge("... and the lead of bright ones is smaller, but there", 0 < lead[plain] < lead[product], lead)
    blind, change = (
        {name: mean(extra, key, method=name) for name in methods(0.0)}
        for key in ("blind/exactly_zero", "reparameterisation/change")
    )
    factors = (*multiplied, "LRP epsilon", "LRP alpha2 beta1", "LRP z+")
    still = ("Gradient", "RectGrad, no x input", "LRP z+, flat")
    exact = all(share == (name in factors) for name, share in blind.items())
    judge("Maps with the factor are exactly zero on a black patch, the others never", exact, blind)
    kept = all((change[name] < 1e-3) == (name in still) for name in change)
    judge("Maps of the function survive a re-parameterisation, others do not", kept, change)
    for quantity in ("cosine", "spearman"):
        least = min(column(sensitive, "median", method="IntegratedGradients", quantity=quantity))
        for method in ("BoundaryIntegratedGradients", "BIG, PGD grid"):
            most = max(column(sensitive, "median", method=method, quantity=quantity))
            said = f"{method} owes less to its search than IG to its baseline ({quantity}, every network)"
            judge(said, most < least, {"medians at most": most, "at least": least})
    return found


def column(rows: list[Row], key: str, **same: str) -> list[float]:
    """A number, of the rows with these values."""
    return [row[key] for row in rows if same.items() <= row.items()]


def mean(rows: list[Row], key: str, **same: str) -> float:
    return float(np.mean(column(rows, key, **same)))


def head(*names: str) -> list[str]:
    """The first two lines of a table."""
    return ["", "| " + " | ".join(names) + " |", "| --- " * len(names) + "|"]


def page(rows: list[Row], extra: list[Row], sensitive: list[Row]) -> str:
    places = [(scale, digit) for scale in SCALES for digit in POLARITIES]
    cell, accuracy = "{:.2f} ± {:.2f} / {:+.2f}", column(rows, "accuracy")
    lines = [
        f"**Polarity.** Share of |a| on strokes, ± half the range over {len(SEEDS)} trainings / "
        f"Spearman(|x|, |a|); strokes are {rows[0]['area']:.2f} of the pixels. In brackets the numbers of "
        "another training, with other strokes and hyper-parameters: only their order can be compared. Test "
        f"accuracy {min(accuracy):.2f} to {max(accuracy):.2f}.",
        *head("map", *(f"{digit}, {scale}" for scale, digit in places)),
    ]
    for name in methods(0.0):
        cells = []
        for at, (scale, digit) in enumerate(places):
            same = {"method": name, "scale": scale, "digit": digit}
            mass = column(rows, "mass", **same)
            text = cell.format(np.mean(mass), np.ptp(mass) / 2, mean(rows, "spearman", **same))
            if name in REFERENCE:
                text += " ({:.2f} / {:+.2f})".format(*REFERENCE[name][at])
            cells.append(text)
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    heads = {
        "blind/highlight": "highlight of a black patch",
        "blind/contrast": "of a grey one",
        "blind/exactly_zero": "exactly zero",
        "sweep/minimum": "sweep: minimum",
        "sweep/depth": "sweep: depth",
        "reparameterisation/change": "re-parameterised: change",
    }
    lines += [
        "",
        "**The metrics**, [0, 1], as a run would log them, bright / dark digits:",
        *head("map", *heads.values()),
    ]
    for name in methods(0.0):
        cells = [
            " / ".join(f"{mean(extra, key, method=name, digit=digit):.2g}" for digit in POLARITIES)
            for key in heads
        ]
        lines.append(f"| {name} | " + " | ".join(cells) + " |")
    lines += [
        "",
        "**Baseline sensitivity**: 1 - mean cosine and 1 - mean Spearman over pairs of maps, six per image; "
        "median over images (quartiles), mean over the trainings, bright / dark digits:",
        *head("map", "under", "1 - cosine", "1 - Spearman"),
    ]
    for name in dict.fromkeys(row["method"] for row in sensitive):
        cells = []
        for quantity in ("cosine", "spearman"):
            same = {"method": name, "quantity": quantity}
            found = [
                [mean(sensitive, key, digit=digit, **same) for key in ("median", "low", "high")]
                for digit in POLARITIES
            ]
            cells.append(" / ".join("{:.3f} ({:.3f} to {:.3f})".format(*three) for three in found))
        searched = name.startswith("B")
        under = "six random states of the search" if searched else "black, white, grey, noise x 3"
        lines.append(f"| {name} | {under} | " + " | ".join(cells) + " |")
    lines += head("claim", "here", "")
    for said, holds, numbers in claims(rows, extra, sensitive):
        lines.append(f"| {said} | {'holds' if holds else '**fails**'} | {numbers} |")
    return "\n".join(lines)


def draw(path: Path, nets: dict[tuple[str, str], nn.Module]) -> None:
    """One digit in both polarities with its maps, and the size of maps on a patch of every grey."""
    images, labels = digits()
    shown = ("Gradient", "Gradient x input", "RectGrad", "RectGrad, no x input", "LRP z+", "LRP z+, flat")
    figure = Figure(figsize=(10.5, 6.6), layout="constrained")
    above, below = figure.subfigures(2, 1, height_ratios=(1.25, 1))
    axes = above.subplots(2, len(shown) + 1)
    chosen = slice(TRAIN + 10, TRAIN + 11)
    for line, (digit, turned) in zip(axes, POLARITIES.items(), strict=True):
        inputs = turned(images[chosen])
        line[0].imshow(inputs[0, 0], cmap="gray", vmin=0, vmax=1)
        line[0].set_ylabel(f"{digit} digits", fontsize=9)
        for axis, name in zip(line[1:], shown, strict=True):
            maps = methods(0.0)[name](nets["[0, 1]", digit], inputs, labels[chosen])
            axis.imshow(PALETTE[shades(maps[0].abs().sum(0, keepdim=True).numpy())[0]])
    for axis, name in zip(axes[0], ("image, in [0, 1]", *shown), strict=True):
        axis.set_title(name, fontsize=9)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
    inputs, target = images[TRAIN : TRAIN + 128], labels[TRAIN : TRAIN + 128]
    with randomness.keyed(0, torch.arange(128)):
        where = patches(inputs, randomness.keys(inputs, "painted patch"), 0.25)
    for axis, (scale, scaled) in zip(below.subplots(1, 2), SCALES.items(), strict=True):
        low = float(scaled(torch.zeros(())))
        levels = torch.linspace(low, 1, 17).tolist()
        for name in shown:
            method = methods(low)[name]
            curve = colour_curve(method, nets[scale, "bright"], scaled(inputs), target, where, levels)
            axis.plot(levels, curve.mean(0) / curve.mean(0).amax(), label=name, linewidth=1.3)
        axis.set_title(f"|a| on a patch, by its grey level; pixels in {scale}", fontsize=9)
        axis.set_ylim(0, 1.05)
        axis.tick_params(labelsize=8)
        axis.spines[["top", "right"]].set_visible(False)
    names = axis.get_legend_handles_labels()
    below.legend(*names, fontsize=8, frameon=False, loc="outside lower center", ncols=len(shown))
    figure.savefig(path, dpi=110)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write results, tables and picture")
    parser.add_argument("--picture", type=Path, help="draw the picture alone, to this file")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.picture:
        return draw(asked.picture, polarity(SEEDS[-1])[1])
    rows, extra, sensitive = [], [], []
    for seed in SEEDS:
        some, nets = polarity(seed)
        rows += some
        for digit in POLARITIES:
            extra += metrics(seed, nets["[0, 1]", digit], digit)
            sensitive += sensitivity(seed, nets["[0, 1]", digit], digit)
        print(f"seed {seed}: done", flush=True)
    text = page(rows, extra, sensitive)
    print(text)
    if asked.save:
        results = {"machine": machine(), "polarity": rows, "metrics": extra, "sensitivity": sensitive}
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        parts = PAGE.read_text().split(TABLES)
        PAGE.write_text(TABLES.join([parts[0], f"\n\n{text}\n\n", parts[-1]]))
        draw(PICTURE, nets)
        print(f"wrote {RESULTS}, {PAGE} and {PICTURE}")


if __name__ == "__main__":
    main()
