"""A small network that has learned real digits, against attacks: a model with a margin."""

from functools import cache

import torch
from sklearn.datasets import load_digits
from torch import Tensor, nn

from lit_xai.attacks import FGSM

EPSILON = 0.15


@cache
def digits() -> tuple[Tensor, Tensor]:
    """1,797 images of 1 x 8 x 8 pixels and their labels."""
    images, labels = load_digits(return_X_y=True)
    return torch.tensor(images, dtype=torch.float32).reshape(-1, 1, 8, 8) / 16, torch.tensor(labels)


@cache
def trained() -> nn.Module:
    """Right on 98 % of 300 held-out digits, on about 60 % of them under attack within `EPSILON`."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = nn.Sequential(
            nn.Conv2d(1, 8, 3, padding=1),
            nn.ReLU(),
            nn.Conv2d(8, 16, 3, stride=2, padding=1),
            nn.ReLU(),
            nn.Flatten(),
            nn.Linear(256, 10),
        )
        optimizer = torch.optim.Adam(net.parameters(), 7e-3)
        known = torch.arange(1797) % 6 > 0
        inputs, target = (part[known] for part in digits())
        attack = FGSM(EPSILON, step_size=1.25 * EPSILON, random_start=True)
        for _ in range(8):
            for rows in torch.randperm(len(target)).split(100):
                points = attack(net, inputs[rows], target[rows])
                optimizer.zero_grad()
                nn.functional.cross_entropy(net(points), target[rows]).backward()
                optimizer.step()
    return net.eval().requires_grad_(False)


def held_out(ids: list[int]) -> tuple[Tensor, Tensor]:
    """Digits that the network has not seen, by number."""
    inputs, target = digits()
    return inputs[::6][ids], target[::6][ids]
