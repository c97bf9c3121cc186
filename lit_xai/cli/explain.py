"""`lit-xai explain`: maps of a network, for validation images or for image files of one's own."""

import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from rich.progress import track
from torch import Tensor

from lit_xai.callbacks import gallery
from lit_xai.callbacks.look import reasons
from lit_xai.cli.options import Options
from lit_xai.cli.subject import Subject, add_subject_options, read_subject
from lit_xai.cli.trainer import prepare
from lit_xai.data.decode import decode, fit
from lit_xai.observe import explain, observing
from lit_xai.types import check_batch, require, require_at_least

PER_SHEET = 8


def main(words: Sequence[str]) -> int:
    """Write `maps.npz` and sheets of pictures; the model is left as it was."""
    options, more = _options().split(words)
    require_at_least(1, samples=options.samples, batch_size=options.batch_size)
    subject = read_subject("explain", options, more)
    attributions = dict(subject.config.explain.attributions)
    require(
        bool(attributions),
        "`explain.attributions` is empty: name some, e.g. `--config configs/explain/menu.yaml`.",
    )
    inputs, target, names = _read(subject, options)
    out = options.output or subject.out / "explanations" / ("files" if options.images else "validation")
    prepare(out, subject.yaml)
    failed: dict[str, str] = {}
    parts = list(_explained(subject, inputs, target, attributions, options, failed))
    require(len(failed) < len(attributions), f"all have failed: {'; '.join(reasons(failed))}.")
    kept = parts[0].keys() - {f"maps/{name}" for name in failed}
    pictures: dict[str, Any] = {
        key: np.concatenate([part[key] for part in parts]) for key in parts[0] if key in kept
    }
    pictures["names"] = np.array(names)
    np.savez_compressed(out / "maps.npz", **pictures)
    sheets = range(0, len(names), PER_SHEET)
    for sheet, first in enumerate(sheets):
        rows = {key: value[first : first + PER_SHEET] for key, value in pictures.items()}
        gallery.save(out / f"maps_{sheet:03d}.png", rows)
    for reason in reasons(failed):
        print(f"lit-xai: failed and left out: {reason}.", file=sys.stderr)
    shown = len(attributions) - len(failed)
    print(f"{len(names)} images x {shown} attributions: {out}/maps.npz and {len(sheets)} sheets")
    return 0


def _explained(
    subject: Subject,
    inputs: Tensor,
    target: Tensor | None,
    attributions: dict[str, Any],
    options: Any,
    failed: dict[str, str],
) -> Iterator[dict[str, Any]]:
    """Maps batch by batch; methods that fail are named in `failed`."""
    model, device = subject.model, subject.device
    alone = len(attributions) == 1  # there is nothing to go on with
    for rows in track(
        torch.split(torch.arange(len(inputs)), options.batch_size), "explaining", transient=True
    ):
        batch = inputs[rows].to(device)
        with observing(model, options.seed), torch.no_grad():
            prediction = model(batch).argmax(1)
        chosen = prediction if target is None else target[rows].to(device)
        seen = explain(model, batch, chosen, attributions, {}, options.seed, rows.to(device), strict=alone)
        failed.update(seen.failed)
        maps = {f"maps/{name}": value for name, value in seen.maps.items()}
        shown = {"ids": rows, "inputs": batch, "target": chosen, "prediction": prediction, **maps}
        yield {key: value.cpu().numpy() for key, value in shown.items()}


def _read(subject: Subject, options: Any) -> tuple[Tensor, Tensor | None, list[str]]:
    """Images, the classes to explain (None: the predicted ones), and what the images are called."""
    pool = subject.pool("val")
    if not options.images:
        count = min(options.samples, len(pool))
        names = [f"validation {index}" for index in range(count)]
        return *pool.batch(range(count), subject.channels, subject.classes), names
    channels, height, width = pool.first().shape[1:]
    # All files are read before the first is explained: a broken one costs nothing.
    require(
        height == width, f"image files become squares, but the images of this run are {height} x {width}."
    )
    files = (fit(decode(path, f"image {path}", channels), height) for path in options.images)
    images = torch.stack(list(files)).to(torch.float32) / 255
    check_batch(images, torch.zeros(1, dtype=torch.int64), subject.channels, subject.classes)
    fixed = None if options.target is None else torch.full((len(images),), options.target)
    require(
        options.target is None or 0 <= options.target < subject.classes,
        f"`--target` must lie in 0..{subject.classes - 1}, got {options.target}.",
    )
    return images, fixed, [str(path) for path in options.images]


def _options() -> Options:
    parser = Options(
        "explain",
        "Write maps as PNG and NPZ. Further options override the configuration, "
        "e.g. --config configs/explain/menu.yaml.",
    )
    add_subject_options(parser)
    parser.add_argument(
        "--images", type=Path, nargs="+", metavar="PATH", help="image files instead of validation images"
    )
    parser.add_argument(
        "--target", type=int, help="class to explain in image files (default: the predicted one)"
    )
    parser.add_argument("--samples", type=int, default=16, help="validation images (default: 16)")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time (default: 32)")
    parser.add_argument(
        "--output", type=Path, metavar="DIR", help="default: explanations/ in the folder of the run"
    )
    parser.add_argument("--seed", type=int, default=0, help="fixes all random draws (default: 0)")
    return parser
