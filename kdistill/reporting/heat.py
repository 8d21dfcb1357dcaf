"""Figures of classes: who is taken for whom, what the teacher thinks alike, and how far confidence is to be trusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from kdistill.reporting.style import BLUE, INK, MUTED, ORANGE, canvas, label, shades, styled

#: up to so many classes each cell has its number; more than so many are not shown
NUMBERED, SHOWN = 12, 24
#: bins of confidence, and the samples that make one worth a point
BINS, ENOUGH = 10, 5


@styled
def reliability(models: Mapping[str, tuple[np.ndarray, np.ndarray]]) -> Figure:
    """How often models are right where they are so sure; below, how often the last one is so sure.

    `models`, at least one: name -> confidence `[M]` in [0, 1] and outcome `[M]`, 1 where it came true. Bins are
    (low, high]; those with fewer than five samples have no point.
    """
    figure = Figure(figsize=(5.8, 4.2), layout="constrained")
    axes, below = figure.subplots(2, 1, sharex=True, height_ratios=(4, 1))
    axes.plot([0, 1], [0, 1], color=MUTED, linewidth=1, linestyle=":")
    for colour, (name, (confidence, outcome)) in zip((INK, BLUE, ORANGE), models.items(), strict=False):
        places = np.clip(np.ceil(confidence * BINS).astype(int), 1, BINS) - 1
        counts = np.bincount(places, minlength=BINS)
        there = counts >= min(ENOUGH, counts.max())
        sure = np.bincount(places, confidence, BINS)[there] / counts[there]
        right = np.bincount(places, outcome, BINS)[there] / counts[there]
        axes.plot(sure, right, "o-", color=colour, markersize=5, label=label(name))
    below.bar((np.arange(BINS) + 0.5) / BINS, counts / counts.sum(), 0.9 / BINS, color=colour)
    axes.set(ylabel="how often it is right", xlim=(0, 1), ylim=(0, 1.03))
    below.set(xlabel="how sure the model is", ylabel="share")
    for axis in (axes.yaxis, below.xaxis, below.yaxis):
        axis.set_major_formatter(PercentFormatter(1, decimals=0))
    axes.legend(frameon=False, fontsize=10, loc="upper left")
    return figure


@styled
def confusion(counts: np.ndarray, classes: Sequence[str]) -> Figure:
    """Counts `[K, K]`, row the label and column what was said: hits blue, errors orange, as shares of the row.

    An error's colour goes with the square root of its share, so that rare ones are seen.
    """
    shown = chosen(counts - np.diag(np.diag(counts)))
    counts = counts[np.ix_(shown, shown)]
    share = counts / np.maximum(1, counts.sum(axis=1, keepdims=True))
    pixels = shades(np.sqrt(share), ORANGE)
    hits = np.diag_indices(len(shown))
    pixels[hits] = shades(np.sqrt(share[hits]) * 0.85, BLUE)
    figure, axes = canvas(5.0, 4.6)
    _heat(axes, pixels, [[f"{n}" if n else "" for n in row] for row in counts], [classes[k] for k in shown])
    axes.set(xlabel="the model says", ylabel="the label says")
    return figure


@styled
def knowledge(mean: np.ndarray, classes: Sequence[str]) -> Figure:
    """Mean probabilities `[K, K]` that the teacher gives to each class (column) on images of each (row).

    The image's own class is left out: what is seen is what else the teacher thinks of.
    """
    other = mean - np.diag(np.diag(mean))
    shown = chosen(other)
    other = other[np.ix_(shown, shown)]
    numbers = [[f"{100 * p:.1f}" if p >= 0.0005 else "" for p in row] for row in other]
    figure, axes = canvas(5.0, 4.6)
    _heat(axes, shades(other / max(other.max(), 1e-12), BLUE), numbers, [classes[k] for k in shown])
    axes.set(xlabel="the teacher thinks of, %", ylabel="the label says")
    return figure


def chosen(strength: np.ndarray) -> np.ndarray:
    """The classes that are shown, in their order: all, or of many those with most in their row and column."""
    total = strength.sum(axis=0) + strength.sum(axis=1)
    if len(total) <= SHOWN:
        return np.arange(len(total))
    return np.sort(np.argsort(-total, kind="stable")[:SHOWN])


def _heat(axes: Axes, pixels: np.ndarray, numbers: Sequence[Sequence[str]], classes: Sequence[str]) -> None:
    count = len(classes)
    axes.imshow(pixels, interpolation="none", aspect="equal")
    axes.grid(visible=False)
    names = [label(name, 12) for name in classes]
    axes.set_xticks(range(count), names, rotation=90 if max(map(len, names)) > 2 else 0)
    axes.set_yticks(range(count), names)
    axes.tick_params(length=0, labelsize=10 if count <= NUMBERED else 8.5, labelcolor=INK)
    if count > NUMBERED:
        return
    for row, column in np.ndindex(count, count):
        colour = "white" if pixels[row, column, 3] > 0.55 else INK
        axes.text(column, row, numbers[row][column], ha="center", va="center", fontsize=9, color=colour)
