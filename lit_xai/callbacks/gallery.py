"""Sheets of pictures: a row per image, a column per attribution."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from lit_xai.pictures import PALETTE, Picture, flaw, photograph, shades


def sheets(pictures: Mapping[str, NDArray[Any]]) -> dict[str, list[Picture]]:
    """Pictures by name: the inputs, and the maps of each attribution."""
    painted = {
        name: [PALETTE[shades(map_)[0]] for map_ in pictures[f"maps/{name}"]]
        for name in attributions(pictures)
    }
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
            relevance = pictures[f"maps/{name}"][row]
            picture, scale = shades(relevance)
            axes[row, column].imshow(PALETTE[picture], interpolation="nearest")
            axes[row, column].set_xlabel(
                flaw(relevance, scale) or f"±{scale:.2g}", fontsize=6.5, color="#666666"
            )
    for column, name in enumerate(["input", *names]):
        axes[0, column].set_title(name.replace("_", "\n"), fontsize=7.5)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_edgecolor("#cccccc")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    figure.savefig(path)
