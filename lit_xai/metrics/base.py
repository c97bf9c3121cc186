"""The contract of this room: a metric gives one score per sample, and its shell averages them."""

import abc
import inspect
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

import torch
import torchmetrics
from torch import Tensor

from lit_xai.attributions.base import Attribution
from lit_xai.types import Scores

VOCABULARY = ("model", "inputs", "target", "attributions", "attribution", "mask")


@dataclass(frozen=True)
class Quantity:
    """Facts about one number that a metric reports.

    Args:
        better: Which direction is better, or None where neither is.
        bounds: Smallest and largest value it can take.
        median: Whether samples are summed up by their median instead of their mean.
    """

    better: Literal["higher", "lower"] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    median: bool = False


class Metric(torchmetrics.Metric, abc.ABC):
    """One score per sample, kept until it is averaged; exact over processes of unequal share.

    A concrete metric declares its `quantities` and writes `score`, whose parameters name what it needs:

    * `model, inputs, target`: the batch. A metric that needs no more is about the model: scored once;
    * `attributions`: the maps, shape of the inputs; `attribution`: the method that made them;
    * `mask`: the object's pixels, where the data have them.

    A sample without a valid score gets NaN: it is left out of the mean and counted in `missing`.
    """

    quantities: ClassVar[Mapping[str, Quantity]]
    full_state_update = False
    is_differentiable = False
    scores: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abc.abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> Scores | dict[str, Scores]:
        """One score per sample; a dictionary by quantity where the metric has several."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names, out of the vocabulary, that `score` asks for."""
        return tuple(inspect.signature(self.score).parameters)

    def applies(self, attribution: Attribution) -> bool:
        """Whether the metric has a meaning for this attribution."""
        return True

    def named(self, **given: Any) -> dict[str, Scores]:
        """Scores by quantity, from those of the given things that the metric needs."""
        with torch.enable_grad():
            scores = self.score(**{name: given[name] for name in self.needs})
        return scores if isinstance(scores, dict) else {"": scores}

    def update(self, **given: Any) -> None:
        """Score a batch and keep the scores."""
        self.fold(self.named(**given))

    def fold(self, scores: Mapping[str, Scores]) -> None:
        """Keep scores that were computed elsewhere, by `named`."""
        columns = [scores[name].detach() for name in self.quantities]
        self.scores.append(torch.stack(columns, dim=1))
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Mean (or median, where declared) over the samples with a valid score, by quantity."""
        table = self._table()
        values = {}
        for column, (name, quantity) in zip(table.T, self.quantities.items(), strict=True):
            valid = column[~column.isnan()]
            reduce = torch.Tensor.median if quantity.median else torch.Tensor.mean
            values[name] = reduce(valid) if len(valid) else column.new_tensor(math.nan)
        return values

    def spread(self) -> dict[str, dict[str, float]]:
        """Count, missing count, standard deviation and standard error over this process's samples."""
        out = {}
        for column, name in zip(self._table().T, self.quantities, strict=True):
            valid = column[~column.isnan()]
            sd = float(valid.std()) if len(valid) > 1 else math.nan
            out[name] = {
                "count": float(len(column)),
                "missing": float(len(column) - len(valid)),
                "sd": sd,
                "se": sd / math.sqrt(len(valid)) if len(valid) else math.nan,
            }
        return out

    def _table(self) -> Tensor:
        rows = self.scores if isinstance(self.scores, list) else [self.scores]
        if not rows:
            return torch.empty(0, len(self.quantities), dtype=torch.float64)
        return torch.cat(rows).cpu().double()
