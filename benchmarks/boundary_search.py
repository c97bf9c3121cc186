"""Closest-boundary searches beside each other: `python -m benchmarks.boundary_search [--save]`.

Every search starts from the same correctly classified images and moves away from their class. What a rival
returns is moved onto the boundary by twelve halvings; every point is checked to flip, and missing otherwise.

* `ratio`: median distance by that of the best rival on the net, whatever that cost.
* `best`: share of images on which no rival comes closer, by more than 0.1 %; for a rival, no search at all.
* F, B: forward passes and input gradients an image, without the halvings; `most` for any image.
* `over` (largest), `opt` (median): the checks of `metrics.robustness.boundary_checks`.
* efficiency: counted passes times the time of a bare pass of the whole batch, by measured time, on twice as
  many images.

Nets: two small ones, trained here on the embedded digits, one of them adversarially; and two for CIFAR-10 if
the shared data are at hand (`LIT_XAI_SHARED_DATA`, or `shared/data` beside the checkout or above it). The
constants of our searches were chosen on the first 64 images of each net; those that follow are reported.
"""

import argparse
import json
import math
import os
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import foolbox  # its import warns of names that SciPy is about to drop
import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.attacks import digits, train
from benchmarks.passes import Meter, efficiency, machine
from lit_xai.attacks import DDN, L2PGD, Boundary, Search
from lit_xai.attacks.boundary_walk import BoundaryWalk
from lit_xai.attacks.grid import PGDGrid
from lit_xai.attacks.portfolio import THOROUGH, ClosestBoundary
from lit_xai.metrics.robustness import boundary_checks
from lit_xai.models import Normalized, ResNet20, SmallCNN
from lit_xai.randomness import keyed

RESULTS = Path(__file__).parent / "results"
SEED = 0
RADII = (36 / 255, 64 / 255, 0.3, 0.5, 0.7, 0.9, 1.0, 1.1, 1.3, 1.8, 2.4, 3.0, 4.0)
OURS: dict[str, Search] = {
    "DDN": DDN(),
    "BoundaryWalk": BoundaryWalk(),
    "ClosestBoundary": ClosestBoundary(),
    "ClosestBoundary, thorough": THOROUGH,
}
GRIDS: dict[str, Search] = {
    "PGD grid, released": PGDGrid(RADII, steps=100, released=True),
    "PGD grid, repaired": PGDGrid(RADII, steps=100),
}
PEERS: dict[str, foolbox.Attack] = {
    "foolbox DeepFool": foolbox.attacks.L2DeepFoolAttack(),
    "foolbox FMN 100": foolbox.attacks.L2FMNAttack(steps=100),
    "foolbox DDN 20": foolbox.attacks.DDNAttack(steps=20),
    "foolbox DDN 100": foolbox.attacks.DDNAttack(steps=100),
    "foolbox DDN 1000": foolbox.attacks.DDNAttack(steps=1000),
    "foolbox CW 9 x 100": foolbox.attacks.L2CarliniWagnerAttack(binary_search_steps=9, steps=100),
    "foolbox CW 9 x 100, lr 0.1": foolbox.attacks.L2CarliniWagnerAttack(
        binary_search_steps=9, steps=100, stepsize=0.1, initial_const=1.0
    ),
}
Case = tuple[nn.Module, Tensor, Tensor]


class Residual(nn.Module):
    """relu(conv(relu(conv(x))) + shortcut(x)), without batch norm."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inside, outside, 3, stride, 1)
        self.conv2 = nn.Conv2d(outside, outside, 3, 1, 1)
        around = nn.Conv2d(inside, outside, 1, stride)
        self.shortcut = nn.Sequential(around) if stride > 1 else nn.Identity()
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        outputs: Tensor = self.relu(self.conv2(self.relu(self.conv1(inputs))) + self.shortcut(inputs))
        return outputs


class ResNet4b(nn.Module):
    """The residual net of the verification competitions, under the names of its published weights."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 16, 3, 2, 1)
        self.layer1 = nn.Sequential(Residual(16, 32, 2), Residual(32, 32, 1))
        self.layer2 = nn.Sequential(Residual(32, 32, 2), Residual(32, 32, 1))
        self.linear1, self.linear2 = nn.Linear(512, 100), nn.Linear(100, 10)
        self.relu = nn.ReLU()

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.layer2(self.layer1(self.relu(self.conv1(inputs)))).flatten(1)
        logits: Tensor = self.linear2(self.relu(self.linear1(hidden)))
        return logits


