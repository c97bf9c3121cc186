"""One look at the probe: every process takes its images batch by batch, then all rows come together."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Literal

import lightning as L
import numpy as np
import torch
from torch import Tensor, nn

from lit_xai.attributions.base import Attribution
from lit_xai.callbacks.previous import Previous, summed
from lit_xai.callbacks.record import Column, Table, scores
from lit_xai.callbacks.share import Share, everyone
from lit_xai.metrics.base import Metric
from lit_xai.observe import explain, observing
from lit_xai.types import require

Rows = dict[str, Tensor]


@dataclass
class Look:
    """What is asked of a look, and what this process has seen so far.

    Args:
        model: The network, unwrapped.
        share: The images of this process, and what lies beside them.
        seed: Fixes all draws.
        target: The class to explain: the image's label, or what the model predicts.
        attributions: Methods by name.
        metrics: Metrics by name.
        columns: What is scored, by log key.
        controls: Maps that know nothing, by name.
        control_samples: Images of the probe on which they are scored, the first ones.
        pictures: Images of the probe whose maps are kept, the first ones.
        previous: Maps of the last look, if a metric asks for them.
        strict: Whether a method or a metric that fails ends it all.
    """

    model: nn.Module
    share: Share
    seed: int
    target: Literal["label", "prediction"]
    attributions: Mapping[str, Attribution]
    metrics: Mapping[str, Metric]
    columns: Sequence[Column]
    controls: Mapping[str, Attribution]
    control_samples: int
    pictures: int
    previous: Previous | None
    strict: bool
    scores: list[Rows] = field(default_factory=list)
    shown: list[Rows] = field(default_factory=list)
    maps: list[Rows] = field(default_factory=list)
    failed: dict[str, str] = field(default_factory=dict)

    def take(self, start: int, stop: int) -> None:
        """Look at the images of this process that lie from `start` to `stop` in the probe, if it has any."""
        share, rows = self.share, self.share.rows(start, stop)
        inputs, target, ids = share.inputs[rows], share.target[rows], share.ids[rows]
        if not len(ids):
            return
        with observing(self.model, self.seed), torch.no_grad():
            logits = self.model(inputs)
        prediction = logits.argmax(1)
        correct = prediction == target
        target = prediction if self.target == "prediction" else target
        controlled = start < self.control_samples
        accompanied = controlled or any("companions" in metric.needs for metric in self.metrics.values())
        seen = explain(
            self.model,
            inputs,
            target,
            self.attributions,
            self.metrics,
            self.seed,
            ids,
            None if share.mask is None else share.mask[rows],
            controls=self.controls if controlled else None,
            companions=share.companions(rows) if accompanied else None,
            previous=None if self.previous is None else self.previous.of(ids, inputs),
            strict=self.strict,
        )
        named = {"ids": ids, "target": target, "prediction": prediction}
        facts = {
            "probability": logits.softmax(1).gather(1, target[:, None])[:, 0],
            "correct": correct,
            "controlled": torch.full_like(correct, controlled),
        }
        self.scores.append(named | facts | scores(seen, self.columns))
        shown = named | {"inputs": inputs} | {f"maps/{name}": map_ for name, map_ in seen.maps.items()}
        few = share.rows(start, max(start, self.pictures))
        self.shown.append({key: value[: few.stop - few.start] for key, value in shown.items()})
        if self.previous is not None:
            self.maps.append(summed(ids, seen.maps))
        self.failed = seen.failed | self.failed


def gather(parts: Sequence[Mapping[str, Tensor]]) -> Table:
    """Bring the rows of all processes together, sorted by `ids`. A process may have none."""
    mine = {key: torch.cat([part[key] for part in parts]).cpu().numpy() for key in (parts or [{}])[0]}
    filled = [table for table in everyone(mine) if table]
    order = np.concatenate([table["ids"] for table in filled]).argsort()
    return {key: np.concatenate([table[key] for table in filled])[order] for key in filled[0]}


def reasons(failed: Mapping[str, str]) -> list[str]:
    """Why things failed: each reason once, behind all that failed for it, as a method and its controls do."""
    names: dict[str, list[str]] = {}
    for name, text in failed.items():
        names.setdefault(" ".join(text.split())[:300].rstrip("."), []).append(f"`{name}`")
    return [f"{', '.join(named)} ({text})" for text, named in names.items()]


def refuse_sharded(trainer: L.Trainer) -> None:
    """Refuse weights that are spread over processes, or of half precision: attributions read whole ones."""
    name = type(trainer.strategy).__name__
    require(
        not any(kind in name for kind in ("FSDP", "DeepSpeed", "ModelParallel")),
        f"explaining needs whole weights on each device, and {name} splits them: "
        "use `--trainer.strategy ddp`.",
    )
    require(
        str(trainer.precision) not in ("bf16-true", "16-true"),
        f"explaining needs weights of at least float32, and precision {trainer.precision} halves them: "
        "use `--trainer.precision bf16-mixed`.",
    )
