"""Definitions in plain Python, to compute expected values with."""

from __future__ import annotations

import math


def softmax(row: list[float], T: float = 1.0) -> list[float]:
    total = sum(math.exp(z / T) for z in row)
    return [math.exp(z / T) / total for z in row]


def kl(p: list[float], q: list[float]) -> float:
    """In nats."""
    return sum(a * math.log(a / b) for a, b in zip(p, q, strict=True))
