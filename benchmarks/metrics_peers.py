"""Metrics beside those of Quantus, with the same settings; see `benchmarks.metrics`."""

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.passes import bare_forward, bare_gradient, clock
from lit_xai import randomness
from lit_xai.attributions import Saliency
from lit_xai.memory import remembering
from lit_xai.metrics import Gini, Metric
from lit_xai.metrics.companions import Companions
from lit_xai.metrics.correlation import FaithfulnessCorrelation
from lit_xai.metrics.flipping import PixelFlipping
from lit_xai.metrics.neighbourhood import Neighbourhood
from lit_xai.metrics.sensitivity import Sensitivity
from lit_xai.models import ResNet18, ResNet20, SmallCNN
from lit_xai.observe import observing

EXPLAINER = Saliency()
OVERHEAD = 10.0  # how many times less than Quantus a step may take beside the model


def subject(net: str, channels: int, images: int = 128) -> tuple[nn.Module, Tensor, Tensor, Companions]:
    """A network, images with one black pixel, labels, and other images beside each."""
    torch.manual_seed(0)
    kind, side = {"SmallCNN": (SmallCNN, 28), "ResNet20": (ResNet20, 32), "ResNet18": (ResNet18, 32)}[net]
    model = kind(channels, 10).eval().requires_grad_(False)
    inputs = torch.rand(images, channels, side, side)
    inputs[:, :, 0, 0] = 0.0
    target = torch.arange(images) % 10
    others = (torch.arange(images)[:, None] + torch.arange(1, 9)) % images
    return model, inputs, target, Companions(inputs[others], target[others], others)


def timed(parts: Sequence[Callable[[], object]], rounds: int, least: float = 0.05) -> list[list[float]]:
    """Seconds of a call of each part, round by round, in turn, after a first call of each.

    What is shorter than `least` seconds is called as often in a round as it takes to be longer. Without an
    accelerator it is the time of this process: others on the machine do not count.
    """
    for part in parts:
        part()
    times = [max(1, math.ceil(least / max(clock(part), 1e-6))) for part in parts]
    return [[spent(*part) for part in zip(parts, times, strict=True)] for _ in range(rounds)]


def medians(table: list[list[float]]) -> list[float]:
    """Of each part, over the rounds."""
    return [statistics.median(column) for column in zip(*table, strict=True)]


def spent(run: Callable[[], object], times: int = 1) -> float:
    """Seconds of one call: of this process, or on the wall where there is an accelerator."""
    if torch.cuda.is_available():
        return clock(run, times)
    start = time.process_time()
    for _ in range(times):
        run()
    return (time.process_time() - start) / times


class Free(nn.Module):
    """A model that costs next to nothing: some pixels are the logits."""

    def forward(self, inputs: Tensor) -> Tensor:
        return inputs.flatten(1)[:, 100:110]


@dataclass(frozen=True)
class Match:
    """A metric of ours and one of Quantus with the same settings, and their steps of perturbation.

    Args:
        ours: Ours.
        theirs: That of Quantus.
        steps: Steps.
        passes: Forward passes per image that ours takes more than theirs.
    """

    ours: Metric
    theirs: Any
    steps: int
    passes: int = 0

    @property
    def name(self) -> str:
        return type(self.theirs).__name__


