"""Options of the commands that are plain functions."""

import argparse
from collections.abc import Sequence
from difflib import get_close_matches
from typing import NoReturn


class Options(argparse.ArgumentParser):
    """An argument parser that knows no abbreviations and refuses in one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"lit-xai {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`).")

    def split(self, words: Sequence[str]) -> tuple[argparse.Namespace, list[str]]:
        """The options that are known here, and the words that are left: options of a configuration.

        Raises:
            ValueError: A word that is left is a misspelt option of this command.
        """
        known, rest = self.parse_known_args(list(words))
        names = [name for action in self._actions for name in action.option_strings]
        for word in rest:
            name = word.split("=")[0]
            near = get_close_matches(name, names, 1, cutoff=0.75)
            if near and name.startswith("--") and "." not in name:
                self.error(f"there is no option {name!r}: did you mean {near[0]!r}?")
        return known, rest
