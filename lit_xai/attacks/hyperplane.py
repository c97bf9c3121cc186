"""Feet of images on hyperplanes inside the box: where a linearised decision changes."""

import torch
from jaxtyping import Float
from torch import Tensor

from lit_xai.attacks.norms import L1, L2, Linf, Norm

Points = Float[Tensor, "some channel height width"]
Values = Float[Tensor, " some"]
Rows = Float[Tensor, "some pixel"]
Columns = Float[Tensor, "some 1"]

_ROUNDS = 16  # Newton steps: six for a plane halfway to the corner of the box, 16 for one 0.1 % from it


@torch.no_grad()
def foot(norm: Norm, points: Points, normal: Points, gap: Values) -> Points:
    """Closest point to each image on a hyperplane of its own, inside the box [0, 1]^n, in the given norm.

    argmin_z ||z - x||_p  subject to  gap + w (z - x) = 0,  0 <= z <= 1.

    Pixels move to the side that closes the gap, by m_i of the room r_i that the box leaves there. In
    l-infinity and l2, m_i = min(t s_i, r_i) with s_i = 1 and s_i = |w_i|, where t solves
    sum_i |w_i| m_i = |gap|. In l1, the pixels with the largest |w_i| move all the way, one after the other,
    the last as far as is needed. Where the plane does not meet the box, the answer is the point of the box
    closest to the plane that moves no pixel with w_i = 0; where w = 0, the image itself.

    t is the root of a concave, increasing, piecewise linear function: Newton's steps from 0 approach it from
    below and end on it. Sorted in l1 only; no host sync.

    Args:
        norm: `Linf()`, `L2()` or `L1()`.
        points: x, inside the box.
        normal: w, of any scale.
        gap: w x + b, the value at the points of the affine function that vanishes on the plane.

    Raises:
        TypeError: There is no rule for this norm.

    Source: Hein and Andriushchenko 2017, arXiv 1705.08475, section 4 (the box-constrained problem and its
    sorted solution); Croce and Hein 2020, arXiv 1907.02044, section 2 (its use).
    """
    rows, w = points.flatten(1), normal.flatten(1)
    peak = torch.linalg.vector_norm(w, ord=torch.inf, dim=1, keepdim=True)
    scale = torch.where(peak > 0, peak, 1)  # neither tiny nor huge gradients leave the range of floats
    w, missing = w / scale, gap[:, None] / scale
    towards = w.sign().mul_(-missing.sign())
    room = towards.clamp(min=0).addcmul_(rows, towards, value=-1)
    w, missing = w.abs_(), missing.abs_()
    if isinstance(norm, L1):
        move = _one_by_one(w, room, missing)
    elif isinstance(norm, Linf):
        move = torch.minimum(_time(w, room, missing), room)
    elif isinstance(norm, L2):
        move = (w * _time(w.square(), room / w.clamp(min=1e-30), missing)).minimum(room)
    else:
        raise TypeError(f"no rule for planes in the norm {norm!r}: use Linf(), L2() or L1().")
    move = torch.where(missing < (w * room).sum(dim=1, keepdim=True), move, room)
    return torch.addcmul(rows, towards, move).clamp_(0, 1).view_as(points)


def _time(rate: Rows, arrival: Rows, missing: Columns) -> Columns:
    """The t with sum_i rate_i min(t, arrival_i) = missing."""
    time, spare = torch.zeros_like(missing), torch.empty_like(rate)
    for _ in range(_ROUNDS):  # in one piece of memory, with arithmetic for masks: ten times as fast
        closed = torch.minimum(arrival, time, out=spare).mul_(rate).sum(dim=1, keepdim=True)
        underway = torch.sub(arrival, time, out=spare).clamp_(min=0).sign_()
        slope = underway.mul_(rate).sum(dim=1, keepdim=True)
        time = torch.where(slope > 0, time + (missing - closed) / slope, time)
    return time


def _one_by_one(w: Rows, room: Rows, missing: Columns) -> Rows:
    """All of the room of the largest w, then of the next, until nothing is missing."""
    w, order = w.sort(dim=1, descending=True, stable=True)
    room = room.gather(1, order)
    effect = w * room
    full = effect.cumsum(dim=1) <= missing
    move = torch.where(full, room, 0)
    last = full.sum(dim=1, keepdim=True).clamp(max=w.shape[1] - 1)
    left = missing - (w * move).sum(dim=1, keepdim=True)
    part = (left / w.gather(1, last).clamp(min=1e-30)).clamp(min=0).minimum(room.gather(1, last))
    return torch.zeros_like(move).scatter(1, order, move.scatter(1, last, part))
