"""How figures look: one palette for paper, light and dark screens; as SVG within a page, or as a file.

Figures are drawn in the colours of a light screen. Within a page each colour is a CSS variable, which has another value
on a dark screen. Nothing here or in what draws touches matplotlib's global state.
"""

from __future__ import annotations

import io
import re
import textwrap
import warnings
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
from matplotlib.axes import Axes
from matplotlib.colors import to_rgb
from matplotlib.figure import Figure

from kdistill.files import write_bytes

INK, MUTED, GRID, PAPER = "#1f2933", "#5f6c7b", "#dde3ea", "#fefefe"
#: M. Okabe and K. Ito, "Color Universal Design", 2008: told apart by the colour-blind
BLUE, ORANGE, GREEN, PINK, YELLOW, SKY = "#0072b2", "#d55e00", "#009e73", "#cc79a7", "#e69f00", "#56b4e9"
COLOURS = (BLUE, ORANGE, GREEN, PINK, YELLOW, SKY)
VARIABLES = {
    INK: "--ink",
    MUTED: "--muted",
    GRID: "--grid",
    PAPER: "--paper",
    **{colour: f"--c{number}" for number, colour in enumerate(COLOURS)},
}
STYLE: dict[Any, Any] = {
    "font.size": 11,
    "text.color": INK,
    "text.parse_math": False,  # a class may be called $5$
    "axes.edgecolor": MUTED,
    "axes.labelcolor": INK,
    "axes.facecolor": "none",
    "axes.spines.top": False,
    "axes.spines.right": False,
    "axes.grid": True,
    "axes.axisbelow": True,
    "grid.color": GRID,
    "grid.linewidth": 0.8,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "lines.linewidth": 1.8,
    "svg.fonttype": "none",
    "svg.hashsalt": "kdistill",  # the same figure gives the same bytes
}
#: longest label in a figure
LABEL = 26
FORMATS = (".png", ".svg")

#: decorates what draws or renders
styled = mpl.rc_context(STYLE)
#: titles and figures
Drawn = Iterator[tuple[str, Figure]]


@dataclass(frozen=True)
class Drawing:
    """A figure, and what is to be seen in it: `title` for all, `alt` for those who cannot see it."""

    name: str
    title: str
    alt: str
    figure: Figure = field(repr=False)


@dataclass(frozen=True)
class Svg:
    """A figure for a page: coordinates, and what stands between `<svg>` and `</svg>`."""

    view_box: str
    body: str


def canvas(width: float = 5.8, height: float = 3.5) -> tuple[Figure, Axes]:
    """A figure of so many inches. Small: on a telephone, it is shown at its own size."""
    figure = Figure(figsize=(width, height), layout="constrained")
    return figure, figure.add_subplot()


def label(text: str, limit: int = LABEL) -> str:
    """A name for a figure: in one line, not too long, nothing that cannot be seen."""
    seen = "".join(letter if letter.isprintable() else "\N{REPLACEMENT CHARACTER}" for letter in text)
    return seen if len(seen) <= limit else f"{seen[: limit - 1]}\N{HORIZONTAL ELLIPSIS}"


def compact(value: float, position: object = None) -> str:
    """A number on an axis.

    >>> compact(1442), compact(272_186), compact(0.05)
    ('1.4k', '272k', '0.05')
    """
    for size, unit in ((1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{unit}" if abs(value) >= 100 * size else f"{value / size:.2g}{unit}"
    return f"{value:.3g}"


def shades(share: np.ndarray, colour: str) -> np.ndarray:
    """A heat map's pixels `[..., 4]` for shares in [0, 1]: the colour, from nothing of it to all."""
    pixels = np.empty((*share.shape, 4))
    pixels[..., :3] = to_rgb(colour)
    pixels[..., 3] = np.clip(np.nan_to_num(share), 0, 1)
    return pixels


def label_ends(axes: Axes, ends: Sequence[tuple[float, str, str]]) -> None:
    """Write each line's name beside its end: (y, name, colour). Names that would meet move apart."""
    axes.autoscale_view()
    to_axes = axes.transData + axes.transAxes.inverted()
    places, gap = [float(to_axes.transform((1, y))[1]) for y, _, _ in sorted(ends)], 0.075
    for lower in range(len(places) - 1):
        places[lower + 1] = max(places[lower + 1], places[lower] + gap)
    for upper in reversed(range(len(places))):
        places[upper] = min(places[upper], places[upper + 1] - gap if upper + 1 < len(places) else 1.0)
    for place, (_, name, colour) in zip(places, sorted(ends), strict=True):
        axes.text(1.02, place, label(name), color=colour, transform=axes.transAxes, va="center", fontsize=10)


def inline(drawing: Drawing) -> Svg:
    """The drawing for a page: no size of its own, its colours as CSS variables, its ids its own."""
    text = _rendered(drawing.figure, "svg").decode()
    view_box = re.search(r'viewBox="([^"]+)"', text)
    assert view_box is not None
    body = text[text.index("</defs>") + len("</defs>") : text.rindex("</svg>")]
    return Svg(view_box[1], re.sub(r"<[^>]+>", lambda tag: _for_page(tag[0], drawing.name), body))


def _for_page(tag: str, name: str) -> str:
    tag = re.sub(r'\bid="', f'id="{name}-', tag)
    tag = re.sub(r'(url\(|href=")#', rf"\1#{name}-", tag)
    tag = re.sub(r"font-family: [^;\"]*;? ?", "", tag)
    return re.sub(r"#[0-9a-f]{6}\b", lambda colour: _variable(colour[0]), tag)


def _variable(colour: str) -> str:
    return f"var({VARIABLES[colour]})" if colour in VARIABLES else colour


@styled
def save(drawing: Drawing, path: Path) -> None:
    """Write the drawing under its title, as PNG or SVG by the file's name."""
    drawing.figure.suptitle(
        textwrap.fill(drawing.title, 64), x=0.01, ha="left", fontsize=11, fontweight="bold"
    )
    write_bytes(path, _rendered(drawing.figure, path.suffix.removeprefix(".")))


@styled
def _rendered(figure: Figure, form: str) -> bytes:
    buffer = io.BytesIO()
    nothing = dict.fromkeys(("Date", "Creator", "Format", "Type")) if form == "svg" else {"Software": None}
    with warnings.catch_warnings():
        # a browser has fonts for what matplotlib's has no glyph for
        warnings.filterwarnings("ignore", message="Glyph .* missing")
        figure.savefig(
            buffer, format=form, dpi=200, facecolor=PAPER if form == "png" else "none", metadata=nothing
        )
    return buffer.getvalue()
