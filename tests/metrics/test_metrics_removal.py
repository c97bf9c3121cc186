"""Removal operators: what stands where an image is gone."""

import numpy as np
import pytest
import scipy.ndimage
import torch

from lit_xai import randomness
from lit_xai.metrics import removal as room
from lit_xai.metrics.removal import Blur, Constant, ImageMean, UniformNoise


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 9, 14), (1, 2, 5, 5)])
@pytest.mark.parametrize("blur", [Blur(5, 1.5, 8), Blur(41, 8.0, 8), Blur()], ids=repr)
def test_blur_equals_scipy(shape, blur):
    inputs = torch.rand(shape, dtype=torch.float64)
    scale = min(shape[2:]) / blur.side
    radius = max(1, round((blur.kernel - 1) / 2 * scale))
    expected = scipy.ndimage.gaussian_filter(
        inputs.numpy(), blur.sigma * scale, mode="reflect", radius=radius, axes=(2, 3)
    )
    np.testing.assert_allclose(blur(inputs).numpy(), expected, rtol=0, atol=1e-12)


def test_operators_stay_in_the_box_and_keep_what_they_promise():
    inputs = torch.rand(3, 2, 6, 7)
    for removal in (Constant(0.25), Constant((0.1, 0.9)), ImageMean(), UniformNoise(), Blur(5, 2.0, 6)):
        removed = removal(inputs)
        assert removed.shape == inputs.shape
        assert removed.min() >= 0
        assert removed.max() <= 1
        assert eval(repr(removal), dict(vars(room))) == removal
    assert (Constant(0.25)(inputs) == 0.25).all()
    torch.testing.assert_close(ImageMean()(inputs)[..., 2, 3], inputs.mean((2, 3)))
    torch.testing.assert_close(Blur()(torch.full((1, 1, 8, 8), 0.3)), torch.full((1, 1, 8, 8), 0.3))


def test_what_is_not_removed_is_the_image_bit_for_bit_and_what_is_the_operators():
    inputs = torch.rand(3, 2, 6, 7)
    gone = torch.rand(4, 3, 6, 7) < 0.5
    for removal in (Constant(0.25), ImageMean(), UniformNoise(), Blur(5, 2.0, 6)):
        empty = removal(inputs)
        filled = removal.fill(inputs, gone, empty)
        assert torch.equal(filled, torch.where(gone[:, :, None], empty, inputs))


def test_black_is_zero_and_not_the_least_of_the_image():
    """Quantus 0.6.0 calls the smallest value of each image black."""
    assert (Constant()(torch.rand(2, 3, 4, 4) / 2 + 0.5) == 0).all()


def test_a_constant_per_channel_is_a_colour():
    colour = Constant((0.1, 0.5, 0.9))
    empty = colour(torch.rand(2, 3, 4, 5))
    assert (empty == torch.tensor([0.1, 0.5, 0.9])[:, None, None]).all()
    assert colour.channels == 3
    assert Constant(0.5).channels is None


def test_uniform_noise_belongs_to_the_sample_and_is_uniform():
    inputs = torch.rand(3, 3, 32, 32)
    ids = torch.tensor([4, 9, 2])
    before = torch.get_rng_state()
    with randomness.keyed(0, ids):
        noise, again = UniformNoise()(inputs), UniformNoise()(inputs)
    with randomness.keyed(0, ids[1:]):
        assert torch.equal(UniformNoise()(inputs[1:]), noise[1:])
    assert torch.equal(noise, again)
    assert torch.equal(torch.get_rng_state(), before)
    assert float(noise.mean()) == pytest.approx(0.5, abs=0.02)
    assert float(noise.var()) == pytest.approx(1 / 12, rel=0.05)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: Constant(2.0), "`value` must lie in"),
        (lambda: Blur(kernel=4), "`kernel` must be odd, got 4"),
        (lambda: Blur(kernel=1), "`kernel` must be at least 3, got 1."),
        (lambda: Blur(sigma=0.0), "`sigma` must be greater than 0"),
        (lambda: Blur(side=0), "`side` must be at least 1"),
        (lambda: Constant((0.5, 1.5)), "`value` must lie in"),
        (lambda: Constant(()), "`value` must lie in"),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
