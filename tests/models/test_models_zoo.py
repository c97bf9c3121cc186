"""Networks by name: fitted ends, no in-place activations, and errors that name what is near."""

import sys

import pytest
import torch
import torchvision
from torch import nn

from lit_xai.models import Timm, Torchvision

# One for each kind of head and stem: linear, in a sequence, convolutional, transformer, mobile.
TORCHVISION = ["resnet18", "squeezenet1_1", "shufflenet_v2_x0_5", "mnasnet0_5"]


@pytest.mark.parametrize("name", TORCHVISION)
@pytest.mark.parametrize("channels", [1, 3])
def test_torchvision_nets_fit_the_data(name, channels):
    model = Torchvision(channels, 7, name).eval()
    assert model(torch.rand(2, channels, 64, 64)).shape == (2, 7)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.fixture
def pretrained(monkeypatch: pytest.MonkeyPatch):
    """A network with 1000 classes whose weights stand in for the download."""

    def offer(name: str) -> nn.Module:
        net = torchvision.models.get_model(name, weights=None)
        monkeypatch.setattr(
            torchvision.models._api, "load_state_dict_from_url", lambda *_, **__: net.state_dict()
        )
        return net.eval()

    return offer


@pytest.mark.parametrize("name", ["squeezenet1_1", "shufflenet_v2_x0_5"])
def test_pretrained_nets_keep_their_features_and_get_a_fresh_head(name, pretrained):
    original = pretrained(name)
    model = Torchvision(3, 7, name, weights="DEFAULT").eval()
    features, head = dict(original.named_parameters()), dict(model.net.named_parameters())
    fresh = [key for key in features if not torch.equal(features[key], head[key])]
    assert {key.rsplit(".", 1)[0] for key in fresh} == {
        "squeezenet1_1": {"classifier.1"},
        "shufflenet_v2_x0_5": {"fc"},
    }[name]
    assert model(torch.rand(2, 3, 64, 64)).shape == (2, 7)


@pytest.mark.parametrize("channels", [1, 2])
def test_a_pretrained_stem_answers_to_grey_images_as_before(channels, pretrained):
    original = pretrained("squeezenet1_1")
    model = Torchvision(channels, 7, "squeezenet1_1", weights="DEFAULT").eval()
    grey = torch.rand(2, 1, 32, 32)
    torch.testing.assert_close(
        model.net.features[0](grey.expand(-1, channels, -1, -1)),
        original.features[0](grey.expand(-1, 3, -1, -1)),
    )


@pytest.mark.parametrize("name", ["resnet10t", "efficientnet_lite0"])
def test_timm_nets_fit_the_data(name):
    pytest.importorskip("timm")
    model = Timm(2, 7, name).eval()
    assert model(torch.rand(2, 2, 64, 64)).shape == (2, 7)
    assert not any(getattr(module, "inplace", False) for module in model.modules())


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (
            lambda: Torchvision(3, 10, "resnet19"),
            "`name` must be known to torchvision, got 'resnet19'; nearest: resnet1",
        ),
        (lambda: Torchvision(3, 10, "googlenet"), "got 'googlenet'"),
        (
            lambda: Torchvision(3, 10, "resnet18", "IMAGENET1K_V9"),
            "`weights` must be known .* nearest: IMAGENET1K_V1",
        ),
        (
            lambda: Timm(3, 10, "convnext_ato"),
            "`name` must be known to timm, got 'convnext_ato'; nearest: convnext_atto",
        ),
        (lambda: Torchvision(0, 10, "resnet18"), "`channels` must be at least 1, got 0"),
        (lambda: Timm(3, 1, "resnet10t"), "`classes` must be at least 2, got 1"),
    ],
)
def test_wrong_names_and_numbers_are_refused_in_one_line(build, message):
    with pytest.raises(ValueError, match=message) as error:
        build()
    assert "\n" not in str(error.value)


def test_without_timm_the_error_names_the_extra(monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setitem(sys.modules, "timm", None)
    with pytest.raises(ImportError, match=r"pip install 'lit-xai\[timm\]'"):
        Timm(3, 10, "resnet10t")
