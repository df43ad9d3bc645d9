"""Completions and solutions as people write them, each judged by a reader: answers.jsonl and its like."""

from __future__ import annotations

import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from dapo_stages.rewards.accuracy import accuracy

HERE = Path(__file__).parent
# Judged otherwise than by the reader, and why.
ARGUED = {
    (
        "The answer is A red circle.",
        "A",
    ): "after `answer is` a capital A is mostly an option",
    ("<think>x</think>\n<answer>cats</answer>", "cat"): "another line of the file pays `cats` for `cat`; so do we",
    ("<think>x</think>\n<answer>e coli</answer>", "E. coli"): "`E. coli` has the form of option E with its text",
    ("<think>x</think>\n<answer>D</answer>", "D. melanogaster"): "so has `D. melanogaster`",
}


def cases(name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (HERE / name).read_text(encoding="utf-8").splitlines()]


def agrees(case: dict[str, Any]) -> bool:
    return (accuracy(case["completion"], case["solution"], timeout=20) == 1) == bool(case["right"])


def test_answers_are_judged_as_by_a_reader() -> None:
    judged = cases("answers.jsonl")
    wrong = [case for case in judged if not agrees(case)]
    assert {(case["completion"], case["solution"]) for case in wrong} == ARGUED.keys()
    assert len(judged) == 457 and len(wrong) <= 0.03 * len(judged)
    assert sum(not case["right"] for case in wrong) <= 3  # paid although wrong
    of, missed = (Counter(case["group"] for case in some) for some in (judged, wrong))
    assert all(missed[group] <= 0.1 * count for group, count in of.items())


@pytest.mark.parametrize("case", cases("more_answers.jsonl"), ids=lambda case: case["completion"][:40])
def test_more_of_their_kind(case: dict[str, Any]) -> None:
    assert agrees(case)


def test_cases_that_were_written_to_be_misjudged() -> None:
    """3 379 pairs by readers who looked for faults, of which 1 903 are wrong answers: fewer misjudged is better.

    Most of those left are right ones: values in sentences without a conclusion, and words in sentences.
    """
    judged = cases("hard_answers.jsonl")
    wrong = [case for case in judged if not agrees(case)]
    assert (len(judged), sum(not case["right"] for case in judged)) == (3379, 1903)
    assert len(wrong) <= 146
    assert sum(not case["right"] for case in wrong) <= 26  # paid although wrong
