"""The contract of this room: a metric gives one score per sample, and its shell averages them."""

import abc
import inspect
import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any, ClassVar, Literal

import torch
import torchmetrics
from jaxtyping import Float
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.types import Images, Scalar, Scores, require

VOCABULARY = (
    *("model", "inputs", "target", "attributions", "attribution"),
    *("mask", "companions", "previous"),
)

Saliency = Float[Tensor, "batch height width"]


@dataclass(frozen=True)
class Quantity:
    """Facts about one number that a metric reports, and how samples are summed up in it.

    Args:
        better: Which direction is better, or None where neither is.
        bounds: Smallest and largest value it can take.
        median: Whether samples are summed up by their median instead of their mean.
    """

    better: Literal["higher", "lower"] | None = None
    bounds: tuple[float, float] = (-math.inf, math.inf)
    median: bool = False

    def average(self, scores: Scores) -> Scalar:
        """Mean (or median) of the valid scores, whatever their order; NaN where none is valid."""
        valid = _valid(scores)
        if len(valid) == 0:
            return valid.new_tensor(math.nan)
        if self.median:  # the mean of the two in the middle, which may be infinite
            return (valid[(len(valid) - 1) // 2] + valid[len(valid) // 2]) / 2
        return valid.mean()

    def spread(self, scores: Scores) -> dict[str, float]:
        """Count, missing count, standard deviation and standard error (of a mean) of the scores."""
        valid = _valid(scores)
        sd = float(valid.std()) if len(valid) > 1 else math.nan
        return {
            "count": float(len(scores)),
            "missing": float(len(scores) - len(valid)),
            "sd": sd,
            "se": sd / math.sqrt(max(len(valid), 1)),
        }


@dataclass(frozen=True)
class Facts:
    """What a metric may know about model and images before the first of them is scored.

    Args:
        model: The network, in eval mode.
        shape: Channels, height and width of an image.
        classes: Classes of the model.
        samples: Images that will be scored.
        labels: Different labels among them.
        masks: Whether the data say where the object is.
        device: Where model and images are.
    """

    model: nn.Module
    shape: tuple[int, int, int]
    classes: int
    samples: int
    labels: int
    masks: bool
    device: torch.device


class Reduction(abc.ABC):
    """Reads a map as one number per pixel. Concrete reductions are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, attributions: Images) -> Saliency:
        """Return one number per pixel."""


@dataclass(frozen=True)
class SignedSum(Reduction):
    """Sum over channels: evidence against the class ranks below none.

    Source: by definition.
    """

    def __call__(self, attributions: Images) -> Saliency:
        return attributions.sum(dim=1)


@dataclass(frozen=True)
class AbsoluteSum(Reduction):
    """Sum of absolute values over channels: evidence for and against the class count alike.

    Source: by definition.
    """

    def __call__(self, attributions: Images) -> Saliency:
        return attributions.abs().sum(dim=1)


class Metric(torchmetrics.Metric, abc.ABC):
    """One score per sample, kept until it is averaged; exact over processes of unequal share.

    A concrete metric declares its `quantities` and writes `score`, whose parameters name what it needs:

    * `model, inputs, target`: the batch. A metric that needs no more is about the model: scored once;
    * `attributions`: the maps, shape of the inputs; `attribution`: the method that made them;
    * `mask`: the object's pixels, where the data have them (`check` refuses data without);
    * `companions`: other images of the probe beside each image, see `Companions`;
    * `previous`: the map of the last look, one number per pixel (the sum over channels), NaN at the first.

    A sample without a valid score gets NaN: it is left out of the mean and counted in `missing`. Scores are
    kept in the metric's `dtype`, float32 unless `set_dtype` says otherwise. Constructor arguments become
    attributes of the same name.
    """

    quantities: ClassVar[Mapping[str, Quantity]]
    full_state_update = False
    is_differentiable = False
    scores: list[Tensor]

    def __init__(self) -> None:
        super().__init__()
        # One flat row: processes without samples then send an empty row of the same number of dimensions.
        self.add_state("scores", default=[], dist_reduce_fx="cat")

    @abc.abstractmethod
    def score(self, *args: Any, **kwargs: Any) -> Scores | dict[str, Scores]:
        """One score per sample; a dictionary by quantity where the metric has several."""

    @property
    def needs(self) -> tuple[str, ...]:
        """The names, out of the vocabulary, that `score` asks for."""
        return _parameters(type(self).score)

    def applies(self, attribution: Attribution) -> bool:
        """Whether the metric has a meaning for this attribution."""
        return True

    def check(self, name: str, facts: Facts) -> None:
        """Refuse, before the run, what could not be scored in it.

        Args:
            name: What the metric is called in this run.
            facts: About model and images.

        Raises:
            ValueError: The metric needs something that model or data do not have.
        """
        require(
            facts.masks or "mask" not in self.needs,
            f"`{name}` needs to know where the object is, and the data have no masks: give each sample a "
            "mask as its third part (`masks` in an NPZ file), or leave the metric out.",
        )

    @property
    def higher_is_better(self) -> bool | None:  # type: ignore[override]
        """Whether more is better; None where neither is, or where the quantities do not agree."""
        directions = {quantity.better for quantity in self.quantities.values()}
        return None if directions != {"higher"} and directions != {"lower"} else directions == {"higher"}

    @property
    def plot_lower_bound(self) -> float | None:  # type: ignore[override]
        """The smallest value that any of the quantities can take, if there is one."""
        return _finite(min(quantity.bounds[0] for quantity in self.quantities.values()))

    @property
    def plot_upper_bound(self) -> float | None:  # type: ignore[override]
        """The largest value that any of the quantities can take, if there is one."""
        return _finite(max(quantity.bounds[1] for quantity in self.quantities.values()))

    def named(self, **given: Any) -> dict[str, Scores]:
        """Scores by quantity, from those of the given things that the metric needs."""
        with torch.enable_grad():
            scores = self.score(**{name: given[name] for name in self.needs})
        named = scores if isinstance(scores, dict) else {"": scores}
        return {name: column.detach() for name, column in named.items()}

    def update(self, **given: Any) -> None:
        """Score a batch and keep the scores."""
        self.fold(self.named(**given))

    def fold(self, scores: Mapping[str, Scores]) -> None:
        """Keep scores that were computed elsewhere, by `named`."""
        table = torch.stack([scores[name].detach() for name in self.quantities], dim=1)
        self.scores.append(table.to(self.dtype).flatten())
        self._update_count += 1
        self._computed = None

    def compute(self) -> dict[str, Tensor]:
        """Mean (or median, where declared) over the samples with a valid score, by quantity."""
        return {name: self.quantities[name].average(column) for name, column in self._columns().items()}

    def spread(self) -> dict[str, dict[str, float]]:
        """Count, missing count, standard deviation and standard error, by quantity.

        Like `compute`, over the samples of all processes, and to be called by all of them.
        """
        with self.sync_context(should_sync=self._to_sync):
            return {name: self.quantities[name].spread(column) for name, column in self._columns().items()}

    def plot(self, val: Any = None, ax: Any = None) -> Any:
        """Draw the values of one `compute`, or of a sequence of them, as torchmetrics does."""
        return self._plot(val, ax)

    def __repr__(self) -> str:
        names = inspect.signature(type(self)).parameters
        return f"{type(self).__name__}({', '.join(f'{name}={getattr(self, name)!r}' for name in names)})"

    def _columns(self) -> dict[str, Scores]:
        rows = self.scores if isinstance(self.scores, list) else [self.scores]
        flat = torch.cat(rows) if rows else torch.empty(0)
        columns = flat.cpu().double().reshape(-1, len(self.quantities)).T
        return dict(zip(self.quantities, columns, strict=True))


@cache
def _parameters(score: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(score).parameters)[1:]


def _finite(bound: float) -> float | None:
    return bound if math.isfinite(bound) else None


def _valid(scores: Scores) -> Float[Tensor, " valid"]:
    """Scores that are not NaN, ascending, in double precision."""
    scores = scores.double()
    return scores[~scores.isnan()].sort().values
