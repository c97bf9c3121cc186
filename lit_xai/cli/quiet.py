"""What every run says and nobody can act on, silenced."""

import logging
import warnings


def quiet() -> None:
    """Silence what every run says and nobody can act on."""
    for name in ("lightning.pytorch.utilities.rank_zero", "lightning.fabric.utilities.seed"):
        logging.getLogger(name).addFilter(
            lambda record: not record.getMessage().split("] ")[-1].startswith(_TIPS)
        )
    for text in _KNOWN_WARNINGS:
        warnings.filterwarnings("ignore", text)


_TIPS = (
    "GPU available",
    "TPU available",
    "HPU available",
    "💡",
    "`Trainer.fit` stopped",
    "Using default",
    "Loading `train",
    "Seed set",
)
_KNOWN_WARNINGS = (
    ".*does not have many workers.*",  # data of the small sets lie in memory
    ".*Checkpoint directory .* exists and is not empty.*",  # resuming is meant
    ".*LeafSpec.*",  # lightning 2.6 on torch 2.15
    ".*sync_dist=True.*when logging on epoch level.*",  # what is logged is the same on every process
)
