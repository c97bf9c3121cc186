"""Explanations of a fixed probe, each epoch, with their quality."""

from pathlib import Path
from typing import Literal

import lightning as L
import numpy as np
from lightning.pytorch.trainer.states import TrainerFn

from lit_xai.attributions.base import Attribution
from lit_xai.callbacks import gallery, mirror
from lit_xai.callbacks.probe import Probe, Table, fitting
from lit_xai.metrics.base import Metric
from lit_xai.types import require_at_least


class Explain(Probe):
    """Explains a fixed probe after each epoch and logs `explain/<attribution>/<metric>`.

    Every epoch's scores stay, image by image, in `explanations/epoch_<n>.npz` of the run folder; maps and
    pictures of the first `pictures` images stand beside them for the first and the last epoch, and for each
    `pictures_every_n_epochs` between.

    Args:
        attributions: Methods by name; the name is the one on plots.
        metrics: Metrics by name.
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images explained at a time.
        every_n_epochs: Explain after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.
        target: The class to explain: the image's label, or what the model predicts.
        pictures: Images of the probe whose maps are kept.
        pictures_every_n_epochs: Keep maps of these epochs too; 0 for the first and the last alone.

    Raises:
        ValueError: A number is below its least value.
    """

    def __init__(
        self,
        attributions: dict[str, Attribution],
        metrics: dict[str, Metric],
        samples: int = 64,
        batch_size: int = 64,
        every_n_epochs: int = 1,
        seed: int = 0,
        target: Literal["label", "prediction"] = "label",
        pictures: int = 8,
        pictures_every_n_epochs: int = 0,
    ) -> None:
        require_at_least(0, pictures=pictures, pictures_every_n_epochs=pictures_every_n_epochs)
        super().__init__(attributions, metrics, samples, batch_size, every_n_epochs, seed, target, pictures)
        self.pictures_every_n_epochs = pictures_every_n_epochs

    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        if not trainer.is_global_zero:
            return
        folder = Path(trainer.default_root_dir) / "explanations"
        folder.mkdir(parents=True, exist_ok=True)
        name = f"epoch_{trainer.current_epoch:03d}" if fitting(trainer) else TrainerFn(trainer.state.fn).value
        stem = folder / name
        arrays = {"probe_ids" if key == "ids" else f"scores/{key}": rows for key, rows in table.items()}
        if self._pictured(trainer) and len(pictures["ids"]):
            arrays |= pictures
            gallery.save(stem.with_suffix(".png"), pictures)
            mirror.images(trainer, gallery.sheets(pictures))
        np.savez_compressed(stem.with_suffix(".npz"), **arrays)  # type: ignore[arg-type]

    def _pictured(self, trainer: L.Trainer) -> bool:
        epoch, every = trainer.current_epoch, self.pictures_every_n_epochs
        ends = epoch == 0 or not fitting(trainer) or epoch == (trainer.max_epochs or 0) - 1
        return ends or bool(every and epoch % every == 0)
