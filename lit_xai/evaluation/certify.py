"""Certifying a set of images: resumable at any moment, in as many processes as there are."""

import dataclasses
import json
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any

import torch
from torch import nn

from lit_xai.evaluation import journal
from lit_xai.evaluation.certification import COLUMNS, certified, summary
from lit_xai.evaluation.runner import Fetch, batches, digest, fingerprint
from lit_xai.models.smoothed import Smoothed
from lit_xai.observe import observing
from lit_xai.provenance import provenance
from lit_xai.randomness import keyed
from lit_xai.types import check_batch, require, require_at_least, require_positive

TABLE, SUMMARY = "certificates.tsv", "certificates.json"
# What may differ between two calls in one folder: more images are added to those that are done.
_FREE = ("name", "model", "ids")


@dataclass(frozen=True)
class Plan:
    """What is certified, kept beside the journals; all but name, words and list of images binds later calls.

    Args:
        name: Of the certification.
        sigma: Noise, in pixel units.
        samples: Votes of the estimation, at most.
        selection: Votes that select the class.
        alpha: Probability that one certificate is wrong.
        tolerance: Of the sequential mode; none in the fixed one, and where radii say when to stop.
        radii: Of the sequential mode, if it stops by them.
        split: Where the images come from.
        seed: Of all draws.
        weights: Fingerprint of the model.
        network: How it was made, as far as its weights do not say.
        specimen: An image that is looked at, whether the data are the same.
        data: Fingerprint of this image and its label.
        precision: Number format of the images.
        model: What the model is, in words.
        ids: The images, in order.
    """

    name: str
    sigma: float
    samples: int
    selection: int
    alpha: float
    tolerance: float | None
    radii: list[float]
    split: str
    seed: int
    weights: str
    network: dict[str, Any]
    specimen: int
    data: str
    precision: str
    model: str
    ids: list[int]

    @property
    def sequential(self) -> bool:
        """Whether the number of votes depends on the votes."""
        return self.tolerance is not None or bool(self.radii)


@dataclass(frozen=True)
class Certification:
    """Certifies a smoothed classifier image by image, in as many processes as there are.

    Every process calls it with the same arguments but for `share`, and needs nothing of the others: each
    writes a journal of its own, at the end of every batch. Called again, it goes on where it was, with the
    batches of a run without interruption. An image's noise belongs to (seed, image): it depends on neither
    batch, chunk nor number of processes, and counts do so by the last bits of logits alone. `conclude` puts
    together what all have written.

    Args:
        sigma: Noise, in pixel units, greater than 0.
        samples: Votes that estimate the probability of the class, at least 1; sequentially, the most of them.
        selection: Votes that select the class, at least 1.
        alpha: Probability that one certificate is wrong.
        sequential: Stop each image when more votes would tell little more (`Smoothed.certify_sequentially`).
        tolerance: Of the sequential mode: share of the radius that may be given away.
        radii: Of the sequential mode: stop when it is decided which of these radii are reached instead.
        seed: Fixes every draw, with the ids of the images.
        batch_size: Images between two writes, at least 1.
        chunk: Noisy copies that pass the network at once, at least 1.
        name: Of the certification.
        split: Where the images come from.

    Raises:
        ValueError: A number is out of its range.
    """

    sigma: float
    samples: int = 10_000
    selection: int = 100
    alpha: float = 0.001
    sequential: bool = False
    tolerance: float = 0.1
    radii: tuple[float, ...] = ()
    seed: int = 0
    batch_size: int = 10
    chunk: int = 1000
    name: str = "certificates"
    split: str = "test"

    def __post_init__(self) -> None:
        require_positive(sigma=self.sigma)
        require_at_least(1, samples=self.samples, selection=self.selection)
        require_at_least(1, batch_size=self.batch_size, chunk=self.chunk)
        most = 0.5 if self.sequential else 1.0
        require(0 < self.alpha < 1, f"`alpha` must lie between 0 and 1, got {self.alpha!r}.")
        require(
            self.alpha <= most,
            f"`alpha` must be at most 0.5 in the sequential mode, got {self.alpha!r}.",
        )
        require(0 <= self.tolerance < 1, f"`tolerance` must lie in [0, 1), got {self.tolerance!r}.")
        require(all(radius >= 0 for radius in self.radii), f"`radii` must be at least 0, got {self.radii!r}.")
        require(not self.radii or self.sequential, "`radii` say when the sequential mode stops: ask for it.")

    def __call__(
        self,
        model: nn.Module,
        fetch: Fetch,
        ids: Sequence[int],
        folder: Path,
        share: tuple[int, int] = (0, 1),
        progress: Callable[[int, int], object] | None = None,
        described: str = "",
        network: dict[str, Any] | None = None,
    ) -> None:
        """Do what is not done yet of this process's share.

        Args:
            model: The network, unwrapped, on its device; images are moved there.
            fetch: Images and labels by id.
            ids: The images to certify, each once; image i of the list belongs to rank i mod ranks.
            folder: Where the journals are kept; made if absent.
            share: (rank, ranks) of this process.
            progress: Called with the images done and their number, at the start and after every batch.
            described: What the model is, in words, for the summary; its class by default.
            network: How it was made, as far as its weights do not tell.

        Raises:
            ValueError: The folder holds certificates made with other terms, an image lies outside of [0, 1],
                or a label is out of range.
        """
        rank, ranks = share
        require(0 <= rank < ranks, f"`share` must be (rank, ranks) with 0 <= rank < ranks, got {share!r}.")
        require(0 < len(set(ids)) == len(ids), "`ids` must name at least one image, and each image once.")
        device = next((tensor.device for tensor in chain(model.parameters(), model.buffers())), None)
        before = begun(folder)
        specimen = int(ids[0]) if before is None else before.specimen
        inputs, target = fetch([specimen])
        plan = Plan(
            name=self.name,
            sigma=float(self.sigma),
            samples=self.samples,
            selection=self.selection,
            alpha=self.alpha,
            tolerance=self.tolerance if self.sequential and not self.radii else None,
            radii=[float(radius) for radius in self.radii],
            split=self.split,
            seed=self.seed,
            weights=fingerprint(model),
            network=json.loads(json.dumps(network or {}, default=str)),
            specimen=specimen,
            data=digest([inputs, target]),
            precision=str(inputs.dtype).removeprefix("torch."),
            model=described or type(model).__name__,
            ids=[int(index) for index in ids],
        )
        mine = plan.ids[rank::ranks]
        settle(folder, plan, before)
        if not mine:
            return
        with observing(model, self.seed), torch.no_grad():
            classes = int(model(inputs.to(device)).shape[1])
        path, done = journal.journal(folder, rank, ranks), set(read(folder)).intersection(mine)
        report = progress or (lambda *_: None)
        report(len(done), len(mine))
        smoothed = Smoothed(model, sigma=self.sigma)
        for batch in batches(mine, done, self.batch_size):  # one that was cut off is done again as a whole
            inputs, target = fetch(batch)
            check_batch(inputs, target, inputs.shape[1], classes)
            journal.extend(path, COLUMNS, self._rows(smoothed, batch, inputs.to(device), target))
            done.update(batch)
            report(len(done), len(mine))

    def _rows(
        self, smoothed: Smoothed, batch: Sequence[int], inputs: torch.Tensor, target: torch.Tensor
    ) -> Iterator[tuple[str, ...]]:
        """The lines of one batch."""
        start = time.perf_counter()
        names = torch.tensor(batch, device=inputs.device)
        with observing(smoothed, self.seed), keyed(self.seed, names):
            if self.sequential:
                found = smoothed.certify_sequentially(
                    inputs,
                    n0=self.selection,
                    n=self.samples,
                    alpha=self.alpha,
                    tolerance=self.tolerance,
                    radii=self.radii,
                    chunk=self.chunk,
                )
            else:
                found = smoothed.certify(inputs, self.selection, self.samples, self.alpha, self.chunk)
        columns = (target, found.label, found.radius, found.count, found.samples)
        known = [column.tolist() for column in columns]  # waits for the device
        seconds = (time.perf_counter() - start) / len(batch)
        for index, label, said, radius, count, samples in zip(batch, *known, strict=True):
            right = int(said == label)
            cells = (index, label, said, repr(radius), right, f"{seconds:.4g}", count, samples)
            yield tuple(map(str, cells))


