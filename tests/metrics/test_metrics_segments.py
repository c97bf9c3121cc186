"""Parts of an image: squares of a grid, and superpixels."""

import math

import numpy as np
import pytest
import torch

from lit_xai.attributions.perturbation import grid
from lit_xai.metrics.segments import mean_of_parts, squares, sum_of_parts, superpixels


def test_squares_are_cut_off_at_the_far_edges():
    parts, count = squares(torch.rand(2, 1, 3, 5), 2)
    assert count == 6
    assert parts[1].tolist() == [[0, 0, 1, 1, 2], [0, 0, 1, 1, 2], [3, 3, 4, 4, 5]]


@pytest.mark.parametrize("shape", [(2, 3, 8, 8), (1, 1, 7, 10), (1, 2, 2, 9)])
def test_without_rounds_superpixels_are_the_cells_of_a_grid(shape):
    inputs = torch.rand(shape)
    parts, count = superpixels(inputs, 3, 0.1, 0)
    down, across = grid(inputs, 3)
    number = torch.arange(count).reshape(len(down), len(across)).float()
    assert torch.equal(parts[0], (down.T @ number @ across).long())


def slow(image, side, compactness, rounds):
    """The same with loops: one pixel and one candidate at a time."""
    _, height, width = image.shape
    down, across = min(side, height), min(side, width)
    spacing = math.sqrt(height * width / (down * across))
    cells = {(y, x): (y * down // height, x * across // width) for y in range(height) for x in range(width)}
    features = {
        (y, x): np.array([*image[:, y, x], y * compactness / spacing, x * compactness / spacing])
        for y, x in cells
    }
    held = dict(cells)
    centres = {}
    for _ in range(rounds):
        for cell in sorted(set(cells.values())):
            members = [features[pixel] for pixel in cells if held[pixel] == cell]
            if members:
                centres[cell] = np.mean(members, axis=0)
        for pixel, (row, column) in cells.items():
            near = [cell for cell in centres if abs(cell[0] - row) <= 1 and abs(cell[1] - column) <= 1]
            held[pixel] = min(near, key=lambda cell: float(((features[pixel] - centres[cell]) ** 2).sum()))
    rows = [[held[y, x][0] * across + held[y, x][1] for x in range(width)] for y in range(height)]
    return torch.tensor(rows)


@pytest.mark.parametrize("shape", [(3, 8, 8), (1, 7, 10)])
def test_superpixels_equal_a_slow_twin(shape):
    inputs = torch.rand(2, *shape, dtype=torch.float64)
    parts, _ = superpixels(inputs, 3, 0.3, 4)
    for image in range(2):
        assert torch.equal(parts[image], slow(inputs[image].numpy(), 3, 0.3, 4))


def test_superpixels_follow_the_edges_of_the_image():
    inputs = torch.zeros(1, 1, 12, 12)
    inputs[..., 5:] = 1.0  # cells begin at 0, 4 and 8
    parts, count = superpixels(inputs, 3, 0.1, 5)
    for part in range(count):
        assert len(inputs[0, 0][parts[0] == part].unique()) <= 1


def test_superpixels_agree_with_those_of_another_library_on_a_photo():
    skimage = pytest.importorskip("skimage")
    from skimage.segmentation import slic

    photo = skimage.data.astronaut()[::8, ::8].astype(np.float64) / 255  # 64 x 64
    theirs = torch.from_numpy(slic(photo, n_segments=49, compactness=0.1, convert2lab=False, start_label=0))
    inputs = torch.from_numpy(photo.transpose(2, 0, 1).copy())[None]
    (ours,), count = superpixels(inputs, 7, 0.1, 10)
    (cells,), _ = superpixels(inputs, 7, 0.1, 0)

    def spread(parts):
        """Share of the variance of colours that is left within the parts."""
        flat = inputs[0].flatten(1).T
        within = sum(
            ((flat[rows] - flat[rows].mean(0)) ** 2).sum()
            for rows in (parts.flatten() == part for part in range(int(parts.max()) + 1))
            if rows.any()
        )
        return float(within / ((flat - flat.mean(0)) ** 2).sum())

    assert count == 49
    assert spread(ours) < 0.7 * spread(cells)
    assert spread(ours) < 1.1 * spread(theirs)


def test_superpixels_of_an_image_do_not_depend_on_its_batch():
    inputs = torch.rand(4, 3, 9, 9)
    together, _ = superpixels(inputs, 3, 0.2, 5)
    alone, _ = superpixels(inputs[2:3], 3, 0.2, 5)
    assert torch.equal(alone[0], together[2])


def test_means_and_sums_of_parts_and_a_part_without_pixels():
    saliency = torch.tensor([[[1.0, 2.0], [3.0, -4.0]]])
    parts = torch.tensor([[[0, 0], [2, 2]]])
    assert mean_of_parts(saliency, parts, 3).tolist() == [[1.5, -math.inf, -0.5]]
    assert sum_of_parts(saliency, parts, 3).tolist() == [[3.0, 0.0, -1.0]]
