"""A model's processor for tests that need no model: a token per word."""

from __future__ import annotations

from typing import Any


class WordProcessor:
    """Stands in for a model's processor."""

    def apply_chat_template(self, conversation: list[dict[str, Any]], **_: Any) -> str:
        return " ".join(part.get("text", "") for turn in conversation for part in turn["content"])

    def __call__(self, text: list[str], **_: Any) -> dict[str, Any]:
        return {"input_ids": [list(range(len(text[0].split())))]}
