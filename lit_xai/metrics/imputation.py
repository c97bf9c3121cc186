"""Noisy linear imputation: pixels that are gone become the weighted mean of those around them, and noise."""

from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional as F

from lit_xai import randomness
from lit_xai.metrics.removal import Gone, Looks, Removal, weights
from lit_xai.types import Images, require_at_least, require_positive

Planes = Float[Tensor, "*planes height width"]

# Steps of the solver from one look at whether all is solved to the next: looking makes a device wait, which
# is worth the steps that it saves every so often. A processor has nothing to wait for.
PATIENCE = {"cpu": 1, "cuda": 8}


@dataclass(frozen=True)
class LinearImputation(Removal):
    """Each pixel that is gone is the weighted mean of its neighbours, known or not, plus noise.

    sum_j w_ij (u_i - u_j) = 0    for each removed i; w is 1/6 at an edge, 1/12 at a corner

    At the border of the image, weights are those of the neighbours that exist. Where all pixels are gone
    nothing says what they were: the image's own mean stands there, channel by channel, plus the noise. The
    noise of a pixel is drawn once: it is the same whatever else is gone. Values are kept in [0, 1].

    Args:
        noise: Standard deviation of the noise in pixels, at least 0. It hides how smooth the rest is.
        tolerance: Relative residual at which the solver stops, in (0, 1).

    Raises:
        ValueError: An argument lies outside its range.

    Source: Rong et al. 2022, arXiv 2202.00449 (noisy linear imputation).
    Deviates: noise in pixels, theirs after normalisation; a solver for all images at once.
    """

    noise: float = 0.01
    tolerance: float = 1e-4

    def __post_init__(self) -> None:
        require_at_least(0, noise=self.noise)
        require_positive(tolerance=self.tolerance)
        if self.tolerance >= 1:
            raise ValueError(f"`tolerance` must be below 1, got {self.tolerance!r}.")

    def __call__(self, inputs: Images) -> Images:
        keys = randomness.keys(inputs, "noisy linear imputation")
        draws = randomness.normal(keys, 0, inputs.shape[1:], inputs.dtype)
        return (inputs.mean(dim=(2, 3), keepdim=True) + self.noise * draws).clamp(0, 1)

    def fill(self, inputs: Images, gone: Gone, empty: Images) -> Looks:
        # The system leaves a constant alone: solved for what differs from the mean, it gives 0 where it has
        # nothing to go by, and `empty` adds mean and noise.
        deviation = inputs - inputs.mean(dim=(2, 3), keepdim=True)
        filled = imputed(deviation, gone, self.tolerance).add_(empty).clamp_(0, 1)
        return torch.lerp(inputs, filled, weights(gone, inputs.dtype))


def imputed(inputs: Images, gone: Gone, tolerance: float) -> Looks:
    """The removed pixels of every image and look, each the weighted mean of its neighbours; 0 elsewhere.

    With W the 3 x 3 stencil {1/6, 1/12, centre 0}, zero outside the image, and D = W 1, it solves
    D u - W u = W x on the removed pixels, x the known ones. The matrix is symmetric and positive definite
    unless everything is removed; then the right side is 0, and so is the answer. Conjugate gradients,
    preconditioned by D, for all images, channels and looks at once: iterated on D^1/2 u, for which that is
    the plain method. One that has reached the tolerance stands still, so that none depends on the others.

    Args:
        inputs: Pixels; those that are gone are not looked at.
        gone: Where a pixel is removed, with all its channels.
        tolerance: Residual, relative to the right side and in the norm of D^-1, at which to stop.

    Source: Rong et al. 2022, arXiv 2202.00449 (the system); Hestenes and Stiefel 1952, "Methods of conjugate
    gradients for solving linear systems".
    """
    hidden = weights(gone, inputs.dtype)
    height, width = inputs.shape[2:]
    scale = hidden * around(inputs.new_ones(height, width)).clamp(min=1 / 12).rsqrt()  # one pixel: D is 0
    residual = scale * around(inputs * (1 - hidden))
    direction, solution = residual.clone(), torch.zeros_like(residual)
    square = _product(residual, residual)
    goal = square * tolerance**2
    active = square > goal
    patience = PATIENCE.get(inputs.device.type, PATIENCE["cuda"])
    # In exact arithmetic there are no more steps than pixels.
    for step in range(1, height * width + 1):
        image = torch.addcmul(direction, scale, around(scale * direction), value=-1)
        length = (square / _product(direction, image)).where(active, 0)
        solution.addcmul_(length, direction)
        residual.addcmul_(length, image, value=-1)
        before, square = square, _product(residual, residual)
        active = square > goal
        torch.addcmul(residual, (square / before).where(active, 0), direction, out=direction)
        if step % patience == 0 and not active.any():
            break
    return solution.mul_(scale)


def around(planes: Planes) -> Planes:
    """The weighted sum of the eight neighbours of each pixel: 1/6 at an edge, 1/12 at a corner.

    (1 2 1)^T (1 2 1) / 12 less its centre, so two passes of three: faster than a convolution on a processor.
    """
    padded = F.pad(planes, (1, 1, 1, 1))
    across = (padded[..., :-2] + padded[..., 2:]).add_(padded[..., 1:-1], alpha=2)
    down = (across[..., :-2, :] + across[..., 2:, :]).add_(across[..., 1:-1, :], alpha=2)
    return down.mul_(1 / 12).sub_(planes, alpha=1 / 3)


def _product(first: Looks, second: Looks) -> Float[Tensor, "look batch channel 1 1"]:
    return (first * second).sum(dim=(3, 4), keepdim=True)
