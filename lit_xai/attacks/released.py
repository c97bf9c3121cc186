"""The released AutoAttack behind a fence: its numbers are those that others report."""

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from logging import CRITICAL, Logger
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.attacks.autoattack import Suite
from lit_xai.attacks.base import Attack
from lit_xai.attacks.norms import L1, L2, Linf, Norm
from lit_xai.types import Epsilon, Images, Labels, require, require_at_least, require_positive

_NORMS: dict[type[Norm], str] = {Linf: "Linf", L2: "L2", L1: "L1"}
_FEWEST = {"apgd-ce": 2, "apgd-dlr": 3, "apgd-t": 4, "fab": 2, "fab-t": 2, "square": 2}
# Members in order, and where they differ from the defaults of `PyAutoAttackMember`.
_VERSIONS: dict[str, dict[str, dict[str, Any]]] = {
    "standard": {"apgd-ce": {}, "apgd-t": {}, "fab-t": {}, "square": {}},
    "plus": {
        "apgd-ce": {"restarts": 5},
        "apgd-dlr": {"restarts": 5},
        "fab": {"restarts": 5},
        "square": {},
        "apgd-t": {},
        "fab-t": {},
    },
    "rand": {"apgd-ce": {"samples": 20}, "apgd-dlr": {"samples": 20}},
}
_QUIET = Logger("pyautoattack", CRITICAL + 1)  # its warnings are sanity gates of the evaluation


