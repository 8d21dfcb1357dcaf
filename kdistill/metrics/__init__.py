"""Metrics of a model's logits on a whole split: pure functions.

Shapes: N samples, K classes or values; logits `[N, K]`; labels int64 `[N]` of classes, float `[N, K]` in {0, 1}
of several labels, float `[N, K]` of standardised values. All labels are known.

Each task has a module with `summarise`, the few scores that training looks at, `judge`, all of them, `by_class`, and
`by_sample`, whose mean is the task's headline.
"""

from kdistill.metrics import calibration, classification, multilabel, regression

__all__ = ["calibration", "classification", "multilabel", "regression"]
