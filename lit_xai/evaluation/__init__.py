"""Robustness evaluation that can be believed, interrupted, and spread over processes."""

from lit_xai.evaluation.curve import Curve, curve
from lit_xai.evaluation.gates import Gate
from lit_xai.evaluation.intervals import wilson
from lit_xai.evaluation.runner import Evaluation, Fetch, Progress, fingerprint
from lit_xai.evaluation.summary import conclude, unfinished

__all__ = [
    "Curve",
    "Evaluation",
    "Fetch",
    "Gate",
    "Progress",
    "conclude",
    "curve",
    "fingerprint",
    "unfinished",
    "wilson",
]
