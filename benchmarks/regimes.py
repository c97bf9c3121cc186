"""What every regime reaches, over seeds: `python -m benchmarks.regimes PLAN.yaml [--data DIR] [--save]`.

The plan is carried out first (finished runs are skipped), then the last weights of every run are measured on
test images, on one footing: accuracy, robust accuracy under PGD with restarts and APGD, certified accuracy
and average certified radius, distance of the weights from Bort's constraint, error of reconstruction. Claims
are judged at the end: a regime must be ahead of another by more than the spread of either over its seeds.
"""

import argparse
import json
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import nn

from benchmarks.passes import machine
from lit_xai import randomness
from lit_xai.attacks import APGD, L2PGD, LinfPGD, Members
from lit_xai.attacks.norms import L2, Linf
from lit_xai.cli.images import pool
from lit_xai.cli.trainer import Command, quiet
from lit_xai.cli.weights import load_weights
from lit_xai.models import Smoothed
from lit_xai.models.backtracking import reconstructions, relative_error
from lit_xai.observe import observing
from lit_xai.optim import residual
from lit_xai.study import Plan, load_plan, run_plan
from lit_xai.types import Images, Labels

RESULTS = Path(__file__).parent / "results"
Values = dict[str, float]


@dataclass(frozen=True)
class Yardstick:
    """What is measured on every network of a plan.

    Args:
        l2: Budget of the l2 attacks in pixels.
        linf: Budget of the l-infinity attacks.
        sigma: Noise of the certificates.
        radius: Radius of the certified accuracy.
        images: Test images.
        certified: Test images that are certified.
    """

    l2: float
    linf: float
    sigma: float
    radius: float
    images: int
    certified: int

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Values:
        values = {"accuracy": float((model(inputs).argmax(1) == target).double().mean())}
        for name, suite in self.suites().items():
            fooled = model(suite(model, inputs, target)).argmax(1) != target
            values[name] = 1 - float(fooled.double().mean())
        few, labels = inputs[: self.certified], target[: self.certified]
        with randomness.keyed(0, torch.arange(len(few))):
            found = Smoothed(model, self.sigma).certify(few, n0=100, n=1000)
        radius = found.radius.where(found.label == labels, 0.0)
        right = found.label == labels
        values["certified"] = float((right & (found.radius >= self.radius)).double().mean())
        values["average radius"] = float(radius.double().mean())
        values["abstained"] = float(found.abstained.double().mean())
        weights = [part.weight for part in model.modules() if isinstance(part, nn.Conv2d | nn.Linear)]
        values["residual"] = statistics.fmean(float(residual(weight, "ada")) for weight in weights)
        try:
            returned = reconstructions(model, few)
        except ValueError:  # a layer of this network has no inverse
            return values
        errors = {layer: float(relative_error(back, few).median()) for layer, back in returned.items()}
        return {**values, "reconstruction": statistics.fmean(errors.values())} | {
            f"reconstruction from {layer}": error for layer, error in errors.items()
        }

    def suites(self) -> dict[str, Members]:
        l2 = {"pgd": L2PGD(self.l2, steps=20, restarts=2), "apgd": APGD(self.l2, L2(), steps=50)}
        linf = {"pgd": LinfPGD(self.linf, steps=20, restarts=2), "apgd": APGD(self.linf, Linf(), steps=50)}
        return {
            "robust l2": Members(self.l2, l2, L2()),
            "robust linf": Members(self.linf, linf, Linf()),
        }


YARDSTICKS = {
    "digits": Yardstick(l2=1.0, linf=0.1, sigma=0.25, radius=0.5, images=300, certified=150),
    "cifar10": Yardstick(l2=0.5, linf=4 / 255, sigma=0.25, radius=0.25, images=200, certified=50),
}

# Which number of a regime must exceed, or with "<" fall below, that of another regime, and by what factor.
ROBUST_L2 = (
    "adversarial",
    "trades",
    "mart",
    "logit_pairing",
    "weight_perturbed",
    "trades_awp_ema",
    "bort_adversarial",
)
ROBUST_LINF = ("fast", "free", "grad_align")
SMOOTHED = ("gaussian", "stability", "smooth_adv", "consistency", "macer", "bort_gaussian")
BORT = {"bort": "standard", "bort_sgd": "sgd", "dbort": "standard"}


