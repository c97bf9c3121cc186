"""Noisy linear imputation: the solver against a direct one, and what it promises at the edges."""

import numpy as np
import pytest
import scipy.ndimage
import scipy.sparse
import scipy.sparse.linalg
import torch

from lit_xai import randomness
from lit_xai.metrics.imputation import LinearImputation, around, imputed

IDS = torch.tensor([7, 3, 11, 0])


def direct(image, gone):
    """The system of Rong et al. for one image, pixel by pixel, solved by elimination."""
    _, height, width = image.shape
    where = np.argwhere(gone)
    number = {tuple(pixel): k for k, pixel in enumerate(where)}
    matrix, side = scipy.sparse.lil_matrix((len(where),) * 2), np.zeros((len(where), len(image)))
    for k, (row, column) in enumerate(where):
        for down in (-1, 0, 1):
            for across in (-1, 0, 1):
                other = (row + down, column + across)
                if other == (row, column) or not (0 <= other[0] < height and 0 <= other[1] < width):
                    continue
                weight = 1 / 6 if down == 0 or across == 0 else 1 / 12
                matrix[k, k] += weight
                if other in number:
                    matrix[k, number[other]] -= weight
                else:
                    side[k] += weight * image[:, other[0], other[1]]
    filled = np.zeros_like(image)
    filled[:, gone] = scipy.sparse.linalg.spsolve(matrix.tocsc(), side).reshape(len(where), -1).T
    return filled


def masks(looks, shape, share):
    return torch.rand(looks, shape[0], *shape[2:]) < share


@pytest.mark.parametrize("shape", [(3, 1, 9, 14), (2, 3, 12, 12), (2, 2, 1, 9)])
@pytest.mark.parametrize("share", [0.1, 0.5, 0.9])
def test_it_equals_a_direct_solve(shape, share):
    inputs, gone = torch.rand(shape, dtype=torch.float64), masks(3, shape, share)
    gone[..., 0, 0] = False  # something is known
    gone[..., -1, -1] = True
    exact, rough = imputed(inputs, gone, 1e-12), imputed(inputs, gone, 1e-4)
    assert (exact.movedim(2, -1)[~gone] == 0).all()
    for look in range(3):
        for image in range(shape[0]):
            expected = direct(inputs[image].numpy(), gone[look, image].numpy())
            np.testing.assert_allclose(exact[look, image].numpy(), expected, rtol=0, atol=1e-9)
            np.testing.assert_allclose(rough[look, image].numpy(), expected, rtol=0, atol=1e-3)


def test_it_equals_a_direct_solve_in_single_precision_and_where_a_whole_block_is_gone():
    inputs, gone = torch.rand(2, 3, 24, 24), torch.zeros(1, 2, 24, 24, dtype=torch.bool)
    gone[:, 0, 3:21, 2:22] = True
    gone[:, 1, :, 1:] = True
    got = imputed(inputs, gone, 1e-5)[0]
    for image in range(2):
        expected = direct(inputs[image].double().numpy(), gone[0, image].numpy())
        np.testing.assert_allclose(got[image].numpy(), expected, rtol=0, atol=2e-4)


def test_around_is_the_stencil_with_nothing_beyond_the_image():
    planes = torch.rand(2, 3, 5, 7, dtype=torch.float64)
    kernel = np.array([[1, 2, 1], [2, 0, 2], [1, 2, 1]]) / 12
    for got, plane in zip(around(planes).flatten(0, 1), planes.flatten(0, 1), strict=True):
        expected = scipy.ndimage.convolve(plane.numpy(), kernel, mode="constant")
        np.testing.assert_allclose(got.numpy(), expected, rtol=0, atol=1e-14)


def test_each_removed_pixel_is_the_mean_of_its_neighbours():
    inputs, gone = torch.rand(2, 1, 8, 8, dtype=torch.float64), masks(2, (2, 1, 8, 8), 0.6)
    whole = imputed(inputs, gone, 1e-13) + torch.where(gone[:, :, None], 0, inputs)
    mean = around(whole) / around(torch.ones_like(whole))
    torch.testing.assert_close(mean[gone[:, :, None]], whole[gone[:, :, None]], rtol=0, atol=1e-10)


