"""Networks of torchvision and timm by name, fitted to the channels and classes of the data."""

import difflib
from collections.abc import Iterable

import torch
import torchvision
from torch import Tensor, nn

from lit_xai.types import Images, Logits, require, require_at_least

_TUPLES = ("googlenet", "inception_v3")  # answer with auxiliary logits beside the logits while they train


class Torchvision(nn.Module):
    """A classifier of torchvision with a fresh head.

    Pretrained weights of the first layer are summed over colours and shared out evenly over the channels, so
    that a grey image gets the response it had in colour. No activation module works in place.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        name: As in `torchvision.models.list_models()`, for example "resnet50".
        weights: Pretrained weights by name, for example "DEFAULT" or "IMAGENET1K_V2"; None starts anew.

    Raises:
        ValueError: No classifier or no weights of that name.

    Source: https://docs.pytorch.org/vision/stable/models.html
    """

    def __init__(self, channels: int, classes: int, name: str, weights: str | None = None) -> None:
        _check(channels, classes)
        names = set(torchvision.models.list_models(module=torchvision.models)) - set(_TUPLES)
        _require_known("name", name, names, "torchvision")
        offered = {*torchvision.models.get_model_weights(name).__members__, "DEFAULT"}
        if weights is not None:
            _require_known("weights", weights, offered, f"torchvision's {name}")
        super().__init__()
        if weights is None:
            self.net = torchvision.models.get_model(name, num_classes=classes)
        else:
            self.net = torchvision.models.get_model(name, weights=weights)
            _replace_head(self.net, classes)
        _replace_stem(self.net, channels, pretrained=weights is not None)
        _out_of_place(self.net)

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.net(inputs)
        return logits


class Timm(nn.Module):
    """A classifier of timm with a fresh head.

    timm itself fits the first layer to the channels, pretrained or not. No activation module works in place.

    Args:
        channels: Channels of the image, at least 1.
        classes: Logits, at least 2.
        name: As in `timm.list_models()`, for example "convnext_atto".
        pretrained: Whether to load the weights that timm names as default for this network.

    Raises:
        ImportError: timm is not installed.
        ValueError: No classifier of that name.

    Source: https://huggingface.co/docs/timm
    """

    def __init__(self, channels: int, classes: int, name: str, pretrained: bool = False) -> None:
        _check(channels, classes)
        try:
            import timm
        except ImportError:
            raise ImportError("`Timm` needs timm: pip install 'lit-xai[timm]'.") from None
        if not timm.is_model(name):
            _require_known("name", name, timm.list_models(), "timm")
        super().__init__()
        self.net = timm.create_model(name, pretrained=pretrained, num_classes=classes, in_chans=channels)
        _out_of_place(self.net)

    def forward(self, inputs: Images) -> Logits:
        logits: Tensor = self.net(inputs)
        return logits


def _check(channels: int, classes: int) -> None:
    require_at_least(1, channels=channels)
    require_at_least(2, classes=classes)


def _require_known(argument: str, name: str, known: Iterable[str], where: str) -> None:
    names = sorted(known)
    near = difflib.get_close_matches(name, names, cutoff=0.4) or names[:3]
    require(
        name in names, f"`{argument}` must be known to {where}, got {name!r}; nearest: {', '.join(near)}."
    )


def _replace_head(net: nn.Module, classes: int) -> None:
    """Put a fresh layer in place of the last linear or, as in SqueezeNet, convolutional one."""
    layers = [(path, part) for path, part in net.named_modules() if isinstance(part, nn.Linear | nn.Conv2d)]
    path, head = layers[-1]
    if isinstance(head, nn.Linear):
        net.set_submodule(path, nn.Linear(head.in_features, classes))
    else:
        net.set_submodule(path, nn.Conv2d(head.in_channels, classes, 1))


def _replace_stem(net: nn.Module, channels: int, pretrained: bool) -> None:
    """Put a first convolution of as many channels as the image has in place of the one for colours."""
    path, stem = next((path, part) for path, part in net.named_modules() if isinstance(part, nn.Conv2d))
    if stem.in_channels == channels:
        return
    fresh = nn.Conv2d(
        channels,
        stem.out_channels,
        stem.kernel_size,  # type: ignore[arg-type]
        stem.stride,  # type: ignore[arg-type]
        stem.padding,  # type: ignore[arg-type]
        bias=stem.bias is not None,
    )
    with torch.no_grad():
        if pretrained:
            fresh.weight.copy_(stem.weight.sum(dim=1, keepdim=True) / channels)
            if stem.bias is not None and fresh.bias is not None:
                fresh.bias.copy_(stem.bias)
    net.set_submodule(path, fresh)


def _out_of_place(net: nn.Module) -> None:
    for part in net.modules():
        if isinstance(getattr(part, "inplace", None), bool):
            part.inplace = False  # type: ignore[assignment]
