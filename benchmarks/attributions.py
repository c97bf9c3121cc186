"""Passes and time of the attributions: `python -m benchmarks.attributions [--save]`.

Efficiency is counted passes times the time of a bare pass, by measured time: 1 would mean that nothing but
the model takes time. The bare pass has as many images as the method puts in one. Models have fresh weights,
on which cost does not depend, except that searches stop early where a boundary is near.
"""

import argparse
import json
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.passes import efficiency, machine
from lit_xai import randomness
from lit_xai.attacks import DDN
from lit_xai.attributions import (
    MFABA,
    AdversarialGradientIntegration,
    Attribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    BoundarySmoothGrad,
    ExpectedGradients,
    GuidedIntegratedGradients,
    InputXGradient,
    IntegratedGradients,
    KernelShap,
    NegativeFlux,
    Occlusion,
    Saliency,
    SmoothGrad,
    SteinGradient,
)
from lit_xai.models import ResNet20, SmallCNN

RESULTS = Path(__file__).parent / "results"
TARGET = 0.85
SEARCH = DDN(steps=20)
METHODS: list[Attribution] = [
    Saliency(),
    InputXGradient(),
    IntegratedGradients(steps=16),
    SmoothGrad(samples=16),
    ExpectedGradients(samples=16),
    GuidedIntegratedGradients(steps=16),
    NegativeFlux(points=4, steps=3),
    AdversarialGradientIntegration(steps=5, classes=3),
    MFABA(steps=16),
    SteinGradient(samples=64),
    Occlusion(window=8, stride=4),
    KernelShap(segments=7, samples=64),
    BoundarySaliency(search=SEARCH),
    BoundarySmoothGrad(search=SEARCH, samples=16),
    BoundaryIntegratedGradients(search=SEARCH, steps=16),
]
# Images at once, and images per pass: a batch that fills a pass, and one that only packing makes fill it.
BATCHES = {"SmallCNN": [(64, 64), (16, 64)], "ResNet20": [(64, 64), (4, 64)]}


def subject(name: str, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A model, images, and what the model sees in them."""
    torch.manual_seed(0)
    model = SmallCNN(1, 10) if name == "SmallCNN" else ResNet20(3, 10)
    model.eval().requires_grad_(False)
    inputs = torch.rand(images, 1, 28, 28) if name == "SmallCNN" else torch.rand(images, 3, 32, 32)
    with torch.no_grad():
        return model, inputs, model(inputs).argmax(1)


def speed() -> list[dict[str, object]]:
    """Efficiency of every method."""
    rows: list[dict[str, object]] = []
    print(f"{'model':9} {'images':>6} {'method':28} {'F':>6} {'B':>6} {'seconds':>8} {'efficiency':>10}")
    for name, batches in BATCHES.items():
        for images, chunk in batches:
            model, inputs, target = subject(name, images)
            for method in METHODS:
                packed = hasattr(method, "chunk")
                if packed:
                    method = replace(method, chunk=chunk)
                elif images < chunk:
                    continue  # one pass, and nothing to pack
                bare = subject(name, chunk)[1]
                with randomness.keyed(0, torch.arange(images)):
                    seen = efficiency(lambda: method(model, inputs, target), model, bare)  # noqa: B023
                label = type(method).__name__
                print(
                    f"{name:9} {images:6} {label:28} {seen.forwards:6} {seen.backwards:6} "
                    f"{seen.seconds:8.4f} {seen.ratio:10.3f}"
                )
                rows.append({"model": name, "images": images, "method": repr(method), **seen.row()})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attributions.json")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    rows = speed()
    low = [row for row in rows if float(str(row["ratio"])) < TARGET]
    print(f"efficiency below {TARGET}: {len(low)} of {len(rows)}")
    results = {"machine": machine(), "speed": rows}
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / "attributions.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
