"""The tables with a row per iteration and with a row per run: for Markdown, HTML and terminals alike."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from dapo_stages.reporting.iteration.figures import Figures, figure, interval, slices
from dapo_stages.runs.best import BLANK, METRICS
from dapo_stages.runs.pipeline import REPORTED
from dapo_stages.runs.run_summaries import Summary
from dapo_stages.small_files import shown
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import NOTHING, number, one_line, percent

_MAX_SLICES = 4
_SECONDS = "seconds: " + "+".join(REPORTED)
RUNS = ["run", "state", "iterations", "best", "last", "image blanked", "size"]


def overview(all_figures: Sequence[Figures], seconds: Mapping[int, Mapping[str, float]], *, stages: bool) -> Table:
    """One row per iteration; with `stages` a column of seconds for each stage, else one for all of them."""
    names = slices(list(all_figures))[:_MAX_SLICES]
    timed = REPORTED if stages else ()
    headers = ["iteration", "reward", "rollout accuracy", "format", "held-out greedy", "held-out sampled"]
    blank = any(figure(figures, "eval", "blank_accuracy") is not None for figures in all_figures)
    headers += [
        *(["image blanked"] if blank else []),
        *names,
        "VGR",
        *([f"{name}\u00a0s" for name in timed] or [_SECONDS]),
    ]
    rows = []
    for figures in all_figures:
        took = seconds.get(figures["iteration"], {})
        rows.append(
            [
                str(figures["iteration"]),
                number(figure(figures, "weights", "reward")),
                percent(figure(figures, "rollout", "accuracy")),
                percent(figure(figures, "rollout", "format")),
                percent(figure(figures, "eval", "greedy_accuracy")),
                percent(figure(figures, "eval", "sampled_accuracy")),
                *([percent(figure(figures, "eval", "blank_accuracy"))] if blank else []),
                *(percent(slice_accuracy(figures, name)) for name in names),
                number(figure(figures, "attention", "vgr_all")),
                *([_seconds(took.get(name), ".1f") for name in timed] or [_together(took)]),
            ]
        )
    return Table(headers, rows)


def _together(took: Mapping[str, float]) -> str:
    """Seconds of all stages in one cell, in the order of _SECONDS: 7+4+1+9+19."""
    return "+".join(_seconds(took.get(name), ".0f") for name in REPORTED) if took else NOTHING


def _seconds(took: float | None, form: str) -> str:
    return NOTHING if took is None else format(took, form)


def slice_accuracy(figures: Figures, name: str) -> float | None:
    """Held-out accuracy on one slice: greedy, or sampled if there was no greedy evaluation."""
    greedy = figure(figures, "eval", "by_slice", name, "greedy_accuracy")
    return greedy if greedy is not None else figure(figures, "eval", "by_slice", name, "sampled_accuracy")


def run_cells(one: Summary) -> list[str]:
    """A run in the columns of RUNS: accuracies are of held-out questions, greedy ones where there are any."""
    last = next((one.last[name] for name in METRICS if name in one.last), None)
    within = f" of {one.planned}" if one.planned is not None else ""
    return [
        str(one.path),
        one.state,
        f"{one.iterations}{within}",
        f"{percent(one.best.value)} ({one.best.iteration})" if one.best else NOTHING,
        f"{percent(last)} ({one.evaluated})" if last is not None else NOTHING,
        percent(one.last.get(BLANK)),
        shown(one.bytes),
    ]


def fallen(all_figures: Sequence[Figures]) -> str | None:
    """The slices of held-out questions that have lost half of their best accuracy or more; None if there are none.

    The mean over all questions can rise meanwhile. Only where the confidence intervals do not overlap either.
    """
    evaluated = [figures for figures in all_figures if figures.get("eval")]
    if not evaluated:
        return None
    *earlier, now = evaluated
    found = []
    for name in slices([now]):
        path = ("eval", "by_slice", name, "greedy_accuracy")
        best = max(earlier, key=lambda figures: figure(figures, *path) or 0.0, default=now)
        was, left = figure(best, *path), figure(now, *path)
        before, after = interval(best, path), interval(now, path)
        if was and left is not None and left <= was / 2 and before and after and after[1] < before[0]:
            found.append(f"{one_line(name)} from {percent(was)} at iteration {best['iteration']} to {percent(left)}")
    return f"Held-out accuracy has fallen by half or more: {'; '.join(found)}." if found else None


def without_images(now: Mapping[str, Any], start: Mapping[str, Any] | None = None) -> str | None:
    """How much of an evaluation is left with the image blanked, and how much was at the start; None if not measured.

    Both are evaluations of figures.json. A policy with all of its greedy accuracy left would need no image.
    """
    found = _kept(now)
    if found is None:
        return None
    before = _kept(start or {})
    since = f"; at the start {before}" if before is not None else ""
    return f"With the image blanked {found} of the held-out questions are answered right{since}."


def _kept(evaluation: Mapping[str, Any]) -> str | None:
    blank, greedy = evaluation.get("blank_accuracy"), evaluation.get("greedy_accuracy")
    if blank is None:
        return None
    return percent(blank) + (f" ({blank / greedy:.0%} of the greedy accuracy)" if greedy else "")
