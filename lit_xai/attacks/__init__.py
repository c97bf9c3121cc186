"""Attacks: neighbours of an image that change a decision."""

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.ascent import Outcome
from lit_xai.attacks.autoattack import AutoAttack, Members, Suite
from lit_xai.attacks.base import Attack, Boundary, Search
from lit_xai.attacks.boundary import DDN
from lit_xai.attacks.boundary_walk import BoundaryWalk
from lit_xai.attacks.carlini_wagner import CarliniWagner
from lit_xai.attacks.deepfool import DeepFool
from lit_xai.attacks.fab import FAB
from lit_xai.attacks.fmn import FMN
from lit_xai.attacks.grid import PGDGrid
from lit_xai.attacks.ledger import Climb, Ledger
from lit_xai.attacks.losses import (
    CE,
    DLR,
    Aim,
    FixedClass,
    LeastLikely,
    LogitMargin,
    Loss,
    RandomClass,
    RunnerUp,
)
from lit_xai.attacks.neighbour import RandomNeighbour
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.attacks.nudged import NudgedPGD
from lit_xai.attacks.pgd import FGSM, L2PGD, LinfPGD, MomentumPGD
from lit_xai.attacks.portfolio import THOROUGH, ClosestBoundary
from lit_xai.attacks.projection import FABProjection
from lit_xai.attacks.released import PyAutoAttack, PyAutoAttackMember
from lit_xai.attacks.semantic import SemanticPattern
from lit_xai.attacks.square import Square

__all__ = [
    "APGD",
    "CE",
    "DDN",
    "DLR",
    "FAB",
    "FGSM",
    "FMN",
    "L1",
    "L2",
    "L2PGD",
    "THOROUGH",
    "Aim",
    "Attack",
    "AutoAttack",
    "Boundary",
    "BoundaryWalk",
    "CarliniWagner",
    "Climb",
    "ClosestBoundary",
    "DeepFool",
    "FABProjection",
    "FixedClass",
    "LeastLikely",
    "Ledger",
    "Linf",
    "LinfPGD",
    "LogitMargin",
    "Loss",
    "Members",
    "MomentumPGD",
    "Norm",
    "NudgedPGD",
    "Outcome",
    "PGDGrid",
    "PyAutoAttack",
    "PyAutoAttackMember",
    "RandomClass",
    "RandomNeighbour",
    "RunnerUp",
    "Search",
    "SemanticPattern",
    "Square",
    "Suite",
]
