"""What observing and Bort cost: `python -m benchmarks.training [--save]`, from the repository.

* A training epoch with the callbacks of the quickstart: passes counted over time measured, and the share of
  the epoch that observing takes. A training step costs 3 units an image, for the gradient of the weights.
* Bort's step over that of its base optimizer, as a share of a whole training step of ResNet-18, batch 128.
"""

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import lightning as L
import torch
from torch import nn

from benchmarks.passes import Meter, bare_forward, clock, efficiency, machine
from lit_xai.cli.trainer import Command, quiet
from lit_xai.models import ResNet18
from lit_xai.optim import BortAdamW, BortSGD

RESULTS = Path(__file__).parent / "results"
QUICKSTART = Path(__file__).parents[1] / "configs" / "quickstart.yaml"


class Epochs(L.Callback):
    """Seconds of every epoch, of its training, and of all observers together."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.training: list[float] = []

    def on_train_epoch_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self._start = time.perf_counter()

    def on_validation_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        if not trainer.sanity_checking:
            self.training.append(time.perf_counter() - self._start)

    def on_train_epoch_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.epochs.append(time.perf_counter() - self._start)


def observed_epoch(*overrides: str, batches: int = 63) -> dict[str, float]:
    """A quickstart training of four epochs, metered; the first and the last, with pictures, are not timed.

    Args:
        overrides: Options beyond those of the quickstart.
        batches: Training batches of 64 images in an epoch.
    """
    watch, epochs = Epochs(), 4
    with tempfile.TemporaryDirectory() as folder:
        words = [f"--config={QUICKSTART}", f"--out={folder}", f"--trainer.max_epochs={epochs}"]
        words += ["--wandb=disabled", "--trainer.accelerator=cpu", f"--trainer.limit_train_batches={batches}"]
        command = Command([*words, *overrides], "fit")
        command.trainer.callbacks.insert(0, watch)
        model = command.model.model
        with Meter(model) as meter:
            command.trainer.fit(command.model, command.datamodule)
        loader = command.datamodule.train_dataloader()
        inputs = next(iter(loader))[0][:64]
        trained = epochs * min(batches * 64, len(loader.dataset))
    target = torch.zeros(len(inputs), dtype=torch.int64)

    def step() -> None:
        loss = nn.functional.cross_entropy(model(inputs), target)
        torch.autograd.grad(loss, list(model.parameters()))

    per_step = statistics.median(clock(step, 5) for _ in range(7)) / len(inputs)
    model.eval().requires_grad_(False)
    seen = efficiency(lambda: bare_forward(model, inputs), model, inputs)
    # The meter saw training steps too: each is one forward and one backward pass.
    gradients = meter.backwards - trained
    forwards = meter.forwards - trained - gradients
    bare = forwards * seen.bare_forward + gradients * seen.bare_gradient
    bare = (bare / len(inputs) + trained * per_step) / epochs
    epoch, training = (statistics.median(times[1:-1]) for times in (watch.epochs, watch.training))
    return {
        "seconds_per_epoch": epoch,
        "share_of_training": training / epoch,
        "share_of_observing": 1 - training / epoch,
        "training_images": trained / epochs,
        "observing_forwards": (meter.forwards - trained) / epochs,
        "observing_gradients": gradients / epochs,
        "efficiency": bare / epoch,
    }


def bort_steps() -> list[dict[str, object]]:
    """Seconds of an optimizer step with and without Bort, beside those of forward and backward pass."""
    rows: list[dict[str, object]] = []
    inputs, target = torch.rand(128, 3, 32, 32), torch.arange(128) % 10
    model = ResNet18(3, 10)
    nn.functional.cross_entropy(model(inputs), target).backward()

    def passes() -> None:
        torch.autograd.grad(nn.functional.cross_entropy(model(inputs), target), list(model.parameters()))

    whole = statistics.median(clock(passes) for _ in range(3))
    pairs: dict[str, tuple[Callable[[], torch.optim.Optimizer], Callable[[], torch.optim.Optimizer]]] = {
        "SGD": (
            lambda: torch.optim.SGD(model.parameters(), lr=1e-3, momentum=0.9),
            lambda: BortSGD(model.parameters(), lr=1e-3, momentum=0.9, gamma=0.1),
        ),
        "AdamW": (
            lambda: torch.optim.AdamW(model.parameters(), lr=1e-3),
            lambda: BortAdamW(model.parameters(), lr=1e-3, gamma=0.1),
        ),
        "AdamW, constrained at every 4th step": (
            lambda: torch.optim.AdamW(model.parameters(), lr=1e-3),
            lambda: BortAdamW(model.parameters(), lr=1e-3, gamma=0.1, every_k=4),
        ),
    }
    for name, (base, bort) in pairs.items():
        plain, constrained = (
            statistics.median(clock(optimizer.step, 4) for _ in range(5)) for optimizer in (base(), bort())
        )
        rows.append(
            {
                "base": name,
                "step": plain,
                "bort_step": constrained,
                "forward_and_backward": whole,
                "overhead_of_a_training_step": (constrained - plain) / (whole + plain),
            }
        )
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/training.json")
    save = parser.parse_args().save
    quiet()
    torch.set_num_threads(1)
    resnet = ("--model.net=ResNet20", "--explain.samples=64", "--robustness.samples=64")
    found = {
        "machine": machine(),
        "epoch of SmallCNN": observed_epoch(),
        "epoch of ResNet20": observed_epoch(*resnet, "--trainer.limit_val_batches=1", batches=20),
        "bort": bort_steps(),
    }
    print(json.dumps(found, indent=1))
    if save:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "training.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
