"""Grid pointing: among images of other classes, a map has to find the one that it explains."""

import math
from typing import ClassVar

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.memory import once
from lit_xai.metrics.base import Facts, Metric, Quantity, Reduction, Saliency, SignedSum
from lit_xai.metrics.companions import Companions
from lit_xai.types import Images, Labels, Scores, require, require_at_least

SIGNED = SignedSum()

Cells = Int[Tensor, " batch"]
Mosaics = Float[Tensor, "batch channel tall wide"]


def mosaics(inputs: Images, companions: Companions, cells: Cells, grid: int) -> Mosaics:
    """Each image in a cell of its own mosaic, grid x grid images large; companions fill the other cells.

    Args:
        inputs: The images.
        companions: At least grid^2 - 1 other images beside each of them; the first ones are taken.
        cells: Cell of each image, from 0 at the top left to grid^2 - 1, row by row.
        grid: Images per side.
    """
    count, (batch, channels, height, width) = grid**2, inputs.shape
    others = companions.images[:, : count - 1].to(inputs.dtype)
    require(
        others.shape[1] == count - 1,
        f"`companions` must be at least {count - 1} to each image for a grid of {grid}x{grid}, got "
        f"{others.shape[1]}.",
    )
    tiles = torch.cat([inputs[:, None], others], dim=1)
    order = (torch.arange(count, device=cells.device) - cells[:, None]) % count
    rows = torch.arange(batch, device=cells.device)[:, None]
    laid = tiles[rows, order].reshape(batch, grid, grid, channels, height, width)
    return laid.permute(0, 3, 1, 4, 2, 5).reshape(batch, channels, grid * height, grid * width)


def grid_pointing(saliency: Saliency, cells: Cells, grid: int) -> dict[str, Scores]:
    """How much of a mosaic's map lies in the right cell, in double precision.

    * share = sum_{p in cell} max(A_p, 0) / sum_p max(A_p, 0), 0 for a map without positive values;
    * hit: whether no cell has more than the right one; 1/k where k cells have as much, 0 where all have none;
    * empty: whether the map has no positive values.

    NaN for a map that is not finite.

    Args:
        saliency: One number per pixel of the mosaic; its scale does not matter.
        cells: The right cell of each mosaic, see `mosaics`.
        grid: Cells per side.
    """
    batch, down, across = len(saliency), saliency.shape[1] // grid, saliency.shape[2] // grid
    positive = saliency.double().clamp_min(0)
    sums = positive.reshape(batch, grid, down, grid, across).sum(dim=(2, 4)).flatten(1)
    own, total = sums.gather(1, cells[:, None])[:, 0], sums.sum(1)
    most = sums == sums.amax(dim=1, keepdim=True)
    empty = total == 0
    scores = {
        "share": own / total.where(~empty, 1),
        "hit": most.gather(1, cells[:, None])[:, 0].double() / most.sum(1) * ~empty,
        "empty": empty.double(),
    }
    finite = saliency.flatten(1).isfinite().all(dim=1)
    return {name: column.where(finite, math.nan) for name, column in scores.items()}


