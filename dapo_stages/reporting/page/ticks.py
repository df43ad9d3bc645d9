"""Ticks of an axis, and what is written beside them."""

from __future__ import annotations

import math
from typing import Literal

Unit = Literal["number", "percent"]


def nice_ticks(low: float, high: float, wanted: int = 5) -> list[float]:
    """Round numbers that enclose low … high, about `wanted` of them: steps of 1, 2, 2.5 or 5 times a power of ten."""
    if high - low < 1e-12 * max(abs(low), abs(high), 1e-12):
        room = abs(high) * 0.1 or 1.0
        low, high = low - room, high + room
    rough = (high - low) / (wanted - 1)
    power = 10.0 ** math.floor(math.log10(rough))
    step = next(factor * power for factor in (1, 2, 2.5, 5, 10) if factor * power >= rough * (1 - 1e-9))
    first, last = math.floor(low / step + 1e-9), math.ceil(high / step - 1e-9)
    return [index * step for index in range(first, last + 1)]


def in_words(value: float, step: float, unit: Unit) -> str:
    """The label of a tick, with as many decimals as tell it from those a `step` away."""
    if unit == "percent":
        return f"{100 * value:.{_decimals(100 * step)}f}%"
    if not value:
        return "0"
    if step < 1e-4 or abs(value) >= 1e6:
        return f"{value:.{1 + (f'{step:.1e}'[:3] == '2.5')}e}"
    return f"{value:.{_decimals(step)}f}"


def _decimals(step: float) -> int:
    """How many tell ticks at this distance apart: 1 for 0.5, 2 for 0.25."""
    quarter = f"{step:.1e}"[:3] == "2.5"
    return max(0, math.ceil(-math.log10(step) - 1e-9) + (quarter and step < 10))
