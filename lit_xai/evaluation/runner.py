"""The evaluation itself: stage by stage, on the images that still stand, resumable at any moment."""

import hashlib
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from lit_xai.attacks.apgd import APGD
from lit_xai.attacks.autoattack import Suite, boxed
from lit_xai.attacks.base import Attack, Search
from lit_xai.attacks.fab import FAB
from lit_xai.attacks.losses import Aim, Loss, ranking
from lit_xai.attacks.pgd import FGSM
from lit_xai.attacks.released import PyAutoAttackMember
from lit_xai.attacks.square import Square
from lit_xai.evaluation import journal
from lit_xai.evaluation.gates import Gate, Probe, examine
from lit_xai.evaluation.journal import CLEAN, SEARCH, Plan, Row
from lit_xai.evaluation.passes import Counted
from lit_xai.observe import observing
from lit_xai.randomness import keyed
from lit_xai.types import Images, Labels, check_batch, require, require_at_least

Fetch = Callable[[Sequence[int]], tuple[Tensor, Tensor]]

_ANY = 2**63 - 1  # classes: how many there are is not known before the model is asked


@dataclass(frozen=True)
class Progress:
    """Where an evaluation stands after a batch.

    Args:
        stage: `clean`, the name of a member, or `search`; `gates` once the sanity gates are measured.
        done: Images of this process that are through with the stage.
        total: Images of this process that the stage is for.
        standing: Images of this process that nothing has fooled so far.
    """

    stage: str
    done: int
    total: int
    standing: int