class GridPointingGame(Metric):
    """How much of a map lies on the image it explains, in a mosaic of images of different classes.

    The image stands in a random cell, the same in each epoch; its map is made for its class, from the mosaic.

    * share = sum_{p in cell} max(A_p, 0) / sum_p max(A_p, 0), A the map. A map without positive values has 0;
    * hit: whether no cell has more of it than the right one. Of k cells that have as much, each counts 1/k;
    * empty: whether the map has no positive values.

    A random map has 1/grid^2 of share and of hits. No boxes are needed, and a black background helps no map;
    but the network must take images of any size: convolutions and a mean over all places. A head with weights
    of its own for each place (`SmallCNN`) takes them too, and knows such places from single images alone: its
    scores say little. An image beside another one of its class has no score. Costs one map per image, of
    grid^2 times the pixels.

    Args:
        grid: Images per side of a mosaic, 2 or 3: eight others lie beside each image of a probe.
        reduction: Reads a map as one number per pixel; what is negative then counts as none.
        chunk: Mosaics that are explained at once, at least 1.

    Raises:
        ValueError: `grid` is neither 2 nor 3, or `chunk` is below 1; there are too few companions.

    Source: Boehle, Fritz and Schiele 2021, arXiv 2104.00032 (localisation metric); Rao, Boehle and Schiele
        2022, arXiv 2205.10435 (GridPG).
    Deviates: the map is explained for the image in one cell, not in each cell in turn; images that the model
        gets wrong are not left out, so that each epoch has the same mosaics: read it beside the accuracy.
        A map counts as empty if it has no positive value, not if these add up to 1e-7 or less.
    """

    quantities: ClassVar = {
        "share": Quantity("higher", (0.0, 1.0)),
        "hit": Quantity("higher", (0.0, 1.0)),
        "empty": Quantity("lower", (0.0, 1.0)),
    }

    def __init__(self, grid: int = 2, reduction: Reduction = SIGNED, chunk: int = 64) -> None:
        require(grid in (2, 3), f"`grid` must be 2 or 3, got {grid!r}.")
        require_at_least(1, chunk=chunk)
        super().__init__()
        self.grid, self.reduction, self.chunk = grid, reduction, chunk

    def check(self, name: str, facts: Facts) -> None:
        super().check(name, facts)
        needed = self.grid**2
        for what, count in (("images", facts.samples), ("classes among them", facts.labels)):
            require(
                count >= needed,
                f"`{name}` needs {needed} {what} for a grid of {self.grid}x{self.grid}, and the probe has "
                f"{count}: take a smaller `grid`, more `samples`, or leave the metric out.",
            )
        channels, height, width = facts.shape
        larger = (1, channels, self.grid * height, self.grid * width)
        dtype = next((weight.dtype for weight in facts.model.parameters()), torch.float32)
        reason = _refusal(facts.model, torch.zeros(larger, dtype=dtype, device=facts.device), facts.classes)
        require(
            not reason,
            f"`{name}` needs a fully convolutional network with global pooling, and this one fails on images "
            f"of {larger[2]}x{larger[3]} ({reason}): take another network, or leave the metric out.",
        )

    def score(
        self,
        model: nn.Module,
        inputs: Images,
        target: Labels,
        attribution: Attribution,
        companions: Companions,
    ) -> dict[str, Scores]:
        def lay() -> tuple[Mosaics, Cells]:
            cells = randomness.bits(randomness.keys(inputs, "mosaic"), 0, ())
            cells = (cells >> 32) % self.grid**2
            return mosaics(inputs, companions, cells, self.grid), cells

        # Shared by all methods that are scored on this batch.
        laid, cells = once(("mosaics", self.grid, companions), model, inputs, target, lay)
        # Views of the same mosaics for all methods, so that those on a boundary share its search.
        places = torch.arange(len(target), device=target.device)
        chunks = (torch.split(whole, self.chunk) for whole in (laid, target, places))
        maps = []
        for images, classes, rows in zip(*chunks, strict=True):
            with randomness.narrowed(rows):
                maps.append(attribution(model, images, classes).detach())
        scores = grid_pointing(self.reduction(torch.cat(maps)), cells, self.grid)
        beside = companions.target[:, : self.grid**2 - 1]
        alone = (beside.to(target.device) != target[:, None]).all(dim=1)
        return {name: column.where(alone, math.nan) for name, column in scores.items()}


def _refusal(model: nn.Module, images: Images, classes: int) -> str:
    """Why the model does not take these images, on one line; nothing if it does."""
    try:
        with torch.no_grad():
            logits = model(images)
    except Exception as error:  # whatever a network's author raises
        return f"{type(error).__name__}: {error}".splitlines()[0].rstrip(".: ")
    return "" if logits.shape == (1, classes) else f"it returns {tuple(logits.shape)}"
