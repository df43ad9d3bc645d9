"""The format reward: thought first, then the answer, and nothing else."""

from __future__ import annotations

import re

TAGS = ("<think>", "</think>", "<answer>", "</answer>")
LAYOUT = re.compile(r"\s*<think>.*</think>\s*<answer>(?P<answer>.*)</answer>\s*", re.DOTALL)


def format_reward(text: str) -> float:
    """1.0 if the whole completion is `<think>…</think>` followed by `<answer>…</answer>`, else 0.0.

    Each tag occurs exactly once, in lower case; there is only white space around and between the two blocks; the answer
    is not blank (the thought may be).
    """
    if any(text.count(tag) != 1 for tag in TAGS):
        return 0.0
    layout = LAYOUT.fullmatch(text)
    return 1.0 if layout and layout["answer"].strip() else 0.0
