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
        alike = defaultdict(list)
        for name, weight, layout in linear_maps(pl_module.model):
            matrices = layout.matrices(weight.detach())
            key = matrices.shape, matrices.dtype, matrices.device
            alike[key].append((name.removeprefix("net."), matrices))
        for layers in alike.values():
            found = measures(torch.stack([matrices for _, matrices in layers]), self.amplitude)
            for quantity, values in found.items():
                for (name, _), value in zip(layers, values, strict=True):
                    pl_module.log(f"bort/{name}/{quantity}", value)
