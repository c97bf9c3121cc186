"""`lit-xai methods`: what there is, in one line each, with its source."""

import importlib
import inspect
import re
from collections.abc import Iterator, Sequence
from difflib import get_close_matches

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from lit_xai.cli.options import Options
from lit_xai.types import require

ROOMS = ("attributions", "attacks", "objectives", "optim", "metrics", "models")


def main(words: Sequence[str]) -> int:
    """Print every public class and function of the rooms."""
    parser = Options("methods", "List what there is, with its source.")
    parser.add_argument("room", nargs="*", help=f"one or more of {', '.join(ROOMS)} (default: all)")
    chosen = parser.parse_args(list(words)).room or ROOMS
    for room in chosen:
        near = get_close_matches(room, ROOMS, 1)
        require(
            room in ROOMS, f"there is no room {room!r}: {f'did you mean {near[0]!r}?' if near else ROOMS}"
        )
    console = Console()
    if not console.is_terminal:
        console.width = 400  # a line each, for a pager or a search
    for room in chosen:
        table = Table(title=room, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
        for column in ("name", "what it is", "source"):
            table.add_column(column, style={"name": "cyan"}.get(column), overflow="fold")
        for row in described(room):
            table.add_row(*map(escape, row))
        console.print(table)
        console.print()
    return 0


def described(room: str) -> Iterator[tuple[str, str, str]]:
    """Name, first sentence and source of every concrete public thing of a room."""
    module = importlib.import_module(f"lit_xai.{room}")
    for name in sorted(module.__all__):
        thing = getattr(module, name)
        if not callable(thing) or inspect.isabstract(thing) or getattr(thing, "_is_protocol", False):
            continue
        text = inspect.getdoc(thing) or ""
        sentence = " ".join(text.split("\n\n")[0].split())
        source = re.search(r"Source:\s*(.+?)(?:\n\s*\n|\n\w+:|\Z)", text, re.S)
        yield name, sentence, " ".join(source.group(1).split()) if source else ""