def matches(side: int, chunk: int, more: int = 1) -> list[Match]:
    """What is compared, with `more` times the usual steps."""
    import quantus

    quiet = {"disable_warnings": True, "normalise": False, "abs": False}
    pixels = side * side
    steps, draws, neighbours = more * side // 2, more * 100, more * 50
    return [
        Match(
            PixelFlipping(steps=steps, chunk=chunk),
            quantus.PixelFlipping(features_in_step=pixels // steps, perturb_baseline="black", **quiet),
            steps,
            passes=1,  # the image as it is, where the curve starts
        ),
        Match(
            FaithfulnessCorrelation(samples=draws, share=0.1, chunk=chunk),
            quantus.FaithfulnessCorrelation(
                nr_runs=draws,
                subset_size=round(0.1 * pixels),
                perturb_baseline="black",
                return_aggregate=False,
                **quiet,
            ),
            draws,
        ),
        Match(
            Sensitivity(Neighbourhood(0.2, samples=neighbours, chunk=chunk)),
            quantus.MaxSensitivity(nr_samples=neighbours, lower_bound=0.2, **quiet),
            neighbours,
        ),
        Match(Gini(), quantus.Sparseness(**(quiet | {"abs": True})), 1),
    ]


def against_quantus(rounds: int) -> list[dict[str, Any]]:
    """Time of a metric beside that of Quantus, both given the maps, on 32 images of one channel.

    Ours passes as many images at once as Quantus does, a batch. It takes the unharmed image too, where
    Quantus starts behind it: `per_pass` is the ratio without that.
    """
    rows = []
    print(f"{'network':9} {'metric':24} {'steps':>5} {'ours':>9} {'Quantus':>9} {'ratio':>6} {'per pass':>8}")
    for net, side in (("SmallCNN", 28), ("ResNet20", 32)):
        model, inputs, target, _ = subject(net, 1, images=32)
        for match in matches(side, len(inputs)):
            ours, theirs = both(match, model, inputs, target)
            said = float(ours().mean()), float(np.mean(theirs()))
            table = timed([ours, theirs], rounds)
            ratio = statistics.median(mine / other for mine, other in table)
            mine, other = medians(table)
            per_pass = ratio * match.steps / (match.steps + match.passes)
            row: dict[str, Any] = {"network": net, "metric": repr(match.ours), "peer": match.name}
            row |= {"steps": match.steps, "seconds": mine, "peer_seconds": other, "images": len(inputs)}
            row |= {"ratio": ratio, "per_pass": per_pass, "kept": per_pass <= 1.02}
            row |= {"score": said[0], "peer_score": said[1]}
            print(
                f"{net:9} {match.name:24} {match.steps:5} {mine:9.5f} {other:9.5f} {ratio:6.3f} "
                f"{per_pass:8.3f}  scores {said[0]:.4f}, {said[1]:.4f}{'' if row['kept'] else '  slower'}",
                flush=True,
            )
            rows.append(row)
    return rows


def beside_the_model(rounds: int) -> list[dict[str, Any]]:
    """Time that a step of perturbation takes beside the model, here and in Quantus, on 32 images.

    Both pass these images once a step. The smaller they are, the less of it is arithmetic on pixels.
    The model costs next to nothing; what its bare pass takes is left out, and what does not grow with the
    steps: (t of four times the steps - t) / (3 steps) - t of a pass.
    """
    rows = []
    print(f"{'side':>4} {'metric':24} {'ours, ms a step':>15} {'Quantus':>9} {'times':>6}")
    for side in (28, 12):
        torch.manual_seed(0)
        model, inputs, target = Free().eval(), torch.rand(32, 1, side, side), torch.arange(32) % 10
        inputs[:, :, 0, 0] = 0.0
        pairs = zip(matches(side, len(inputs)), matches(side, len(inputs), more=4), strict=True)
        for few, many in list(pairs)[:-1]:  # the last one takes no steps
            bare = bare_gradient if few.name == "MaxSensitivity" else bare_forward
            runs = [*both(few, model, inputs, target), *both(many, model, inputs, target)]
            runs.append(lambda: bare(model, inputs))  # noqa: B023
            mine, other, mine_4, other_4, one = medians(timed(runs, rounds))
            ours, theirs = (
                (long - short) / (many.steps - few.steps) - one
                for short, long in ((mine, mine_4), (other, other_4))
            )
            row = {"side": side, "metric": repr(few.ours), "peer": few.name, "images": len(inputs)}
            row |= {"pass": one, "seconds_per_step": ours, "peer_seconds_per_step": theirs}
            row |= {"times": theirs / ours, "kept": theirs >= OVERHEAD * ours}
            print(
                f"{side:4} {few.name:24} {1e3 * ours:15.4f} {1e3 * theirs:9.4f} {theirs / ours:6.1f}"
                f"{'' if row['kept'] else '  under'}",
                flush=True,
            )
            rows.append(row)
    return rows


def both(
    match: Match, model: nn.Module, inputs: Tensor, target: Tensor
) -> tuple[Callable[[], Tensor], Callable[[], Any]]:
    """The two calls, both of which score maps that were made before."""
    maps = EXPLAINER(model, inputs, target).detach()
    given = {"model": model, "inputs": inputs, "target": target}
    given |= {"attributions": maps, "attribution": EXPLAINER}

    def ours() -> Tensor:
        with observing(model, 0), remembering(), randomness.keyed(0, torch.arange(len(inputs))):
            columns = match.ours.named(**given)
        return columns.get("probability", next(iter(columns.values())))

    def explained(model: nn.Module, inputs: Any, targets: Any, **_: Any) -> np.ndarray:
        points, classes = torch.as_tensor(inputs, dtype=torch.float32), torch.as_tensor(targets)
        found: np.ndarray = EXPLAINER(model, points, classes).numpy()
        return found

    x, y, a = inputs.numpy(), target.numpy(), maps.numpy()
    asked = {"device": "cpu", "explain_func": explained, "softmax": match.name == "PixelFlipping"}
    return ours, lambda: match.theirs(model=model, x_batch=x, y_batch=y, a_batch=a, **asked)
