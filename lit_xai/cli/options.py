"""Options of the commands that are plain functions."""

import argparse
from typing import NoReturn


class Options(argparse.ArgumentParser):
    """An argument parser that knows no abbreviations and refuses in one line."""

    def __init__(self, command: str, description: str) -> None:
        super().__init__(prog=f"lit-xai {command}", description=description, allow_abbrev=False)

    def error(self, message: str) -> NoReturn:
        raise ValueError(f"{message} (see `{self.prog} --help`).")
