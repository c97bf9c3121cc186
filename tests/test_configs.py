"""Every YAML that is shipped builds; every regime takes a training step and an explained epoch."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
import yaml

from lit_xai.callbacks import Explain
from lit_xai.cli.trainer import Command
from lit_xai.data import Cifar10
from lit_xai.metrics import credible

CONFIGS = Path(__file__).resolve().parents[1] / "configs"
BASE = CONFIGS / "quickstart.yaml"
SMALL = [  # real 8x8 digits in place of the embedded ones, and little of everything
    f"--config={CONFIGS / 'data' / 'sklearn_digits.yaml'}",
    "--trainer.max_epochs=1",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--explain.samples=4",
    "--robustness.samples=4",
    "--wandb=disabled",
]


def names(room: str) -> list[str]:
    return sorted(path.name for path in (CONFIGS / room).glob("*.yaml"))


@pytest.mark.parametrize("regime", names("regimes"))
def test_every_regime_takes_a_step_and_explains_an_epoch(regime: str, tmp_path: Path) -> None:
    words = [
        f"--config={BASE}",
        f"--config={CONFIGS / 'regimes' / regime}",
        *SMALL,
        f"--out={tmp_path / 'run'}",
    ]
    command = Command(words, "fit")
    before = [parameter.clone() for parameter in command.model.parameters()]
    command.trainer.fit(command.model, command.datamodule)
    moved = [not torch.equal(a, b) for a, b in zip(before, command.model.parameters(), strict=True)]
    assert any(moved)
    seen = command.trainer.callback_metrics
    assert {"explain/saliency/perturbation/difference", "robust/pgd/accuracy"} <= set(seen)
    assert float(seen["explain/boundary_saliency/flag/missing"]) == 0.0


@pytest.mark.parametrize("recipe", names("regimes/cifar10"))
def test_published_settings_compose_with_the_quickstart_and_their_data(recipe: str) -> None:
    """They win over what comes before them, and keep all the rest of it."""
    path = CONFIGS / "regimes" / "cifar10" / recipe
    paths = [BASE, CONFIGS / "data" / "cifar10.yaml", path]
    command = Command([*(f"--config={path}" for path in paths), "--wandb=disabled"], "fit")
    said = yaml.safe_load(path.read_text())
    assert command.trainer.max_epochs == said["trainer"]["max_epochs"]
    assert type(command.model.objective).__name__ == said["model"]["objective"]["class_path"]
    optimizer = command.model.optimizer(command.model.parameters())
    assert optimizer.param_groups[0]["lr"] == said["model"]["optimizer"]["init_args"]["lr"]
    assert isinstance(command.datamodule, Cifar10)
    assert command.model.channels == 3
    assert "saliency" in command.config_init.explain.attributions


@pytest.mark.parametrize("model", names("models"))
def test_every_model_builds_for_every_image(model: str) -> None:
    command = Command([f"--config={BASE}", f"--config={CONFIGS / 'models' / model}", *SMALL], "fit")
    command.model.eval()
    size = 64 if "torchvision" in model or "timm" in model else 8
    assert command.model(torch.rand(2, 1, size, size)).shape == (2, 10)


@pytest.mark.parametrize("data", names("data"))
def test_every_data_file_parses_in_any_order(data: str) -> None:
    paths = [f"--config={BASE}", f"--config={CONFIGS / 'data' / data}"]
    regime = f"--config={CONFIGS / 'regimes' / 'adversarial.yaml'}"
    first, last = (parsed([*paths[:1], *order]) for order in ([paths[1], regime], [regime, paths[1]]))
    assert first == last


def explained(menu: str, *words: str) -> Explain:
    """The callback that the quickstart has under one of the menus."""
    path = CONFIGS / "explain" / menu
    return Command([f"--config={BASE}", f"--config={path}", *SMALL, *words], "fit").config_init.explain


def test_the_menus_build() -> None:
    menu = explained("menu.yaml")
    assert {"lrp", "boundary_saliency"} <= set(menu.attributions)
    assert {"edge_map", "other_image", "untrained"} <= set(menu.controls)
    assert {"srg", "stability/relative", "blind_colour"} <= set(explained("metrics.yaml").metrics)
    assert {"pointing", "boundary_localisation"} <= set(explained("localisation.yaml").metrics)


def test_the_file_of_the_credible_set_is_the_default() -> None:
    seen, meant = explained("credible.yaml").metrics, credible()
    assert {name: repr(seen[name]) for name in meant} == {name: repr(one) for name, one in meant.items()}


@pytest.mark.slow
def test_every_metric_measures_an_epoch(tmp_path: Path) -> None:
    """All metrics at once, with all controls, on images without masks."""
    few = tmp_path / "few.yaml"
    few.write_text(
        "explain:\n  on_error: raise\n  samples: 16\n  attributions:\n"
        "    integrated_gradients: {class_path: IntegratedGradients, init_args: {steps: 3}}\n"
        "    boundary_saliency: {class_path: BoundarySaliency, init_args: {search: {class_path: DDN}}}\n"
        "    negative_flux: NegativeFlux\n"
    )
    paths = [BASE, CONFIGS / "explain" / "metrics.yaml"]
    words = [*SMALL, f"--config={few}", f"--out={tmp_path / 'run'}", "--explain.samples=16"]
    command = Command([*(f"--config={path}" for path in paths), *words], "fit")
    command.trainer.fit(command.model, command.datamodule)
    assert "lead/integrated_gradients/srg/gain" in command.trainer.callback_metrics


@pytest.mark.parametrize("attack", names("attacks"))
@pytest.mark.parametrize("norm", ["Linf", "L2", "L1"])
def test_every_suite_of_attacks_builds_in_every_norm(attack: str, norm: str) -> None:
    from lit_xai.cli.attack import section

    words = [f"--config={BASE}", f"--config={CONFIGS / 'attacks' / attack}", *SMALL]
    budget = SimpleNamespace(norm=None if norm == "Linf" else norm, epsilon="1/8", name=None)
    built = Command(words, "attack", section(budget)).config_init.attack
    assert built.suite.epsilon == 0.125
    assert type(built.suite.norm).__name__ == norm
    assert next(iter(built.suite.members)) == "pgd-20"
    assert all(member.epsilon == 0.125 for member in built.suite.members.values())
    assert built.search is not None
    assert built.name.startswith(attack.removesuffix(".yaml"))


def parsed(words: list[str]) -> dict[str, Any]:
    command = Command([*words, "--wandb=disabled"], "fit")
    return {"data": command.config.data.as_dict(), "model": command.config.model.as_dict()}
