"""The configuration of a run for its page: what differs from the defaults first, and what was changed on the way."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from dapo_stages.config import Config
from dapo_stages.runs.changed_settings import Step, leaves
from dapo_stages.terminal.safe_text import one_line

Setting = tuple[str, str, str]  # its key, its value, and the default


def settings(config: Config) -> tuple[list[Setting], list[Setting]]:
    """The settings that differ from the defaults, and all others."""
    usual = dict(leaves(Config().model_dump(mode="json")))
    shown = [(key, value, usual.get(key, _NONE)) for key, value in leaves(config.model_dump(mode="json"))]
    rows = [((one_line(key), in_words(value), in_words(default)), value == default) for key, value, default in shown]
    return [row for row, same in rows if not same], [row for row, same in rows if same]


def learning_rate(config: Config) -> str:
    """`0.0003, cosine over 6 iterations of 8 updates, warm-up 5%`."""
    train, iterations = config.train, config.planned_iterations
    rate, updates = f"{train.learning_rate:g}", f"{iterations} iterations of {train.updates_per_iteration} updates"
    return f"{rate}, {train.schedule} over {updates}, warm-up {100 * train.warmup_fraction:g}%"


def marks(steps: Sequence[Step]) -> dict[int, str]:
    """What was changed, by the first iteration that has it, in words."""
    found: dict[int, list[str]] = {}
    for step in steps:
        found.setdefault(step.iteration, []).append(f"{step.key} {in_words(step.was)} → {in_words(step.now)}")
    return {iteration: one_line("; ".join(said)) for iteration, said in found.items()}


def in_words(value: Any) -> str:
    """A value as in YAML's one-line style, or nearly; `–` for what there is no such key of."""
    if value is _NONE:
        return "–"
    if isinstance(value, str):
        return one_line(value) or '""'
    if isinstance(value, float):
        return f"{value:g}"
    return one_line(json.dumps(value, ensure_ascii=False))


_NONE = object()