def test_a_plane_is_restored_inside_and_a_flat_image_everywhere():
    slope = torch.arange(9.0, dtype=torch.float64)
    plane = (0.02 * slope[:, None] + 0.05 * slope)[None, None]
    gone = torch.zeros(1, 1, 9, 9, dtype=torch.bool)
    gone[..., 2:7, 2:7] = True
    torch.testing.assert_close(imputed(plane, gone, 1e-12)[0, :, :, 2:7, 2:7], plane[..., 2:7, 2:7])
    still = LinearImputation(noise=0.0)
    flat, most = torch.full((1, 2, 7, 7), 0.3, dtype=torch.float64), masks(1, (1, 2, 7, 7), 0.9)
    torch.testing.assert_close(still.fill(flat, most, still(flat))[0], flat)


def test_where_everything_is_gone_the_mean_stands_and_nothing_breaks():
    inputs = torch.rand(4, 3, 8, 8)
    gone = torch.ones(2, 4, 8, 8, dtype=torch.bool)
    gone[1] = torch.rand(4, 8, 8) < 0.5
    still = LinearImputation(noise=0.0)
    filled = still.fill(inputs, gone, still(inputs))
    mean = inputs.mean((2, 3), keepdim=True).expand_as(inputs)
    torch.testing.assert_close(filled[0], mean)
    torch.testing.assert_close(still(inputs), mean)
    apart = still.fill(inputs, gone[1:], still(inputs))
    assert torch.equal(filled[1], apart[0])  # the hopeless neighbour changes nothing
    nothing = still.fill(inputs, torch.zeros_like(gone), still(inputs))
    assert torch.equal(nothing[0], inputs)
    one = torch.rand(2, 1, 1, 1)
    assert torch.equal(still.fill(one, torch.ones(1, 2, 1, 1, dtype=torch.bool), still(one))[0], one)


def test_noise_has_its_size_belongs_to_the_sample_and_is_the_same_in_every_look():
    inputs = torch.full((4, 3, 40, 40), 0.5)
    with randomness.keyed(0, IDS):
        empty, again = LinearImputation(noise=0.05)(inputs), LinearImputation(noise=0.05)(inputs)
    assert torch.equal(empty, again)
    with randomness.keyed(0, IDS[2:]):
        assert torch.equal(LinearImputation(noise=0.05)(inputs[2:]), empty[2:])
    assert float((empty - 0.5).std()) == pytest.approx(0.05, rel=0.03)
    assert not torch.equal(empty[:, 0], empty[:, 1])
    gone = torch.zeros(2, 4, 40, 40, dtype=torch.bool)
    gone[0, :, :20], gone[1, :, :, :30] = True, True
    filled = LinearImputation(noise=0.05).fill(inputs, gone, empty)
    for look in range(2):
        expected = torch.where(gone[look, :, None], empty, inputs)
        torch.testing.assert_close(filled[look], expected, rtol=0, atol=1e-4)


def test_values_stay_in_the_box():
    inputs = torch.rand(3, 1, 9, 9).round()
    empty = LinearImputation(noise=0.3)(inputs)
    for images in (empty, LinearImputation(noise=0.3).fill(inputs, masks(2, (3, 1, 9, 9), 0.5), empty)):
        assert images.min() >= 0
        assert images.max() <= 1


def test_an_image_does_not_depend_on_those_beside_it():
    inputs, gone = torch.rand(6, 2, 10, 10, dtype=torch.float64), masks(4, (6, 2, 10, 10), 0.7)
    together = imputed(inputs, gone, 1e-3)
    for image in range(6):
        alone = imputed(inputs[image : image + 1], gone[2:3, image : image + 1], 1e-3)
        torch.testing.assert_close(alone[0, 0], together[2, image], rtol=0, atol=1e-12)


@pytest.mark.parametrize(
    ("build", "message"),
    [
        (lambda: LinearImputation(noise=-0.1), "`noise` must be at least 0, got -0.1."),
        (lambda: LinearImputation(tolerance=0.0), "`tolerance` must be greater than 0, got 0.0."),
        (lambda: LinearImputation(tolerance=1.0), "`tolerance` must be below 1, got 1.0."),
    ],
)
def test_bad_arguments_are_refused(build, message):
    with pytest.raises(ValueError, match=message):
        build()
