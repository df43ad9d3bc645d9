"""Completions as a table, a row each: what `inspect -n` lists. The page's CSV (csv.js) has the same columns."""

from __future__ import annotations

import csv
import io
import re
from collections.abc import Mapping, Sequence
from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration.browse import LONGEST_ANSWER
from dapo_stages.reporting.iteration.samples import attention_rows, join, weight_rows
from dapo_stages.terminal.safe_text import one_line, visible

COLUMNS = (
    "iteration", "completion_id", "group_id", "slice", "right", "answer", "solution", "read_from", "finish_reason",
    "well_formed", "reward", "advantage", "vgr", "tokens", "question", "completion",
)  # fmt: skip
_FORMULA = ("=", "+", "-", "@", "\t")  # how a cell begins that a spreadsheet would compute


def listed(iteration: int, sources: Mapping[str, Source], ids: Sequence[str]) -> list[dict[str, Any]]:
    """A row of COLUMNS for each of these completions of an iteration's rollout, in this order. Texts are visible.

    Raises DataError if the rollout was pruned.
    """
    if "rollout" not in sources:
        where = f"iteration {iteration}"
        raise DataError(where, "its rollout was pruned", "Name another --iteration, or inspect a single completion.")
    wanted, rollout = set(ids), sources["rollout"]
    attention, weights = attention_rows(sources, wanted), weight_rows(sources, wanted)
    rows = {row["completion_id"]: row for row in rollout.rows("completions") if row["completion_id"] in wanted}
    groups = {row["group_id"] for row in rows.values()}
    columns = ["group_id", "slice", "problem", "solution"]
    prompts = {row["group_id"]: row for row in rollout.rows("prompts", columns) if row["group_id"] in groups}
    found = []
    for key in ids:
        one, prompt = join(rows[key], attention, weights), prompts[rows[key]["group_id"]]
        values = (
            iteration,
            one_line(key),
            one_line(prompt["group_id"]),
            one_line(prompt["slice"]),
            one["rewards"].get("accuracy") == 1,
            None if one["answer"] is None else one_line(one["answer"][:LONGEST_ANSWER]),
            visible(prompt["solution"]),
            one["read_from"],
            one_line(one["finish_reason"]),
            one["rewards"].get("format") == 1,
            one["reward"],
            one["advantage"],
            one["vgr"],
            len(one["tokens"]),
            visible(prompt["problem"]),
            "".join(map(visible, one["tokens"])),
        )
        found.append(dict(zip(COLUMNS, values, strict=True)))
    return found


def as_csv(rows: Sequence[Mapping[str, Any]]) -> str:
    """Rows of `listed` as CSV with a header. Text that a spreadsheet would compute is preceded by an apostrophe."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(COLUMNS)
    writer.writerows([_cell(row[name]) for name in COLUMNS] for row in rows)
    return text.getvalue()


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, int | float):
        return f"{value:.4g}" if isinstance(value, float) else str(value)
    text = value or ""
    return f"'{text}" if text.startswith(_FORMULA) and not _is_number(text) else text


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[+-][0-9]+(\.[0-9]+)?", text) is not None