@dataclass(frozen=True)
class PyAutoAttackMember(Attack):
    """One attack of the package `pyautoattack`, which leaves no trace behind.

    Its random numbers belong to the batch: results depend on which images it is given together. They are
    seeded by `seed` at every call, in a forked random state. Weights are frozen meanwhile and get no
    gradients; logits are taken in float32; there are never more targets than other classes.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbour lies.
        name: `apgd-ce`, `apgd-dlr`, `apgd-t`, `fab`, `fab-t` or `square`.
        steps: Gradient steps of a run, or queries of `square`, at least 1; 100, or 5000 queries, by default.
        restarts: Runs from different points, at least 1.
        targets: Classes to aim at, at least 1, for `apgd-t` and `fab-t`.
        samples: Gradients averaged in every step, at least 1, for the `apgd` of randomised models.
        larger: Whether `apgd` begins in balls of 3 and 2 epsilon; in l1 alone.
        seed: Of the random numbers, in every call.

    Raises:
        ImportError: The package is not installed.
        ValueError: The attack cannot be run on this model or these images.

    Source: Croce and Hein 2020, arXiv 2003.01690 (APGD, AutoAttack); 2020, arXiv 1907.02044 (FAB);
    Andriushchenko et al. 2020, arXiv 1912.00049 (Square); the code of these authors as released on PyPI.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    name: str = "apgd-ce"
    steps: int | None = None
    restarts: int = 1
    targets: int = 9
    samples: int = 1
    larger: bool = False
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(epsilon=self.epsilon)
        require(self.name in _FEWEST, f"`name` must be one of {', '.join(_FEWEST)}, got {self.name!r}.")
        require(
            type(self.norm) in _NORMS,
            f"`norm` must be Linf(), L2() or L1() for the released AutoAttack, got {self.norm!r}.",
        )
        require(
            not self.larger or (isinstance(self.norm, L1) and self.name.startswith("apgd")),
            "`larger` must be False but for `apgd` in l1, got True.",
        )
        steps = 1 if self.steps is None else self.steps
        require_at_least(1, steps=steps, restarts=self.restarts, targets=self.targets, samples=self.samples)

    def check(self, shape: Sequence[int], classes: int) -> None:
        """Refuse a shape of images (channel, height, width) or a number of classes that it cannot attack."""
        fewest = _FEWEST[self.name]
        require(
            classes >= fewest,
            f"`{self.name}` of pyautoattack needs at least {fewest} classes, got a model with {classes}: "
            "take AutoAttack(loss=LogitMargin()) instead.",
        )
        require(
            self.name != "square" or shape[1] == shape[2],
            f"`square` of pyautoattack needs square images, got {shape[1]} x {shape[2]} pixels: take Square.",
        )

    @torch.no_grad()
    def __call__(self, model: nn.Module, inputs: Images, target: Labels) -> Images:
        inputs = inputs.detach()
        if not len(inputs):
            return inputs
        with _fence(model):
            classes = model(inputs[:1]).shape[1]
            self.check(inputs.shape[1:], classes)
            attack = self._released(
                lambda points: model(points.to(inputs.dtype)).float(), inputs.device, classes
            )
            found: Tensor = attack.perturb(inputs.float().contiguous(), target)
        return found.detach().to(inputs.dtype)

    def _released(self, predict: Callable[[Tensor], Tensor], device: torch.device, classes: int) -> Any:
        """The object of the package; new for every call, since it keeps the last batch."""
        try:
            from pyautoattack.autopgd_base import APGDAttack, APGDAttack_targeted
            from pyautoattack.fab_pt import FABAttack_PT
            from pyautoattack.square import SquareAttack
        except ImportError as error:
            raise ImportError(
                "PyAutoAttack needs the package pyautoattack: pip install 'lit-xai[autoattack]', or take "
                "AutoAttack, which needs none."
            ) from error
        given = {
            "norm": _NORMS[type(self.norm)],
            "eps": float(self.epsilon),
            "n_restarts": self.restarts,
            "seed": self.seed,
            "verbose": False,
            "device": device,
        }
        steps, targets = self.steps or 100, min(self.targets, classes - 1)
        if self.name == "square":
            return SquareAttack(predict, n_queries=self.steps or 5000, resc_schedule=False, **given)
        if self.name.startswith("fab"):
            aimed = self.name == "fab-t"
            return FABAttack_PT(predict, n_iter=steps, targeted=aimed, n_target_classes=targets, **given)
        given |= {"n_iter": steps, "eot_iter": self.samples, "use_largereps": self.larger, "logger": _QUIET}
        if self.name == "apgd-t":
            return APGDAttack_targeted(predict, n_target_classes=targets, **given)
        return APGDAttack(predict, loss=self.name.removeprefix("apgd-"), **given)


@dataclass(frozen=True)
class PyAutoAttack(Suite):
    """AutoAttack as released by its authors, for the number that others report.

    Each image belongs to the batch it is attacked in, see `PyAutoAttackMember`: equal numbers need equal
    batches. `AutoAttack` is free of that.

    Args:
        epsilon: Budget in pixel units, above 0.
        norm: The ball in which the neighbours lie: l-infinity, l2 or l1.
        version: `standard`; `plus`, more attacks with more restarts; `rand`, for models whose outputs are
            random.
        seed: Of the random numbers, in every call of every member.

    Raises:
        ImportError: The package `pyautoattack` is not installed.

    Source: Croce and Hein 2020, arXiv 2003.01690, section 4 and 5.1; in l1, 2021, arXiv 2103.01208.
    Deviates: no more targets than other classes; the wall clock seeds nothing; no trace function is installed
    to find dynamic defences, a sanity gate of the evaluation sees them.
    """

    epsilon: Epsilon
    norm: Norm = field(default_factory=Linf)
    version: str = "standard"
    seed: int = 0

    def __post_init__(self) -> None:
        require(
            self.version in _VERSIONS,
            f"`version` must be one of {', '.join(_VERSIONS)}, got {self.version!r}.",
        )
        PyAutoAttackMember(self.epsilon, self.norm)  # the same rules

    @property
    def members(self) -> dict[str, Attack]:
        members: dict[str, Attack] = {}
        for name, settings in _VERSIONS[self.version].items():
            member = PyAutoAttackMember(self.epsilon, self.norm, name, seed=self.seed)
            member = replace(member, **settings)
            if isinstance(self.norm, L1) and self.version == "standard":
                if name == "apgd-ce":
                    member = replace(member, restarts=5, larger=True)
                elif name == "apgd-t":
                    member = replace(member, targets=5, larger=True)
            members[name] = member
        return members


@contextmanager
def _fence(model: nn.Module) -> Iterator[None]:
    """Freeze the weights, and give back the random state that the package seeds on every device."""
    frozen = [(parameter, parameter.requires_grad) for parameter in model.parameters()]
    generators = (torch.default_generator, *torch.cuda.default_generators)
    states = [generator.get_state() for generator in generators]
    try:
        for parameter, _ in frozen:
            parameter.requires_grad_(False)
        yield
    finally:
        for parameter, requires_grad in frozen:
            parameter.requires_grad_(requires_grad)
        for generator, state in zip(generators, states, strict=True):
            generator.set_state(state)
        if not torch.cuda.is_initialized():  # type: ignore[no-untyped-call]
            # A seed waits for CUDA to be up: again the one from before, not the package's.
            torch.cuda.manual_seed_all(torch.initial_seed())
