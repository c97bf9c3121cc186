"""`lit-xai certify`: l2 certificates of a smoothed classifier, image by image."""

import csv
import json
import math
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from rich.progress import Progress

from lit_xai import randomness
from lit_xai.cli.options import Options
from lit_xai.cli.subject import add_subject_options, read_subject
from lit_xai.models import Smoothed
from lit_xai.observe import observing
from lit_xai.types import require, require_at_least

# The six standard columns of published logs first; counts behind them, so that radii can be checked.
COLUMNS = ("idx", "label", "predict", "radius", "correct", "time", "count", "samples")


def main(words: Sequence[str]) -> int:
    """Certify what is not certified yet; append to `certificates.tsv`; print certified accuracies."""
    options, more = _options().split(words)
    require_at_least(1, samples=options.samples, selection=options.selection, images=options.images)
    require_at_least(1, batch_size=options.batch_size, chunk=options.chunk)
    subject = read_subject("certify", options, more, split=options.split)
    require(
        bool(options.sigma or subject.sigma),
        "`--sigma` is needed: nothing says with how much noise this network was trained.",
    )
    sigma = float(options.sigma or subject.sigma or 0)

    terms = {
        "sigma": sigma,
        "samples": options.samples,
        "selection": options.selection,
        "alpha": options.alpha,
        "seed": options.seed,
        "split": options.split,
        "checkpoint": subject.weights,
        "weights": subject.fingerprint,
    }
    subject.out.mkdir(parents=True, exist_ok=True)
    path = subject.out / "certificates.tsv"
    _drop_cut_line(path)
    _agree(path.with_suffix(".json"), terms, path)
    pool, done = subject.pool(options.split), {row["idx"] for row in read(path)}
    todo = [index for index in pool.spaced(options.images) if index not in done]
    smoothed = Smoothed(subject.model, sigma=sigma)
    with Progress(transient=True) as progress, path.open("a", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        if file.tell() == 0:
            writer.writerow(COLUMNS)
        bar = progress.add_task("certifying", total=len(todo))
        for first in range(0, len(todo), options.batch_size):
            ids = torch.tensor(todo[first : first + options.batch_size])
            inputs, target = pool.batch(ids.tolist(), subject.channels, subject.classes)
            start = time.perf_counter()
            inputs = inputs.to(subject.device)
            with observing(smoothed, options.seed), randomness.keyed(options.seed, ids.to(inputs.device)):
                found = smoothed.certify(
                    inputs, n0=options.selection, n=options.samples, alpha=options.alpha, chunk=options.chunk
                )
            seconds = (time.perf_counter() - start) / len(ids)
            columns = (ids, target, found.label, found.radius, found.count)
            for index, label, said, radius, count in zip(*(c.tolist() for c in columns), strict=True):
                outcome = (index, label, said, repr(radius), int(said == label))
                writer.writerow((*outcome, f"{seconds:.4g}", count, options.samples))
            file.flush()
            progress.advance(bar, len(ids))
    _report(read(path), sigma, path)
    return 0


def read(path: Path) -> list[dict[str, Any]]:
    """The certificates of a file; none if it does not exist."""
    if not path.exists():
        return []
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file, delimiter="\t"))
    return [
        {
            "idx": int(row["idx"]),
            "label": int(row["label"]),
            "predict": int(row["predict"]),
            "radius": float(row["radius"]),
            "correct": row["correct"] == "1",
        }
        for row in rows
    ]


def _drop_cut_line(path: Path) -> None:
    """A line that was cut off while it was written is removed, or the next one would be glued to it."""
    text = path.read_text() if path.exists() else ""
    if text and not text.endswith("\n"):
        path.write_text(text[: text.rfind("\n") + 1])


def _report(rows: list[dict[str, Any]], sigma: float, path: Path) -> None:
    count = len(rows)
    print(f"{count} images, sigma {sigma:g}: {path}")
    for step in range(9):
        radius = step * sigma / 2
        share = sum(row["correct"] and row["radius"] >= radius for row in rows) / count
        error = math.sqrt(share * (1 - share) / count)
        print(f"  certified accuracy at radius {radius:5.3f}: {share:.3f} ± {error:.3f}")
    mean = sum(row["radius"] for row in rows if row["correct"]) / count
    print(f"  average certified radius: {mean:.4f}")
    print(f"  abstained: {sum(row['predict'] < 0 for row in rows) / count:.3f}")


def _agree(path: Path, terms: dict[str, Any], table: Path) -> None:
    """Certificates of one file share their terms: refuse to mix."""
    if path.exists() and read(table):
        before = json.loads(path.read_text())
        differ = [key for key in terms if before.get(key) != terms[key]]
        require(
            not differ,
            f"{table} holds certificates made with other terms ({', '.join(differ)}): move it away first.",
        )
    path.write_text(json.dumps(terms, indent=2) + "\n")


def _options() -> Options:
    parser = Options(
        "certify",
        "Certify the smoothed classifier of a network (Cohen et al. 2019). A second call goes on "
        "where the first one stopped. Further options override the configuration.",
    )
    add_subject_options(parser)
    parser.add_argument("--sigma", type=float, help="noise in pixel units (default: as trained with)")
    parser.add_argument(
        "--samples", type=int, default=10_000, help="noise draws for the bound (default: 10000)"
    )
    parser.add_argument(
        "--selection", type=int, default=100, help="draws that choose the class (default: 100)"
    )
    parser.add_argument(
        "--alpha", type=float, default=0.001, help="failure probability per image (default: 0.001)"
    )
    parser.add_argument("--images", type=int, default=100, help="images, evenly spaced (default: 100)")
    parser.add_argument(
        "--split", choices=("val", "test"), default="test", help="which images (default: test)"
    )
    parser.add_argument("--batch_size", type=int, default=10, help="images between two writes (default: 10)")
    parser.add_argument(
        "--chunk", type=int, default=1000, help="noisy copies that pass at once (default: 1000)"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes the noise (default: 0)")
    return parser
