"""Certified accuracy of a fixed probe, each epoch."""

from typing import Any

import lightning as L
import numpy as np
from lightning.pytorch.utilities.exceptions import SIGTERMException
from torch import Tensor

from lit_xai.callbacks.probe import Probe, Table, gather
from lit_xai.evaluation.certification import Certified
from lit_xai.models.smoothed import Smoothed
from lit_xai.observe import observing
from lit_xai.randomness import keyed
from lit_xai.types import require, require_at_least

AVERAGE, ABSTAINED = "certified/average_radius", "certified/abstained"
_SHARE = {"better": "higher", "low": 0.0, "high": 1.0, "median": False}


class Certify(Probe):
    """Certifies the smoothed classifier on a fixed probe after each epoch and logs `certified/<radius>`.

    With the average certified radius, `certified/average_radius`, and the share of abstentions,
    `certified/abstained`. Few votes bound the radius: 1,000 of them certify 2.46 sigma at most, at alpha
    0.001, where 100,000 certify 3.81; `lit-xai certify` has the final number. Without `sigma` it does nothing
    and costs nothing.

    Args:
        sigma: Noise in pixel units; 0 to leave it out.
        radii: Radii in pixel units, at least 0, whose certified accuracy is logged; 0, sigma / 2, sigma and
            3/2 sigma if none are given.
        n: Votes that estimate the probability of the class, per image.
        n0: Votes that select the class, per image.
        alpha: Probability that the certificate of one image is wrong, in (0, 1).
        samples: Images in the probe; the whole validation set if it has fewer.
        batch_size: Images certified at a time.
        chunk: Noisy copies that pass the network at once.
        every_n_epochs: Certify after each n-th epoch, and always after the first and the last.
        seed: Chooses the images and fixes all draws.

    Raises:
        ValueError: A number is out of its range, or two radii would be logged under one name.
    """

    def __init__(
        self,
        sigma: float = 0.0,
        radii: list[float] | None = None,
        n: int = 1000,
        n0: int = 100,
        alpha: float = 0.001,
        samples: int = 100,
        batch_size: int = 20,
        chunk: int = 1000,
        every_n_epochs: int = 1,
        seed: int = 0,
    ) -> None:
        require_at_least(0, sigma=sigma)
        require_at_least(1, n=n, n0=n0, chunk=chunk)
        require(0 < alpha < 1, f"`alpha` must lie between 0 and 1, got {alpha!r}.")
        super().__init__({}, {}, samples, batch_size, every_n_epochs, seed, target="label")
        if radii is None:
            radii = [k * sigma / 2 for k in range(4 if sigma else 0)]
        require(all(radius >= 0 for radius in radii), f"`radii` must be at least 0, got {radii!r}.")
        self.sigma, self.n, self.n0, self.alpha, self.chunk = sigma, n, n0, alpha, chunk
        self.radii = {f"certified/{radius:g}": float(radius) for radius in radii}
        require(len(self.radii) == len(radii), f"`radii` must differ in six digits, got {radii!r}.")

    def quantities(self) -> dict[str, dict[str, Any]]:
        if not self.sigma:
            return {}
        shares = {key: dict(_SHARE) for key in self.radii}
        radius = {AVERAGE: _SHARE | {"high": None}, ABSTAINED: _SHARE | {"better": "lower"}}
        return shares | radius

    def keep(self, trainer: L.Trainer, table: Table, pictures: Table) -> None:
        """The averages are logged; nothing more is kept."""

    def _look(self, trainer: L.Trainer, pl_module: Any) -> tuple[Table, Table]:
        share, smoothed = self.share(trainer, pl_module), Smoothed(pl_module.model, self.sigma)
        tables: list[dict[str, Tensor]] = []
        for first in range(0, len(share.ids), self.batch_size):  # none, on a process without images
            if trainer.received_sigterm and trainer.world_size == 1:
                raise SIGTERMException
            rows = slice(first, first + self.batch_size)
            inputs, target, ids = share.inputs[rows], share.target[rows], share.ids[rows]
            with observing(smoothed, self.seed), keyed(self.seed, ids):
                found = smoothed.certify(inputs, self.n0, self.n, self.alpha, self.chunk)
            right = found.label == target
            tables.append({"ids": ids, "radius": found.radius, "right": right, "none": found.abstained})
        return gather(tables), {}

    def _averages(self, table: Table) -> dict[str, float]:
        found = Certified(np.asarray(table["radius"]), np.asarray(table["right"]), np.asarray(table["none"]))
        shares = {key: float(found.accuracy(radius)) for key, radius in self.radii.items()}
        return shares | {AVERAGE: found.average_radius, ABSTAINED: found.abstention}
