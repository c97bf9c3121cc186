"""The record of a look: its table agrees with its scores, and its scores with what was logged."""

import csv
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from probed import Level, classifier, fitted, loader, trainer
from torch import nn

from lit_xai.attributions import Attribution, Saliency
from lit_xai.callbacks import Explain, record
from lit_xai.metrics import CleanAccuracy, Gini, Metric, Quantity, RandomMap


def columns(better: Any = "higher", median: bool = False) -> list[record.Column]:
    facts = Quantity(better, median=median)
    return [record.Column("a", "", "m", "q", facts), record.Column("", "random_map", "m", "q", facts)]


def table(own: Any, control: Any, correct: Any, controlled: Any) -> dict[str, np.ndarray]:
    return {
        "explain/a/m/q": np.array(own),
        "control/random_map/m/q": np.array(control),
        "correct": np.array(correct),
        "controlled": np.array(controlled),
    }


SEEN = table(
    [1.0, 3.0, math.nan, 7.0, 9.0],
    [0.5, 1.5, 1.0, math.nan, math.nan],
    [True, False, True, True, False],
    [True, True, True, False, False],
)


def test_a_row_by_hand() -> None:
    own, control = record.rows(columns(), SEEN)
    assert own == {
        "kind": "score", "attribution": "a", "control": "", "metric": "m", "quantity": "q",
        "better": "higher", "mean": 5.0, "sd": pytest.approx(math.sqrt(40 / 3)),
        "se": pytest.approx(math.sqrt(40 / 3) / 2), "count": 5, "missing": 1,
        "mean_correct": 4.0, "count_correct": 2, "lead": 1.0,
        "lead_se": pytest.approx(np.std([0.5, 1.5], ddof=1) / math.sqrt(2)), "control_mean": 1.0,
    }  # fmt: skip
    assert (control["kind"], control["mean"], control["count"], control["missing"]) == ("control", 1.0, 3, 0)
    assert (control["mean_correct"], control["count_correct"]) == (0.75, 2)
    assert "lead" not in control


@pytest.mark.parametrize(("better", "expected"), [("higher", 1.0), ("lower", -1.0)])
def test_a_lead_is_signed_so_that_more_is_better(better: Any, expected: float) -> None:
    assert record.averages(columns(better), SEEN)["lead/a/m/q"] == expected


def test_what_has_no_direction_or_no_random_map_has_no_lead() -> None:
    assert record.leading(columns(None)) == []
    assert record.leading(columns()[:1]) == []


def test_a_median_leads_by_the_median_of_differences_infinite_ones_included() -> None:
    seen = table([1.0, math.inf, math.inf], [0.0, 0.0, math.inf], [True] * 3, [True] * 3)
    averages = record.averages(columns(median=True), seen)
    assert averages["lead/a/m/q"] == math.inf  # of 1 and infinity; the third has no difference
    assert averages["explain/a/m/q"] == math.inf


class Levels(Attribution):
    """A constant map: the label of nothing but the image's first pixel."""

    def maps(self, model: nn.Module, inputs: Any, target: Any) -> Any:
        return inputs[:, :, :1, :1].expand_as(inputs).clone()


def rows(path: Path) -> dict[tuple[str, ...], dict[str, str]]:
    with path.open(newline="") as file:
        names = ("kind", "attribution", "control", "metric", "quantity")
        return {tuple(row[name] for name in names): row for row in csv.DictReader(file)}


def test_table_scores_and_log_agree(tmp_path: Path) -> None:
    metrics: dict[str, Metric] = {"gini": Gini(), "level": Level(), "clean": CleanAccuracy()}
    look = Explain(
        {"first": Levels(), "saliency": Saliency()}, metrics, samples=10, control_samples=4, on_error="raise"
    )
    run = fitted(tmp_path, look, max_epochs=2)
    found = rows(tmp_path / "explanations" / "epoch_001.csv")
    keys = {
        "/".join(
            part
            for part in (
                *(("control", control) if control else ("explain",) if name else ("robust",)),
                name,
                metric,
                quantity,
            )
            if part
        ): row
        for (_, name, control, metric, quantity), row in found.items()
    }
    logged = {key: float(value) for key, value in run.callback_metrics.items() if key in look.quantities()}
    assert {key for key in logged if not key.startswith("lead/")} == set(keys)
    with np.load(tmp_path / "explanations" / "epoch_001.npz") as kept:
        correct = kept["probe_correct"]
        for key, row in keys.items():
            scores = kept[f"scores/{key}"]
            assert len(scores) == 10
            assert float(row["mean"]) == pytest.approx(np.nanmean(scores), rel=1e-6)
            assert float(row["mean"]) == pytest.approx(logged[key], rel=1e-6)
            valid = correct & ~np.isnan(scores)
            assert int(row["count_correct"]) == valid.sum()
            if valid.any():
                assert float(row["mean_correct"]) == pytest.approx(scores[valid].mean(), rel=1e-6)
            assert int(row["count"]) == (4 if row["control"] else 10)
            if row["lead"]:
                assert float(row["lead"]) == pytest.approx(
                    logged[key.replace("explain", "lead", 1)], rel=1e-6
                )
        first = loader().dataset.tensors[0][kept["probe_ids"], 0, 0, 0]
        np.testing.assert_allclose(kept["scores/explain/first/level"], first, rtol=1e-6)
    assert float(found["score", "", "", "clean", "accuracy"]["mean"]) == correct.mean()
    random = found["control", "", "random_map", "level", ""]
    assert float(found["score", "first", "", "level", ""]["control_mean"]) == float(random["mean"])


def test_each_look_has_its_own_record(tmp_path: Path) -> None:
    look = Explain({"saliency": Saliency()}, {"gini": Gini()}, samples=3, every_n_epochs=2)
    fitted(tmp_path, look, max_epochs=4)
    names = {path.name for path in (tmp_path / "explanations").iterdir()}
    assert {name for name in names if name.endswith(".csv")} == {f"epoch_00{n}.csv" for n in (0, 2, 3)}
    assert {name for name in names if name.endswith(".png")} == {"epoch_000.png", "epoch_003.png"}
    trainer(tmp_path, look).validate(classifier(), loader(), verbose=False)
    assert (tmp_path / "explanations" / "validate.csv").exists()


def test_pictures_are_the_first_of_the_random_order_sorted(tmp_path: Path) -> None:
    look = Explain({"r": RandomMap()}, {}, samples=9, batch_size=2, pictures=3, control_samples=5)
    trainer(tmp_path, look).validate(classifier(), loader(), verbose=False)
    first = torch.randperm(12, generator=torch.Generator().manual_seed(0))[:3]
    with np.load(tmp_path / "explanations" / "validate.npz") as kept:
        assert kept["ids"].tolist() == sorted(first.tolist())
        assert kept["maps/r"].shape == (3, 1, 6, 8)
        np.testing.assert_array_equal(kept["inputs"], loader().dataset.tensors[0][sorted(first.tolist())])
