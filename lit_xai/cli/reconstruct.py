"""`lit-xai reconstruct`: what comes back of images from each layer, and patterns made of features."""

import csv
import json
import textwrap
from argparse import Namespace
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from matplotlib.figure import Figure
from rich.console import Console
from rich.progress import Progress
from torch import Tensor, nn

from lit_xai.attacks.semantic import SemanticPattern
from lit_xai.cli.options import Options
from lit_xai.cli.subject import Subject, add_subject_options, read_subject
from lit_xai.cli.trainer import prepare
from lit_xai.models.backtracking import (
    Backtracking,
    likeness,
    psnr,
    reconstructions,
    relative_error,
    stages,
)
from lit_xai.network import record
from lit_xai.observe import observing
from lit_xai.pictures import PALETTE, Picture, photograph, shades
from lit_xai.randomness import keyed
from lit_xai.types import Eps, require, require_at_least

SHOWN = 6  # images in a picture
PER_PIXEL = 0.3  # default budget of a pattern, in l2, per square root of a pixel
MEASURES = {"relative_error": relative_error, "psnr": psnr, "correlation": likeness}


@dataclass(frozen=True)
class Seen:
    """What was found about one network.

    Args:
        name: Of the network.
        summary: The numbers: `layers`, `pattern`, and why a layer is missing.
        shown: Pictures of the first images, as arrays by name.
    """

    name: str
    summary: dict[str, Any]
    shown: dict[str, Any]


def main(words: Sequence[str]) -> int:
    """Write `reconstruction.{tsv,json,png}` and `pattern.png`; the models are left as they were."""
    options, more = _options().split(words)
    require_at_least(1, images=options.images, batch_size=options.batch_size)
    subjects = [read_subject("reconstruct", options, more, split=options.split)]
    if options.against:
        other = Namespace(**{**vars(_options().parse_args([])), "run": options.against})
        other.device = options.device
        other.checkpoint = options.checkpoint if options.checkpoint in ("last", "best") else "last"
        subjects.append(read_subject("reconstruct", other, [], split=options.split))
        made = [(subject.pool(options.split).first().shape, subject.classes) for subject in subjects]
        require(made[0] == made[1], f"`--against` {options.against} is about other images or classes.")
    out = subjects[0].out / "reconstruction"
    pool = subjects[0].pool(options.split)
    ids = pool.spaced(options.images)
    inputs, target = pool.batch(ids, subjects[0].channels, subjects[0].classes)
    numbers = torch.tensor(ids)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task("reconstructing", total=len(ids) * len(subjects))
        found = [
            _see(subject, inputs, target, numbers, options, lambda count: progress.advance(bar, count))
            for subject in subjects
        ]
    prepare(out, subjects[0].yaml)
    _write(out, found, options, len(ids))
    _draw_layers(out / "reconstruction.png", inputs, found)
    names = dict(enumerate(map(str, getattr(subjects[0].data, "names", None) or ())))
    _draw_patterns(out / "pattern.png", inputs, found, names)
    for one in found:
        _say(one)
    print(f"{out}: reconstruction.tsv, reconstruction.json, reconstruction.png, pattern.png")
    return 0


def _see(subject: Subject, inputs: Tensor, target: Tensor, ids: Tensor, options: Any, advance: Any) -> Seen:
    """Every layer that goes back, and the pattern of the last feature map."""
    model, device = subject.model, subject.device
    how = Backtracking(options.pooling, options.guided)
    epsilon = PER_PIXEL * inputs[0].numel() ** 0.5 if options.epsilon is None else options.epsilon
    with observing(model, options.seed):
        layers, layer, lost = _layers(model, inputs[:1].to(device), options.layers, how)
        attack = SemanticPattern(
            Eps(epsilon), layer, options.features, pooling=options.pooling, guided=options.guided
        )
        scores: dict[str, dict[str, list[Tensor]]] = {name: {key: [] for key in MEASURES} for name in layers}
        flips: list[Tensor] = []
        shown: dict[str, list[Tensor]] = defaultdict(list)
        for rows in torch.split(torch.arange(len(inputs)), options.batch_size):
            batch, labels = inputs[rows].to(device), target[rows].to(device)
            back = reconstructions(model, batch, layers, how)
            for name, images in back.items():
                for key, measure in MEASURES.items():
                    scores[name][key].append(measure(images, batch))
            with keyed(options.seed, ids[rows].to(device)), torch.no_grad():
                said = model(batch).argmax(1)
                found = attack.search(model, batch, said)
                aim = attack.aim(model(batch), said)
            largest = (found.points - batch).abs().flatten(1).amax(1)
            pattern = attack.pattern(model, batch, said)
            parts = (found.found, found.distance, largest, found.label == aim, said == labels)
            flips.append(torch.stack([part.to(batch.dtype) for part in (*parts, _smoothness(pattern))]))
            if int(rows[0]) < SHOWN:
                drawn = {f"layers/{name}": images for name, images in back.items()}
                drawn |= {"points": found.points, "found": found.found, "distance": found.distance}
                drawn |= {"said": said, "label": found.label, "pattern": pattern}
                for key, value in drawn.items():
                    shown[key].append(value.detach().cpu())
            advance(len(rows))
    summary = {
        "model": subject.name,
        "layers": {name: _moments(parts) for name, parts in scores.items()},
        "pattern": {"attack": repr(attack), "layer": layer, **_outcome(torch.cat(flips, dim=1).cpu())},
        "stopped": lost,
    }
    return Seen(
        subject.name, summary, {key: torch.cat(parts)[:SHOWN].numpy() for key, parts in shown.items()}
    )


