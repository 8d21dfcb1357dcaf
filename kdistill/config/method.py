"""What the catalogue tells of a method; the entries are in `methods_on_logits`, `methods_on_features`, `methods`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Family = Literal["logits", "features", "control", "teaching"]

#: what the symbols of the formulas mean
NOTATION = """\
s: student, t: teacher; N samples of a batch, K classes, y the label
z: logits; p = softmax(z / T), log p its logarithm; rho: correlation; F: features of a layer"""

#: family -> what a user reads about it
FAMILIES: dict[Family, str] = {
    "logits": "losses on logits: loss=NAME",
    "features": "losses on features: loss=NAME, or feature=NAME beside a loss on logits, such as loss=kd feature=NAME",
    "control": "controls, without a teacher: loss=NAME",
    "teaching": "ways of teaching, with any loss",
}

# what `needs` may name, where the code knows it as well
LABELS = "labels"
BATCH = "batches of at least 2"
NO_TEACHER = "no teacher"
TRAINS = "trains adapters"
ONE_PAIR = "one pair of layers"


@dataclass(frozen=True)
class Method:
    """One option of the groups `loss` and `feature`, or a way of teaching, told to a user."""

    kind: str
    title: str
    family: Family
    formula: str
    paper: str
    """Authors, year, title, arXiv id or venue; begins with "-" where there is none."""
    needs: tuple[str, ...]
    when: str
    examples: tuple[str, str]
    """Words of two commands: one with the defaults, one with a setting of its own."""

    @property
    def line(self) -> str:
        return f"{self.title}. {self.when[0].upper()}{self.when[1:]}"
