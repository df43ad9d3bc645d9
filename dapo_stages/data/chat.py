"""Conversations: how a problem and its images become chat messages."""

from __future__ import annotations

from typing import Any

from dapo_stages.errors import DataError

PLACEHOLDER = "<image>"

_THINK = "Look at the picture and think first inside <think>…</think>. Then give the "
SYSTEM_PROMPT = _THINK + "letter alone inside <answer>…</answer>."
# The built-in system prompts, by what the answers of a dataset are.
SYSTEM_PROMPTS = {
    "letters": SYSTEM_PROMPT,
    "free": _THINK + "answer alone, a number, an expression or a few words, inside <answer>…</answer>.",
    "mixed": _THINK + "answer alone inside <answer>…</answer>: the letter if there are options, else a number, an "
    "expression or a few words.",
}


def messages(problem: str, n_images: int, system_prompt: str | None = SYSTEM_PROMPT) -> list[dict[str, Any]]:
    """The conversation of one prompt in the chat format of transformers: images first, then the problem.

    `<image>` placeholders in the problem are replaced by images; images without a placeholder come first. Without a
    system prompt there is no system message (a chat template may then add its own).
    """
    conversation: list[dict[str, Any]] = []
    if system_prompt:
        conversation.append({"role": "system", "content": [{"type": "text", "text": system_prompt}]})
    conversation.append({"role": "user", "content": _content(problem, n_images)})
    return conversation


def _content(problem: str, n_images: int) -> list[dict[str, Any]]:
    pieces = problem.split(PLACEHOLDER) if n_images else [problem]
    placed = len(pieces) - 1
    if placed > n_images:
        raise DataError(
            f"problem {problem[:60]!r}",
            f"{placed} {PLACEHOLDER} placeholders, but only {n_images} images",
            "Remove the extra placeholders, or add the missing images.",
        )
    content: list[dict[str, Any]] = [{"type": "image"} for _ in range(n_images - placed)]
    for number, piece in enumerate(pieces):
        if number:
            content.append({"type": "image"})
        if piece:
            content.append({"type": "text", "text": piece})
    return content