def _layers(
    model: nn.Module, image: Tensor, asked: Sequence[str] | None, how: Backtracking
) -> tuple[Sequence[str], str | None, str]:
    """The layers asked for, or all that go back; that of the pattern; and why the next does not go back."""
    with torch.no_grad():
        tape = record(model, image)
    going: list[str] = []
    for name in stages(tape):
        value = tape.value(name)
        try:
            how(tape, value, value[None])
        except ValueError as error:
            require(bool(going or asked), str(error))
            last = going or asked or []
            with_places = [name for name in last if tape.value(name).shape[2:].numel() > 1]
            return asked or going, (with_places or last)[-1], "" if asked else str(error)
        going.append(name)
    return asked or going, None, ""


def _moments(parts: Mapping[str, list[Tensor]]) -> dict[str, float]:
    """Mean and spread over the images, less those where a measure is not finite: the error of a black one."""
    values = {key: torch.cat(value).double() for key, value in parts.items()}
    values = {key: value[value.isfinite()] for key, value in values.items()}
    means = {key: float(value.mean()) for key, value in values.items()}
    spreads = {key: float((value - means[key]).square().mean().sqrt()) for key, value in values.items()}
    return means | {f"{key}_sd": spread for key, spread in spreads.items()}


def _smoothness(pattern: Tensor) -> Tensor:
    """Correlation of neighbouring pixels: 0 for noise, 1 for a pattern without edges."""
    centred = pattern - pattern.mean((2, 3), keepdim=True)
    down = (centred[:, :, 1:] * centred[:, :, :-1]).mean((1, 2, 3))
    across = (centred[:, :, :, 1:] * centred[:, :, :, :-1]).mean((1, 2, 3))
    return (down + across) / (2 * centred.square().mean((1, 2, 3)))


def _outcome(rows: Tensor) -> dict[str, float]:
    """How often the pattern changed the decision, how often to the class aimed at, and how long it was."""
    found, l2, linf, aimed, right, smoothness = rows
    hit = found > 0
    medians = [float(part[hit].median()) if bool(hit.any()) else float("nan") for part in (l2, linf)]
    return {
        "images": rows.shape[1],
        "accuracy": float(right.mean()),
        "success": float(found.mean()),
        "aimed": float((found * aimed).mean()),
        "l2_median": medians[0],
        "linf_median": medians[1],
        "smoothness": float(smoothness.nanmean()),
    }


def _write(out: Path, found: Sequence[Seen], options: Any, images: int) -> None:
    kept = {"split": options.split, "images": images, "seed": options.seed}
    text = json.dumps({**kept, "networks": [one.summary for one in found]})
    summary = json.loads(text, parse_constant=lambda _: None)  # JSON has no word for what is not finite
    (out / "reconstruction.json").write_text(json.dumps(summary, indent=2) + "\n")
    with (out / "reconstruction.tsv").open("w", newline="") as file:
        writer = csv.writer(file, delimiter="\t")
        columns = [*MEASURES, *(f"{key}_sd" for key in MEASURES)]
        writer.writerow(["model", "layer", *columns])
        for one in found:
            for layer, values in one.summary["layers"].items():
                writer.writerow([one.name, layer, *(f"{values[key]:.6g}" for key in columns)])


def _say(one: Seen) -> None:
    print(one.name)
    for layer, values in one.summary["layers"].items():
        print(
            f"  {layer:<24} relative error {values['relative_error']:<9.3g} "
            f"psnr {values['psnr']:5.1f} dB  correlation {values['correlation']:.2f}"
        )
    if one.summary["stopped"]:
        print(f"  no further: {one.summary['stopped']}")
    said = one.summary["pattern"]
    where = f" of {said['layer']}" if said["layer"] else ""
    print(
        f"  pattern{where} changes {100 * said['success']:.0f} % of decisions, {100 * said['aimed']:.0f} % "
        f"to the class aimed at; median l2 {said['l2_median']:.2f}, linf {said['linf_median']:.2f}; "
        f"correlation of its neighbouring pixels {said['smoothness']:.2f}"
    )


