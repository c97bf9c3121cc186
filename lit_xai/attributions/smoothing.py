"""Maps that are averaged over noise."""

from dataclasses import dataclass, field

from torch import nn

from lit_xai import randomness
from lit_xai.attributions.base import Attribution
from lit_xai.attributions.gradient import Saliency
from lit_xai.attributions.packing import Maps, Rows, packed_sum
from lit_xai.types import Images, Labels, require_at_least, require_positive


@dataclass(frozen=True)
class SmoothGrad(Attribution):
    """Mean of another map over Gaussian noise; with `Saliency`, the gradient of the smoothed score.

    (1 / n) sum_k M(x + sigma e_k),    e_k ~ N(0, I)

    Noisy pixels are not clipped, and maps keep their signs: only so is the mean of gradients an unbiased
    estimate of the gradient of E s(x + sigma e), with an error that falls as 1 / sqrt(n).

    Args:
        sigma: Standard deviation of the noise, in pixel units; greater than 0.
        samples: Noise draws per image, at least 1.
        base: The map that is averaged. Its own draws, if any, are fresh for every noisy image.
        chunk: Largest number of images in one call of `base`.

    Source: Smilkov, Thorat, Kim, Viegas and Wattenberg 2017, arXiv 1706.03825, section 2.
    Deviates: `sigma` is absolute, not a share of the value range of each image.
    """

    sigma: float = 0.15
    samples: int = 16
    base: Attribution = field(default_factory=Saliency)
    chunk: int = 64

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)
        require_at_least(1, samples=self.samples, chunk=self.chunk)

    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        own = randomness.keys(inputs, "smooth_grad")
        shape, dtype = inputs.shape[1:], inputs.dtype

        def noisy(image: Rows, sample: Rows) -> Maps:
            keys = own[image] + sample
            points = inputs[image] + self.sigma * randomness.normal(keys, 0, shape, dtype)
            with randomness.keyed(0, keys):
                return self.base(model, points, target[image])

        weights = inputs.new_full((self.samples,), 1 / self.samples)
        return packed_sum(noisy, weights, inputs, self.chunk)
