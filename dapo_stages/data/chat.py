"""Conversations: how a problem and its images become chat messages."""

from __future__ import annotations

import re
from typing import Any

from dapo_stages.errors import DataError

PLACEHOLDER, VIDEO = "<image>", "<video>"

_THINK = "Look at the picture and think first inside <think>…</think>. Then give the "
SYSTEM_PROMPT = _THINK + "letter alone inside <answer>…</answer>."
# The built-in system prompts, by what the answers of a dataset are.
SYSTEM_PROMPTS = {
    "letters": SYSTEM_PROMPT,
    "free": _THINK + "answer alone, a number, an expression or a few words, inside <answer>…</answer>.",
    "mixed": _THINK + "answer alone inside <answer>…</answer>: the letter if there are options, else a number, an "
    "expression or a few words.",
}


def messages(
    problem: str, n_images: int, system_prompt: str | None = SYSTEM_PROMPT, *, n_videos: int = 0
) -> list[dict[str, Any]]:
    """The conversation of one prompt in the chat format of transformers: images first, then videos, then the problem.

    `<image>` placeholders in the problem are replaced by images, and `<video>` by videos; those without a placeholder
    come first. Without a system prompt there is no system message (a chat template may then add its own).
    """
    conversation: list[dict[str, Any]] = []
    if system_prompt:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    conversation.append({"role": "user", "content": _content(problem, n_images, n_videos)})
    return conversation


def _content(problem: str, n_images: int, n_videos: int) -> list[dict[str, Any]]:
    kinds = {PLACEHOLDER: ("image", n_images), VIDEO: ("video", n_videos)}
    kinds = {mark: (kind, number) for mark, (kind, number) in kinds.items() if number}
    content: list[dict[str, Any]] = []
    for mark, (kind, number) in kinds.items():
        placed = problem.count(mark)
        if placed > number:
            raise DataError(
                f"problem {problem[:60]!r}",
                f"{placed} {mark} placeholders, but only {number} {kind}s",
                f"Remove the extra placeholders, or add the missing {kind}s.",
            )
        content += [{"type": kind} for _ in range(number - placed)]
    for piece in re.split(f"({'|'.join(kinds)})", problem) if kinds else [problem]:
        if piece in kinds:
            content.append({"type": kinds[piece][0]})
        elif piece:
            content.append({"type": "text", "text": piece})
    return content
