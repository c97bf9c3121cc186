"""Passes, time and memory of the attributions: `python -m benchmarks.attributions [--save]`.

Efficiency is counted passes times the time of a bare pass, by measured time: 1 would mean that nothing but
the model takes time. The bare pass has as many images as the method puts in one. Peak memory is what a fresh
process needs above what it had before the call: it should follow `chunk` and not `steps`. Models have fresh
weights, on which cost does not depend, except that the boundary search stops early where a boundary is near.
"""

import argparse
import json
import resource
import subprocess
import sys
from dataclasses import replace
from os import environ
from pathlib import Path

import torch
from torch import Tensor, nn

from benchmarks.passes import efficiency, machine
from lit_xai import randomness
from lit_xai.attacks import DDN
from lit_xai.attributions import (
    Attribution,
    BoundaryIntegratedGradients,
    BoundarySaliency,
    InputXGradient,
    IntegratedGradients,
    Saliency,
    SmoothGrad,
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
    BoundarySaliency(search=SEARCH),
    BoundaryIntegratedGradients(search=SEARCH, steps=16),
]
# Has glibc give memory back at once: the high-water mark is then of memory in use, not of freed pieces.
LEAN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}
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


def memory() -> list[dict[str, object]]:
    """Peak memory of the path methods for more and more steps at one chunk size, each in its own process."""
    rows: list[dict[str, object]] = []
    print(f"\n{'method':28} {'chunk':>6} {'steps':>6} {'peak MiB':>9}")
    for method in (IntegratedGradients, BoundaryIntegratedGradients):
        for chunk, steps in ((256, 16), (256, 64), (256, 256), (512, 64)):
            command = [sys.executable, "-m", __spec__.name, "--peak", method.__name__, str(chunk), str(steps)]
            done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ | LEAN)
            mebibytes = float(done.stdout)
            print(f"{method.__name__:28} {chunk:6} {steps:6} {mebibytes:9.1f}")
            rows.append({"method": method.__name__, "chunk": chunk, "steps": steps, "peak_mib": mebibytes})
    return rows


def peak(name: str, chunk: int, steps: int) -> float:
    """Growth of this process's high-water mark, in MiB, over one call on 16 images of a ResNet-20."""
    model, inputs, target = subject("ResNet20", 16)
    method = next(type(method) for method in METHODS if type(method).__name__ == name)
    before = high_water()
    method(steps=steps, chunk=chunk)(model, inputs, target)
    return high_water() - before


def high_water() -> float:
    """Largest resident set of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/attributions.json")
    parser.add_argument("--peak", nargs=3, metavar=("METHOD", "CHUNK", "STEPS"), help="one memory figure")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        name, chunk, steps = asked.peak
        print(peak(name, int(chunk), int(steps)))
        return
    rows = speed()
    low = [row for row in rows if float(str(row["ratio"])) < TARGET]
    print(f"efficiency below {TARGET}: {len(low)} of {len(rows)}")
    results = {"machine": machine(), "speed": rows, "memory": memory()}
    if asked.save:
        RESULTS.mkdir(exist_ok=True)
        path = RESULTS / "attributions.json"
        path.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {path}")


if __name__ == "__main__":
    main()
