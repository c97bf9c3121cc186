"""The words of a run of seconds, on real 8x8 digits."""

from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
CONFIGS = ROOT / "configs"
WORDS = [
    "--config",
    str(CONFIGS / "quickstart.yaml"),
    "--config",
    str(CONFIGS / "data" / "sklearn_digits.yaml"),
    "--trainer.max_epochs=2",
    "--trainer.limit_train_batches=6",
    "--trainer.accelerator=cpu",
    "--explain.samples=7",
    "--explain.batch_size=3",
    "--robustness.samples=9",
    "--wandb=disabled",
]
