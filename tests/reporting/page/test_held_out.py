"""The same held-out questions over the iterations."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from reporting import tiny_run

from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration.asked import QUESTIONS, asked
from dapo_stages.reporting.page.held_out import course, is_right, over_iterations, spread


@pytest.mark.parametrize(
    ("signs", "expected"),
    [
        ("0011", ("turned right", 6)),
        ("0101", ("turned right", 7)),  # in the end, not when it was right for the first time
        ("1100", ("turned wrong", 6)),
        ("1011", ("wavers", None)),
        ("0100", ("wavers", None)),
        ("11", ("always right", None)),
        ("0", ("always wrong", None)),
    ],
)
def test_how_a_question_went(signs: str, expected: tuple[str, int | None]) -> None:
    """Evaluated in iterations 4, 5, 6 and 7."""
    assert course({4 + index: sign == "1" for index, sign in enumerate(signs)}) == expected


def one(name: str, right: bool | None = None, *, samples: int = 0, of_them: int = 0) -> dict[str, Any]:
    answer = None if right is None else {"right": right, "answer": "A", "read": "tags", "text": "A", "cut": 0}
    about = {"id": name, "slice": "", "solution": "A", "greedy": answer, "blank": None}
    return about | {"samples": samples, "right": of_them}


def test_an_answer_is_the_greedy_one_or_that_of_most_samples() -> None:
    assert is_right(one("q", False, samples=4, of_them=4)) is False
    assert [is_right(one("q", samples=4, of_them=n)) for n in (1, 2, 3)] == [False, False, True]
    assert is_right(one("q")) is None


def test_the_first_the_last_and_others_evenly_between() -> None:
    assert spread(list(range(0, 101, 10)), 24) == list(range(0, 101, 10))
    assert spread(list(range(101)), 5) == [0, 25, 50, 75, 100]


def test_those_that_turned_come_first_and_only_what_fits() -> None:
    evaluations = {
        0: [one("a", True), one("b", False), one("c", False), one("d", True)],
        5: [one("a", True), one("b", False), one("c", True), one("d", False)],
    }
    row = {"problem": "which?", "solution": "A", "images": []}
    found = over_iterations(evaluations, lambda name: row)
    assert [(q["id"], q["kind"], q["turned"]) for q in found] == [
        ("c", "turned right", 5),
        ("d", "turned wrong", 5),
        ("b", "always wrong", None),
        ("a", "always right", None),
    ]
    assert [(answer["iteration"], answer["ok"]) for answer in found[0]["answers"]] == [(0, False), (5, True)]
    assert [q["id"] for q in over_iterations(evaluations, lambda name: row, most=10)] == ["c"]


def test_a_row_of_other_data_is_not_shown_as_the_question() -> None:
    other = {"problem": "another question", "solution": "B", "images": []}
    assert over_iterations({0: [one("a", True)]}, lambda name: other)[0]["problem"] is None


def test_what_an_evaluation_answered_is_kept(tmp_path: Path) -> None:
    """tiny_run: four questions, answered greedily, the last of them wrongly and without an answer."""
    run = tiny_run.build(tmp_path / "tiny")
    found = asked(Source(run / "iter-0002/eval"))
    assert [(q["id"], q["greedy"]["right"], q["greedy"]["answer"]) for q in found] == [
        ("h0", True, "A"),
        ("h1", True, "A"),
        ("h2", True, "A"),
        ("h3", False, None),
    ]
    assert "\x1b" not in found[3]["greedy"]["text"] and asked(None) == []


def test_evaluations_of_more_questions_keep_most_of_the_same(monkeypatch: pytest.MonkeyPatch) -> None:
    """What is kept of 1000 questions is also kept of any 500 of them, as far as these have it."""

    class Some:
        def __init__(self, count: int) -> None:
            self.count = count

        def rows(self, kind: str, columns: list[str]) -> list[dict[str, Any]]:
            answer = {"mode": "greedy", "slice": "", "solution": "A", "text": "A", "reward_accuracy": 1.0}
            answer |= {"answer": "A", "read_from": "tags", "finish_reason": "stop"}
            return [answer | {"prompt_id": f"q{n}"} for n in range(self.count)]

    few, many = ({q["id"] for q in asked(Some(count))} for count in (500, 1000))  # type: ignore[arg-type]
    assert len(few) == len(many) == QUESTIONS
    assert {name for name in many if int(name[1:]) < 500} <= few
