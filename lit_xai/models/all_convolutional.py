"""Networks to be run backwards: convolutions in place of pools, invertible activations, no batch norm."""

from collections.abc import Sequence
from typing import Literal

from torch import Tensor, nn
from torch.nn import functional as F

from lit_xai.types import Images, Logits, require, require_at_least

_GREY = (8, 24, 288, 864, 2592)
_COLOUR = (24, 64, 512, 1536, 4608)
_BASE = (96, 96, 96, 256, 256, 256, 384, 384, 384, 1024, 1024)
_LARGE = (100, 50, 90, 162, 81, 243, 729, 243, 729, 2187, 1458)
_KERNELS = (10, 1, 3, 3, 1, 3, 3, 1, 3, 3, 1, 1)
_STRIDES = (3, 1, 2, 1, 1, 2, 1, 1, 2, 1, 1, 1)


class ACNNSmall(nn.Module):
    """Five convolutions, two of them for pooling, a global max pool, a linear layer.

    Each layer has fewer rows than columns, so that its rows can be orthogonal. Of 28x28 pixels 26, 13, 12, 6
    and 6 are left after the five, of 32x32 pixels 30, 15, 14, 7 and 7; images of 8x8 pixels and more fit. As
    published it has 21.3 million weights for grey images, 67 million for colour: `widest` cuts that.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        width: Channels of the first convolution, at least 1; those of the others are in proportion. By
            default 8 for one channel, else 24, as published.
        widest: Channels of any convolution at most, at least 1; by default as many as there are.
        slope: Of the leaky ReLUs for negative values, above 0.

    Source: Zhang et al. 2023, arXiv 2212.09062 (ACNN-Small), and the released code; He, Zhang, Ren and Sun
    2015, arXiv 1502.01852, eq. 15 (initialisation).
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        width: int | None = None,
        widest: int | None = None,
        slope: float = 0.5,
    ) -> None:
        _check(channels, classes, slope)
        published = _GREY if channels == 1 else _COLOUR
        width = published[0] if width is None else width
        require_at_least(1, width=width)
        widths = _narrowed([max(1, width * count // published[0]) for count in published], widest)
        super().__init__()
        self.conv1 = _conv(channels, widths[0], 5, slope, padding=1)
        self.act1 = nn.LeakyReLU(slope)
        self.pool1 = _conv(widths[0], widths[1], 2, 1.0, stride=2)
        self.conv2 = _conv(widths[1], widths[2], 4, slope, padding=1)
        self.act2 = nn.LeakyReLU(slope)
        self.pool2 = _conv(widths[2], widths[3], 2, 1.0, stride=2)
        self.conv3 = _conv(widths[3], widths[4], 3, slope, padding=1)
        self.act3 = nn.LeakyReLU(slope)
        self.pool = _GlobalMaxPool()
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(widths[4], classes)

    def forward(self, inputs: Images) -> Logits:
        hidden = self.pool1(self.act1(self.conv1(inputs)))
        hidden = self.pool2(self.act2(self.conv2(hidden)))
        hidden = self.act3(self.conv3(hidden))
        logits: Tensor = self.linear(self.flatten(self.pool(hidden)))
        return logits


class AllConv12(nn.Module):
    """Twelve convolutions, the last of which says the classes, and a global average pool; for large images.

    There is no padding but in the first layer: images have at least 128x128 pixels.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        large: Whether the channels are those of the large variant; else of the base one.
        widest: Channels of any convolution at most, at least 1; by default as many as there are.
        slope: Of the leaky ReLUs for negative values, above 0.

    Source: Zhang et al. 2023, arXiv 2212.09062, and the released code.
    """

    def __init__(
        self,
        channels: int,
        classes: int,
        large: bool = False,
        widest: int | None = None,
        slope: float = 0.5,
    ) -> None:
        _check(channels, classes, slope)
        super().__init__()
        widths = [channels, *_narrowed(_LARGE if large else _BASE, widest), classes]
        layers: list[nn.Module] = []
        for number, (size, stride) in enumerate(zip(_KERNELS, _STRIDES, strict=True)):
            if number == 9:
                layers.append(nn.Dropout(0.5))
            last = number == len(_KERNELS) - 1
            inside, outside = widths[number : number + 2]
            padding = 0 if number else 4
            layer = _conv(inside, outside, size, 1.0 if last else slope, stride, padding, "fan_out")
            layers.append(layer)
            layers += [] if last else [nn.LeakyReLU(slope)]
        self.features = nn.Sequential(*layers)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.flatten(self.pool(self.features(inputs)))
        return logits


class _GlobalMaxPool(nn.Module):
    """The maximum over all places, channel by channel."""

    def forward(self, inputs: Tensor) -> Tensor:
        return F.max_pool2d(inputs, inputs.shape[2:])


def _conv(
    inside: int,
    outside: int,
    size: int,
    slope: float,
    stride: int = 1,
    padding: int = 0,
    fan: Literal["fan_in", "fan_out"] = "fan_in",
) -> nn.Conv2d:
    """A convolution that starts normal with variance 2 / ((1 + slope^2) fan), and without a bias."""
    layer = nn.Conv2d(inside, outside, size, stride, padding)
    nn.init.kaiming_normal_(layer.weight, slope, fan, "leaky_relu")
    if layer.bias is not None:
        nn.init.zeros_(layer.bias)
    return layer


def _narrowed(widths: Sequence[int], widest: int | None) -> list[int]:
    if widest is None:
        return list(widths)
    require_at_least(1, widest=widest)
    return [min(width, widest) for width in widths]


def _check(channels: int, classes: int, slope: float) -> None:
    require_at_least(1, channels=channels)
    require_at_least(2, classes=classes)
    require(slope > 0, f"`slope` must be greater than 0, got {slope!r}: the activation has no inverse.")
