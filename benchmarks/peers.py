"""Attributions beside one gradient and beside other libraries: `python -m benchmarks.peers [--save]`.

Each row is one network and one image size. A method is timed in turn with a bare forward and backward pass of
the same batch, and with the same method of zennit or Captum, in one run: the ratios are what counts. Networks
have fresh weights with random batch-norm statistics, on which cost does not depend.
"""

import argparse
import json
import statistics
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import Any

import timm
import torch
import torchvision
from torch import Tensor, nn

from benchmarks.passes import bare_gradient, clock, machine
from lit_xai import attributions as a
from lit_xai import randomness

RESULTS = Path(__file__).parent / "results" / "peers.json"
STEPS = 16
# Network, side, images. timm's residual networks call no ReLU twice, which Captum's DeepLIFT needs.
SUBJECTS = [
    ("timm:resnet18", 64, 8),
    ("timm:resnet18", 224, 2),
    ("timm:resnet50", 64, 4),
    ("timm:resnet50", 224, 2),
    ("vgg11_bn", 224, 2),
]
OURS: dict[str, a.Attribution] = {
    "saliency": a.Saliency(),
    "rectified_gradient": a.RectifiedGradient(),
    "guided_backprop": a.GuidedBackprop(),
    "deep_lift": a.DeepLift(),
    "grad_cam": a.GradCam(),
    "sharing_ratio": a.SharingRatio(),
    **{f"lrp_{name}": method for name, method in a.COMPOSITES.items()},
    "rap": a.RAP(),
    "rsp": a.RSP(),
    "integrated_gradients": a.IntegratedGradients(steps=STEPS, chunk=STEPS),
    "smooth_grad": a.SmoothGrad(samples=STEPS, chunk=STEPS),
}
# At most so many times a forward and backward pass; and, for all, at least as fast as the peer.
BARS = {"sharing_ratio": 2.0, "rectified_gradient": 1.5, "guided_backprop": 1.5}


def subject(name: str, side: int, images: int) -> tuple[nn.Module, Tensor, Tensor]:
    """A network in eval mode, images, and what it sees in them."""
    torch.manual_seed(0)
    if name.startswith("timm:"):
        model = timm.create_model(name.removeprefix("timm:"), num_classes=1000)
    else:
        model = torchvision.models.get_model(name)
    for part in model.modules():
        if isinstance(part, nn.BatchNorm2d):
            part.running_mean.uniform_(-0.1, 0.1)
            part.running_var.uniform_(0.5, 1.5)
        if isinstance(part, nn.ReLU):
            part.inplace = False
    model.eval().requires_grad_(False)
    inputs = torch.rand(images, 3, side, side)
    with torch.no_grad():
        return model, inputs, model(inputs).argmax(1)


def rivals(model: nn.Module, inputs: Tensor, target: Tensor) -> dict[str, Callable[[], Any]]:
    """The same methods of zennit and Captum, with the same passes where that is a setting."""
    import zennit.composites as composites
    from captum import attr
    from zennit.attribution import Gradient
    from zennit.torchvision import VGGCanonizer

    residual = hasattr(model, "layer1")

    def zennit(composite: type, **options: Any) -> Callable[[], Any]:
        def run() -> Tensor:
            # timm's blocks have no canonizer: their additions stay as they are, which costs zennit no time.
            canonizers = [] if residual else [VGGCanonizer()]
            with Gradient(model, composite(canonizers=canonizers, **options)) as attributor:
                hot = nn.functional.one_hot(target, 1000).float()
                return attributor(inputs, lambda output: output * hot)[1]

        return run

    box = {"low": torch.zeros(1, 3, 1, 1), "high": torch.ones(1, 3, 1, 1)}
    tunnel = attr.NoiseTunnel(attr.Saliency(model))
    noise = {"stdevs": 0.15, "nt_samples": STEPS, "nt_samples_batch_size": max(1, STEPS // len(inputs))}
    return {
        "lrp_epsilon_plus": zennit(composites.EpsilonPlus),
        "lrp_epsilon_plus_flat": zennit(composites.EpsilonPlusFlat),
        "lrp_epsilon_alpha2_beta1": zennit(composites.EpsilonAlpha2Beta1),
        "lrp_epsilon_alpha2_beta1_flat": zennit(composites.EpsilonAlpha2Beta1Flat),
        "lrp_epsilon_gamma_box": zennit(composites.EpsilonGammaBox, **box),
        "guided_backprop": lambda: attr.GuidedBackprop(model).attribute(inputs.clone(), target=target),
        "deep_lift": lambda: attr.DeepLift(model).attribute(inputs.clone(), target=target),
        "integrated_gradients": lambda: attr.IntegratedGradients(model).attribute(
            inputs.clone(), target=target, n_steps=STEPS, internal_batch_size=STEPS
        ),
        "smooth_grad": lambda: tunnel.attribute(inputs.clone(), target=target, abs=False, **noise),
    }


def compared(name: str, side: int, images: int, rounds: int) -> list[dict[str, Any]]:
    """Every method on one network."""
    model, inputs, target = subject(name, side, images)
    others = rivals(model, inputs, target)
    rows = []
    print(f"\n{name}, {side} px, {images} images\n{'method':32} {'seconds':>8} {'x F+B':>6} {'x peer':>7}")
    for method, attribution in OURS.items():
        rival = others.get(method, lambda: None)

        def ours(attribution: a.Attribution = attribution) -> Tensor:
            with randomness.keyed(0, torch.arange(images)):
                return attribution(model, inputs, target)

        parts = [ours, lambda: bare_gradient(model, inputs), rival]
        for part in parts:
            part()
        times = zip(*([clock(part) for part in parts] for _ in range(rounds)), strict=True)
        seconds, bare, peer = (statistics.median(column) for column in times)
        row: dict[str, Any] = {"network": name, "side": side, "images": images, "method": repr(attribution)}
        row |= {"seconds": seconds, "forward_backward": bare, "ratio": seconds / bare}
        row |= {"peer_seconds": peer if method in others else None}
        row["kept"] = seconds / bare <= BARS.get(method, float("inf")) and (
            method not in others or seconds <= peer * 1.02
        )
        rows.append(row)
        beside = f"{seconds / peer:7.2f}" if method in others else " " * 7
        print(f"{method:32} {seconds:8.3f} {seconds / bare:6.2f} {beside}{'' if row['kept'] else '  over'}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--save", action="store_true", help="write benchmarks/results/peers.json")
    parser.add_argument("--rounds", type=int, default=5, help="repetitions, of which the median counts")
    parser.add_argument("--subjects", type=int, nargs="*", default=range(len(SUBJECTS)), help="row numbers")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore")
    rows = [row for number in asked.subjects for row in compared(*SUBJECTS[number], asked.rounds)]
    print(f"\nover the bar: {sum(not row['kept'] for row in rows)} of {len(rows)}")
    if asked.save:
        RESULTS.write_text(json.dumps({"machine": machine(), "rows": rows}, indent=1) + "\n")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
