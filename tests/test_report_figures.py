"""Figures: their data by hand, their colours and ids on a page, names that would break them."""

import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from matplotlib.figure import Figure
from PIL import Image

from kdistill.predictions import Predictions
from kdistill.reporting import curves, heat, points
from kdistill.reporting.catalogue import FIGURES, SECTIONS
from kdistill.reporting.comparisons import comparison_findings
from kdistill.reporting.disagreements import distance
from kdistill.reporting.drawings import DRAWERS, draw
from kdistill.reporting.runs import run_findings
from kdistill.reporting.softness import entropies, mean_probabilities
from kdistill.reporting.studies import study_findings
from kdistill.reporting.style import VARIABLES, Drawing, compact, inline, label, save, shades
from kdistill.reporting.sweeps import sweep_findings
from tests.reports import HOSTILE, make_comparison, make_run, make_study


def drawing(figure: Figure, name: str = "one") -> Drawing:
    return Drawing(name, "What is seen", "What is seen", figure)


# --- data ---


def test_mean_probabilities_by_hand() -> None:
    """Of two samples of class 0 and one of class 1; a class without samples has nothing."""
    logits = torch.log(torch.tensor([[0.5, 0.3, 0.2], [0.7, 0.1, 0.2], [0.1, 0.8, 0.1]]))
    answers = Predictions(logits, torch.tensor([0, 0, 1]), ["a", "b", "c"], ["x", "y", "z"])

    expected = torch.tensor([[0.6, 0.2, 0.2], [0.1, 0.8, 0.1], [0, 0, 0]], dtype=torch.float64)
    assert torch.allclose(mean_probabilities(answers, 1.0), expected)


def test_entropy_by_hand() -> None:
    """ln 2 of two classes alike, ln 4 of four; nothing of one that is certain; more at a higher T."""
    logits = torch.tensor([[0.0, 0.0, -1e9, -1e9], [0.0, 0.0, 0.0, 0.0], [1e6, 0.0, 0.0, 0.0]])

    assert entropies(logits, 1.0).tolist() == pytest.approx([0.6931472, 1.3862944, 0.0], abs=1e-6)
    some = torch.tensor([[2.0, 1.0, 0.0]])
    assert entropies(some, 1) < entropies(some, 2) < entropies(some, 8) < 1.0986123


def test_distance_by_hand() -> None:
    """Total variation of distributions; the largest difference of several labels and of values."""
    teacher, student = torch.tensor([[1.0, 0.0, 0.0]]), torch.tensor([[0.25, 0.5, 0.25]])

    assert distance(teacher, student, "classification").tolist() == [0.75]
    assert distance(teacher, student, "multilabel").tolist() == [0.75]
    assert distance(2 * teacher, student, "regression").tolist() == [1.75]


def test_the_classes_with_most_are_shown() -> None:
    """Up to 24 all are, in their order; of more, those with most in their row and column."""
    strength = np.zeros((70, 70))
    strength[3, 69] = 5
    strength[np.arange(30), np.arange(30)] = 1

    assert heat.chosen(strength[:24, :24]).tolist() == list(range(24))
    shown = heat.chosen(strength).tolist()
    assert len(shown) == 24
    assert {3, 69} <= set(shown)
    assert shown == sorted(shown)


def test_numbers_and_names_on_axes() -> None:
    """Short, in one line, and nothing that cannot be seen or turns the text around."""
    assert [compact(n) for n in (0.05, 5, 1_442, 272_186, 25_600_000)] == ["0.05", "5", "1.4k", "272k", "26M"]
    assert label("x" * 300) == "x" * 25 + "…"
    assert label("a\nb\u202ec") == "a\N{REPLACEMENT CHARACTER}b\N{REPLACEMENT CHARACTER}c"


def test_shades_are_see_through() -> None:
    """A share is how much of the colour there is: nothing of 0 and of nan."""
    pixels = shades(np.array([0, 0.5, 1, np.nan]), "#0072b2")

    assert pixels[:, 3].tolist() == [0, 0.5, 1, 0]
    assert pixels[0, :3].tolist() == pytest.approx([0, 0x72 / 255, 0xB2 / 255])


# --- on a page ---


def test_colours_become_variables() -> None:
    """No colour of the palette is left, so that a dark screen can have its own; nothing else has a colour."""
    figure = points.costs(
        [points.Point("a", 10, 1, 0.1)], points.Point("t", 1000, 2), "parameters", "top-1 %"
    )
    body = inline(drawing(figure)).body

    assert not any(colour in body for colour in VARIABLES)
    assert set(re.findall(r"#[0-9a-fA-F]{6}\b", body)) == set()
    assert "var(--c0)" in body
    assert "font-family" not in body


def test_ids_are_a_figures_own() -> None:
    """Every id begins with the figure's name, and every reference is to one that is there."""
    body = inline(drawing(heat.confusion(np.array([[3, 1], [0, 4]]), ["cat", "dog"]), "confusion")).body
    ids = re.findall(r'\bid="([^"]+)"', body)

    assert ids
    assert all(name.startswith("confusion-") for name in ids)
    assert len(ids) == len(set(ids))
    assert set(re.findall(r'(?:url\(|href=")#([^")]+)', body)) <= set(ids)