def judge(found: Mapping[str, Mapping[str, Sequence[float]]]) -> list[dict[str, Any]]:
    """Every claim that the regimes at hand allow, with its figures and whether it holds."""
    claims = []

    def ahead(regime: str, quantity: str, other: str) -> None:
        if regime in found and other in found and quantity in found[regime]:
            ours, theirs = found[regime][quantity], found[other][quantity]
            spread = max(max(values) - min(values) for values in (ours, theirs))
            margin = statistics.fmean(ours) - statistics.fmean(theirs)
            figures = {"margin": margin, "spread": spread, "holds": margin > spread}
            claims.append({"claim": f"{regime}: more {quantity} than {other}", **figures})

    def below(regime: str, quantity: str, other: str, factor: float) -> None:
        if regime in found and other in found and quantity in found[regime]:
            ratio = statistics.fmean(found[other][quantity]) / statistics.fmean(found[regime][quantity])
            worst = min(found[other][quantity]) / max(found[regime][quantity])
            figures = {"ratio": ratio, "worst": worst, "holds": ratio > factor}
            claims.append({"claim": f"{regime}: {quantity} {factor:g} x below {other}", **figures})

    for regime in ROBUST_L2:
        ahead(regime, "robust l2", "standard")
    for regime in ROBUST_LINF:
        ahead(regime, "robust linf", "standard")
    for regime in SMOOTHED:
        ahead(regime, "certified", "standard")
        ahead(regime, "average radius", "standard")
    for regime, base in BORT.items():
        if regime in found and base in found:
            ours, theirs = found[regime]["accuracy"], found[base]["accuracy"]
            spread = max(max(values) - min(values) for values in (ours, theirs))
            loss = statistics.fmean(theirs) - statistics.fmean(ours)
            figures = {"loss": loss, "spread": spread, "holds": loss <= spread}
            claims.append({"claim": f"{regime}: accuracy within the spread of {base}", **figures})
            below(regime, "residual", base, 10)
            below(regime, "reconstruction", base, 1)
    return claims


def measure(run: Path, yardstick: Yardstick) -> Values:
    """What the last weights of a run reach."""
    command = Command(
        ["--config", str(run / "config.yaml"), "--out", str(run), "--wandb=disabled"], "measure"
    )
    load_weights(command.model, run / "checkpoints" / "last.ckpt")
    images = pool(command.datamodule, "test")
    model = command.model.model.eval()
    inputs, target = images.batch(
        images.spaced(yardstick.images), command.model.channels, command.model.classes
    )
    with observing(model, 0), randomness.keyed(0, torch.arange(len(inputs))):
        return yardstick(model, inputs, target)


def carried_out(plan: Plan) -> dict[str, dict[str, list[float]]]:
    """Values of every regime, seed by seed; what is measured is kept beside the run."""
    yardstick = YARDSTICKS[plan.name.removeprefix("regimes ")]
    found: dict[str, dict[str, list[float]]] = {}
    for run in plan.runs():
        kept = run.folder / "measured.json"
        if not kept.exists():
            kept.write_text(json.dumps(measure(run.folder, yardstick), indent=1) + "\n")
        for quantity, value in json.loads(kept.read_text()).items():
            found.setdefault(run.regime, {}).setdefault(quantity, []).append(value)
        print(run.name, kept.read_text().replace("\n", ""), flush=True)
    return found


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("plan", help="configs/studies/regimes.yaml, or a plan like it")
    parser.add_argument("--data", type=Path, help="folder of the packs, for a plan that trains on packs")
    parser.add_argument("--save", action="store_true", help="write it to benchmarks/results")
    options = parser.parse_args()
    quiet()
    plan = load_plan(options.plan)
    if options.data:
        paths = {f"data.init_args.{key}" for key in ("path", "test_path")}
        moved = {key: str(options.data / plan.overrides[key]) for key in paths}
        plan = replace(plan, overrides={**plan.overrides, **moved})
    status = run_plan(plan)
    if status:
        return status
    torch.set_num_threads(2)
    found = carried_out(plan)
    claims = judge(found)
    for claim in claims:
        print(*claim.values(), sep="  ")
    if options.save:
        name = plan.name.replace(" ", "_")
        content = {
            "machine": machine(),
            "plan": plan.name,
            "seeds": plan.seeds,
            "claims": claims,
            "found": found,
        }
        (RESULTS / f"{name}.json").write_text(json.dumps(content, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
