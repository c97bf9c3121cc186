"""What objectives cost: `python -m benchmarks.objectives [--save] [--only NAME ...]`, from the repository.

* Units of an image and step: a forward pass costs 1, an input gradient 1 more, a gradient of the weights 2
  more. They are counted, and stand beside those that the method needs.
* Efficiency: the time of bare passes, as many of each kind and of as many images at once as were counted, by
  measured time. The gradient of the images that comes with that of the weights has no unit, but a time: all
  of a first layer, which is much of a shallow network.
* Relative to standard: measured time over that of a bare training pass of the batch.
* Throughput over that of recipes as others train them, re-typed here, timed in turn with ours.

Timed are forward and backward passes of a training step; the optimizer is not, nor is a data loader. Smallest
ratios wanted: efficiency 0.85, and what the table below says of the recipes.
"""

import argparse
import json
import statistics
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.passes import bare_forward, bare_gradient, clock, machine
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.attacks.pgd import L2PGD, LinfPGD
from lit_xai.models import ResNet18, SmallCNN
from lit_xai.objectives import AdversarialTraining, CrossEntropy, GaussianAugmentation, Objective
from lit_xai.objectives.fast import FastAdversarial
from lit_xai.objectives.free import FreeAdversarial
from lit_xai.objectives.macer import Macer
from lit_xai.objectives.smooth_adv import SmoothAdv
from lit_xai.objectives.smoothing import Consistency
from lit_xai.objectives.tradeoff import AdversarialLogitPairing, Mart, Trades
from lit_xai.objectives.weight_perturbation import WeightPerturbed

RESULTS = Path(__file__).parent / "results"
EPSILON, STEP, STEPS = 8 / 255, 2 / 255, 10
UNITS = {"forward": 1, "gradient": 2, "weights": 3, "both": 3}  # of an image
Recipe = Callable[[nn.Module, Tensor, Tensor], Tensor]


class Bill(AbstractContextManager["Bill"]):
    """Counts the passes of a model by what they are for, and by how many images pass at once.

    A pass forward that nothing comes back from is "forward"; with an input gradient, "gradient"; with
    gradients of the weights, "weights", and "both" where the images get theirs from the same pass.
    """

    def __init__(self, model: nn.Module) -> None:
        self.model = model
        self.passes: Counter[tuple[str, int]] = Counter()
        self._of_images = False

    @property
    def units(self) -> int:
        return sum(UNITS[kind] * images * count for (kind, images), count in self.passes.items())

    def __enter__(self) -> "Bill":
        parameters = {id(parameter) for parameter in self.model.parameters()}
        self._handle, self._grad = self.model.register_forward_hook(self._seen), torch.autograd.grad

        def grad(outputs: Any, inputs: Any, *rest: Any, **options: Any) -> Any:
            wanted = [inputs] if isinstance(inputs, Tensor) else inputs
            self._of_images = not any(id(tensor) in parameters for tensor in wanted)
            try:
                return self._grad(outputs, inputs, *rest, **options)
            finally:
                self._of_images = False

        torch.autograd.grad = grad
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        torch.autograd.grad = self._grad
        self._handle.remove()

    def _seen(self, model: nn.Module, inputs: tuple[Any, ...], output: Tensor) -> None:
        images, moving = len(output), inputs[0].requires_grad
        self.passes["forward", images] += 1
        if output.requires_grad:
            output.register_hook(lambda gradient: self._returned(images, moving))  # type: ignore[no-untyped-call]

    def _returned(self, images: int, moving: bool) -> None:
        kind = "gradient" if self._of_images else "both" if moving else "weights"
        self.passes["forward", images] -= 1  # it is part of this one
        self.passes[kind, images] += 1


def walk(
    inputs: Tensor, start: Tensor, slope: Callable[[Tensor], Tensor], epsilon: float, step: float
) -> Tensor:
    """Signed steps in the l-infinity ball, the way training loops write them down."""
    points = start
    for _ in range(STEPS):
        points = points.detach() + step * slope(points.detach().requires_grad_()).sign()
        points = torch.min(torch.max(points, inputs - epsilon), inputs + epsilon).clamp(0, 1)
    return points.detach()


def cross_entropy_slope(model: nn.Module, target: Tensor) -> Callable[[Tensor], Tensor]:
    def slope(points: Tensor) -> Tensor:
        loss = F.cross_entropy(model(points), target)
        gradient: Tensor = torch.autograd.grad(loss, points)[0]
        return gradient

    return slope


