"""CropFlip against a twin that takes one image at a time."""

import pytest
import torch
from torch import Tensor

from lit_xai.data import CropFlip


def twin(inputs: Tensor, padding: int, flip: bool) -> Tensor:
    """The same draws, one image at a time: pad, cut, mirror."""
    count, channels, height, width = inputs.shape
    corners = torch.randint(2 * padding + 1, (2, count, 1))
    coins = torch.rand(count, 1) if flip else torch.ones(count, 1)
    views = []
    for i, image in enumerate(inputs):
        padded = image.new_zeros(channels, height + 2 * padding, width + 2 * padding)
        padded[:, padding : padding + height, padding : padding + width] = image
        top, left = int(corners[0, i]), int(corners[1, i])
        view = padded[:, top : top + height, left : left + width]
        views.append(view.flip(-1) if coins[i] < 0.5 else view)
    return torch.stack(views)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize(("padding", "flip"), [(4, True), (4, False), (0, True), (1, True), (0, False)])
def test_it_is_the_slow_twin(padding: int, flip: bool, dtype: torch.dtype):
    inputs = torch.rand(40, 3, 7, 9, dtype=dtype)
    torch.manual_seed(1)
    fast = CropFlip(padding, flip)(inputs)
    torch.manual_seed(1)
    assert torch.equal(fast, twin(inputs, padding, flip))
    assert fast.dtype == dtype


def test_all_corners_and_both_sides_come_up():
    marked = torch.zeros(4000, 1, 5, 5)
    marked[:, :, 2, 1] = 1
    views = CropFlip(padding=1)(marked)
    counts = views.sum(0)[0]
    # Rows 1 to 3 a third each; columns 0 to 2 unmirrored, 2 to 4 mirrored, a sixth each.
    expected = torch.zeros(5, 5)
    expected[1:4] = torch.tensor([1, 1, 2, 1, 1]) * 4000 / 18
    assert counts[expected == 0].sum() == 0
    inside = expected > 0
    assert ((counts - expected)[inside] ** 2 / expected[inside]).sum() < 45  # 14 degrees of freedom


def test_it_does_not_touch_its_inputs():
    inputs = torch.rand(4, 1, 5, 5)
    before = inputs.clone()
    CropFlip()(inputs)
    assert torch.equal(inputs, before)


def test_its_arguments_are_shown_and_checked():
    assert repr(CropFlip(2, flip=False)) == "CropFlip(padding=2, flip=False)"
    with pytest.raises(ValueError, match=r"`padding` must be at least 0, got -1."):
        CropFlip(-1)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_it_works_on_the_device():
    inputs = torch.rand(8, 3, 6, 6, device="cuda")
    views = CropFlip(padding=0)(inputs)
    assert views.device == inputs.device
    same = (views == inputs).flatten(1).all(1)
    mirrored = (views == inputs.flip(-1)).flatten(1).all(1)
    assert (same | mirrored).all()
