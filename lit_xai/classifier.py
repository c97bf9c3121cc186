"""The one LightningModule: a network, what its batches are asked to minimise, and what steps."""

import math
import os
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import lightning as L
import numpy as np
import torch
from lightning.pytorch.cli import OptimizerCallable
from torch import Tensor, nn
from torch.optim import Optimizer
from torchmetrics import MeanMetric
from torchmetrics.classification import MulticlassAccuracy

from lit_xai.models import Normalized
from lit_xai.objectives import CrossEntropy, Objective
from lit_xai.optim import Schedule
from lit_xai.optim.bort import constrain_linear_maps
from lit_xai.types import Images, Labels, Logits, check_batch, require

NetFactory = Callable[[int, int], nn.Module]


class Classifier(L.LightningModule):
    """An image classifier and its training regime: objective x optimizer x network.

    `model` speaks pixels and logits: it is what attacks, attributions and certificates receive.

    Args:
        net: Called as `net(channels, classes)` to build the network; or a built network.
        optimizer: Called with the parameters.
        objective: What a training batch is asked to minimise; the cross entropy if left out.
        schedule: Learning rate over the run; constant if left out.
        channels: Colour channels of the images.
        classes: Number of classes.
        mean: Mean of the pixels, one number per channel (or one for all), in [0, 1].
        std: Standard deviation of the pixels, likewise, above 0.
        channels_last: Whether weights and images lie in memory with the channels last: faster convolutions on
            most devices, other rounding.
        compile: Whether the network, and nothing else, is compiled: for training and validation, while
            explanations, and penalties on gradients, run it as it is.
    """

    def __init__(
        self,
        net: NetFactory,
        optimizer: OptimizerCallable,
        objective: Objective | None = None,
        schedule: Schedule | None = None,
        channels: int = 3,
        classes: int = 10,
        mean: Sequence[float] = (0.5,),
        std: Sequence[float] = (0.25,),
        channels_last: bool = False,
        compile: bool = False,
    ) -> None:
        super().__init__()
        # Checkpoints hold plain data only. Under LightningCLI the hyper-parameters are the parsed YAML;
        # built by hand they would be pickled objects, and are left out.
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", ".*is an instance of `nn.Module`")
            self.save_hyperparameters(logger=False)
        if "_instantiator" not in self.hparams:
            for name in ("net", "optimizer", "objective", "schedule"):
                self.hparams.pop(name, None)
        self.channels, self.classes = channels, classes
        built = net if isinstance(net, nn.Module) else net(channels, classes)
        self.model = Normalized(built, _per_channel(mean, channels), _per_channel(std, channels))
        self.layout = torch.channels_last if channels_last else torch.contiguous_format
        if channels_last:
            self.model.to(memory_format=torch.channels_last)
        if compile:
            self.model.net.compile()  # in place: the names of the weights stay
        self.objective = CrossEntropy() if objective is None else objective
        self.optimizer = optimizer
        self.schedule = schedule
        self.accuracy = MulticlassAccuracy(classes, average="micro")
        self.loss = MeanMetric(nan_strategy="disable")  # what is no number shows, and no device is asked
        self._checked: set[str] = set()
        self._steps = 0.0  # of the run, if it has an end
        self._sums: dict[str, Tensor] = {}  # of the terms over the images of this epoch
        self._images = 0
        self._update = 0  # which of the objective's optimizer steps on the batch at hand

    def forward(self, inputs: Images) -> Logits:
        logits: Logits = self.model(inputs)
        return logits

    def setup(self, stage: str) -> None:
        offered = getattr(self.trainer.datamodule, "classes", None)  # type: ignore[attr-defined]
        require(
            not isinstance(offered, int) or offered == self.classes,
            f"`model.classes` must be the number of classes of the data, {offered}, got {self.classes}.",
        )

    def on_train_start(self) -> None:
        # Of a run without an end every step is as good as the last.
        steps = self.trainer.estimated_stepping_batches
        self._steps = steps if math.isfinite(steps) else 0.0
        updates, accumulated = self.objective.updates, self.trainer.accumulate_grad_batches
        require(
            updates == 1 or accumulated == 1,
            f"`trainer.accumulate_grad_batches` must be 1 for an objective of {updates} steps on each batch, "
            f"got {accumulated}.",
        )

    def on_train_epoch_start(self) -> None:
        self._sums, self._images = {}, 0
        # An epoch draws the same numbers whether the run came here in one go or was resumed.
        seed = os.environ.get("PL_GLOBAL_SEED")
        if seed is not None:
            # A generator on the CPU takes no more than 32 bits: all three are in each of them.
            mixed = np.random.SeedSequence((int(seed), self.current_epoch, self.global_rank))
            torch.manual_seed(int(mixed.generate_state(1)[0]))

    def training_step(self, batch: Sequence[Tensor], batch_idx: int) -> Tensor:
        inputs, target = self._checked_batch("train", batch)
        inputs, target = self.objective.share(inputs, target, self._update)
        progress = min(1.0, self.trainer.global_step / self._steps) if self._steps else 1.0
        for _, part in self._objectives():
            part.progress = progress
        terms = self.objective(self.model, inputs, target)
        total = torch.stack(list(terms.values())).sum()
        self._count({"loss": total, **terms}, len(inputs))
        if self.trainer.is_last_batch and self._update == self.objective.updates - 1:
            self._log_counted()
        return total

    def on_train_epoch_end(self) -> None:
        self._log_counted()  # of an epoch that was cut short

    def optimizer_step(  # type: ignore[override]
        self, epoch: int, batch_idx: int, optimizer: Optimizer, closure: Callable[[], Any] | None = None
    ) -> None:
        # Each call of the closure is a training step on the same batch, with a gradient of its own.
        for update in range(self.objective.updates):
            self._update = update
            super().optimizer_step(epoch, batch_idx, optimizer, closure)

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        mine = {name: part.carried.cpu() for name, part in self._objectives() if part.carried is not None}
        every = [mine]
        if self.trainer.world_size > 1:  # some may carry nothing, or more than others
            every = [{}] * self.trainer.world_size
            torch.distributed.all_gather_object(every, mine)
        if any(every):
            checkpoint["carried"] = every

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        every = checkpoint.get("carried", [])
        if self._trainer is not None and len(every) == self.trainer.world_size:  # no run, nothing to carry
            for name, part in self._objectives():
                part.carried = every[self.global_rank].get(name)

    def validation_step(self, batch: Sequence[Tensor], batch_idx: int) -> Labels:
        return self._evaluate("val", batch)

    def test_step(self, batch: Sequence[Tensor], batch_idx: int) -> Labels:
        return self._evaluate("test", batch)

    def predict_step(self, batch: Sequence[Tensor], batch_idx: int) -> Labels:
        predicted: Labels = self.model(batch[0].contiguous(memory_format=self.layout)).argmax(1)
        return predicted

    def configure_optimizers(self) -> Any:
        optimizer = self.optimizer(self.parameters())
        constrain_linear_maps(optimizer, self.model)
        if self.schedule is None:
            return optimizer
        steps = self.trainer.estimated_stepping_batches
        require(math.isfinite(steps), "`schedule` needs a run that ends: set `trainer.max_epochs`.")
        scheduler = self.schedule(optimizer, int(steps))
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def _objectives(self) -> Iterator[tuple[str, Objective]]:
        """The objective and those that it wraps, by name."""
        for name, part in self.objective.named_modules():
            if isinstance(part, Objective):
                yield name, part

    def _count(self, terms: Mapping[str, Tensor], images: int) -> None:
        """Add up on the device: the trainer's own log takes as long as a small network's forward pass."""
        for name, term in terms.items():
            added = term.detach().float() * images
            self._sums[name] = self._sums[name] + added if name in self._sums else added
        self._images += images

    def _log_counted(self) -> None:
        if self._sums:
            means = {f"train/{name}": value / self._images for name, value in self._sums.items()}
            self.log_dict(means, on_step=False, on_epoch=True, batch_size=self._images, sync_dist=True)
            self._sums, self._images = {}, 0

    def _evaluate(self, stage: str, batch: Sequence[Tensor]) -> Labels:
        """Log accuracy and loss; return the predicted classes, for callbacks."""
        inputs, target = self._checked_batch(stage, batch)
        logits = self.model(inputs)
        self.accuracy.update(logits, target)
        self.loss.update(nn.functional.cross_entropy(logits, target, reduction="none"))
        self.log_dict(
            {f"{stage}/accuracy": self.accuracy, f"{stage}/loss": self.loss},
            on_step=False,
            on_epoch=True,
            batch_size=len(inputs),
        )
        predicted: Labels = logits.argmax(1)
        return predicted

    def _checked_batch(self, stage: str, batch: Sequence[Tensor]) -> tuple[Images, Labels]:
        if stage not in self._checked and not (isinstance(batch, tuple | list) and len(batch) > 1):
            got = f"a {type(batch).__name__} of {len(batch)}"
            raise TypeError(f"a batch must be (images, labels) or (images, labels, masks), got {got}.")
        inputs, target = batch[0], batch[1]
        if stage not in self._checked:
            check_batch(inputs, target, self.channels, self.classes)
            self._checked.add(stage)
        return inputs.contiguous(memory_format=self.layout), target


def _per_channel(values: Sequence[float], channels: int) -> list[float]:
    return list(values) * channels if len(values) == 1 else list(values)