def _draw_layers(path: Path, inputs: Tensor, found: Sequence[Seen]) -> None:
    """A row per image and network: the image, and what comes back from every layer, layers by column."""
    names = list(dict.fromkeys(key for one in found for key in one.shown if key.startswith("layers/")))
    count = min(SHOWN, len(inputs))
    axes, figure = _grid(count * len(found), 1 + len(names))
    for image in range(count):
        for which, one in enumerate(found):
            line = axes[image * len(found) + which]
            top = image == which == 0
            _draw(line[0], photograph(inputs[image].numpy()), "image" if top else "", "")
            line[0].set_ylabel(_title(one) if len(found) > 1 else "", fontsize=8)
            for axis, name in zip(line[1:], names, strict=True):
                title = name.removeprefix("layers/").removeprefix("net.") if top else ""
                if name not in one.shown:
                    axis.set_title(title, fontsize=7.5)
                    axis.set_xlabel("does not go back", fontsize=6.5)
                    continue
                back = torch.from_numpy(one.shown[name][image])
                pair = back[None], inputs[image][None]
                error, same = (float(measure(*pair)) for measure in (relative_error, likeness))
                shown = _fitted(back, inputs[image]).numpy()
                _draw(axis, photograph(shown), title, f"error {error:#.2g}, r {same:.2f}")
    note = "What comes back from each layer, drawn at the contrast and brightness that fit the image best. "
    _save(figure, path, note + "Error: |x' - x|² / |x|² before that. r: correlation.")


def _fitted(back: Tensor, image: Tensor) -> Tensor:
    """The a x' + b, a >= 0, nearest to the image: flat where nothing of it came back."""
    centred = back - back.mean()
    gain = (centred * image).sum().clamp(min=0) / centred.square().sum()
    return gain.nan_to_num(0) * centred + image.mean()


def _draw_patterns(path: Path, inputs: Tensor, found: Sequence[Seen], words: Mapping[int, str]) -> None:
    """For every image and network: image, pattern, changed image."""
    count = min(SHOWN, len(inputs))
    axes, figure = _grid(count, 3 * len(found))
    for which, one in enumerate(found):
        shown = one.shown
        for image in range(count):
            line = axes[image][3 * which : 3 * which + 3]
            above = [_title(one), "pattern", "changed"] if image == 0 else [""] * 3
            palette, _ = shades(shown["pattern"][image])
            said, label = (words.get(int(shown[key][image]), shown[key][image]) for key in ("said", "label"))
            flips = bool(shown["found"][image])
            length = f"l2 {shown['distance'][image]:.2g}" if flips else ""
            _draw(line[0], photograph(inputs[image].numpy()), above[0], f"taken for {said}")
            _draw(line[1], PALETTE[palette], above[1], length)
            note = f"taken for {label}" if flips else "stands"
            _draw(line[2], photograph(shown["points"][image]), above[2], note)
    _save(
        figure, path, "Pattern: red makes brighter, blue darker. Changed: by the shortest length that works."
    )


def _title(one: Seen) -> str:
    return one.name.split(",")[0]


def _grid(rows: int, columns: int) -> tuple[Any, Figure]:
    figure = Figure(figsize=(1.3 * columns + 0.3, 1.45 * rows + 0.5), dpi=110, facecolor="white")
    axes = figure.subplots(rows, columns, squeeze=False)
    for axis in axes.flat:
        axis.set(xticks=[], yticks=[])
        for spine in axis.spines.values():
            spine.set_edgecolor("#cccccc")
    return axes, figure


def _save(figure: Figure, path: Path, note: str) -> None:
    """Write the picture, with a note above in as many lines as it takes."""
    width, height = figure.get_size_inches()
    figure.suptitle(textwrap.fill(note, int(15 * width)), y=1 - 0.08 / height, fontsize=7.5)
    figure.tight_layout(pad=0.5, h_pad=0.9)
    figure.savefig(path)


def _draw(axis: Any, picture: Picture, title: str, note: str) -> None:
    axis.imshow(picture, interpolation="nearest")
    axis.set_title(title, fontsize=7.5)
    axis.set_xlabel(note, fontsize=6.5)


def _options() -> Options:
    parser = Options(
        "reconstruct",
        "Run a network backwards from each of its layers to the image, and from features of another class to "
        "a pattern that changes the decision: pictures and numbers. Further options override the "
        "configuration.",
    )
    add_subject_options(parser)
    parser.add_argument(
        "--against", type=Path, metavar="DIR", help="a second run on the same images, e.g. one without Bort"
    )
    parser.add_argument(
        "--layers", nargs="+", metavar="NAME", help="modules (default: all activations, pools and logits)"
    )
    parser.add_argument("--images", type=int, default=100, help="images, evenly spaced (default: 100)")
    parser.add_argument("--split", choices=("val", "test"), default="val", help="which (default: val)")
    parser.add_argument("--epsilon", type=Eps, help="largest l2 of a pattern (default: 0.3 sqrt(pixels))")
    parser.add_argument(
        "--features", type=int, default=16, help="channels raised in a pattern, and lowered (default: 16)"
    )
    parser.add_argument(
        "--pooling", choices=("nearest", "indices"), default="nearest", help="what becomes of max pools"
    )
    parser.add_argument("--guided", action="store_true", help="ReLUs pass on what they had let through")
    parser.add_argument("--batch_size", type=int, default=32, help="images at a time (default: 32)")
    parser.add_argument("--seed", type=int, default=0, help="fixes all random draws (default: 0)")
    return parser
