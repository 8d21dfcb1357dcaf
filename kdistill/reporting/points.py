"""Figures of models as points: accuracy against what they cost, over the seeds, over settings, against the control."""

from __future__ import annotations

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import LogLocator, MaxNLocator, NullFormatter

from kdistill.reporting.style import (
    BLUE,
    COLOURS,
    GREEN,
    INK,
    MUTED,
    ORANGE,
    PAPER,
    canvas,
    compact,
    label,
    label_ends,
    styled,
)


@dataclass(frozen=True)
class Point:
    """A model, or the mean of several, with its standard deviation."""

    name: str
    x: float
    y: float
    spread: float = 0.0


@dataclass(frozen=True)
class Difference:
    """A variant against the control: the difference and its interval, and what follows from it."""

    name: str
    value: float
    low: float
    high: float
    verdict: str


@styled
def costs(points: Sequence[Point], teacher: Point | None, cost: str, score: str) -> Figure:
    """A score against a cost, on a logarithmic axis; the teacher is a star. The best that have room are named."""
    figure, axes = canvas()
    y, x = [p.y for p in points], [p.x for p in points]
    axes.errorbar(x, y, yerr=[p.spread for p in points], fmt="none", ecolor=BLUE, elinewidth=1, alpha=0.5)
    axes.plot(x, y, "o", color=BLUE, markersize=7, markeredgecolor=PAPER, markeredgewidth=0.8)
    everything = [*points, *([teacher] if teacher else [])]
    low, high = min(p.x for p in everything) / 2, max(p.x for p in everything) * 2
    axes.set_xscale("log")
    axes.set_xlim(low, high)
    axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5) if high < 200 * low else (1,)))
    axes.xaxis.set_major_formatter(compact)
    axes.xaxis.set_minor_formatter(NullFormatter())
    if teacher is not None:
        axes.axhline(teacher.y, color=INK, linestyle="--", linewidth=1)
        axes.plot(
            [teacher.x],
            [teacher.y],
            "*",
            color=INK,
            markersize=14,
            markeredgecolor=PAPER,
            markeredgewidth=0.8,
        )
    axes.margins(y=0.15)
    for point in _apart(axes, everything):
        _name(axes, point, INK if point is teacher else BLUE)
    axes.set(xlabel=cost, ylabel=score)
    return figure


def _apart(axes: Axes, points: Sequence[Point]) -> list[Point]:
    """The points that have room for a name, the best first."""
    axes.autoscale_view(scalex=False)
    to_axes = axes.transData + axes.transAxes.inverted()
    named: list[tuple[Point, np.ndarray]] = []
    for point in sorted(points, key=lambda p: -p.y):
        place = to_axes.transform((point.x, point.y))
        if all(abs(place[0] - x) > 0.4 or abs(place[1] - y) > 0.08 for _, (x, y) in named):
            named.append((point, place))
    return [point for point, _ in named]


def _name(axes: Axes, point: Point, colour: str) -> None:
    low, high = np.log(axes.get_xlim())
    is_left = np.log(point.x) < low + 0.55 * (high - low)
    axes.annotate(
        label(point.name),
        (point.x, point.y),
        xytext=(8 if is_left else -8, 0),
        textcoords="offset points",
        ha="left" if is_left else "right",
        va="center" if is_left else "bottom",
        color=colour,
        fontsize=10,
    )


@styled
def dots(rows: Sequence[tuple[str, Sequence[float]]], teacher: float | None, score: str) -> Figure:
    """A line for each group: every seed's score as a dot, their mean as a bar; the teacher's as a dashed line."""
    figure, axes = canvas(height=0.9 + 0.27 * len(rows))
    for place, (_, scores) in enumerate(rows):
        axes.plot(scores, [place] * len(scores), "o", color=BLUE, markersize=6, alpha=0.65, markeredgewidth=0)
        axes.plot([statistics.fmean(scores)], [place], "|", color=INK, markersize=13, markeredgewidth=2)
    if teacher is not None:
        axes.axvline(teacher, color=INK, linestyle="--", linewidth=1)
        axes.text(teacher, -0.75, "teacher ", ha="right", va="center", fontsize=10)
    _rows(axes, [name for name, _ in rows], top=-1.1 if teacher is not None else -0.6)
    axes.set_xlabel(score)
    return figure


@styled
def differences(rows: Sequence[Difference], unit: str) -> Figure:
    """Each variant's difference from the control with its interval: it differs where that does not touch zero."""
    figure, axes = canvas(height=1.1 + 0.45 * len(rows))
    colours = {"BEATS": GREEN, "WORSE": ORANGE}
    for place, row in enumerate(rows):
        colour = colours.get(row.verdict, MUTED)
        axes.plot([row.low, row.high], [place, place], color=colour, linewidth=3, solid_capstyle="butt")
        axes.plot([row.value], [place], "o", color=colour, markersize=8, markeredgecolor=PAPER)
        axes.text(
            1.02,
            place,
            row.verdict,
            color=colour,
            transform=axes.get_yaxis_transform(),
            va="center",
            fontsize=10,
        )
    axes.axvline(0, color=INK, linewidth=1)
    axes.margins(x=0.12)
    _rows(axes, [row.name for row in rows])
    axes.set_xlabel(f"difference from the control, {unit}")
    return figure


