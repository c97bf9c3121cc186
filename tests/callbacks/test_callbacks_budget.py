"""The time budget: looks are thinned until they fit, nested, never silently; the share is told."""

import math
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from probed import Level, classifier, fitted, loader, trainer

from lit_xai.attributions import Saliency
from lit_xai.callbacks import Explain, budget
from lit_xai.callbacks.progress import EpochLines
from lit_xai.metrics import Gini, RandomMap

CPU = torch.device("cpu")


class Time:
    """Time that passes only when it is told to."""

    def __init__(self) -> None:
        self.now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    clock = Time()
    monkeypatch.setattr(budget, "time", clock)
    return clock


def look(limit: budget.Budget, time: Time, trained: float, cost: float, after: float = 0.0) -> list[int]:
    """The images of one look in batches of 10, each of which costs so many seconds."""
    seen, planned = 0, limit.begin(trained, 100, CPU)
    while seen < planned:
        batch = min(10, planned - seen)
        time.now += cost * batch
        seen += batch
        if limit.over(seen, CPU):
            break
    time.now += after
    limit.end(CPU)
    return [planned, seen]


def test_the_first_look_stops_where_its_time_is_spent(time: Time) -> None:
    limit = budget.Budget(0.5)
    assert look(limit, time, trained=60, cost=1) == [100, 30]
    assert look(limit, time, trained=60, cost=1) == [30, 30]  # what fits, from the beginning


def test_at_least_one_batch(time: Time) -> None:
    assert look(budget.Budget(0.1), time, trained=0, cost=1) == [100, 10]


def test_the_next_look_takes_what_the_pace_allows(time: Time) -> None:
    limit = budget.Budget(0.5)
    look(limit, time, trained=40, cost=1)
    assert look(limit, time, trained=100, cost=0.25) == [50, 50]  # planned at the old pace
    assert look(limit, time, trained=100, cost=0.25)[0] == 100  # 12.5 seconds bought 50
    assert look(limit, time, trained=16, cost=0.25)[0] == 32
    assert look(limit, time, trained=0.1, cost=0.25) == [1, 1]


def test_what_comes_after_the_last_batch_counts(time: Time) -> None:
    limit = budget.Budget(0.5)
    look(limit, time, trained=60, cost=1, after=20)
    assert look(limit, time, trained=60, cost=1)[0] == 10


def test_controls_that_end_make_later_images_cheaper(time: Time) -> None:
    limit = budget.Budget(1.0)
    limit.begin(40, 100, CPU)
    for seen, cost in ((10, 10), (20, 10), (30, 2), (40, 2)):
        time.now += cost
        limit.over(seen, CPU)
    limit.allowed, limit._after = 30.0, 0.0
    assert limit.plan(100) == 70  # 24 seconds bought 40, and one more second 5 each


def test_looks_stay_at_the_same_images_as_long_as_they_fit_and_few_more_would(time: Time) -> None:
    limit = budget.Budget(0.5)
    look(limit, time, trained=60, cost=1)
    assert look(limit, time, trained=74, cost=1)[0] == 30  # 37 would fit
    assert look(limit, time, trained=60, cost=1)[0] == 30
    assert look(limit, time, trained=76, cost=1)[0] == 38
    assert look(limit, time, trained=74, cost=1)[0] == 37  # 38 would not
    assert look(limit, time, trained=400, cost=1)[0] == 100


def test_what_does_not_fit_is_told_once_with_what_it_took(time: Time) -> None:
    limit = budget.Budget(0.5)
    said = []
    for trained, cost in ((20, 2), (20, 2), (20, 20), (20, 20), (20, 20), (400, 1), (400, 1)):
        seen, planned = 0, limit.begin(trained, 100, CPU)
        while seen < planned:
            time.now += cost * min(20, planned - seen)
            seen = min(seen + 20, planned)
            if limit.over(seen, CPU):
                break
        said.append(limit.end(CPU))
        assert said[-1] in (limit.note, "", "explained all 100 images")
    epoch = "of the training time of an epoch"
    assert said == [
        f"explained 20 of 100 images in 200% {epoch}, not 50%",
        f"explained 5 of 100 images, to take 50% {epoch} at most",
        f"explained 5 of 100 images in 500% {epoch}, not 50%",
        f"explained 1 of 100 images in 100% {epoch}, not 50%: not one fits, name fewer methods or metrics",
        "",
        f"explained 10 of 100 images, to take 50% {epoch} at most",
        "explained all 100 images",
    ]
    assert limit.note == ""


class Slow(Level):
    """Takes a second for each image."""

    def __init__(self, time: Time) -> None:
        super().__init__()
        object.__setattr__(self, "time", time)

    def score(self, attributions: Any) -> Any:
        self.time.now += len(attributions)
        return super().score(attributions)


class Training(L.Callback):
    """Lets each of the three batches of an epoch take 4 seconds."""

    def __init__(self, time: Time) -> None:
        self.time = time

    def on_train_batch_end(self, *_: Any) -> None:
        self.time.now += 4


def test_a_run_keeps_its_budget_and_says_so(
    time: Time, tmp_path: Any, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("lit_xai.callbacks.probe.time", time)
    explain = Explain(
        {"saliency": Saliency()},
        {"slow": Slow(time), "gini": Gini()},
        samples=12,
        batch_size=2,
        controls={"random_map": RandomMap()},
        control_samples=2,
        max_share_of_epoch=0.425,
        on_error="raise",
    )
    run = fitted(tmp_path, Training(time), explain, EpochLines(), max_epochs=4)
    probe = torch.randperm(12, generator=torch.Generator().manual_seed(0))
    kept = [np.load(tmp_path / "explanations" / f"epoch_00{epoch}.npz")["probe_ids"] for epoch in range(4)]
    counts = [len(ids) for ids in kept]
    # 5.1 seconds: 2 images with their control take 4, 2 more take 2; from then on, 3 images fit.
    assert counts == [4, 3, 3, 3]
    assert all(set(ids.tolist()) == set(probe[: len(ids)].tolist()) for ids in kept)
    assert run.callback_metrics["explain/samples"] == 3
    assert run.callback_metrics["time/explain_share"] == pytest.approx(5 / 12)
    assert explain.quantities()["explain/samples"]["better"] is None
    said = capsys.readouterr().out.splitlines()
    assert [line for line in said if line.startswith("Explain: ")] == [
        "Explain: explained 4 of 12 images, to take 42% of the training time of an epoch at most",
        "Explain: explained 3 of 12 images, to take 42% of the training time of an epoch at most",
    ]
    assert "explaining 50% of training" in next(line for line in said if line.startswith("epoch 1/4"))
    assert "explaining 42% of training" in next(line for line in said if line.startswith("epoch 4/4"))
    assert explain.note.startswith("explained 3 of 12 images")
    trainer(tmp_path, explain).validate(classifier(), loader(), verbose=False)
    assert explain.values["explain/samples"] == 12  # finished weights are looked at in full


def test_without_a_budget_nothing_is_thinned(tmp_path: Any, capsys: pytest.CaptureFixture[str]) -> None:
    explain = Explain({"saliency": Saliency()}, {"gini": Gini()}, samples=12, batch_size=2)
    run = fitted(tmp_path, explain, max_epochs=2)
    assert "explain/samples" not in run.callback_metrics
    assert float(run.callback_metrics["time/explain_share"]) > 0
    assert "Explain:" not in capsys.readouterr().out
    assert not math.isnan(explain.values["explain/saliency/gini"])