def uniform_start(inputs: Tensor) -> Tensor:
    return (inputs + torch.empty_like(inputs).uniform_(-EPSILON, EPSILON)).clamp(0, 1)


def plain_adversarial(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """PGD in eval mode on the mean loss, then the cross-entropy in train mode: 2 K + 3 units."""
    model.eval()
    attacked = walk(inputs, uniform_start(inputs), cross_entropy_slope(model, target), EPSILON, STEP)
    model.train()
    return F.cross_entropy(model(attacked), target, reduction="none").mean()


def released_trades(model: nn.Module, inputs: Tensor, target: Tensor, again: bool = True) -> Tensor:
    """The clean prediction anew in every step, with its graph, and twice in the loss: 3 K + 9 units."""
    model.eval()

    def slope(points: Tensor) -> Tensor:
        said, clean = model(points).log_softmax(1), model(inputs).softmax(1)
        gradient: Tensor = torch.autograd.grad(F.kl_div(said, clean, reduction="sum"), points)[0]
        return gradient

    attacked = walk(inputs, inputs + 0.001 * torch.randn_like(inputs), slope, 0.031, 0.007)
    model.train()
    logits = model(inputs)
    said, clean = model(attacked).log_softmax(1), (model(inputs) if again else logits).softmax(1)
    return F.cross_entropy(logits, target) + 6.0 * F.kl_div(said, clean, reduction="sum") / len(inputs)


def lean_trades(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """The same with one clean prediction for both terms of the loss: 3 K + 6 units."""
    return released_trades(model, inputs, target, again=False)


def plain_mart(model: nn.Module, inputs: Tensor, target: Tensor) -> Tensor:
    """PGD on the cross-entropy, losses from probabilities, the rival class from a sort: 2 K + 6 units."""
    model.eval()
    attacked = walk(inputs, uniform_start(inputs), cross_entropy_slope(model, target), EPSILON, STEP)
    model.train()
    clean, said = model(inputs).softmax(1), model(attacked)
    moved, rows = said.softmax(1), torch.arange(len(inputs))
    first, second = moved.sort(1, descending=True).indices[:, :2].unbind(1)
    rival = moved[rows, torch.where(first == target, second, first)]
    boosted = F.cross_entropy(said, target, reduction="none") - (1.0001 - rival + 1e-12).log()
    divergence = F.kl_div((moved + 1e-12).log(), clean, reduction="none").sum(1)
    loss: Tensor = (boosted + 5.0 * divergence * (1.0000001 - clean[rows, target])).mean()
    return loss


@dataclass(frozen=True)
class Regime:
    """An objective on the table.

    Args:
        name: On the command line and in the results.
        objective: It is copied before it is used.
        units: Passes that an image and step must cost, neither more nor less.
        recipes: How others compute the same loss, by name.
        ahead: Smallest throughput over that of each recipe that is wanted.
    """

    name: str
    objective: Objective
    units: int
    recipes: Mapping[str, Recipe] = field(default_factory=dict)
    ahead: float = 1.0


PGD = LinfPGD(EPSILON, steps=STEPS, step_size=STEP)
NUDGED = NudgedPGD(0.031, steps=STEPS, step_size=0.007)
TRADES = {"as released": released_trades, "one pass less": lean_trades}
REGIMES = (
    Regime("standard", CrossEntropy(), 3),
    Regime("pgd-10", AdversarialTraining(PGD), 2 * STEPS + 3, {"plain": plain_adversarial}),
    Regime("pgd-10-l2", AdversarialTraining(L2PGD(1.0, steps=STEPS)), 2 * STEPS + 3),
    Regime("trades-10", Trades(NUDGED), 2 * STEPS + 7, TRADES, 1.25),
    Regime("mart-10", Mart(PGD), 2 * STEPS + 6, {"plain": plain_mart}),
    Regime("logit-pairing-10", AdversarialLogitPairing(PGD), 2 * STEPS + 6),
    Regime("pgd-10-awp", WeightPerturbed(AdversarialTraining(PGD)), 2 * STEPS + 6),
    Regime("trades-10-awp", WeightPerturbed(Trades(NUDGED)), 2 * STEPS + 13),
    Regime("fast", FastAdversarial(EPSILON), 5),
    Regime("free", FreeAdversarial(EPSILON), 3),
    Regime("gaussian", GaussianAugmentation(0.25), 3),
    Regime("consistency", Consistency(0.25), 6),
    Regime("smooth-adv", SmoothAdv(0.25, 0.5, steps=4, samples=2), 2 * (2 * 4 + 3)),
    Regime("macer", Macer(0.25, samples=16), 48),
)
NETS: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...], int]] = {
    "SmallCNN": (lambda: SmallCNN(1, 10), (64, 1, 28, 28), 7),
    "ResNet18": (lambda: ResNet18(3, 10), (8, 3, 32, 32), 3),
}


