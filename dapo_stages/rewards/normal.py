"""Unicode's NFKC form in linear time."""

from __future__ import annotations

import unicodedata

_MOST_MARKS = 30  # in a row, as in Unicode's stream-safe format; no script uses more
_JOINER = "\u034f"  # ends such a row, invisible
_BECOME_MARKS = "\u0f73\u0f75\u0f81\uff9e\uff9f"  # all other marks have a nonzero combining class


def nfkc(text: str) -> str:
    """The text in NFKC form. Python sorts the marks of a letter in quadratic time, so rows of more than 30 are cut."""
    return text if text.isascii() else unicodedata.normalize("NFKC", _stream_safe(text))


def _stream_safe(text: str) -> str:
    pieces: list[str] = []
    start = marks = 0
    for place, character in enumerate(text):
        marks = marks + 1 if unicodedata.combining(character) or character in _BECOME_MARKS else 0
        if marks > _MOST_MARKS:
            pieces += (text[start:place], _JOINER)
            start, marks = place, 1
    return "".join([*pieces, text[start:]]) if pieces else text