@styled
def bars(values: Mapping[str, float], unit: str) -> Figure:
    """A bar for each name, to the left below zero and to the right above."""
    figure, axes = canvas(height=0.9 + 0.27 * len(values))
    colours = [BLUE if value >= 0 else ORANGE for value in values.values()]
    axes.barh(range(len(values)), list(values.values()), color=colours, height=0.7)
    axes.axvline(0, color=INK, linewidth=1)
    _rows(axes, list(values))
    axes.set_xlabel(unit)
    return figure


def _rows(axes: Axes, names: Sequence[str], top: float = -0.6) -> None:
    """Name the rows of a figure, the first at the top."""
    axes.set_yticks(range(len(names)), [label(name) for name in names], color=INK)
    axes.set_ylim(len(names) - 0.4, top)
    axes.grid(axis="y", visible=False)
    axes.tick_params(axis="y", length=0)


@styled
def settings(lines: Mapping[str, Sequence[tuple[float, Sequence[float]]]], key: str, score: str) -> Figure:
    """A score over the values of a setting: a line through the means, and each seed's score as a dot."""
    figure, axes = canvas()
    ends = []
    for colour, (name, line) in zip(COLOURS, lines.items(), strict=False):
        x = [value for value, _ in line]
        means = [statistics.fmean(scores) for _, scores in line]
        axes.plot(x, means, "-", color=colour)
        for value, scores in line:
            axes.plot(
                [value] * len(scores), scores, "o", color=colour, markersize=5, alpha=0.6, markeredgewidth=0
            )
        ends.append((means[-1], name, colour))
    everything = sorted({value for line in lines.values() for value, _ in line})
    if everything[0] > 0 and everything[-1] > 20 * everything[0]:
        axes.set_xscale("log")
    if len(everything) <= 8:
        axes.set_xticks(everything, [compact(value) for value in everything])
        axes.minorticks_off()
    axes.set(xlabel=label(key), ylabel=score)
    label_ends(axes, ends)
    return figure


@styled
def slices(values: Sequence[object], scores: Sequence[float], key: str, score: str) -> Figure:
    """The score of each trial over its value of a parameter: a number, or one of several words."""
    figure, axes = canvas(height=2.8)
    numbers = [value for value in values if isinstance(value, int | float) and not isinstance(value, bool)]
    if len(numbers) == len(values):
        axes.plot(numbers, scores, "o", color=BLUE, markersize=5, alpha=0.75, markeredgewidth=0)
        if min(numbers) > 0 and max(numbers) > 20 * min(numbers):
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(compact)
            axes.xaxis.set_minor_formatter(NullFormatter())
    else:
        words = sorted({str(value) for value in values})
        axes.plot([words.index(str(v)) for v in values], scores, "o", color=BLUE, markersize=5, alpha=0.75)
        axes.set_xticks(range(len(words)), [label(word, 14) for word in words])
        axes.set_xlim(-0.6, len(words) - 0.4)
    axes.set(xlabel=label(key, 40), ylabel=score)
    return figure


@styled
def front(points: Sequence[tuple[float, float]], best: Sequence[int], names: tuple[str, str]) -> Figure:
    """Trials by two scores; those that no other is better than in both are joined."""
    figure, axes = canvas()
    x, y = np.array(points).T
    axes.plot(x, y, "o", color=MUTED, markersize=5, alpha=0.6, markeredgewidth=0)
    joined = sorted(best, key=lambda index: x[index])
    axes.plot(x[joined], y[joined], "o-", color=BLUE, markersize=7, markeredgecolor=PAPER)
    axes.set(xlabel=names[0], ylabel=names[1])
    axes.xaxis.set_major_locator(MaxNLocator(5))
    axes.xaxis.set_major_formatter(compact)
    return figure


@styled
def values(true: np.ndarray, said: Mapping[str, np.ndarray], name: str) -> Figure:
    """What models say of each sample against what is true, both `[n]`; on the line they are right."""
    figure, axes = canvas(height=3.8)
    low, high = float(np.min(true)), float(np.max(true))
    axes.axline((low, low), (high, high), color=MUTED, linewidth=1)
    for colour, (model, answers) in zip((INK, BLUE), said.items(), strict=False):
        axes.plot(
            true, answers, "o", color=colour, markersize=4, alpha=0.5, markeredgewidth=0, label=label(model)
        )
    axes.set(xlabel=f"true {label(name)}", ylabel="what the models say")
    axes.legend(frameon=False, fontsize=10)
    return figure
