"""The options that a multiple-choice question offers."""

from __future__ import annotations

import re
from functools import lru_cache

from dapo_stages.rewards.normal import nfkc

LETTERS = "ABCDEFGHIJ"  # that an answer can choose

_MOST = 4000  # characters of a question that is remembered

# A. red | A) red | (A) red | A: red | A、red, at the start of a line or after a space; in lower case in brackets.
_OPTION = re.compile(r"(?:^|(?<=\s))(?:\(?([A-J])(?:[.:、]\s*|\)\s*)|\(([a-j])\)\s*)(?=\S)")


def offered_options(problem: str) -> list[str]:
    """The texts of the options that a question names in the order A, B, C, …; empty if it names fewer than two.

    The last one ends with its line; so do the others if each has a line of its own.
    """
    return list(_remembered(problem) if len(problem) <= _MOST else _offered(problem))


def _offered(problem: str) -> tuple[str, ...]:
    problem = nfkc(problem)
    found: list[re.Match[str]] = []
    for match in _OPTION.finditer(problem):
        if (match[1] or match[2]).upper() == LETTERS[len(found) : len(found) + 1]:
            found.append(match)
    if len(found) < 2:
        return ()
    ends = [*(match.start() for match in found[1:]), len(problem)]
    texts = [problem[match.end() : end].strip(" \t\n;；,，") for match, end in zip(found, ends, strict=True)]
    return (*texts[:-1], texts[-1].split("\n")[0].strip())


_remembered = lru_cache(1024)(_offered)  # each question is read several times, a batch or two apart


def num_options(problem: str) -> int | None:
    """How many options the question names, in the order A, B, C, …; None if it names fewer than two."""
    return len(offered_options(problem)) or None
