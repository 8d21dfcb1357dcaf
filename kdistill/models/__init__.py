"""Networks by name, their weights, and a copy of a student that runs without kdistill."""

from kdistill.models.build import BUILDERS, build_network, check_name, normalisation
from kdistill.models.classifier import Classifier, build_classifier
from kdistill.models.portable import write_portable
from kdistill.models.weights import Match, fit_state, load_state, load_weights, save_weights

__all__ = [
    "BUILDERS",
    "Classifier",
    "Match",
    "build_classifier",
    "build_network",
    "check_name",
    "fit_state",
    "load_state",
    "load_weights",
    "normalisation",
    "save_weights",
    "write_portable",
]
