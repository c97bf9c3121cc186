"""Residual networks in their CIFAR form: a 3x3 stem of stride 1, and global pooling before the last layer.

Each ReLU is a module of its own and works out of place, so that methods which hook or replace ReLUs see every
call. Convolutions start normal with variance 2 / fan-out.
"""

import torch.nn.functional as F
from torch import Tensor, nn

from lit_xai.types import Images, Logits, require_at_least


class _Subsample(nn.Module):
    """A shortcut without weights: every second pixel, zero channels added evenly on both sides.

    Args:
        added: Channels to add.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2 (option A).
    """

    def __init__(self, added: int) -> None:
        super().__init__()
        self.before, self.after = added // 2, added - added // 2

    def forward(self, inputs: Tensor) -> Tensor:
        return F.pad(inputs[:, :, ::2, ::2], (0, 0, 0, 0, self.before, self.after))


class _BasicBlock(nn.Module):
    """relu(bn(conv(relu(bn(conv(x))))) + shortcut(x)).

    Args:
        inside: Channels that come in.
        outside: Channels that go out.
        stride: Of the first convolution.
        shortcut: What `x` passes on its way around, as an identity where the shape stays.
    """

    def __init__(self, inside: int, outside: int, stride: int, shortcut: nn.Module) -> None:
        super().__init__()
        self.conv1 = _conv(inside, outside, stride)
        self.bn1 = nn.BatchNorm2d(outside)
        self.relu1 = nn.ReLU()
        self.conv2 = _conv(outside, outside)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu2 = nn.ReLU()
        self.shortcut = shortcut

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = self.relu1(self.bn1(self.conv1(inputs)))
        outputs: Tensor = self.relu2(self.bn2(self.conv2(hidden)) + self.shortcut(inputs))
        return outputs


class _PreActBlock(nn.Module):
    """conv(relu(bn(conv(a)))) + shortcut, with a = relu(bn(x)); a projecting shortcut takes a, another x.

    Args:
        inside: Channels that come in.
        outside: Channels that go out.
        stride: Of the first convolution.
    """

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.bn1 = nn.BatchNorm2d(inside)
        self.relu1 = nn.ReLU()
        self.conv1 = _conv(inside, outside, stride)
        self.bn2 = nn.BatchNorm2d(outside)
        self.relu2 = nn.ReLU()
        self.conv2 = _conv(outside, outside)
        self.shortcut = None if inside == outside and stride == 1 else _conv(inside, outside, stride, size=1)

    def forward(self, inputs: Tensor) -> Tensor:
        active = self.relu1(self.bn1(inputs))
        around = inputs if self.shortcut is None else self.shortcut(active)
        outputs: Tensor = around + self.conv2(self.relu2(self.bn2(self.conv1(active))))
        return outputs


class ResNet18(nn.Module):
    """ResNet-18 for images of 32x32: 11.2 million weights, 0.56 billion multiply-adds.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        width: Channels of the first stage; each further stage has twice as many.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, table 1.
    Deviates: the stem is the 3x3 convolution of section 4.2, since 32x32 pixels leave nothing to pool.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        _check(channels, classes, width)
        super().__init__()
        self.conv1 = _conv(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
        projects = inside != outside or stride != 1
        projection = nn.Sequential(_conv(inside, outside, stride, size=1), nn.BatchNorm2d(outside))
        return nn.Sequential(
            _BasicBlock(inside, outside, stride, projection if projects else nn.Identity()),
            _BasicBlock(outside, outside, 1, nn.Identity()),
        )

    def forward(self, inputs: Images) -> Logits:
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(hidden))))
        logits: Tensor = self.linear(self.flatten(self.pool(hidden)))
        return logits


class PreActResNet18(nn.Module):
    """Pre-activation ResNet-18 for images of 32x32, the usual network of adversarial training.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        width: Channels of the first stage; each further stage has twice as many.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1603.05027, figure 1b and appendix.
    """

    def __init__(self, channels: int, classes: int, width: int = 64) -> None:
        _check(channels, classes, width)
        super().__init__()
        self.conv1 = _conv(channels, width)
        self.layer1 = self._stage(width, width, 1)
        self.layer2 = self._stage(width, 2 * width, 2)
        self.layer3 = self._stage(2 * width, 4 * width, 2)
        self.layer4 = self._stage(4 * width, 8 * width, 2)
        self.bn = nn.BatchNorm2d(8 * width)
        self.relu = nn.ReLU()
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(8 * width, classes)

    @staticmethod
    def _stage(inside: int, outside: int, stride: int) -> nn.Sequential:
        return nn.Sequential(_PreActBlock(inside, outside, stride), _PreActBlock(outside, outside, 1))

    def forward(self, inputs: Images) -> Logits:
        hidden = self.layer4(self.layer3(self.layer2(self.layer1(self.conv1(inputs)))))
        logits: Tensor = self.linear(self.flatten(self.pool(self.relu(self.bn(hidden)))))
        return logits


class ResNet20(nn.Module):
    """The 20-layer network made for CIFAR-10: 0.27 million weights, 41 million multiply-adds.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        width: Channels of the first stage; each further stage has twice as many.

    Source: He, Zhang, Ren and Sun 2016, arXiv 1512.03385, section 4.2 (n = 3, option A).
    """

    def __init__(self, channels: int, classes: int, width: int = 16) -> None:
        _check(channels, classes, width)
        super().__init__()
        self.conv1 = _conv(channels, width)
        self.bn1 = nn.BatchNorm2d(width)
        self.relu = nn.ReLU()
        self.layer1 = self._stage(width, width, nn.Identity())
        self.layer2 = self._stage(width, 2 * width, _Subsample(width))
        self.layer3 = self._stage(2 * width, 4 * width, _Subsample(2 * width))
        self.pool = nn.AdaptiveAvgPool2d(1)
        self.flatten = nn.Flatten()
        self.linear = nn.Linear(4 * width, classes)

    @staticmethod
    def _stage(inside: int, outside: int, shortcut: nn.Module) -> nn.Sequential:
        return nn.Sequential(
            _BasicBlock(inside, outside, outside // inside, shortcut),
            _BasicBlock(outside, outside, 1, nn.Identity()),
            _BasicBlock(outside, outside, 1, nn.Identity()),
        )

    def forward(self, inputs: Images) -> Logits:
        hidden = self.relu(self.bn1(self.conv1(inputs)))
        hidden = self.layer3(self.layer2(self.layer1(hidden)))
        logits: Tensor = self.linear(self.flatten(self.pool(hidden)))
        return logits


def _conv(inside: int, outside: int, stride: int = 1, size: int = 3) -> nn.Conv2d:
    layer = nn.Conv2d(inside, outside, size, stride=stride, padding=size // 2, bias=False)
    nn.init.kaiming_normal_(layer.weight, mode="fan_out", nonlinearity="relu")
    return layer


def _check(channels: int, classes: int, width: int) -> None:
    require_at_least(1, channels=channels, width=width)
    require_at_least(2, classes=classes)
