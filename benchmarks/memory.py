"""Peak memory of the attributions: `python -m benchmarks.memory [--save]`.

Each figure is of a fresh process: how far one call moves its high-water mark. Two questions: is memory flat
in the number of steps and bounded by `chunk`, and does every method explain a batch of eight photos by a
ResNet-50 within 6 GiB, the network and the libraries included?
"""

import argparse
import json
import resource
import subprocess
import sys
from os import environ
from pathlib import Path

import torch
import torchvision

from benchmarks.passes import machine
from lit_xai import attacks, attributions
from lit_xai.models import ResNet20

RESULTS = Path(__file__).parent / "results" / "memory.json"
LIMIT = 6 * 2**10  # MiB, of the whole process
FLAT = [
    f"{method}(steps={steps}, chunk={chunk})"
    for method in ("IntegratedGradients", "BoundaryIntegratedGradients")
    for chunk, steps in ((256, 16), (256, 64), (256, 256), (512, 64))
]
SEARCH = "search=DDN(steps=2)"
WHOLE = [
    "Saliency()",
    "IntegratedGradients(steps=2, chunk=8)",
    "ExpectedGradients(samples=2, chunk=8)",
    "GuidedIntegratedGradients(steps=2, chunk=8)",
    "SmoothGrad(samples=2, chunk=8)",
    "SteinGradient(samples=4, chunk=8)",
    f"BoundarySaliency({SEARCH})",
    f"BoundaryIntegratedGradients({SEARCH}, steps=2, chunk=8)",
    f"BoundarySmoothGrad({SEARCH}, samples=2, chunk=8)",
    f"BoundaryDeepLift({SEARCH})",
    "NegativeFlux(points=2, steps=1, chunk=8)",
    "AdversarialGradientIntegration(steps=2, classes=2, chunk=8)",
    "MFABA(steps=2, chunk=8)",
    "GuidedBackprop()",
    "RectifiedGradient(redistribute=True)",
    "DeepLift()",
    "DeepLiftShap(samples=2, chunk=8)",
    "LRP()",
    "LRP(convolution=AlphaBeta())",
    "LRP(convolution=Gamma(), first=ZBox())",
    "RAP()",
    "RSP()",
    "SharingRatio()",
    "GradCam()",
    "GuidedGradCam()",
    "Occlusion(window=56, stride=56, chunk=8)",
    "KernelShap(segments=4, samples=8, chunk=8)",
]
# Has glibc give memory back at once: the high-water mark is then of memory in use, not of freed pieces.
LEAN = {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "65536"}


def peak(network: str, method: str) -> tuple[float, float]:
    """MiB that one call adds to the high-water mark, and the mark itself."""
    torch.manual_seed(0)
    if network == "resnet20":
        model, inputs = ResNet20(3, 10), torch.rand(16, 3, 32, 32)
    else:
        model, inputs = torchvision.models.get_model(network), torch.rand(8, 3, 224, 224)
    model.eval().requires_grad_(False)
    names = {name: getattr(room, name) for room in (attributions, attacks) for name in room.__all__}
    before = high_water()
    eval(method, names)(model, inputs, torch.arange(len(inputs)) % 10)
    return high_water() - before, high_water()


def high_water() -> float:
    """Largest resident set of this process so far, in MiB."""
    unit = 2**20 if sys.platform == "darwin" else 2**10
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / unit


def measured(network: str, methods: list[str]) -> list[dict[str, object]]:
    """Every method in a process of its own."""
    rows: list[dict[str, object]] = []
    print(f"\n{network}\n{'method':62} {'added MiB':>10} {'in all':>8}")
    for method in methods:
        command = [sys.executable, "-m", __spec__.name, "--peak", network, method]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=environ | LEAN)
        added, whole = map(float, done.stdout.split())
        over = "  over" if whole > LIMIT else ""
        print(f"{method:62} {added:10.0f} {whole:8.0f}{over}", flush=True)
        rows.append({"network": network, "method": method, "added_mib": added, "process_mib": whole})
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/memory.json")
    parser.add_argument("--peak", nargs=2, metavar=("NETWORK", "METHOD"), help="one figure")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    if asked.peak:
        print(*peak(*asked.peak))
        return
    rows = measured("resnet20", FLAT) + measured("resnet50", WHOLE)
    if asked.save:
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
