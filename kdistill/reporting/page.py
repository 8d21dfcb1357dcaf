"""The page: findings as one HTML file that needs nothing else, no network, no script."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from kdistill.errors import DataError
from kdistill.reporting.catalogue import DISAGREEMENT, SECTIONS
from kdistill.reporting.disagreements import Case, disagreements
from kdistill.reporting.drawings import draw
from kdistill.reporting.findings import Findings
from kdistill.reporting.style import Drawing, inline

TEMPLATES = Path(__file__).parent / "templates"
NUMBER = re.compile(r"[+-]?[\d.,]+(e[+-]?\d+)?( ± [\d.,]+)?( \[.*\])?( %)?|-|")


@dataclass(frozen=True)
class Figure:
    """A drawing on a page."""

    title: str
    alt: str
    view_box: str
    body: Markup


@dataclass(frozen=True)
class Part:
    """A section of a page that has something to show."""

    anchor: str
    title: str
    lead: str
    figures: Sequence[Figure]
    cases: Sequence[Case] = ()
    note: str = ""


def page(findings: Findings) -> str:
    """The findings as HTML: everything but the figures' SVG is escaped."""
    environment = Environment(
        loader=FileSystemLoader(TEMPLATES),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    environment.tests["number"] = lambda value: NUMBER.fullmatch(str(value)) is not None
    environment.filters["unbroken"] = lambda text: text.replace(" %", "\N{NO-BREAK SPACE}%")
    return environment.get_template("report.html.j2").render(findings=findings, parts=parts(findings))


def parts(findings: Findings) -> list[Part]:
    """The sections, without those that do not apply."""
    found = []
    for number, (title, lead, names) in enumerate(SECTIONS):
        figures = [_figure(drawing) for name in names for drawing in draw(name, findings)]
        cases, note = _cases(findings) if title == DISAGREEMENT else ([], "")
        if figures or cases or note:
            found.append(Part(f"part-{number}", title, lead, figures, cases, note))
    return found


def _cases(findings: Findings) -> tuple[list[Case], str]:
    try:
        return disagreements(findings), ""
    except DataError as ex:
        return [], f"The images cannot be shown: {ex}."


def _figure(drawing: Drawing) -> Figure:
    svg = inline(drawing)
    return Figure(drawing.title, drawing.alt, svg.view_box, Markup(svg.body))
