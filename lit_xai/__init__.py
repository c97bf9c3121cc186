"""Train classifiers, explain them while they train, and see how explanation quality tracks robustness."""

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from lit_xai.classifier import Classifier as Classifier

__all__ = ["Classifier", "__version__"]


def __getattr__(name: str) -> Any:
    # Lightning takes seconds to import: it is loaded with the first use of `lit_xai.Classifier`.
    if name == "Classifier":
        return importlib.import_module("lit_xai.classifier").Classifier
    raise AttributeError(f"module 'lit_xai' has no attribute {name!r}")