def bare(kind: str, model: nn.Module, images: Tensor) -> Callable[[], object]:
    """A pass that does nothing beside what it is counted as."""
    if kind == "forward":
        return lambda: bare_forward(model.eval(), images)
    if kind == "gradient":
        return lambda: bare_gradient(model.eval(), images)

    def step() -> None:
        points = images.detach().requires_grad_(kind == "both")
        logits = model.train()(points)
        wanted = [*model.parameters(), *([points] if kind == "both" else [])]
        torch.autograd.grad(logits, wanted, torch.ones_like(logits))

    return step


def measure(regime: Regime, model: nn.Module, inputs: Tensor, target: Tensor, rounds: int) -> dict[str, Any]:
    """Count one step, then time it in turn with bare passes and with the recipes."""
    objective = deepcopy(regime.objective)

    def descend(loss: Tensor) -> None:
        loss.backward()  # type: ignore[no-untyped-call]
        for parameter in model.parameters():
            parameter.grad = None

    def step() -> None:
        terms = objective(model.train(), *objective.share(inputs, target, 0))
        descend(torch.stack(list(terms.values())).sum())

    def follow(recipe: Recipe) -> Callable[[], object]:
        return lambda: descend(recipe(model, inputs, target))

    with Bill(model) as bill:
        step()
    passes = {key: count for key, count in bill.passes.items() if count}
    many = [inputs.repeat(-(-images // len(inputs)), 1, 1, 1)[:images] for _, images in passes]
    parts: list[Callable[[], object]] = [step, bare("weights", model, inputs)]
    parts += [bare(kind, model, images) for (kind, _), images in zip(passes, many, strict=True)]
    parts += [follow(recipe) for recipe in regime.recipes.values()]
    for part in parts:
        part()
    times = [max(1, round(0.2 / max(clock(part), 1e-6))) for part in parts]
    table = [[clock(*part) for part in zip(parts, times, strict=True)] for _ in range(rounds)]
    columns = list(zip(*table, strict=True))

    def over(column: int) -> float:
        # Of each round, then the median: a machine that changes its pace does so for both.
        return statistics.median(line[column] / line[0] for line in table)

    shares = [count * over(2 + number) for number, count in enumerate(passes.values())]
    seconds = statistics.median(columns[0])
    row: dict[str, Any] = {
        "regime": regime.name,
        "objective": repr(regime.objective),
        "units": bill.units / len(inputs),
        "units_needed": regime.units,
        "passes": [{"kind": kind, "images": images, "count": n} for (kind, images), n in passes.items()],
        "seconds": seconds,
        "images_per_second": len(inputs) / seconds,
        "relative_to_standard": 1 / over(1),
        "efficiency": sum(shares),
    }
    if regime.recipes:
        ahead = {name: over(2 + len(passes) + number) for number, name in enumerate(regime.recipes)}
        row |= {"ahead": ahead, "ahead_wanted": regime.ahead}
    return row


def rows(names: Sequence[str] = ()) -> list[dict[str, Any]]:
    """Measure the regimes of these names, or all, on every net."""
    found = []
    for net, (build, shape, rounds) in NETS.items():
        torch.manual_seed(0)
        model, inputs, target = build(), torch.rand(shape), torch.arange(shape[0]) % 10
        for regime in REGIMES:
            if not names or regime.name in names:
                row = {"net": net, "batch": shape[0], **measure(regime, model, inputs, target, rounds)}
                print(line(row), flush=True)
                found.append(row)
    return found


def line(row: dict[str, Any]) -> str:
    ahead = ", ".join(f"{ratio:.2f} x {name}" for name, ratio in row.get("ahead", {}).items())
    wanted = f" (wanted {row['ahead_wanted']:g})" if ahead else ""
    return (
        f"{row['net']:9s} {row['regime']:17s} {row['units']:5.1f} units of {row['units_needed']:2d}  "
        f"efficiency {row['efficiency']:.2f}  {row['images_per_second']:8.1f} images/s  {ahead}{wanted}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/objectives.json")
    parser.add_argument("--only", nargs="+", default=(), choices=[regime.name for regime in REGIMES])
    options = parser.parse_args()
    torch.set_num_threads(1)
    found = {"machine": machine(), "rows": rows(options.only)}
    if options.save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "objectives.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
