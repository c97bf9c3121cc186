"""What the tests of Bort share: weights, steps, and the correction row by row."""

import itertools

import torch
from torch import Tensor, nn

W = [[0.5, -0.2, 0.1], [0.3, 0.4, -0.6]]
G = [[0.1, 0.0, -0.2], [0.05, -0.1, 0.3]]
SHAPES = [(4, 6), (4, 6), (6, 4), (4, 3, 2, 1), (6, 2, 1, 2), (5, 5), (3, 2, 3), (7,), (1, 1, 2, 2)]


def steps(
    optimizer: torch.optim.Optimizer, parameters: list[nn.Parameter], count: int, seed: int = 0
) -> None:
    """A few steps with gradients that depend on the step alone."""
    draws = torch.Generator().manual_seed(seed)
    for _ in range(count):
        for parameter in parameters:
            parameter.grad = torch.randn(parameter.shape, generator=draws, dtype=parameter.dtype)
        optimizer.step()


def fresh(dtype: torch.dtype = torch.float64) -> list[nn.Parameter]:
    draws = torch.Generator().manual_seed(1)
    return [
        nn.Parameter(torch.randn(shape, generator=draws, dtype=torch.float64).to(dtype)) for shape in SHAPES
    ]


def slow_correction(weight: Tensor, amplitude: float | str, penalty: str, groups: int = 1) -> Tensor:
    """One matrix per group, one row of the table at a time; columns are constrained where they are fewer."""
    parts = [part.reshape(len(part), -1) for part in weight.chunk(groups)]
    tall = parts[0].shape[0] > parts[0].shape[1]
    parts = [part.T if tall else part for part in parts]
    lengths = [row.norm() for part in parts for row in part]
    a = sum(lengths) ** 2 / len(lengths) ** 2 if amplitude == "ada" else amplitude
    if amplitude == "ada" and len(lengths) == 1:
        return torch.zeros_like(weight)  # the only row has the mean length
    outs = []
    for w in parts:
        out = torch.zeros_like(w)
        for i, j in itertools.product(range(len(w)), repeat=2):
            excess = w[i] @ w[j] - (a if i == j else 0.0)
            out[i] += (excess if penalty == "l2" else excess.sign()) * w[j]
        outs.append(out.T if tall else out)
    return torch.cat(outs).reshape(weight.shape)
