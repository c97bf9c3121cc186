"""Image files: decoded, set upright, and brought to one size."""

from io import BytesIO
from pathlib import Path

import torch
from jaxtyping import Shaped, UInt8
from PIL import Image, ImageOps, UnidentifiedImageError
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as transform

from lit_xai.types import require

MODES = {1: "L", 3: "RGB"}


def decode(file: str | Path | BytesIO, name: str, channels: int = 3) -> UInt8[Tensor, "channel height width"]:
    """Decode one image file, upright by its EXIF orientation.

    Args:
        file: Path or content of a file of any format that Pillow reads.
        name: What an error calls it.
        channels: 3 for colour, 1 for grey.

    Raises:
        ValueError: The file cannot be read, or has more than 8 bits per channel.
    """
    try:
        with Image.open(file) as image:
            deep = image.mode[0] in "IF"
            require(not deep, f"more than 8 bits per channel (mode {image.mode})")
            ImageOps.exif_transpose(image, in_place=True)
            upright = image.convert(MODES[channels])
    except UnidentifiedImageError as error:
        raise ValueError(f"{name} is not an image that Pillow can read.") from error
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise ValueError(f"{name} cannot be read as an image: {error}.") from error
    pixels: Tensor = transform.pil_to_tensor(upright)
    return pixels


def fit(
    pixels: Shaped[Tensor, "*batch channel height width"], size: int, smooth: bool = True
) -> Shaped[Tensor, "*batch channel {size} {size}"]:
    """Bring images to a square: the shorter side to `size`, then the centre.

    Args:
        pixels: Images, or masks.
        size: Side of the result in pixels.
        smooth: Bilinear with antialiasing; False takes the nearest pixel, for masks.
    """
    if pixels.shape[-2:] == (size, size):
        return pixels
    mode = InterpolationMode.BILINEAR if smooth else InterpolationMode.NEAREST_EXACT
    resized = transform.resize(pixels, [size], interpolation=mode, antialias=smooth)
    square: Tensor = transform.center_crop(resized, [size, size])
    return square.clamp(0, 1) if torch.is_floating_point(square) else square
