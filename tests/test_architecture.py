"""The house rules that a tool can check: what is exported, proven, cited, and on the menu."""

import dataclasses
import importlib
import inspect
import pkgutil
import re
from functools import cache
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch
import yaml
from rows import ATTACKS, ATTRIBUTIONS, METRICS, OBJECTIVES, Row

import lit_xai
from lit_xai.attacks.base import Attack
from lit_xai.attacks.losses import Aim, Loss
from lit_xai.attacks.norms import Norm
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.baselines import Baseline
from lit_xai.attributions.goals import Goal
from lit_xai.attributions.rules import Rule
from lit_xai.attributions.score import Score
from lit_xai.metrics.base import VOCABULARY, Metric, Reduction
from lit_xai.metrics.removal import Removal
from lit_xai.objectives.base import Objective
from lit_xai.optim.schedule import Schedule

ROOMS = ("attacks", "attributions", "metrics", "models", "objectives", "optim")
ROOT = Path(lit_xai.__file__).parent
CONFIGS = ROOT.parent / "configs"
STATELESS = (Attack, Norm, Loss, Aim, Attribution, Score, Baseline, Goal, Rule, Schedule, Reduction, Removal)
NOUNS = (*STATELESS, Objective, Metric, torch.optim.Optimizer)
PROVEN = {Attack: ATTACKS, Attribution: ATTRIBUTIONS, Objective: OBJECTIVES, Metric: METRICS}


@cache
def modules(room: str) -> list[ModuleType]:
    package = importlib.import_module(f"lit_xai.{room}")
    names = [f"lit_xai.{room}.{info.name}" for info in pkgutil.iter_modules(package.__path__)]
    return [importlib.import_module(name) for name in names]


def concrete(room: str) -> list[type]:
    """Public classes that the room defines and that can be built."""
    return [
        thing
        for module in modules(room)
        for name, thing in vars(module).items()
        if inspect.isclass(thing)
        and thing.__module__ == module.__name__
        and not name.startswith("_")
        and not inspect.isabstract(thing)
        and not getattr(thing, "_is_protocol", False)
    ]


EVERY = [
    pytest.param(room, thing, id=f"{room}.{thing.__name__}") for room in ROOMS for thing in concrete(room)
]
ALGORITHMS = [p for p in EVERY if issubclass(p.values[1], NOUNS)]
ROWED = [
    pytest.param(noun, *p.values, id=p.id)
    for p in ALGORITHMS
    for noun in PROVEN
    if issubclass(p.values[1], noun)
]


@pytest.mark.parametrize(("room", "thing"), EVERY)
def test_every_concrete_class_is_exported(room: str, thing: type):
    package = importlib.import_module(f"lit_xai.{room}")
    assert thing.__name__ in package.__all__
    assert getattr(package, thing.__name__) is thing


@pytest.mark.parametrize(("room", "thing"), ALGORITHMS)
def test_every_algorithm_cites_its_source_in_its_own_docstring(room: str, thing: type):
    text = vars(thing).get("__doc__") or ""
    assert "Source: " in text
    assert text.split("\n", 1)[0].endswith((".", ":"))


@pytest.mark.parametrize(("noun", "room", "thing"), ROWED)
def test_every_algorithm_has_a_row(noun: type, room: str, thing: type):
    assert any(type(row.instance) is thing for row in PROVEN[noun])


@pytest.mark.parametrize(("room", "thing"), EVERY)
def test_two_levels_of_class_never_three(room: str, thing: type):
    for base in thing.__bases__:
        if base.__module__.startswith("lit_xai"):
            assert inspect.isabstract(base), (
                f"{thing.__name__} inherits from {base.__name__}, which is not abstract"
            )


@pytest.mark.parametrize(
    ("room", "thing"),
    [p for p in ALGORITHMS if issubclass(p.values[1], STATELESS)],
)
def test_stateless_algorithms_are_frozen_dataclasses(room: str, thing: type):
    assert dataclasses.is_dataclass(thing)
    assert thing.__dataclass_params__.frozen
    assert thing.__dataclass_params__.eq


@cache
def menu() -> dict[str, dict[str, Any]]:
    """The entries of the menus; metrics of the model itself may stand in another file, under `robustness`."""
    parts: dict[str, dict[str, Any]] = {"attributions": {}, "metrics": {}}
    for path in (CONFIGS / "explain").glob("*.yaml"):
        explain = yaml.safe_load(path.read_text())["explain"]
        parts["attributions"] |= {**explain.get("attributions", {}), **explain.get("controls", {})}
        parts["metrics"] |= explain.get("metrics", {})
    for path in CONFIGS.rglob("*.yaml"):
        robustness = (yaml.safe_load(path.read_text()) or {}).get("robustness") or {}
        parts["metrics"] = {**(robustness.get("metrics") or {}), **parts["metrics"]}
    return parts


@pytest.mark.parametrize(
    ("noun", "room", "thing"), [p for p in ROWED if p.values[0] in (Attribution, Metric)]
)
def test_every_attribution_and_metric_is_on_the_menu(noun: type, room: str, thing: type):
    entries = menu()["attributions" if noun is Attribution else "metrics"].values()
    paths = (entry if isinstance(entry, str) else entry["class_path"] for entry in entries)
    assert thing.__name__ in {path.rsplit(".", 1)[-1] for path in paths}


def test_the_menu_names_its_entries_in_snake_case():
    names = [*menu()["attributions"], *menu()["metrics"]]
    assert [name for name in names if not re.fullmatch(r"[a-z][a-z0-9_]*(/[a-z0-9_]+)?", name)] == []


@pytest.mark.parametrize("row", METRICS, ids=str)
def test_metrics_need_only_what_the_vocabulary_has(row: Row):
    assert set(row.instance.needs) <= set(VOCABULARY)


@pytest.mark.parametrize("path", sorted(ROOT.rglob("*.py")), ids=lambda path: str(path.relative_to(ROOT)))
def test_house_rules_for_every_file(path: Path):
    text = path.read_text()
    assert "from __future__ import annotations" not in text, "it hides shapes from the checker"
    assert path.stem not in {"utils", "helpers", "common", "misc"}
    assert len(text.splitlines()) <= 350, "a file that wants more wants to be two families"
    assert ".backward()" not in text or path.parts[-2] not in {"attacks", "attributions", "metrics"}
