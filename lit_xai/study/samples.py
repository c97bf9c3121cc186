"""What stands behind the scores of an epoch: how many images, how far they spread, how many have none."""

import csv
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True)
class Sampled:
    """The images behind one score of one epoch; NaN where the file does not say.

    Args:
        count: Images that were scored.
        missing: Those of them without a valid score.
        se: Standard error of their mean.
        lead: Mean lead over the random map, image by image, signed so that more is better.
        lead_se: Standard error of this mean.
        right: Images that the model classifies right.
        mean_right: The score of these.
    """

    count: float
    missing: float
    se: float
    lead: float
    lead_se: float
    right: float
    mean_right: float

    @property
    def lost(self) -> float:
        """Share of the images without a score."""
        return self.missing / self.count if self.count > 0 else 0.0


def read_samples(folder: Path) -> tuple[dict[str, Sampled], list[str]]:
    """What stands behind the scores of the last `epoch_<n>.csv`, by log key, and what cannot be read.

    Args:
        folder: Where the explanations of a run are; it may be absent.
    """
    found = ((re.fullmatch(r"epoch_(\d+)\.csv", path.name), path) for path in folder.glob("epoch_*.csv"))
    by_epoch = {int(match[1]): path for match, path in found if match}
    if not by_epoch:
        return {}, []
    path = by_epoch[max(by_epoch)]
    try:
        with path.open(newline="", encoding="utf-8") as stream:
            rows = {log_key(row): sampled(row) for row in csv.DictReader(stream)}
        return rows, []
    except (OSError, ValueError, KeyError, csv.Error) as error:
        return {}, [f"{folder.name}/{path.name} cannot be read: {' '.join(str(error).split())}"]


def log_key(row: Mapping[str, str | None]) -> str:
    """The log key of a row."""
    control, attribution = row["control"], row["attribution"]
    head = ("control", control) if control else ("explain",) if attribution else ("robust",)
    return "/".join(part for part in (*head, attribution, row["metric"], row["quantity"]) if part)


def sampled(row: Mapping[str, str | None]) -> Sampled:
    """The numbers of a row."""
    names = ("count", "missing", "se", "lead", "lead_se", "count_correct", "mean_correct")
    return Sampled(*(float(row[name] or math.nan) for name in names))
