"""Maps as pictures: the same images for every regime, signed colours centred at zero, scale printed."""

import base64
import io
import zipfile
import zlib
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from lit_xai.pictures import PALETTE, flaw, photograph, shades
from lit_xai.study.record import Record, in_order
from lit_xai.study.tables import Study, significant

MOST_IMAGES = 8
MOST_PIXELS = 8_000_000  # over all maps of the page
UNREADABLE = (OSError, ValueError, KeyError, EOFError, NotImplementedError, zipfile.BadZipFile, zlib.error)


@dataclass(frozen=True)
class Pictures:
    """What one file of explanations holds.

    Args:
        ids: Names the images, in order.
        inputs: Pixels in [0, 1].
        target: The explained class, per image.
        prediction: The predicted class, per image.
        maps: One map per image, by attribution.
    """

    ids: list[int]
    inputs: Float[np.ndarray, "image channel height width"]
    target: list[int]
    prediction: list[int]
    maps: dict[str, Float[np.ndarray, "image channel height width"]]


@dataclass(frozen=True)
class Tile:
    """One map as the page shows it.

    Args:
        uri: The picture.
        scale: Value at full colour, as text; empty for a map without one.
        note: What is wrong with the map; empty if nothing is.
    """

    uri: str
    scale: str = ""
    note: str = ""


@dataclass(frozen=True)
class Row:
    """One regime's maps of one image.

    Args:
        regime: Name of the regime.
        run: The run that made them.
        input: The picture explained.
        prediction: Predicted class.
        right: Whether it is the true one.
        tiles: One per attribution, or None where the run lacks it.
    """

    regime: str
    run: str
    input: str
    prediction: int
    right: bool
    tiles: list[Tile | None]


@dataclass(frozen=True)
class Panel:
    """One image at one epoch: a row per regime.

    Args:
        id: Of the image.
        target: Its true class.
        epoch: Epoch of the maps.
        rows: One per regime.
    """

    id: int
    target: int
    epoch: int
    rows: list[Row]


@dataclass(frozen=True)
class Gallery:
    """All panels of the page.

    Args:
        methods: Attributions, in the order of the columns.
        ids: Images that can be chosen.
        thumbs: Their pictures.
        epochs: Epochs that can be chosen, the last first.
        panels: One per image and epoch.
        total: How many images the runs share.
        problems: What could not be shown.
    """

    methods: list[str]
    ids: list[int]
    thumbs: list[str]
    epochs: list[int]
    panels: list[Panel]
    total: int
    problems: list[str]


def gallery(study: Study) -> Gallery | None:
    """Build the gallery from the first seed of every regime; None where there are no maps.

    Args:
        study: The runs; their files of the first and of the last epoch that all regimes have are shown.
    """
    problems: list[str] = []
    drawn = {record.name: pictured(record) for record in study.used}
    chosen = [next((r for r in study.of(regime) if drawn[r.name]), None) for regime in study.regimes]
    records = [record for record in chosen if record is not None]
    epochs = common([drawn[record.name] for record in records])
    books: dict[tuple[str, int], Pictures] = {}
    for epoch in sorted({min(epochs), max(epochs)}, reverse=True) if epochs else []:
        for record in records:
            try:
                books[record.name, epoch] = read_pictures(record.pictures[epoch])
            except UNREADABLE as error:
                problems.append(f"{record.name}, epoch {epoch}: {record.pictures[epoch].name}: {error}")
    shared = common([book.ids for book in books.values()])
    if not shared:
        if books:
            problems.append("The runs explain different images: there is nothing to set side by side.")
        return Gallery([], [], [], [], [], 0, problems) if problems else None
    methods = in_order(name for book in books.values() for name in book.maps)
    side = max(book.inputs.shape[-1] * book.inputs.shape[-2] for book in books.values())
    room = max(1, MOST_PIXELS // (side * len(methods or [""]) * len(books)))
    ids = shared[: min(MOST_IMAGES, room)]
    shown = sorted({epoch for _, epoch in books}, reverse=True)
    panels = [panel(records, books, methods, image, epoch) for image in ids for epoch in shown]
    first = next(iter(books.values()))
    thumbs = [png(photograph(first.inputs[first.ids.index(image)])) for image in ids]
    return Gallery(methods, ids, thumbs, shown, panels, len(shared), problems)


def pictured(record: Record) -> list[int]:
    """Epochs whose file holds maps beside its scores, or cannot be read: so that this is said."""
    epochs = []
    for epoch, path in record.pictures.items():
        try:
            with zipfile.ZipFile(path) as file:
                if "inputs.npy" not in file.namelist():
                    continue
        except UNREADABLE:
            pass
        epochs.append(epoch)
    return epochs


def panel(
    records: Iterable[Record],
    books: dict[tuple[str, int], Pictures],
    methods: list[str],
    image: int,
    epoch: int,
) -> Panel:
    """One image at one epoch, over all regimes that have it."""
    rows = []
    target = 0
    for record in records:
        book = books.get((record.name, epoch))
        if book is None:
            continue
        at = book.ids.index(image)
        target = book.target[at]
        tiles = [tile(book.maps[name][at]) if name in book.maps else None for name in methods]
        shown = png(photograph(book.inputs[at]))
        guess = book.prediction[at]
        rows.append(Row(record.regime, record.name, shown, guess, guess == target, tiles))
    return Panel(image, target, epoch, rows)


def read_pictures(path: Path) -> Pictures:
    """Read `explanations/epoch_XXX.npz`; nothing in it is unpickled."""
    with path.open("rb") as stream, np.load(stream, allow_pickle=False) as file:
        inputs = np.asarray(file["inputs"], dtype=np.float32)
        count = len(inputs)
        ids = file["ids"] if "ids" in file else np.arange(count)
        maps = {name.removeprefix("maps/"): file[name] for name in file if name.startswith("maps/")}
        target, prediction = file["target"], file["prediction"]
    for name, array in {"ids": ids, "target": target, "prediction": prediction, **maps}.items():
        if len(array) != count:
            raise ValueError(f"`{name}` has {len(array)} entries, `inputs` has {count}")
    as_ints = ([int(value) for value in array] for array in (ids, target, prediction))
    names, classes, guesses = as_ints
    return Pictures(names, inputs, classes, guesses, maps)


def common(lists: list[list[int]]) -> list[int]:
    """What all lists hold, in the order of the first."""
    return [item for item in lists[0] if all(item in other for other in lists)] if lists else []


def tile(relevance: Float[np.ndarray, "channel height width"]) -> Tile:
    """Paint a signed map, with its scale and what is wrong with it."""
    indices, scale = shades(relevance)
    return Tile(
        png(indices, PALETTE.tobytes()), f"±{significant(scale)}" if scale > 0 else "", flaw(relevance, scale)
    )


def png(pixels: UInt8[np.ndarray, "height width *channel"], palette: bytes = b"") -> str:
    """A picture as a data URI; with a palette, pixels are indices into it."""
    from PIL import Image

    image = Image.fromarray(pixels)
    if palette:
        image = image.convert("P")
        image.putpalette(palette)
    stream = io.BytesIO()
    image.save(stream, format="PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(stream.getvalue()).decode()