@dataclass(frozen=True)
class Evaluation:
    """Evaluates a model with a suite of attacks, in as many processes as there are, and can be interrupted.

    Every process calls it with the same arguments but for `share`, and needs nothing of the others: each
    writes a journal of its own. Called again, it goes on where it was. `conclude(folder)` puts together what
    all have written.

    Members are tried one after the other on the images that still stand, in full batches, in the order of the
    list of images. No attack is believed: its points are clipped to the box, must lie within the budget, and
    the model looks at them again. The same images come together in a batch when an evaluation goes on with as
    many processes and the same batch size: so the result is that of an evaluation that was never interrupted,
    also for attacks whose random numbers belong to the batch, as those of the released AutoAttack do.

    Args:
        suite: The attacks.
        search: Measures the distance to the boundary, for the curve of accuracy over epsilon, if wanted.
        searched: Images whose distance is measured, at least 1; evenly spaced.
        probe: Images on which the sanity gates are measured, at least 0; evenly spaced.
        batch_size: Images attacked at once, at least 1.
        seed: Fixes every draw, with the ids of the images.
        name: Of the evaluation.
        split: Where the images come from.

    Raises:
        ValueError: A number is out of its range, or a member has the name of another stage.
    """

    suite: Suite
    search: Search | None = None
    searched: int = 200
    probe: int = 100
    batch_size: int = 250
    seed: int = 0
    name: str = "attack"
    split: str = "test"

    def __post_init__(self) -> None:
        require_at_least(1, searched=self.searched, batch_size=self.batch_size)
        require_at_least(0, probe=self.probe)
        for name in self.suite.members:
            require(
                name not in (CLEAN, SEARCH, "-") and len(name.split()) == 1,
                f"a member's name must be one word other than {CLEAN} and {SEARCH}, got {name!r}: rename it.",
            )

    def __call__(
        self,
        model: nn.Module,
        fetch: Fetch,
        ids: Sequence[int],
        folder: Path,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[Progress], None] | None = None,
        described: str = "",
    ) -> None:
        """Do what is not done yet of this process's share.

        Args:
            model: The network, unwrapped, on its device; images are moved there.
            fetch: Images and labels by id.
            ids: The images to evaluate, each once; image i of the list belongs to rank i mod ranks.
            folder: Where journals are kept; made if absent.
            share: (rank, ranks) of this process.
            progress: Called after every batch.
            described: What the model is, in words, for the summary; its class by default.

        Raises:
            ValueError: The folder holds an evaluation with other terms, of another model or of other data, an
                image lies outside of [0, 1], a label is out of range, or a member cannot attack this model.
        """
        rank, ranks = share
        require(0 <= rank < ranks, f"`share` must be (rank, ranks) with 0 <= rank < ranks, got {share!r}.")
        require(0 < len(set(ids)) == len(ids), "`ids` must name at least one image, and each image once.")
        report = progress or (lambda _: None)
        seen = Counted(model)
        ids = [int(index) for index in ids]
        mine = ids[rank::ranks]
        if not mine:
            return
        before = journal.begun(folder)
        specimen = ids[0] if before is None else before.specimen
        inputs, target = self._load(seen, fetch, [specimen])
        classes = self._check(seen, inputs, target)
        described = described or type(model).__name__
        plan = self._plan(model, described, ids, specimen, digest([inputs, target]), inputs.dtype)
        journal.settle(folder, plan)
        if rank == 0:
            if journal.read_gates(folder, plan) is None:
                journal.keep_gates(folder, plan, classes, self._gates(seen, fetch, plan.probed, classes))
            report(Progress("gates", 1, 1, len(mine)))
        path = journal.journal(folder, rank, ranks)
        rows = journal.read(folder)
        standing = mine
        stages: dict[str, Attack | None] = {CLEAN: None, **self.suite.members}
        if self.search is not None:
            stages[SEARCH] = self.search
        searched = set(plan.searched)
        for stage, attack in stages.items():
            wanted = [index for index in mine if index in searched] if stage == SEARCH else standing
            done = {index for index in wanted if (stage, index) in rows}
            for batch in batches(wanted, done, self.batch_size):
                fresh = self._try(seen, stage, attack, batch, *self._load(seen, fetch, batch))
                fresh = [row for row in fresh if row.index not in done]
                journal.append(path, fresh)
                rows.update({(stage, row.index): row for row in fresh})
                done.update(batch)
                fallen = 0 if stage == SEARCH else sum(rows[stage, index].fooled for index in done)
                report(Progress(stage, len(done), len(wanted), len(standing) - fallen))
            if stage != SEARCH:
                standing = [index for index in standing if not rows[stage, index].fooled]

    def _plan(
        self,
        model: nn.Module,
        described: str,
        ids: list[int],
        specimen: int,
        data: str,
        dtype: torch.dtype,
    ) -> Plan:
        suite, members = self.suite, self.suite.members
        return Plan(
            name=self.name,
            suite=repr(suite),
            norm=repr(suite.norm),
            epsilon=float(suite.epsilon),
            members={name: repr(attack) for name, attack in members.items()},
            black_box=[name for name, attack in members.items() if _black_box(attack)],
            search=None if self.search is None else repr(self.search),
            split=self.split,
            seed=self.seed,
            weights=fingerprint(model),
            specimen=specimen,
            data=data,
            precision=str(dtype).removeprefix("torch."),
            model=described,
            batch_size=self.batch_size,
            ids=ids,
            searched=[] if self.search is None else evenly(ids, self.searched),
            probed=evenly(ids, self.probe),
        )

    def _load(self, seen: Counted, fetch: Fetch, batch: Sequence[int]) -> tuple[Tensor, Tensor]:
        device = next((tensor.device for tensor in chain(seen.parameters(), seen.buffers())), None)
        inputs, target = fetch(batch)
        return inputs.to(device), target.to(device)

    def _check(self, seen: Counted, inputs: Tensor, target: Tensor) -> int:
        """Refuse, before anything is attacked, what a member would refuse in the middle of the night.

        Returns the number of classes.
        """
        check_batch(inputs, target, inputs.shape[1], _ANY)
        with observing(seen, self.seed), keyed(self.seed, torch.zeros_like(target)):
            logits = seen(inputs.detach().clone().requires_grad_())
            members = self.suite.members
            require(
                logits.ndim == 2 and logits.shape[1] > 1,
                "the model must return logits of shape (batch, class) for at least 2 classes, got shape "
                f"{tuple(logits.shape)}.",
            )
            require(
                logits.requires_grad or not any(map(_climbs, members.values())),
                "the model passes no gradient on to its images (is there a `no_grad`, a `detach` or NumPy in "
                "it?): take a suite of Square alone, or mend the model.",
            )
            logits, classes = logits.detach().to(inputs.dtype), int(logits.shape[1])
            check_batch(inputs, target, inputs.shape[1], classes)
            for attack in members.values():
                loss, aim = getattr(attack, "loss", None), getattr(attack, "aim", None)
                if isinstance(attack, PyAutoAttackMember):
                    attack.check(inputs.shape[1:], classes)
                if isinstance(aim, Aim):
                    aim = aim(logits, target)
                if isinstance(attack, APGD) and attack.targets != 0:
                    aim = ranking(logits, target, targets=attack.targets or 1)[:, 0]
                if isinstance(loss, Loss):
                    loss(logits, target, aim)
        return classes

    def _gates(self, seen: Counted, fetch: Fetch, ids: Sequence[int], classes: int) -> list[Gate]:
        """Measure the gates."""
        if not ids:
            return []
        parts = [self._load(seen, fetch, part) for part in batches(ids, (), self.batch_size)]
        inputs, target = (torch.cat(column) for column in zip(*parts, strict=True))
        check_batch(inputs, target, inputs.shape[1], classes)
        with observing(seen, self.seed):
            names = torch.tensor(ids, device=inputs.device)
            probe = Probe(seen, inputs.detach().clone(), target.clone(), names, self.seed, self.batch_size)
            return examine(probe, self.suite.epsilon, self.suite.norm)

    def _try(
        self,
        seen: Counted,
        stage: str,
        attack: Attack | None,
        batch: Sequence[int],
        inputs: Images,
        target: Labels,
    ) -> list[Row]:
        """One batch of one stage; the random state is the same whatever ran before."""
        started, forwards, backwards = time.perf_counter(), seen.forwards, seen.backwards
        with observing(seen, self.seed), keyed(self.seed, torch.tensor(batch, device=inputs.device)):
            inputs, target = inputs.detach().clone(), target.clone()
            points = inputs if attack is None else attack(seen, inputs, target).detach()
            with torch.no_grad():
                clipped = points.clamp(0, 1)
                logits = seen(clipped)
        if attack is None:
            check_batch(inputs, target, inputs.shape[1], logits.shape[1])
        prediction = logits.argmax(dim=1).masked_fill(~logits.isfinite().all(dim=1), -1)
        inside = boxed(points)
        admitted = inside if stage in (CLEAN, SEARCH) else self.suite.admits(inputs, points)
        within = inside if isinstance(attack, Search) else admitted  # a search may go beyond the budget
        delta = (clipped.double() - inputs.double()).flatten(1)
        columns = (
            target,
            prediction,
            admitted & (prediction != target),
            within,
            delta.abs().amax(dim=1),
            delta.norm(dim=1),
        )
        known: list[list[Any]] = [column.tolist() for column in columns]  # waits for the device
        count = len(batch)
        spent = [
            [(time.perf_counter() - started) / count] * count,
            _shares(seen.forwards - forwards, count),
            _shares(seen.backwards - backwards, count),
        ]
        rows = zip(*known, *spent, strict=True)
        return [Row(stage, index, *row) for index, row in zip(batch, rows, strict=True)]


