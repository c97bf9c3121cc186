"""What explanation quality costs: `python -m benchmarks.metrics [--save]`.

* `credible`: the credible set on 128 images with one explainer, metric by metric and as a whole: counted
  passes times the time of a bare pass, by measured time. A pass of a mosaic of four images counts as four.
* `peers`: metrics that Quantus has right, same settings, beside Quantus: time with a network, and time per
  perturbation step with a model that costs next to nothing, which is what the library itself takes.
* `cost`: the credible set as a share of an epoch of ResNet-18 on 50,000 images of 32x32, standard and PGD-10:
  counted passes times the time of a pass on this device, and on a GPU measured as well.

Models have fresh weights, on which cost does not depend, except that attacks stop early where they succeed.
"""

import argparse
import json
import warnings
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.metrics_peers import (
    EXPLAINER,
    OVERHEAD,
    against_quantus,
    beside_the_model,
    medians,
    subject,
    timed,
)
from benchmarks.passes import Efficiency, Meter, bare_forward, bare_gradient, machine
from lit_xai.attributions import Attribution
from lit_xai.metrics import EdgeMap, Metric, OtherImage, RandomMap
from lit_xai.metrics.base import Facts
from lit_xai.metrics.companions import Companions
from lit_xai.metrics.credible import credible
from lit_xai.metrics.untrained import Untrained
from lit_xai.models import ResNet18
from lit_xai.observe import explain, observing

RESULTS = Path(__file__).parent / "results"
CONTROLS: dict[str, Attribution] = {
    "random_map": RandomMap(),
    "edge_map": EdgeMap(),
    "other_image": OtherImage(),
    "untrained": Untrained(),
}
CONTROLLED = 64  # of 128 images, those on which controls are scored
CHUNK = 64  # images in one pass of a metric
EPOCH, BATCH = 50_000, 128  # images of CIFAR-10, and of a training batch
EFFICIENT = 0.8  # efficiency of the set at least
SHARES = {"standard": 0.20, "pgd10": 0.05}  # of an epoch that explaining may take, on a GPU
PARTS = ("credible", "peers", "cost")


class Census(Meter):
    """Counts what passes a model and all its copies, in images of the size that is explained.

    Copies with other weights are made by metrics that randomise a network; mosaics have several images.
    """

    def __init__(self, model: nn.Module, image: int) -> None:
        super().__init__(model)
        self.image = image

    def __enter__(self) -> "Census":
        self._handle = nn.modules.module.register_module_forward_hook(self._heard)
        return self

    def _heard(self, module: nn.Module, inputs: tuple[Any, ...], output: Any) -> None:
        if type(module) is not type(self.model):
            return
        images = inputs[0].numel() // self.image
        self.calls += 1
        self.forwards += images
        if output.requires_grad:
            output.register_hook(lambda gradient: self._returned(images))


def possible(metrics: Mapping[str, Metric], model: nn.Module, inputs: Tensor) -> dict[str, Metric]:
    """The metrics that can be scored here; the others are named."""
    shape = tuple(inputs.shape[1:])
    facts = Facts(model, shape, 10, len(inputs), 10, False, inputs.device)
    kept = {}
    for name, metric in metrics.items():
        try:
            metric.check(name, facts)
            kept[name] = metric
        except ValueError as refusal:
            print(f"left out: {refusal}")
    return kept


def looked(
    metrics: Mapping[str, Metric],
    model: nn.Module,
    inputs: Tensor,
    target: Tensor,
    companions: Companions,
    controls: Mapping[str, Attribution] | None = None,
) -> Callable[[], object]:
    """One look at a batch with these metrics, as callbacks take it."""
    before = {"saliency": inputs.flip(0).sum(dim=1)}

    def run() -> object:
        return explain(
            model,
            inputs,
            target,
            {"saliency": EXPLAINER},
            metrics,
            seed=0,
            companions=companions,
            controls=controls,
            previous=before,
        )

    return run


def counted(run: Callable[[], object], model: nn.Module, image: int) -> Census:
    """What one call passes through the model."""
    with Census(model, image) as census:
        run()
    return census


