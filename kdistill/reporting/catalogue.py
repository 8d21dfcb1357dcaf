"""The figures that there are, and the sections of a page that they stand in. Imports nothing heavy."""

from __future__ import annotations

from typing import NamedTuple

#: name -> what it shows
FIGURES = {
    "differences": "each variant's difference from the control, with its interval",
    "scores": "the scores of all seeds, and their means",
    "settings": "the score over each swept number",
    "history": "the score of each trial of a study, and the best so far",
    "importance": "how much each setting of a study mattered",
    "slices": "the trials' scores over each setting of a study",
    "front": "the trials of a study by two scores",
    "curves": "the validation score after each epoch",
    "size": "the score against the number of parameters",
    "latency": "the score against the time for one image",
    "reliability": "how often models are right where they are so sure",
    "confusion": "which classes the student takes for which",
    "confusion-teacher": "which classes the teacher takes for which",
    "classes": "the classes that are won and lost",
    "values": "predicted against true values",
    "knowledge": "what else the teacher thinks of, for each class",
    "entropy": "how undecided the teacher is at each temperature",
    "losses": "the terms of the loss after each epoch",
}


class Section(NamedTuple):
    """A part of a page: its title, what it is about, and its figures."""

    title: str
    lead: str
    figures: tuple[str, ...]


DISAGREEMENT = "Where teacher and student disagree"
SECTIONS = (
    Section("Result", "", ("differences", "scores", "settings", "history", "importance", "front", "slices")),
    Section(
        "Training",
        "After each epoch: the score on validation, and each term of the loss.",
        ("curves", "losses"),
    ),
    Section(
        "Accuracy and what it costs", "Further left is cheaper; the star is the teacher.", ("size", "latency")
    ),
    Section(
        "Where it is right, and how sure it is",
        "On the test split.",
        ("reliability", "classes", "confusion", "confusion-teacher", "values"),
    ),
    Section(
        "What the soft targets know",
        "A teacher says more than a label does: which classes are alike, and how sure it is.",
        ("knowledge", "entropy"),
    ),
    Section(DISAGREEMENT, "", ()),
)
