"""How bounded and orthogonal the layers are."""

from typing import Any

import lightning as L
from torch import nn

from lit_xai.optim.bort import Amplitude, residual


class BortResidual(L.Callback):
    """Logs `bort/<layer>/residual` after each epoch: how far a layer's weight is from bounded orthogonality.

    With the adaptive amplitude, so that layers trained without Bort can stand beside those trained with it:
    ||W W^T - a I||_F / (a sqrt(m)), a = (mean row norm)^2, on the smaller side of the weight.

    Args:
        amplitude: The squared length a that rows are compared with, above 0, or "ada" for their own mean.

    Source: Zhang et al. 2023, arXiv 2212.09062, section 3 (the two constraints).
    """

    def __init__(self, amplitude: Amplitude = "ada") -> None:
        self.amplitude = amplitude

    def on_validation_epoch_end(self, trainer: L.Trainer, pl_module: Any) -> None:
        if trainer.sanity_checking:
            return
        for name, module in pl_module.model.named_modules():
            if isinstance(module, nn.Conv2d | nn.Linear):
                layer = name.removeprefix("net.")
                pl_module.log(f"bort/{layer}/residual", residual(module.weight.detach(), self.amplitude))
