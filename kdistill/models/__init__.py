"""Networks by name, their weights, and a copy of a student that runs without kdistill."""

from kdistill.models.build import BUILDERS, build_network, check_name, multiply_adds, normalisation
from kdistill.models.classifier import Classifier, build_classifier
from kdistill.models.portable import rebuild, reused_head_of, write_portable
from kdistill.models.reused_head import ReusedHead
from kdistill.models.weights import Match, fit_state, load_state, load_weights, save_weights

__all__ = [
    "BUILDERS",
    "Classifier",
    "Match",
    "ReusedHead",
    "build_classifier",
    "build_network",
    "check_name",
    "fit_state",
    "load_state",
    "load_weights",
    "multiply_adds",
    "normalisation",
    "rebuild",
    "reused_head_of",
    "save_weights",
    "write_portable",
]
