"""What an evaluation answered to some of the held-out questions: the same ones in every evaluation of a run."""

from __future__ import annotations

import hashlib
from typing import Any

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.reporting.iteration.browse import LONGEST_ANSWER
from dapo_stages.terminal.safe_text import one_line, visible

ASKED = "questions.json"  # of a report
QUESTIONS = 64  # of an evaluation
_LONGEST = 4000  # characters of a completion that are kept
_COLUMNS = ["prompt_id", "mode", "slice", "solution", "text", "reward_accuracy", "answer", "read_from", "finish_reason"]

Asked = dict[str, Any]


def asked(source: Source | None) -> list[Asked]:
    """Of each question: what was answered greedily and with the image blanked, and how many samples were right.

    Which questions are kept depends on their ids alone, so that evaluations of more or fewer questions share most.
    """
    if source is None:
        return []
    names = {row["prompt_id"] for row in source.rows("completions", ["prompt_id"])}
    chosen = set(sorted(names, key=lambda name: hashlib.sha256(name.encode()).digest())[:QUESTIONS])
    found: dict[str, Asked] = {}
    for row in source.rows("completions", _COLUMNS):
        if row["prompt_id"] not in chosen:
            continue
        about = {"id": row["prompt_id"], "slice": one_line(row["slice"]), "solution": row["solution"]}
        one = found.setdefault(row["prompt_id"], about | {"greedy": None, "blank": None, "samples": 0, "right": 0})
        if row["mode"] == "sample":
            one["samples"] += 1
            one["right"] += row["reward_accuracy"] == 1
        else:
            one[row["mode"]] = _answer(row)
    return list(found.values())


def _answer(row: Row) -> dict[str, Any]:
    return {
        "right": row["reward_accuracy"] == 1,
        "answer": None if row["answer"] is None else one_line(row["answer"][:LONGEST_ANSWER]),
        "read": row["read_from"],
        "finish": one_line(row["finish_reason"]),
        "text": visible(row["text"][:_LONGEST]),
        "cut": max(0, len(row["text"]) - _LONGEST),
    }
