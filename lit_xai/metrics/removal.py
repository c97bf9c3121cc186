"""Removal: what stands in an image where pixels are gone."""

import abc
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from lit_xai import randomness
from lit_xai.types import Images, require_at_least, require_positive

Gone = Bool[Tensor, "look batch height width"]
Looks = Float[Tensor, "look batch channel height width"]


class Removal(abc.ABC):
    """What stands where an image is gone. Concrete operators are final frozen dataclasses."""

    @abc.abstractmethod
    def __call__(self, inputs: Images) -> Images:
        """Return what each image looks like once all its pixels are removed. Random draws are made here."""

    def fill(self, inputs: Images, gone: Gone, empty: Images) -> Looks:
        """Return every image once per look, with the pixels of that look removed.

        An operator to which it matters which pixels are gone overrides this.

        Args:
            inputs: Pixels.
            gone: Where a pixel is removed, with all its channels.
            empty: What the operator itself returned for these images.
        """
        # Exact at 0 and 1, and several times faster than `where`, which does not broadcast well.
        return torch.lerp(inputs, empty, weights(gone, inputs.dtype))

    @property
    def channels(self) -> int | None:
        """How many channels images must have; None where it does not matter."""
        return None


@dataclass(frozen=True)
class Constant(Removal):
    """One value for all pixels, or one for each channel.

    Args:
        value: Pixel value in [0, 1]; 0 is black. A value per channel is a colour: with the mean that the
            model normalises by, what it sees there is 0.

    Raises:
        ValueError: `value` lies outside [0, 1].

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (deletion).
    Deviates: 0 is a black pixel here; in the released code it is 0 after normalisation, the mean colour.
    """

    value: float | tuple[float, ...] = 0.0

    def __post_init__(self) -> None:
        values = self.value if isinstance(self.value, tuple) else (self.value,)
        if not values or not all(0 <= value <= 1 for value in values):
            raise ValueError(f"`value` must lie in [0, 1], got {self.value!r}: pixels are not normalised.")

    def __call__(self, inputs: Images) -> Images:
        if not isinstance(self.value, tuple):
            return torch.full_like(inputs, self.value)
        return inputs.new_tensor(self.value)[:, None, None].expand_as(inputs)

    @property
    def channels(self) -> int | None:
        return len(self.value) if isinstance(self.value, tuple) else None


@dataclass(frozen=True)
class ImageMean(Removal):
    """The mean of the image, channel by channel.

    Source: Hooker et al. 2019, arXiv 1806.10758 (a value per channel that carries no shape).
    Deviates: the mean is the image's own.
    """

    def __call__(self, inputs: Images) -> Images:
        return inputs.mean(dim=(2, 3), keepdim=True).expand_as(inputs)


@dataclass(frozen=True)
class UniformNoise(Removal):
    """Independent uniform numbers in (0, 1) for each pixel and channel, one draw per image.

    Source: Samek et al. 2017, arXiv 1509.06321 (regions replaced by draws from a uniform distribution).
    """

    def __call__(self, inputs: Images) -> Images:
        keys = randomness.keys(inputs, "removed by noise")
        return randomness.uniform(keys, 0, inputs.shape[1:], inputs.dtype)


@dataclass(frozen=True)
class Blur(Removal):
    """The image under a Gaussian, cut off at the edge of its kernel and scaled with the image's size.

    Scaled down to small images the kernel of the paper hides little: on 28 x 28 digits the class keeps nearly
    all of its probability, and insertion starts where it should end. `Blur(21, 5.0, 28)` hides it.

    Args:
        kernel: Width of the kernel in pixels, odd, at least 3.
        sigma: Standard deviation in pixels, above 0.
        side: The side of an image, in pixels, at which `kernel` and `sigma` hold. For an image of another
            (shorter) side both are scaled; the kernel is never narrower than 3.

    Raises:
        ValueError: An argument lies outside its range.

    Source: Petsiuk et al. 2018, arXiv 1806.07421 (insertion); kernel and sigma of their code.
    Deviates: borders are mirrored and the kernel sums to 1; theirs are padded by zeros.
    """

    kernel: int = 11
    sigma: float = 5.0
    side: int = 224

    def __post_init__(self) -> None:
        require_at_least(3, kernel=self.kernel)
        require_at_least(1, side=self.side)
        require_positive(sigma=self.sigma)
        if self.kernel % 2 == 0:
            raise ValueError(f"`kernel` must be odd, got {self.kernel!r}.")

    def __call__(self, inputs: Images) -> Images:
        height, width = inputs.shape[2:]
        scale = min(height, width) / self.side
        radius = max(1, round((self.kernel - 1) / 2 * scale))
        offset = torch.arange(-radius, radius + 1, dtype=inputs.dtype)
        bell = torch.softmax(-((offset / (self.sigma * scale)) ** 2) / 2, dim=0)
        down, across = (_smearing(bell, size).to(inputs.device) for size in (height, width))
        return down @ inputs @ across.T


def weights(gone: Gone, dtype: torch.dtype) -> Float[Tensor, "look batch 1 height width"]:
    """1 where a pixel is removed, 0 elsewhere; read as bytes, which are converted several times faster."""
    return gone.view(torch.uint8)[:, :, None].to(dtype)


def _smearing(bell: Float[Tensor, " offset"], size: int) -> Float[Tensor, "{size} {size}"]:
    """Weights of the pixels of a row in each of its pixels, the row mirrored at both ends, edges repeated."""
    radius = len(bell) // 2
    lap = torch.arange(-radius, size + radius) % (2 * size)
    seen = torch.minimum(lap, 2 * size - 1 - lap).unfold(0, len(bell), 1)
    return bell.new_zeros(size, size).scatter_add(1, seen, bell.expand(size, -1))
