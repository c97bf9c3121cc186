"""What objectives share that are made of another one."""

import abc

from torch import nn

from lit_xai.objectives.base import Objective, Share, Views
from lit_xai.types import Images, Labels, require


class Wrapping(Objective, abc.ABC):
    """An objective that has another one inside, and follows it in all that it does not change.

    Args:
        objective: The one inside; its terms keep their names, so that none may be there twice.
    """

    def __init__(self, objective: Objective) -> None:
        super().__init__()
        name = type(self).__name__
        require(
            not any(type(part) is type(self) for part in objective.modules()),
            f"`objective` must not have another {name} inside: take one of them.",
        )
        self.objective = objective
        self.updates = objective.updates

    def share(self, inputs: Images, target: Labels, update: int) -> Share:
        return self.objective.share(inputs, target, update)

    def views(self, model: nn.Module, inputs: Images, target: Labels) -> Views:
        return self.objective.views(model, inputs, target)