def networks() -> Iterator[tuple[str, Case]]:
    torch.manual_seed(0)
    inputs, target = digits()
    some = inputs[:4000], target[:4000]
    yield "SmallCNN", (train(SmallCNN(1, 10), *some), inputs[4000:], target[4000:])
    robust = train(SmallCNN(1, 10), *some, L2PGD(epsilon=1.0, steps=5))
    yield "SmallCNN, adversarial", (robust, inputs[4000:], target[4000:])
    folder = shared_data()
    if folder is None:
        print("no shared data at hand: the nets for CIFAR-10 are left out", file=sys.stderr)
        return
    held = dict(np.load(folder / "cifar10" / "cifar10_exact_2034.npz").items())
    inputs = torch.tensor(held["test_image"]).permute(0, 3, 1, 2).contiguous() / 255
    target = torch.tensor(held["test_label"]).long()
    weights = torch.load(folder / "weights" / "cifar10_resnet4b_adversarial.pt", weights_only=True)
    robust = ResNet4b()
    robust.load_state_dict(weights)
    colours = (0.4914, 0.4822, 0.4465), (0.2471, 0.2435, 0.2616)
    yield "resnet4b, adversarial", (Normalized(robust, *colours).eval().requires_grad_(False), inputs, target)
    weights = torch.load(folder / "weights" / "cifar10_resnet20_standard.pt", weights_only=True)
    standard = ResNet20(3, 10)
    standard.load_state_dict({name.removeprefix("module."): value for name, value in weights.items()})
    colours = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
    yield "ResNet-20", (Normalized(standard, *colours).eval().requires_grad_(False), inputs, target)


def shared_data() -> Path | None:
    named = os.environ.get("LIT_XAI_SHARED_DATA")
    places = [Path(named)] if named else [up / "shared" / "data" for up in Path(__file__).resolve().parents]
    return next((place for place in places if (place / "weights").is_dir()), None)