def batches(wanted: Sequence[int], done: Iterable[int], size: int) -> list[list[int]]:
    """The batches that are still to do.

    Where at most one batch is done in part, it is one whose lines were cut off, and it is done again as a
    whole: batches are then those of a run without interruption. Where several are, the images were dealt to
    other processes before, and what is missing is put together.
    """
    done = set(done)
    every = [list(wanted[first : first + size]) for first in range(0, len(wanted), size)]
    open_ = [batch for batch in every if not done.issuperset(batch)]
    if sum(not done.isdisjoint(batch) for batch in open_) <= 1:
        return open_
    return batches([index for index in wanted if index not in done], (), size)


def evenly(ids: Sequence[int], count: int) -> list[int]:
    """At most `count` of the ids, evenly spaced."""
    count = min(count, len(ids))
    return [ids[k * len(ids) // count] for k in range(count)]


def fingerprint(model: nn.Module) -> str:
    """Digits that differ between weights, and are the same on every device."""
    return digest(value for value in model.state_dict().values() if isinstance(value, Tensor))


def digest(tensors: Iterable[Tensor]) -> str:
    """Digits that differ between tensors, and are the same on every device."""
    found = hashlib.sha256()
    for tensor in tensors:
        found.update(tensor.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().tobytes())
    return found.hexdigest()[:16]


def _black_box(attack: Attack) -> bool:
    return isinstance(attack, Square) or (isinstance(attack, PyAutoAttackMember) and attack.name == "square")


def _climbs(attack: Attack) -> bool:
    """Whether an attack is known to follow gradients."""
    known = isinstance(attack, FAB | FGSM | Search | PyAutoAttackMember) and not _black_box(attack)
    return known or isinstance(getattr(attack, "loss", None), Loss)


def _shares(total: int, count: int) -> list[int]:
    """A number dealt out as evenly as whole numbers can be."""
    return [total // count + (k < total % count) for k in range(count)]