def of_credible_set(rounds: int) -> list[dict[str, Any]]:
    """Passes, time and efficiency of every metric and of all at once."""
    rows = []
    print(
        f"{'network':9} {'metric':28} {'F':>7} {'B':>7} {'units/image':>11} {'seconds':>8} {'efficiency':>10}"
    )
    for net, channels in (("SmallCNN", 1), ("ResNet20", 3)):
        model, inputs, target, companions = subject(net, channels)
        metrics = possible(credible(), model, inputs)
        asked = {"(one map)": {}} | {name: {name: one} for name, one in metrics.items()} | {"all": metrics}
        bare = inputs[:CHUNK]
        for name, chosen in asked.items():
            run = looked(chosen, model, inputs, target, companions)
            census = counted(run, model, inputs[0].numel())
            parts = [lambda: bare_forward(model, bare), lambda: bare_gradient(model, bare), run]  # noqa: B023
            each = [
                Efficiency(census.forwards, census.backwards, *seconds, batch=len(bare))
                for seconds in timed(parts, rounds)
            ]
            seen = sorted(each, key=lambda one: one.ratio)[len(each) // 2]  # the round in the middle
            print(
                f"{net:9} {name:28} {seen.forwards:7} {seen.backwards:7} {seen.units / len(inputs):8.1f} "
                f"{seen.seconds:8.3f} {seen.ratio:10.3f}",
                flush=True,
            )
            row = {"network": net, "metric": name, "settings": repr(chosen.get(name, "")), **seen.row()}
            rows.append(row | {"images": len(inputs), "units_per_image": seen.units / len(inputs)})
    return rows


def of_an_epoch(rounds: int, device: torch.device) -> list[dict[str, Any]]:
    """The credible set as a share of an epoch of ResNet-18: of standard training, and of PGD-10."""
    counter, inputs, target, companions = subject("ResNet20", 3)
    metrics = possible(credible(), counter, inputs)
    image = inputs[0].numel()
    own = counted(looked(metrics, counter, inputs, target, companions), counter, image)
    some = slice(0, CONTROLLED)
    plain = looked(metrics, counter, inputs[some], target[some], companions[some])
    beside = looked(metrics, counter, inputs[some], target[some], companions[some], CONTROLS)
    before, after = (counted(run, counter, image) for run in (plain, beside))
    passes = {
        "without controls": (own.forwards, own.backwards),
        "with controls": (
            own.forwards + after.forwards - before.forwards,
            own.backwards + after.backwards - before.backwards,
        ),
    }
    model = ResNet18(3, 10).to(device)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, momentum=0.9)
    chunk, batch = torch.rand(CHUNK, 3, 32, 32, device=device), torch.rand(BATCH, 3, 32, 32, device=device)
    labels = torch.arange(BATCH, device=device) % 10

    def step() -> None:
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(batch), labels).backward()
        optimizer.step()

    training, attack = medians(timed([step, lambda: bare_gradient(model, batch)], rounds))
    with observing(model, 0):  # in full precision, as explanations are made
        passes_of_one = [lambda: bare_forward(model, chunk), lambda: bare_gradient(model, chunk)]
        forward, gradient = medians(timed(passes_of_one, rounds))
    epochs = {"standard": training, "pgd10": training + 10 * attack}
    epochs = {name: seconds * EPOCH / BATCH for name, seconds in epochs.items()}
    rows = []
    for what, (forwards, backwards) in passes.items():
        predicted = ((forwards - backwards) * forward + backwards * gradient) / CHUNK
        row: dict[str, Any] = {"what": what, "device": device.type}
        row |= {"forwards": forwards, "backwards": backwards}
        row |= {"predicted_seconds": predicted, "measured_seconds": None}
        if device.type == "cuda":
            row["measured_seconds"] = measured(model, device, rounds, controls=what == "with controls")
        seconds = row["measured_seconds"] or predicted
        for regime, epoch in epochs.items():
            row |= {f"epoch_{regime}": epoch, f"share_{regime}": seconds / epoch}
            row[f"kept_{regime}"] = seconds <= SHARES[regime] * epoch
        shares = ", ".join(f"{100 * row[f'share_{name}']:.1f} % of {name}" for name in epochs)
        print(f"{what}: {seconds:.1f} s, {shares}{'' if device.type == 'cuda' else ' (predicted, on a CPU)'}")
        rows.append(row)
    return rows


def measured(model: nn.Module, device: torch.device, rounds: int, controls: bool) -> float:
    """Seconds of a look at all images with the credible set, on a GPU."""
    _, inputs, target, companions = subject("ResNet18", 3)
    inputs, target = inputs.to(device), target.to(device)
    companions = Companions(
        *(part.to(device) for part in (companions.images, companions.target, companions.ids))
    )
    metrics = possible(credible(), model.eval(), inputs)
    some = slice(0, CONTROLLED)
    rest = slice(CONTROLLED, None)
    with_controls = looked(metrics, model, inputs[some], target[some], companions[some], CONTROLS)
    without = looked(metrics, model, inputs[rest], target[rest], companions[rest])
    whole = looked(metrics, model, inputs, target, companions)
    parts = [lambda: (with_controls(), without())] if controls else [whole]
    return medians(timed(parts, rounds))[0]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/metrics.json")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument("--parts", nargs="*", choices=PARTS, default=PARTS)
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    found: dict[str, Any] = {"machine": machine()}
    if "credible" in asked.parts:
        found["credible"] = of_credible_set(asked.rounds)
        low = [row for row in found["credible"] if row["metric"] == "all" and row["ratio"] < EFFICIENT]
        print(f"efficiency of all below {EFFICIENT}: {len(low)} of 2")
    if "peers" in asked.parts:
        found["peers"] = against_quantus(asked.rounds)
        found["overhead"] = beside_the_model(asked.rounds)
        slow, much = (sum(not row["kept"] for row in found[part]) for part in ("peers", "overhead"))
        print(f"slower than Quantus: {slow} of {len(found['peers'])}")
        print(f"overhead not {OVERHEAD:g} times smaller: {much} of {len(found['overhead'])}")
    if "cost" in asked.parts:
        device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        found["cost"] = of_an_epoch(asked.rounds, device)
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / "metrics.json"
        known = json.loads(path.read_text()) if path.exists() and set(asked.parts) != set(PARTS) else {}
        path.write_text(json.dumps(known | found, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
