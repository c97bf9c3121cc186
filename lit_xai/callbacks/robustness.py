"""Robustness of a fixed probe, each epoch."""

import lightning as L

from lit_xai.callbacks.probe import Probe
from lit_xai.callbacks.record import Table
from lit_xai.metrics.base import Metric
from lit_xai.observe import about_model
from lit_xai.types import require


class Robustness(Probe):
    """Attacks a fixed probe after each epoch and logs `robust/<metric>/<quantity>`.

    Explaining needs few images, a robust accuracy many: this probe is its own, and larger.

    Args:
        metrics: Metrics of the model by name, such as `RobustAccuracy(attack)`.
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images attacked at a time.
        every_n_epochs: Attack after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.

    Raises:
        ValueError: A number is below its least value, or a metric needs an attribution.
    """

    def __init__(
        self,
        metrics: dict[str, Metric],
        samples: int = 256,
        batch_size: int = 128,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        for name, metric in metrics.items():
            require(
                about_model(metric),
                f"`{name}` needs an attribution: name it under `explain.metrics`, not here.",
            )
        super().__init__({}, metrics, samples, batch_size, every_n_epochs, seed, target="label")

    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        """The averages are logged; nothing more is kept."""