def peer(attack: foolbox.Attack) -> Callable[[nn.Module, Tensor, Tensor], Tensor]:
    def points(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
        bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
        found: Tensor = attack.run(bounded, inputs, target)
        return found

    return points


@torch.no_grad()
def settled(model: nn.Module, inputs: Tensor, target: Tensor, points: Tensor) -> Boundary:
    """Points moved onto the boundary by twelve halvings, and checked."""
    points = points.clamp(0, 1)
    near, far = torch.zeros(len(inputs)), torch.ones(len(inputs))
    for _ in range(12):
        middle = (near + far) / 2
        flips = model(inputs.lerp(points, middle[:, None, None, None])).argmax(1) != target
        near, far = torch.where(flips, near, middle), torch.where(flips, middle, far)
    points = inputs.lerp(points, far[:, None, None, None])
    label = model(points).argmax(1)
    distance = (points - inputs).flatten(1).norm(dim=1).masked_fill(label == target, math.inf)
    none = torch.zeros_like(target)
    return Boundary(points, distance, label != target, label, none, none)


def compared(
    name: str, model: nn.Module, inputs: Tensor, target: Tensor, count: int
) -> list[dict[str, object]]:
    """Rows of the table from the first `count` images; efficiency from all."""
    many, inputs, target = (inputs, target), inputs[:count], target[:count]
    rows: dict[str, dict[str, object]] = {}
    distances: dict[str, Tensor] = {}

    def add(title: str, boundary: Boundary, meter: Meter, seconds: float, most: tuple[int, int]) -> None:
        opt, over = boundary_checks(model, inputs, target, boundary)
        distances[title] = distance = boundary.distance
        rows[title] = {
            "network": name,
            "search": title,
            "found": int(boundary.found.sum()),
            "images": len(inputs),
            "median": distance.median().item(),
            "mean": distance[boundary.found].mean().item(),
            "forwards": meter.forwards / len(inputs),
            "backwards": meter.backwards / len(inputs),
            "most": most,
            "over": over[boundary.found].max().item(),
            "opt": opt.nanmedian().item(),
            "seconds": seconds,
        }

    def ours(title: str, search: Search) -> None:
        with Meter(model) as meter, keyed(SEED, torch.arange(len(inputs))):
            start = time.perf_counter()
            found = search.search(model, inputs, target)
            seconds = time.perf_counter() - start
        settle = settled(model, inputs, target, found.points)
        found.found[settle.distance.isinf()] = False  # nobody is believed
        most = int(found.forwards.max()), int(found.backwards.max())
        add(title, found, meter, seconds, most)

    for title, attack in PEERS.items():
        with Meter(model) as meter:
            start = time.perf_counter()
            points = peer(attack)(model, inputs, target)
            seconds = time.perf_counter() - start
        all_alike = round(meter.forwards / len(inputs)), round(meter.backwards / len(inputs))
        add(title, settled(model, inputs, target, points), meter, seconds, all_alike)
    for title, search in GRIDS.items():
        ours(title, search)
    rivals = list(distances)
    for title, search in OURS.items():
        ours(title, search)
        if search in (DDN(), ClosestBoundary()):

            def run(search: Search = search) -> Boundary:
                with keyed(SEED, torch.arange(len(many[0]))):
                    return search.search(model, *many)

            rows[title]["efficiency"] = efficiency(run, model, many[0], repeats=5).ratio
    least = min(float(rows[title]["median"]) for title in rivals)  # type: ignore[arg-type]
    for title, row in rows.items():
        others = rivals if title in OURS else [other for other in distances if other != title]
        nearest = torch.stack([distances[other] for other in others]).amin(dim=0)
        row["ratio"] = float(row["median"]) / least  # type: ignore[arg-type]
        row["best"] = (distances[title] <= 1.001 * nearest).float().mean().item()
        print(line(row), flush=True)
    return list(rows.values())


def line(row: dict[str, object]) -> str:
    most = "{}/{}".format(*row["most"])  # type: ignore[misc]
    spent = f"F {row['forwards']:6.1f}  B {row['backwards']:6.1f}  most {most:>9}"
    quality = f"best {row['best']:.2f}  over {row['over']:.4f}  opt {row['opt']:.3f}"
    efficient = f"  efficiency {row['efficiency']:.2f}" if "efficiency" in row else ""
    return (
        f"{row['network']:22} {row['search']:26} found {row['found']}/{row['images']}  "
        f"median {row['median']:.4f}  mean {row['mean']:.4f}  ratio {row['ratio']:.4f}  "
        f"{spent}  {quality}  {row['seconds']:6.1f} s{efficient}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/boundary_search.json")
    parser.add_argument(
        "--images", type=int, default=64, help="of each net, half as many of ResNet-20 (default: 64)"
    )
    parser.add_argument("--first", type=int, default=64, help="images to leave out in front (default: 64)")
    parser.add_argument("--networks", nargs="+", help="names to keep (default: all)")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows: list[dict[str, object]] = []
    for name, (model, inputs, target) in networks():
        if asked.networks and name not in asked.networks:
            continue
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in inputs.split(250)]) == target
        count = asked.images // 2 if name == "ResNet-20" else asked.images  # it takes most of the time
        some = right.nonzero()[asked.first : asked.first + 2 * count, 0]
        rows += compared(name, model, inputs[some], target[some], count)
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        tested = {"first": asked.first, "images": asked.images, "seed": SEED}
        text = json.dumps({"machine": machine(), **tested, "rows": rows}, indent=1)
        (RESULTS / "boundary_search.json").write_text(text + "\n")
        print(f"written to {RESULTS / 'boundary_search.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
