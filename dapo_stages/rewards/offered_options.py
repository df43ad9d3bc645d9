"""The options that a multiple-choice question offers."""

from __future__ import annotations

import re

from dapo_stages.rewards.normal import nfkc

# A. red | A) red | (A) red | A: red | A、red, at the start of a line or after a space.
_OPTION = re.compile(r"(?:^|(?<=\s))\(?([A-J])(?:[.:、]\s*|\)\s*)(?=\S)")


def num_options(problem: str) -> int | None:
    """How many options the question names, in the order A, B, C, …; None if it names fewer than two."""
    found = 0
    for match in _OPTION.finditer(nfkc(problem)):
        if match[1] == "ABCDEFGHIJ"[found : found + 1]:
            found += 1
    return found if found > 1 else None
