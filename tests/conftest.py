"""What tests of every room share: seeds, precision, tiny nets, real data if at hand."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from subjects import tiny_net
from torch import nn

from lit_xai.types import Images, Labels


@pytest.fixture(autouse=True)
def seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def float64() -> Iterator[None]:
    """Double precision by default within the test."""
    before = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    yield
    torch.set_default_dtype(before)


@pytest.fixture
def relu_net() -> nn.Module:
    return tiny_net(nn.ReLU)


@pytest.fixture
def smooth_net() -> nn.Module:
    """Infinitely differentiable, in double precision."""
    return tiny_net(nn.Softplus, torch.float64)


@pytest.fixture
def batch(relu_net: nn.Module) -> tuple[Images, Labels]:
    """Five images and the class that `relu_net` sees in them; not all classes are the same."""
    inputs = torch.rand(5, 2, 8, 8)
    return inputs, relu_net(inputs).argmax(1)


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """Folder with real data sets: `LIT_XAI_SHARED_DATA`, or `shared/data` beside the checkout or above it."""
    named = os.environ.get("LIT_XAI_SHARED_DATA")
    places = [Path(named)] if named else [up / "shared" / "data" for up in Path(__file__).resolve().parents]
    for place in places:
        if place.is_dir():
            return place
    pytest.skip("no shared data at hand")