def test_a_figure_is_the_same_each_time() -> None:
    """No date, no random ids."""

    def body() -> str:
        return inline(drawing(curves.losses({"hard": [1.0, 0.5], "soft": [9.0, 0.1]}))).body

    assert body() == body()


@pytest.mark.parametrize("name", HOSTILE)
@pytest.mark.parametrize(
    "make",
    [
        lambda n: points.bars({n: 1.0, "b": -1.0}, "points"),
        lambda n: points.dots([(n, [1.0, 2.0])], 3.0, "top-1 %"),
        lambda n: points.costs([points.Point(n, 10, 1)], None, "parameters", "top-1 %"),
        lambda n: points.settings({n: [(1, [1.0]), (2, [2.0])]}, n, "top-1 %"),
        lambda n: points.slices([n, "b"], [1.0, 2.0], n, "top-1 %"),
        lambda n: points.values(np.array([0.0, 1.0]), {n: np.array([0.1, 0.9])}, n),
        lambda n: heat.confusion(np.array([[3, 1], [0, 4]]), [n, "b"]),
        lambda n: heat.reliability({n: (np.array([0.2, 0.9]), np.array([0, 1]))}),
        lambda n: curves.learning([curves.Curve(n, [[1.0, 2.0]])], "top-1 %"),
    ],
)
def test_names_stay_text(make: Callable[[str], Figure], name: str) -> None:
    """Markup, formulas, letters without a glyph and control characters of names are shown, and do nothing."""
    body = inline(drawing(make(name))).body

    assert "<script" not in body
    assert "\x00" not in body
    assert not re.search(r"<[^>]*onload", body)


def test_files_have_a_title(tmp_path: Path) -> None:
    """PNG and SVG; the title stands in the figure, which on a page it does not."""
    figure = points.bars({"a": 1.0}, "%")
    assert "What is seen" not in inline(drawing(figure)).body
    save(drawing(figure), tmp_path / "a.svg")
    save(drawing(figure), tmp_path / "a.png")

    assert "What is seen" in (tmp_path / "a.svg").read_text()
    with Image.open(tmp_path / "a.png") as written:
        assert written.width == 1160


# --- of findings ---


def test_every_figure_has_its_place() -> None:
    """The catalogue, what draws, and the sections have the same names."""
    placed = [name for section in SECTIONS for name in section.figures]

    assert sorted(placed) == sorted(FIGURES) == sorted(DRAWERS)


def drawn(findings: object) -> set[str]:
    return {name for name in FIGURES if draw(name, findings)}  # type: ignore[arg-type]


def test_what_is_drawn_of_each_task(tmp_path: Path) -> None:
    """What does not apply is not there: no confusion of several labels, no calibration of values."""
    trained = {"curves", "losses", "size", "latency"}
    by_task = {
        "classification": {
            "reliability",
            "confusion",
            "confusion-teacher",
            "classes",
            "knowledge",
            "entropy",
        },
        "multilabel": {"reliability", "classes"},
        "regression": {"values", "classes"},
    }
    for task, figures in by_task.items():
        assert drawn(run_findings(make_run(tmp_path / task, task))) == trained | figures


def test_what_is_drawn_of_each_kind(tmp_path: Path, digits_sweep: Path) -> None:
    """A sweep's settings, a comparison's differences, a study's course and front."""
    assert {"scores", "settings", "curves", "classes"} <= drawn(sweep_findings(digits_sweep))
    assert {"differences", "scores", "curves", "classes"} <= drawn(
        comparison_findings(make_comparison(tmp_path / "compare"))
    )
    study = drawn(study_findings(make_study(tmp_path / "study")))
    assert {"history", "importance", "slices", "reliability"} <= study
    assert "front" not in study
    assert "front" in drawn(study_findings(make_study(tmp_path / "front", front=True)))


def test_titles_say_what_is_seen(tmp_path: Path) -> None:
    """The one most important thing of a figure, with its number."""
    study = study_findings(make_study(tmp_path / "study"))
    (importance,), slices = draw("importance", study), draw("slices", study)

    assert importance.title == "loss.T matters most: 70 % of the differences between trials"
    assert importance.alt.startswith("how much each setting of a study mattered: loss.T matters")
    assert [part.name for part in slices] == ["slices-1", "slices-2"]
    (differences,) = draw("differences", comparison_findings(make_comparison(tmp_path / "compare")))
    assert differences.title == "2 of 3 variants differ from the control"


def test_calibration_is_that_of_the_evaluation(tmp_path: Path) -> None:
    """The title says the calibration error that `kdistill eval` has measured."""
    found = run_findings(make_run(tmp_path / "runs"))
    assert found.student is not None
    assert found.teacher is not None
    (reliability,) = draw("reliability", found)

    own, theirs = (f"{100 * model.values['ece']:.1f} %" for model in (found.student, found.teacher))
    said = f"On average, student cnn is off by {own}, teacher cnn is off by {theirs}; on the dotted line,"
    assert reliability.title.startswith(said)
