"""The `lit-xai` command: `python -m lit_xai` is the same."""

import sys

from lit_xai.cli import main

if __name__ == "__main__":
    sys.exit(main())
