"""Figures over time: learning curves, the terms of the loss, the course of a study."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import cycle

import numpy as np
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from kdistill.reporting.style import BLUE, COLOURS, INK, MUTED, PAPER, canvas, label_ends, styled

#: lines in colour; the others are drawn in grey, without a name
NAMED = 5
#: share of all scores that may lie below the figure: those of the first epochs, which are far from the others
BEGINNING = 0.1


@dataclass(frozen=True)
class Curve:
    """A score after each epoch, of each seed: `runs` `[seeds][epochs]`.

    `is_given`: not trained by the run itself, such as the teacher.
    """

    name: str
    runs: Sequence[Sequence[float]]
    is_given: bool = False


@styled
def learning(curves: Sequence[Curve], score: str, finetuned_after: int | None = None) -> Figure:
    """Mean of a score over the seeds after each epoch, and the range of the seeds; the first curves have names.

    `finetuned_after`: the epoch after which fine-tuning begins.
    """
    figure, axes = canvas()
    ends, colours = [], iter(COLOURS)
    named = [curve for curve in curves if not curve.is_given][:NAMED]
    for curve in curves:
        colour = INK if curve.is_given else next(colours) if curve in named else MUTED
        length = min(map(len, curve.runs))
        scores = np.array([run[:length] for run in curve.runs])
        epochs, mean = np.arange(1, length + 1), scores.mean(axis=0)
        is_faint = curve not in named and not curve.is_given
        style = "--" if curve.is_given else "-"
        axes.plot(epochs, mean, style, color=colour, linewidth=0.8 if is_faint else 1.8)
        if len(curve.runs) > 1 and not is_faint:
            axes.fill_between(
                epochs, scores.min(axis=0), scores.max(axis=0), color=colour, alpha=0.15, linewidth=0
            )
        if not is_faint:
            ends.append((mean[-1], curve.name, colour))
    if finetuned_after is not None:
        axes.axvline(finetuned_after + 0.5, color=MUTED, linewidth=0.8, linestyle=":")
    everything = np.concatenate([run for curve in curves for run in curve.runs])
    axes.set_ylim(bottom=np.quantile(everything, BEGINNING))
    axes.set(xlabel="epoch", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, ends)
    return figure


@styled
def losses(terms: Mapping[str, Sequence[float]]) -> Figure:
    """The weighted terms of the loss after each epoch, on a logarithmic axis where they are far apart."""
    figure, axes = canvas()
    ends = []
    for colour, (name, values) in zip(cycle(COLOURS), terms.items(), strict=False):
        axes.plot(range(1, len(values) + 1), values, color=colour)
        ends.append((values[-1], name, colour))
    everything = [value for values in terms.values() for value in values]
    if min(everything) > 0 and max(everything) > 20 * min(everything):
        axes.set_yscale("log")
        axes.yaxis.set_major_formatter("{x:g}")
    axes.set(xlabel="epoch", ylabel="part of the loss")
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, ends)
    return figure


@styled
def history(numbers: Sequence[int], scores: Sequence[float], score: str, higher: bool) -> Figure:
    """The score of each finished trial, and the best so far."""
    figure, axes = canvas()
    best = np.maximum.accumulate(scores) if higher else np.minimum.accumulate(scores)
    axes.plot(numbers, scores, "o", color=BLUE, markersize=5, markeredgecolor=PAPER, markeredgewidth=0.6)
    axes.step(numbers, best, where="post", color=INK)
    axes.set(xlabel="trial", ylabel=score)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True))
    label_ends(axes, [(float(best[-1]), "best so far", INK)])
    return figure


@styled
def entropy(
    temperatures: Sequence[float], quantiles: np.ndarray, most: float, chosen: float | None
) -> Figure:
    """How undecided the teacher is at each T: `quantiles` `[3, temperatures]`, 10 %, median and 90 % of the samples.

    `most`: the entropy of all classes alike, in nats; `chosen`: the T of the loss.
    """
    figure, axes = canvas()
    axes.fill_between(temperatures, quantiles[0], quantiles[2], color=BLUE, alpha=0.15, linewidth=0)
    axes.plot(temperatures, quantiles[1], "o-", color=BLUE, markersize=4)
    axes.axhline(most, color=INK, linestyle="--", linewidth=1)
    axes.set_xscale("log", base=2)
    axes.set_xticks(list(temperatures), [f"{T:g}" for T in temperatures])
    axes.minorticks_off()
    axes.set(xlabel="temperature T", ylabel="entropy, nats", ylim=(0, 1.12 * most))
    if chosen is not None:
        axes.axvline(chosen, color=MUTED, linewidth=0.8, linestyle=":")
        axes.text(chosen, 0.02 * most, f" T = {chosen:g}", color=MUTED, fontsize=10)
    label_ends(axes, [(most, "knows nothing", INK), (quantiles[1][-1], "half of the samples", BLUE)])
    return figure
