"""The probe: who looks at what, and how shares come together."""

from typing import Any
from unittest.mock import MagicMock

import lightning as L
import numpy as np
import pytest
import torch

from lit_xai.callbacks import Explain, Robustness
from lit_xai.callbacks.probe import gather, refuse_sharded
from lit_xai.metrics import Gini


def test_parts_come_together_sorted_by_id() -> None:
    parts = [
        {"ids": torch.tensor([4, 9]), "a": torch.tensor([0.4, 0.9])},
        {"ids": torch.tensor([2]), "a": torch.tensor([0.2])},
    ]
    table = gather(parts)
    assert table["ids"].tolist() == [2, 4, 9]
    assert table["a"].tolist() == [pytest.approx(0.2), pytest.approx(0.4), pytest.approx(0.9)]


def test_a_process_without_images_adds_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    other = {"ids": np.array([1, 0]), "a": np.array([1.0, 0.0])}

    def all_gather(tables: list[Any], mine: Any) -> None:
        tables[:] = [other, mine]

    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.distributed, "get_world_size", lambda: 2)
    monkeypatch.setattr(torch.distributed, "all_gather_object", all_gather)
    table = gather([])
    assert table["ids"].tolist() == [0, 1]
    assert table["a"].tolist() == [0.0, 1.0]


@pytest.mark.parametrize("name", ["FSDPStrategy", "DeepSpeedStrategy", "ModelParallelStrategy"])
def test_strategies_that_split_weights_are_refused(name: str) -> None:
    trainer = MagicMock(spec=L.Trainer, strategy=type(name, (), {})())
    with pytest.raises(ValueError, match=f"whole weights on each device, and {name}"):
        refuse_sharded(trainer)


@pytest.mark.parametrize(
    "wrong", [{"samples": 0}, {"batch_size": 0}, {"every_n_epochs": 0}, {"pictures": -1}]
)
def test_wrong_numbers_are_refused(wrong: dict[str, int]) -> None:
    (name,) = wrong
    with pytest.raises(ValueError, match=f"`{name}` must be at least"):
        Explain({}, {"gini": Gini()}, **wrong)


def test_robustness_takes_metrics_of_the_model_alone() -> None:
    with pytest.raises(ValueError, match="`gini` needs an attribution"):
        Robustness({"gini": Gini()})
