"""Other images of the probe, beside each image: what mosaics and maps of another image are made of."""

from dataclasses import dataclass

from jaxtyping import Float, Int
from torch import Tensor


@dataclass(frozen=True, eq=False)
class Companions:
    """For each image of a batch, some other ones of the probe, the same in each epoch.

    Their labels differ from that of the image, and from each other as long as there are classes left.

    Args:
        images: Their pixels.
        target: Their classes.
        ids: Their names.
    """

    images: Float[Tensor, "batch other channel height width"]
    target: Int[Tensor, "batch other"]
    ids: Int[Tensor, "batch other"]

    def __getitem__(self, rows: slice | Int[Tensor, " some"]) -> "Companions":
        return Companions(self.images[rows], self.target[rows], self.ids[rows])

    def __len__(self) -> int:
        return len(self.ids)