def begun(folder: Path) -> Plan | None:
    """The plan of the certificates that a folder holds; none if it holds none.

    Raises:
        ValueError: It holds certificates, and nothing says how they were made.
    """
    return read_plan(folder) if read(folder) else None


def read_plan(folder: Path) -> Plan:
    """The plan of a folder.

    Raises:
        ValueError: There is none, or it cannot be read.
    """
    return journal.plan_of(folder, Plan, "certification")


def settle(folder: Path, plan: Plan, before: Plan | None) -> None:
    """Write the plan of a folder; refuse one whose terms differ from those of the lines already there.

    Raises:
        ValueError: The folder holds certificates that were made with other terms.
    """
    folder.mkdir(parents=True, exist_ok=True)
    if before is not None:
        old, new = dataclasses.asdict(before), dataclasses.asdict(plan)
        differ = [term for term in new if term not in _FREE and old[term] != new[term]]
        require(
            not differ,
            f"{folder} holds certificates of other terms ({', '.join(differ)}): take another `--name`.",
        )
    journal.write(folder / journal.PLAN, dataclasses.asdict(plan))


def read(folder: Path) -> dict[int, dict[str, str]]:
    """The certificates of all journals of a folder, by image; of two of the same, the first."""
    found: dict[int, dict[str, str]] = {}
    for cells in journal.lines(folder):
        if len(cells) == len(COLUMNS) and cells[0].isdecimal() and cells[-1].isdecimal():
            found.setdefault(int(cells[0]), dict(zip(COLUMNS, cells, strict=True)))
    return found


def unfinished(folder: Path) -> int:
    """How many images still wait."""
    return len(set(read_plan(folder).ids) - set(read(folder)))


def conclude(folder: Path) -> dict[str, Any]:
    """Write the table and the summary of a complete certification; return the latter's content.

    Raises:
        ValueError: Some images are not certified yet.
    """
    plan, rows = read_plan(folder), read(folder)
    waiting = [index for index in plan.ids if index not in rows]
    require(
        not waiting, f"{folder} is not complete ({len(waiting)} images wait): run the same command again."
    )
    kept = [rows[index] for index in plan.ids]
    lines = ["\t".join(COLUMNS), *("\t".join(row.values()) for row in kept)]
    journal.replace(folder / TABLE, "\n".join(lines) + "\n")
    spent = sum(int(row["samples"]) for row in kept) / len(kept)
    content = {
        "name": plan.name,
        "model": plan.model,
        "mode": "sequential" if plan.sequential else "fixed",
        **{
            key: getattr(plan, key)
            for key in ("sigma", "samples", "selection", "alpha", "tolerance", "radii")
        },
        **{key: getattr(plan, key) for key in ("split", "seed", "precision")},
        **summary(certified(kept, plan.sigma, plan.alpha), plan.radii),
        "votes": spent,
        "seconds": round(sum(float(row["time"]) for row in kept), 3),
        "provenance": provenance(plan.seed),
    }
    journal.write(folder / SUMMARY, content)
    return content
