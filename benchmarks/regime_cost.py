"""What a regime costs, predicted and measured: `python -m benchmarks.regime_cost [--save]`, from the root.

Every regime trains some batches by `lit-xai fit`, turn by turn with standard training. Measured is the median
CPU time of a batch over that of a standard one in the same round, all that the trainer adds to both included.
Predicted is what `fit` prints before the first batch. Both are medians over the rounds.
"""

import argparse
import json
import statistics
import tempfile
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch

from benchmarks.passes import machine
from lit_xai.callbacks import RegimeCost
from lit_xai.cli.quiet import quiet
from lit_xai.cli.trainer import Command

RESULTS = Path(__file__).parent / "results"
CONFIGS = Path(__file__).parents[1] / "configs"
NETS = {"SmallCNN": 64, "ResNet20": 32}  # and their batches


class Batches(L.Callback):
    """CPU time of every training batch."""

    def __init__(self) -> None:
        self.seconds: list[float] = []

    def on_train_batch_start(self, *args: Any) -> None:
        self._start = time.process_time()

    def on_train_batch_end(self, *args: Any) -> None:
        self.seconds.append(time.process_time() - self._start)


def trained(regime: str, net: str, batches: int) -> tuple[float, RegimeCost]:
    """Seconds of a batch in a short run, and what was printed about them."""
    watch = Batches()
    with tempfile.TemporaryDirectory() as folder:
        command = Command(
            [
                f"--config={CONFIGS / 'quickstart.yaml'}",
                f"--config={CONFIGS / 'regimes' / regime}.yaml",
                f"--model.net={net}",
                f"--data.init_args.batch_size={NETS[net]}",
                f"--out={folder}",
                "--explain.attributions={}",
                "--explain.metrics={}",
                "--robustness.metrics={}",
                "--checkpoint.monitor=val/accuracy",
                "--guard.on_collapse=flag",
                "--guard.monitor=null",
                "--guard.one_step=null",
                "--wandb=disabled",
                "--trainer.accelerator=cpu",
                "--trainer.max_epochs=1",
                "--trainer.limit_val_batches=0",
                f"--trainer.limit_train_batches={batches}",
            ],
            "fit",
        )
        command.trainer.callbacks.append(watch)  # last to hear of a batch: prediction is not in it
        command.trainer.fit(command.model, command.datamodule)
    said = next(one for one in command.trainer.callbacks if isinstance(one, RegimeCost))
    return statistics.median(watch.seconds), said


def table(net: str, regimes: list[str], rounds: int, batches: int) -> list[dict[str, Any]]:
    """One row per regime, standard training beside it in every round."""
    rows = []
    for regime in regimes:
        measured, predicted = [], []
        passes = (1.0, 1.0)
        for _ in range(rounds):
            standard, _ = trained("standard", net, batches)
            mine, said = trained(regime, net, batches)
            measured.append(mine / standard)
            predicted.append(1.0 if said.predicted is None else said.predicted.relative)
            if said.predicted is not None:
                passes = said.predicted.forwards, said.predicted.backwards
        row = {
            "net": net,
            "regime": regime,
            "forwards": passes[0],
            "backwards": passes[1],
            "predicted": statistics.median(predicted),
            "measured": statistics.median(measured),
        }
        row["predicted_over_measured"] = row["predicted"] / row["measured"]
        row["each_round"] = [list(pair) for pair in zip(predicted, measured, strict=True)]
        print(json.dumps(row), flush=True)
        rows.append(row)
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--save", action="store_true", help=f"write {RESULTS.name}/regime_cost.json")
    parser.add_argument("--nets", nargs="*", default=list(NETS), choices=list(NETS))
    parser.add_argument(
        "--regimes", nargs="*", default=sorted(p.stem for p in CONFIGS.glob("regimes/*.yaml"))
    )
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--batches", type=int, default=16)
    words = parser.parse_args()
    quiet()
    torch.set_num_threads(1)
    rows = [row for net in words.nets for row in table(net, words.regimes, words.rounds, words.batches)]
    if words.save:
        found = {"machine": machine(), "rounds": words.rounds, "batches": words.batches, "rows": rows}
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "regime_cost.json").write_text(json.dumps(found, indent=1) + "\n")


if __name__ == "__main__":
    main()
