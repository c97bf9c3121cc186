"""Explanation quality of a standard and a robust network: `python -m benchmarks.quality SHARED [--save]`.

Two pretrained CIFAR-10 networks of unequal size and family, so that what differs between them is not
robustness alone: the table says which maps beat maps that know nothing, and how large the numbers are. The 48
test images are those that each network has right; localisation is on 201 training images with masks.
"""

import argparse
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from benchmarks.manipulation import pretrained
from benchmarks.passes import machine
from lit_xai import attributions as a
from lit_xai import metrics as m
from lit_xai.attacks import DDN
from lit_xai.callbacks import record
from lit_xai.callbacks.share import drawn
from lit_xai.observe import explain, observing

RESULTS = Path(__file__).parent / "results"
SEARCH = DDN(steps=10)
METHODS: dict[str, a.Attribution] = {
    "saliency": a.Saliency(),
    "input_x_gradient": a.InputXGradient(),
    "integrated_gradients": a.IntegratedGradients(steps=8),
    "lrp": a.LRP(),
    "grad_cam": a.GradCam(),
    "boundary_saliency": a.BoundarySaliency(SEARCH),
}
CONTROLS: dict[str, a.Attribution] = {
    "random_map": m.RandomMap(),
    "edge_map": m.EdgeMap(),
    "other_image": m.OtherImage(),
    "untrained": m.Untrained(),
}
PLACES: dict[str, m.Metric] = {
    "pointing": m.PointingGame(),
    "energy": m.EnergyGame(),
    "boundary_localisation": m.BoundaryLocalisation(),
}
IMAGES, BATCH = 48, 64


def measured(
    net: nn.Module,
    inputs: Tensor,
    target: Tensor,
    metrics: Mapping[str, m.Metric],
    mask: Tensor | None = None,
    controls: Mapping[str, a.Attribution] = CONTROLS,
) -> list[dict[str, Any]]:
    """The rows that `Explain` would write of one look."""
    order = torch.arange(len(inputs))
    others = drawn(order, target, 0, range(len(inputs)))
    columns = record.columns(METHODS, metrics, controls)
    tables = []
    for rows in order.split(BATCH):
        other = others[rows]
        seen = explain(
            net,
            inputs[rows],
            target[rows],
            METHODS,
            metrics,
            0,
            rows,
            None if mask is None else mask[rows],
            controls=controls,
            companions=m.Companions(inputs[other], target[other], other),
            strict=False,  # a method that has no meaning for a network says so
        )
        print(*(f"  {name}: {why}" for name, why in seen.failed.items()), sep="\n")
        with observing(net, 0):
            right = net(inputs[rows]).argmax(1) == target[rows]
        own = record.scores(seen, columns) | {"correct": right, "controlled": torch.ones_like(right)}
        tables.append({key: value.detach().cpu().numpy() for key, value in own.items()})
    table = {key: np.concatenate([part[key] for part in tables]) for key in tables[0]}
    return list(record.rows(columns, table))


def beaten(row: Mapping[str, Any], rows: list[dict[str, Any]]) -> list[str]:
    """Controls that a method is not better than by two standard errors of the two means."""
    sign = 1 if row["better"] == "higher" else -1
    return [
        control["control"]
        for control in rows
        if (control["metric"], control["quantity"]) == (row["metric"], row["quantity"])
        and control["control"]
        and control["attribution"] in ("", row["attribution"])
        and not sign * (row["mean"] - control["mean"]) > 2 * np.hypot(row["se"], control["se"])
    ]


def slim(row: Mapping[str, Any]) -> dict[str, Any]:
    """What of a row is worth keeping, in four digits; NaN, which JSON does not know, is left out."""
    dropped = {"kind", "sd", "better", "mean_correct", "count_correct"}
    rounded = {
        key: float(f"{value:.4g}") if isinstance(value, float) else value for key, value in row.items()
    }
    kept = {key: value for key, value in rounded.items() if key not in dropped and value not in ("", [])}
    return {key: value for key, value in kept.items() if value == value}


def show(name: str, rows: list[dict[str, Any]]) -> None:
    print(f"\n{name}")
    for row in rows:
        if (
            row["kind"] == "score"
            and row["mean"] == row["mean"]
            and (row["better"] or not row["attribution"])
        ):
            lead = f"lead {row['lead']:+.3f} ± {row['lead_se']:.3f}" if "lead" in row else ""
            key = "/".join(part for part in (row["metric"], row["quantity"]) if part)
            value = f"{row['mean']:10.4g} ± {row['se']:.2g}"
            unbeaten = " ".join(f"!{control}" for control in row.get("not_beaten", []))
            print(f"  {row['attribution'] or 'model':22} {key:34} {value:20} {lead:24} {unbeaten}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("shared", type=Path, help="folder with cifar10/ and weights/")
    parser.add_argument("--save", action="store_true")
    options = parser.parse_args()
    torch.set_num_threads(1)
    with np.load(options.shared / "cifar10" / "cifar10_masks.npz") as pack:
        photos = torch.from_numpy(pack["image"]).permute(0, 3, 1, 2).contiguous() / 255
        masks, labels = torch.from_numpy(pack["mask"]), torch.from_numpy(pack["label"]).long()
    found: dict[str, list[dict[str, Any]]] = {}
    for name, ((net, inputs, target), _) in pretrained(options.shared, IMAGES).items():
        metrics = {key: one for key, one in m.credible().items() if not key.startswith("stability_near")}
        if "adversarial" in name:
            del metrics["grid"]  # its head wants images of one size
        rows = measured(net, inputs, target, metrics)
        rows += measured(net, photos, labels, PLACES, masks, CONTROLS | {"centre_map": m.CentreMap()})
        for row in rows:
            if row["kind"] == "score" and row["attribution"] and row["better"]:
                row["not_beaten"] = beaten(row, rows)
        show(name, rows)
        found[name] = [slim(row) for row in rows]
    if options.save:
        parts = (
            f"{json.dumps(name)}: [\n" + ",\n".join(map(json.dumps, rows)) + "\n]"
            for name, rows in found.items()
        )
        head = json.dumps({"machine": machine(), "images": IMAGES})[:-1]
        (RESULTS / "quality.json").write_text(head + ', "rows": {\n' + ",\n".join(parts) + "\n}}\n")


if __name__ == "__main__":
    main()
