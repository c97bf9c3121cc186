"""Attacks: neighbours of an image that change a decision."""

from lit_xai.attacks.base import Attack, Boundary, Search
from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.norms import L2, Linf, Norm
from lit_xai.attacks.pgd import FGSM, L2PGD, LinfPGD

__all__ = [
    "DDN",
    "FGSM",
    "L2",
    "L2PGD",
    "Attack",
    "Boundary",
    "Linf",
    "LinfPGD",
    "Norm",
    "Search",
]
