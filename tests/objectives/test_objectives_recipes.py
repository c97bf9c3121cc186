"""Published settings in `configs/regimes/<data>/`: each builds, and takes training steps."""

from pathlib import Path

import pytest
import torch

from lit_xai.cli.trainer import Command

CONFIGS = Path(__file__).resolve().parents[2] / "configs"
RECIPES = sorted((CONFIGS / "regimes").glob("*/*.yaml"))
SMALL = [
    f"--config={CONFIGS / 'data' / 'sklearn_digits.yaml'}",
    "--data.batch_size=16",
    "--trainer.limit_train_batches=2",
    "--trainer.limit_val_batches=1",
    "--trainer.accelerator=cpu",
    "--wandb=disabled",
]


def command(recipe: Path, *words: str) -> Command:
    paths = [f"--config={CONFIGS / 'models' / 'small_cnn.yaml'}", f"--config={recipe}"]
    return Command([*paths, *SMALL, *words], "fit")


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: f"{path.parent.name}/{path.stem}")
def test_every_recipe_takes_a_step(recipe: Path, tmp_path: Path) -> None:
    run = command(recipe, f"--out={tmp_path / 'run'}", "--trainer.max_epochs=1")
    before = [parameter.clone() for parameter in run.model.parameters()]
    run.trainer.fit(run.model, run.datamodule)
    assert not all(torch.equal(a, b) for a, b in zip(before, run.model.parameters(), strict=True))


@pytest.mark.parametrize(
    ("name", "epochs", "drops"),
    [
        ("adversarial", 200, (100, 150)),
        ("trades", 76, (75,)),
        ("mart", 120, (75, 90, 100)),
        ("gaussian", 90, (30, 60)),
        ("smooth_adv", 150, (50, 100)),
        ("consistency", 150, (50, 100)),
        ("macer", 440, (200, 400)),
    ],
)
def test_learning_rates_fall_at_the_published_epochs(name: str, epochs: int, drops: tuple[int, ...]) -> None:
    run = command(CONFIGS / "regimes" / "cifar10" / f"{name}.yaml")
    assert run.trainer.max_epochs == epochs
    per_epoch = 352  # batches of 128 of 45,000 images
    optimizer = run.model.optimizer(run.model.parameters())
    rate = optimizer.param_groups[0]["lr"]
    factor = run.model.schedule(optimizer, epochs * per_epoch).lr_lambdas[0]
    for count, epoch in enumerate(drops):
        assert factor(epoch * per_epoch - 1) * rate == pytest.approx(rate * 0.1**count)
        assert factor(epoch * per_epoch + 1) * rate == pytest.approx(rate * 0.1 ** (count + 1))
