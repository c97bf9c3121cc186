"""Pictures of maps: signed, on a scale centred at 0, with what they are and how large written beside them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from matplotlib.figure import Figure
from numpy.typing import NDArray

Pixels = NDArray[np.uint8]
PERCENTILE = 99.0


def paint(map_: NDArray[np.floating]) -> tuple[Pixels, float]:
    """One map as an RGB picture, and the value that its full colour stands for.

    Channels are summed, then red stands for evidence for the class, blue for evidence against it, white for
    none. Full colour is the 99th percentile of the absolute values, so that one pixel does not bleach a map.
    A map that is not finite is grey throughout, and its scale is NaN.
    """
    signed = np.asarray(map_, dtype=np.float64).sum(0)
    if not np.isfinite(signed).all():
        return np.full((*signed.shape, 3), 150, np.uint8), float("nan")
    scale = float(np.percentile(np.abs(signed), PERCENTILE)) or float(np.abs(signed).max())
    share = np.clip(signed / scale, -1, 1) if scale else np.zeros_like(signed)
    rgba = matplotlib.colormaps["RdBu_r"]((share + 1) / 2)
    return np.round(rgba[..., :3] * 255).astype(np.uint8), scale


def photograph(image: NDArray[np.floating]) -> Pixels:
    """An image in [0, 1], channels first, as RGB."""
    rgb = np.broadcast_to(image, (3, *image.shape[1:])) if image.shape[0] == 1 else image[:3]
    return np.round(np.clip(rgb, 0, 1).transpose(1, 2, 0) * 255).astype(np.uint8)


def sheets(pictures: Mapping[str, NDArray[Any]]) -> dict[str, list[Pixels]]:
    """Pictures by name: the inputs, and the maps of each attribution."""
    painted = {name: [paint(map_)[0] for map_ in pictures[f"maps/{name}"]] for name in attributions(pictures)}
    return {"inputs": [photograph(image) for image in pictures["inputs"]], **painted}


def attributions(pictures: Mapping[str, NDArray[Any]]) -> list[str]:
    """Names of the attributions that have maps."""
    return [key.removeprefix("maps/") for key in pictures if key.startswith("maps/")]


def save(path: Path, pictures: Mapping[str, NDArray[Any]], title: str = "") -> None:
    """Write one PNG: a row per image, a column per attribution, the input first.

    Args:
        path: Where to.
        pictures: `inputs, target, prediction, ids` and `maps/<attribution>`, one row per image.
        title: Written above.
    """
    names = attributions(pictures)
    rows, columns = len(pictures["inputs"]), 1 + len(names)
    figure = Figure(figsize=(1.25 * columns + 0.3, 1.45 * rows + 0.6), dpi=110, facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for row in range(rows):
        axes[row, 0].imshow(photograph(pictures["inputs"][row]), interpolation="nearest")
        target, said = int(pictures["target"][row]), int(pictures["prediction"][row])
        axes[row, 0].set_xlabel(
            f"class {target}" if said == target else f"class {target}, taken for {said}", fontsize=6.5
        )
        for column, name in enumerate(names, start=1):
            picture, scale = paint(pictures[f"maps/{name}"][row])
            axes[row, column].imshow(picture, interpolation="nearest")
            note = "not finite" if np.isnan(scale) else f"±{scale:.2g}" if scale else "all zero"
            axes[row, column].set_xlabel(note, fontsize=6.5, color="#666666")
    for column, name in enumerate(["input", *names]):
        axes[0, column].set_title(name.replace("_", "\n"), fontsize=7.5)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_edgecolor("#cccccc")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)
