"""The contract of this room: an objective says what one training batch is asked to minimise."""

import abc
import inspect

from jaxtyping import Float, Int
from torch import Tensor, nn

from lit_xai.types import Images, Labels, Scalar

Terms = dict[str, Scalar]
Share = tuple[Float[Tensor, "some channel height width"], Int[Tensor, " some"]]  # of a loader's batch
Views = tuple[Images, ...]  # an objective says how many, and of how many rows


class Objective(nn.Module, abc.ABC):
    """What one training batch is asked to minimise: named scalar terms whose sum is the loss.

    It has two halves. `views` makes the images that the model is trained on: attacked, noisy, or as they are.
    `terms` is what is differentiated by the parameters. An objective that wraps another one asks it for views
    once, and for terms as often as it likes.

    Concrete objectives keep what they are built with under its name: that is their repr.

    It receives the model in train mode and leaves every submodule in the mode it had. Its draws come from
    torch's global generator. State that is the same on every process and must survive a restart lives in
    buffers.

    Attributes:
        progress: Share of the run that is done, from 0 to less than 1, set before each batch; 1 outside of a
            run, where whatever warms up is warm.
        updates: Optimizer steps that one batch of the loader is good for, at least 1.
        carried: What this process takes from one batch to the next, if anything: checkpoints keep it for each
            process, and a resume with as many processes gives it back.
    """

    progress: float = 1.0
    updates: int = 1
    carried: Tensor | None = None

    def __repr__(self) -> str:
        return f"{type(self).__name__}({self.extra_repr()})"

    def extra_repr(self) -> str:
        names = inspect.signature(type(self)).parameters
        return ", ".join(f"{name}={getattr(self, name)!r}" for name in names if hasattr(self, name))

    def forward(self, model: nn.Module, inputs: Images, target: Labels) -> Terms:
        """Return the terms by name; each is logged as `train/<name>`."""
        return self.terms(model, self.views(model, inputs, target), target)

    def share(self, inputs: Images, target: Labels, update: int) -> Share:
        """Return what the optimizer step `update`, counted from 0, sees of the loader's batch."""
        return inputs, target

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        """Return the images that `terms` needs, detached from the model."""
        return (inputs,)

    @abc.abstractmethod
    def terms(self, model: nn.Module, views: Views, target: Labels) -> Terms:
        """Return the terms by name."""
