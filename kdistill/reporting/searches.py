"""The figures of a study: how the search went, and what mattered."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from kdistill.reporting import curves, points
from kdistill.reporting.findings import Findings, Metric
from kdistill.reporting.studies import finished, ranked, short
from kdistill.reporting.style import Drawn

#: settings that are drawn, those that matter most first
SLICES = 6


def _history(findings: Findings) -> Drawn:
    trials, metric = _finished(findings), findings.metric
    if len(trials) < 2:
        return
    higher = findings.about["directions"][0] == "maximize"
    scores = [metric.scale * trial["values"][0] for trial in trials]
    best = (max if higher else min)(range(len(trials)), key=scores.__getitem__)
    title = f"Trial {trials[best]['number']} is the best of {len(trials)}: {scores[best]:.4g} {metric.unit}".rstrip()
    yield title, curves.history([t["number"] for t in trials], scores, f"validation {metric.label}", higher)


def _importance(findings: Findings) -> Drawn:
    shares = findings.about.get("importance")
    if findings.kind != "study" or not shares:
        return
    ranked = dict(sorted(shares.items(), key=lambda item: -item[1]))
    first, share = next(iter(ranked.items()))
    figure = points.bars({key: 100 * value for key, value in ranked.items()}, "share of the differences, %")
    yield f"{first} matters most: {100 * share:.0f} % of the differences between trials", figure


def _slices(findings: Findings) -> Drawn:
    trials, metric = _finished(findings), findings.metric
    if len(trials) < 2:
        return
    shares, best = findings.about["importance"] or {}, ranked(findings.about)[0]["params"]
    for key in sorted(findings.about["search"], key=lambda key: -shares.get(key, 0))[:SLICES]:
        found = [(t["params"][key], metric.scale * t["values"][0]) for t in trials if key in t["params"]]
        if found:
            values, scores = zip(*found, strict=True)
            title = f"{metric.name} over {key}: the best trial has {short(best.get(key, 'none'))}"
            yield title, points.slices(values, scores, key, f"validation {metric.label}")


def _front(findings: Findings) -> Drawn:
    front, trials = findings.about.get("front"), _finished(findings)
    if findings.kind != "study" or not front or len(findings.about["metrics"]) < 2:
        return
    metrics = [Metric.of(findings.task, key) for key in findings.about["metrics"]]
    y, x = metrics[:2]
    pairs = [(x.scale * trial["values"][1], y.scale * trial["values"][0]) for trial in trials]
    best = [place for place, trial in enumerate(trials) if trial["number"] in front]
    title = f"{len(best)} of {len(trials)} trials are best in their way: none is better in both {y.name} and {x.name}"
    yield title, points.front(pairs, best, (x.label, f"validation {y.label}"))


def _finished(findings: Findings) -> list[Mapping[str, Any]]:
    return finished(findings.about) if findings.kind == "study" else []


SEARCH_FIGURES: Mapping[str, Callable[[Findings], Drawn]] = {
    "history": _history,
    "importance": _importance,
    "slices": _slices,
    "front": _front,
}
