"""How bounded and orthogonal the layers are."""

from collections import defaultdict
from typing import Any

import lightning as L
import torch

from lit_xai.optim import Amplitude, linear_maps, measures


class BortResidual(L.Callback):
    """Logs after each epoch how far the weights of each layer are from bounded orthogonality.

    `bort/<layer>/residual` and its parts `orthogonality` and `boundedness`, `sigma_min`, `sigma_max` and
    `cosine`, as `measures` defines them, for every convolution and linear layer; grouped convolutions within
    their groups. The adaptive amplitude lets layers that were trained without Bort stand beside those that
    were trained with it.

    Args:
        amplitude: The squared length a that rows are compared with, above 0, or "ada" for their own mean.

    Source: Zhang et al. 2023, arXiv 2212.09062, section 3 (the two constraints).
    """

    def __init__(self, amplitude: Amplitude = "ada") -> None:
        self.amplitude = amplitude

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        layers = {
            name.removeprefix("net."): layout.matrices(weight.detach())
            for name, weight, layout in linear_maps(pl_module.model)
        }
        alike = defaultdict(list)
        for name, matrices in layers.items():
            alike[matrices.shape, matrices.dtype, matrices.device].append(name)
        found = {}
        for names in alike.values():
            table = measures(torch.stack([layers[name] for name in names]), self.amplitude)
            for index, name in enumerate(names):
                found[name] = {f"bort/{name}/{quantity}": row[index] for quantity, row in table.items()}
        for name in layers:  # in the order of the network, which is that of a report
            pl_module.log_dict(found[name])
