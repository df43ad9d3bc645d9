"""Numbers in words are the numbers that a reader takes them for."""

from __future__ import annotations

import pytest

from dapo_stages.rewards.number_words import number_in_words


@pytest.mark.parametrize(
    ("words", "number"),
    [
        ("zero", "0"),
        ("one", "1"),
        ("sixteen", "16"),
        ("Seventeen", "17"),
        ("eighteen", "18"),
        ("nineteen", "19"),
        ("twenty", "20"),
        ("forty-two", "42"),
        ("ninety nine", "99"),
        ("a hundred", None),
        ("one hundred and five", "105"),
        ("three hundred twenty-one", "321"),
        ("half", r"\frac{1}{2}"),
        ("a half", r"\frac{1}{2}"),
        ("two thirds", r"\frac{2}{3}"),
        ("twenty eleven", None),
        ("one two", None),
        ("red", None),
        ("", None),
        ("三", "3"),
        ("两", "2"),
        ("十", "10"),
        ("十二", "12"),
        ("三十二", "32"),
        ("一百零五", "105"),
        ("二千三百", "2300"),
        ("一二", None),
        ("十百", None),
    ],
)
def test_a_number_in_words(words: str, number: str | None) -> None:
    assert number_in_words(words) == number
