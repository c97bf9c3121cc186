"""Robustness evaluation that can be believed, interrupted, and spread over processes."""

from lit_xai.evaluation.certification import Certified, envelope
from lit_xai.evaluation.certify import Certification
from lit_xai.evaluation.curve import Curve, curve
from lit_xai.evaluation.gates import Gate
from lit_xai.evaluation.intervals import wilson
from lit_xai.evaluation.runner import Evaluation, Fetch, Progress, fingerprint
from lit_xai.evaluation.summary import conclude, unfinished

__all__ = [
    "Certification",
    "Certified",
    "Curve",
    "Evaluation",
    "Fetch",
    "Gate",
    "Progress",
    "conclude",
    "curve",
    "envelope",
    "fingerprint",
    "unfinished",
    "wilson",
]
