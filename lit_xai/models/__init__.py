"""Networks: each maps a batch of images to logits, built from `channels` and `classes` first."""

from lit_xai.models.all_convolutional import ACNNSmall, AllConv12
from lit_xai.models.backtracking import Backtracking
from lit_xai.models.certificates import Certificate
from lit_xai.models.normalized import Normalized
from lit_xai.models.resnet import PreActResNet18, ResNet18, ResNet20
from lit_xai.models.small import SmallCNN
from lit_xai.models.smoothed import Smoothed
from lit_xai.models.zoo import Timm, Torchvision

__all__ = [
    "ACNNSmall",
    "AllConv12",
    "Backtracking",
    "Certificate",
    "Normalized",
    "PreActResNet18",
    "ResNet18",
    "ResNet20",
    "SmallCNN",
    "Smoothed",
    "Timm",
    "Torchvision",
]
