"""Sheets of pictures: a row per image, a column per attribution."""

import math
import textwrap
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from matplotlib.figure import Figure
from numpy.typing import NDArray

from lit_xai.pictures import PALETTE, Picture, flaw, photograph, shades

WIDEST = 12  # maps beside each other


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
    """Write one PNG: a row per image, a column per attribution, the input first; many maps take more rows.

    Args:
        path: Where to.
        pictures: `inputs, target, prediction, ids` and `maps/<attribution>`, one row per image.
        title: Written above.
    """
    names = attributions(pictures)
    lines = max(1, math.ceil(len(names) / WIDEST))
    across = math.ceil(len(names) / lines)
    rows, columns = len(pictures["inputs"]) * lines, 1 + across
    height = 1.45 if lines == 1 else 1.85  # room for a title over every map
    figure = Figure(figsize=(1.25 * columns + 0.3, height * rows + 0.6), dpi=110, facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[], visible=False)
        for spine in axis.spines.values():
            spine.set_edgecolor("#cccccc")
    for image in range(len(pictures["inputs"])):
        block = axes[image * lines : (image + 1) * lines]
        target, said = int(pictures["target"][image]), int(pictures["prediction"][image])
        shown = photograph(pictures["inputs"][image])
        seen = f"class {target}" if said == target else f"class {target}, taken for {said}"
        _draw(block[0, 0], shown, "input" if image == 0 else "", seen)
        for axis, name in zip(block[:, 1:].flat, names, strict=False):
            relevance = pictures[f"maps/{name}"][image]
            picture, scale = shades(relevance)
            # Where maps take several rows, the title tells which is which beside every image.
            headed = textwrap.fill(name.replace("_", " "), 14) if image == 0 or lines > 1 else ""
            _draw(axis, PALETTE[picture], headed, flaw(relevance, scale) or f"±{scale:.2g}", "#666666")
    figure.suptitle(title, fontsize=9)
    figure.tight_layout(pad=0.4)
    draft = path.with_name(f".{path.name}")
    figure.savefig(draft)
    draft.replace(path)


def _draw(axis: Any, picture: Picture, title: str, note: str, colour: str = "black") -> None:
    axis.set_visible(True)
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=7.5)
    axis.set_xlabel(note, fontsize=6.5, color=colour)
