"""The answer parser takes linear time for any text, written by a policy or part of a dataset.

Each text here would keep a parser that rescans spaces, marks or brackets busy for minutes or hours. The limit only ends
such a test; times are not compared.
"""

from __future__ import annotations

import signal
import unicodedata
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import pytest

from dapo_stages.rewards.accuracy import accuracy, reading
from dapo_stages.rewards.answers import parse_solution, read_answer, read_choice
from dapo_stages.rewards.format import format_reward
from dapo_stages.rewards.judging.judge_texts import better_of, score_of
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.offered_options import num_options

LENGTH = 60_000
PARSERS: list[Callable[[str], object]] = [
    read_answer,
    read_choice,
    parse_solution,
    num_options,
    format_reward,
    better_of,
    lambda text: score_of(text, (0, 10)),
    lambda text: reading(text, "blue cat"),
    lambda text: accuracy(f"<answer>{text}</answer>", text, symbolic=False),
]


@contextmanager
def limit(seconds: float) -> Iterator[None]:
    """A signal interrupts regular expressions, too."""

    def ring(*_: object) -> None:
        raise AssertionError(f"{seconds} s of processor time were not enough")

    before = signal.signal(signal.SIGVTALRM, ring)
    signal.setitimer(signal.ITIMER_VIRTUAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_VIRTUAL, 0)
        signal.signal(signal.SIGVTALRM, before)


SLOW_ONCE = ["$", "$ ", "<answer>", "<think></think>", " ", "\n", "\u3000", "** ", ".", "，", "\u0301\u0323"]
OTHERS = [
    *(
        "{",
        "\\boxed{",
        "\\text{",
        "(",
        "\\(",
        "</answer>",
        "<think>",
        "A ",
        "A. ",
        "A or ",
        "answer ",
        "the answer is A ",
    ),
    *(
        "答案 ",
        "故选：A ",
        "1",
        "1 ",
        ". ",
        "**A",
        "a, ",
        "\uff9e\u093c",
        "é",
        "\\boxed{A}",
        "<answer>A</answer>",
        "8/10 ",
    ),
    '{"score": ',
]


@pytest.mark.parametrize("unit", SLOW_ONCE + [pytest.param(unit, marks=pytest.mark.faults) for unit in OTHERS])
def test_a_text_that_repeats_itself(unit: str) -> None:
    repeated = unit * (LENGTH // len(unit))
    with limit(20):
        for before, after in (("", ""), ("answer is ", "x"), ("<answer>A", "B</answer>"), ("答案", "x")):
            for parser in PARSERS:
                parser(before + repeated + after)


def test_a_row_of_marks_is_cut_and_all_other_text_is_what_unicode_says() -> None:
    for text in ("é", "e\u0301", "Ａ１½", "ﾊﾞ", "한", "x" + "\u0301" * 30, "नि", "\u0f73"):
        assert nfkc(text) == unicodedata.normalize("NFKC", text)
    long = "x" + "\u0301\u0323" * 50
    assert nfkc(long) != unicodedata.normalize("NFKC", long)
    assert sorted(nfkc(long).replace("\u034f", "")) == sorted(long)


def test_delimiters_are_taken_off_however_many_there_are() -> None:
    for depth in (1, 2, 3, 1000):
        assert accuracy("<answer>" + "$" * depth + "x + 1" + "$" * depth + "</answer>", "x+1", symbolic=False) == 1
        assert accuracy("<answer>" + "\\( " * depth + "cat" + " \\)" * depth + "</answer>", "cat", symbolic=False) == 1
