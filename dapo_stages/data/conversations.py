"""Conversations of datasets: OpenAI's format, ShareGPT's and pairs of turns, with or without the images inside."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dapo_stages.data.cells import as_text, structured
from dapo_stages.data.chat import PLACEHOLDER

_ROLES = {"human": "user", "gpt": "assistant", "bot": "assistant", "model": "assistant"}  # ShareGPT's names


class UnusableRow(Exception):
    """A row without a question or an answer."""


@dataclass(frozen=True)
class Conversation:
    """A conversation up to the user's last question."""

    system: str | None
    turns: list[tuple[str, str]]  # (role, text); <image> marks where images go
    images: list[Any]  # one for each placeholder of an image part; None if the part itself has no image
    answer: str | None  # the assistant's turn after the last question


def is_conversation(value: Any) -> bool:
    """Whether a cell is a list of messages, or contains one as JSON."""
    found = structured(value)
    return isinstance(found, list) and bool(found) and all(isinstance(one, Mapping) for one in found)


def read_conversation(value: Any, column: str) -> Conversation:
    """The conversation in a cell: a list of messages, such a list as JSON, or the text of a single question.

    Raises UnusableRow if it does not end with a question from the user, or with one and its answer.
    """
    messages = structured(value)
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    if not isinstance(messages, list) or not all(isinstance(message, Mapping) for message in messages):
        raise UnusableRow(f"{column} is not a list of messages")
    messages = [turn for message in messages for turn in _turns(message)]
    images: list[Any] = []
    turns = [(_role(message), _content(message, images)) for message in messages]
    answer = None
    while turns and turns[-1][0] == "assistant":
        answer = turns.pop()[1]
    system = None
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not turns or turns[-1][0] != "user" or not any(text.strip() for role, text in turns if role == "user"):
        raise UnusableRow(f"{column} does not end with a question from the user")
    if odd := sorted({role for role, _ in turns} - {"user", "assistant"}):
        raise UnusableRow(f"{column} has messages with the role {', '.join(odd)}")
    return Conversation(system, turns, images, answer)


def _turns(message: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """A message; or two, where an object has a question and its answer: {"user": …, "assistant": …}."""
    if "user" not in message or "role" in message or "from" in message:
        return [message]
    said = [(role, message.get(role)) for role in ("user", "assistant")]
    return [{"role": role, "content": content} for role, content in said if content is not None]


def _role(message: Mapping[str, Any]) -> str:
    said = str(message.get("role") or message.get("from"))
    return _ROLES.get(said, said)


def _content(message: Mapping[str, Any], images: list[Any]) -> str:
    """Text of a message; image parts become placeholders, and what they contain is added to `images`."""
    content = _parts(message.get("content") if "content" in message else message.get("value"))
    if not isinstance(content, list):
        return as_text(content)
    pieces = []
    for part in content:
        if isinstance(part, Mapping) and str(part.get("type", "")).startswith(("image", "input_image")):
            pieces.append(PLACEHOLDER)
            images.append(_image(part))
        else:
            pieces.append(as_text(part.get("text") if isinstance(part, Mapping) else part))
    return "".join(pieces)


def _parts(content: Any) -> Any:
    """Content parts, which JSON in a text column may contain; text that only looks like a list stays text."""
    found = structured(content)
    is_parts = isinstance(found, list) and found and all(isinstance(part, Mapping) and "type" in part for part in found)
    return found if is_parts or not isinstance(content, str) else content


def _image(part: Mapping[str, Any]) -> Any:
    """The image in a part of a message: `image_url`, as text or as {"url": …}, or `image`; None if there is none."""
    found = part.get("image_url") or part.get("image") or part.get("url") or part.get("path")
    return found.get("url", found) if isinstance(found, Mapping) else found
