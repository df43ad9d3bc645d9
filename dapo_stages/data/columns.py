"""From the columns of any dataset to a question: its images, the conversation, the answer."""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import date, timedelta
from numbers import Number
from typing import Any

from dapo_stages.config import ColumnsConfig
from dapo_stages.data.chat import PLACEHOLDER
from dapo_stages.errors import DataError

CONVERSATIONS = ("prompt", "messages")  # used if there is no problem column
_EXACT = 2**53  # up to here, floats represent every integer exactly


@dataclass(frozen=True)
class Question:
    """The content of a row, in whatever form it came."""

    images: list[Any]
    turns: list[tuple[str, str]]  # (role, text) after the system message; <image> marks where images go
    system: str | None  # the row's own system message
    solution: str
    slice: str
    labels: dict[str, str] = field(default_factory=dict)  # more slices: column -> value

    @property
    def problem(self) -> str:
        """The text of the user's messages."""
        return "\n\n".join(text for role, text in self.turns if role == "user")


class UnusableRow(Exception):
    """A row without a question or an answer."""


def wanted_columns(names: ColumnsConfig) -> frozenset[str]:
    """Every column that may be read."""
    optional = {name for name in (names.messages, names.slice, *names.slices) if name}
    return frozenset({names.image, names.problem, names.solution, *CONVERSATIONS, *optional})


def check_columns(source: str, columns: Sequence[str], names: ColumnsConfig) -> None:
    """Raise DataError naming the source, the missing column, the columns there are, and the setting to change."""
    required = [("image", names.image, "the image(s)"), ("solution", names.solution, "the correct answer")]
    if names.messages:
        required.append(("messages", names.messages, "the conversation"))
    elif _conversation_column(columns, names) is None:
        required.insert(1, ("problem", names.problem, "the question (or a conversation in `prompt` or `messages`)"))
    if names.slice:
        required.append(("slice", names.slice, "the slice"))
    required += [("slices", name, "another slice") for name in names.slices]
    for key, name, meaning in required:
        if name not in columns:
            close = next(iter(difflib.get_close_matches(name, columns, n=1)), None)
            raise DataError(
                source,
                f"no column `{name}` with {meaning} (the columns are {', '.join(columns)})",
                f"Set data.columns.{key}={close or '…'} to name the right column.",
            )


def question_of(values: Mapping[str, Any], names: ColumnsConfig) -> Question:
    """The question of a row. Raises UnusableRow saying what is missing."""
    values = {name: None if is_missing(value) else value for name, value in values.items()}
    solution = values.get(names.solution)
    if isinstance(solution, list) and len(solution) == 1:
        solution = solution[0]
    if isinstance(solution, list | dict) or not _string(solution).strip():
        raise UnusableRow(f"no {names.solution}")
    problem = values.get(names.problem)
    column = _conversation_column([name for name, value in values.items() if value is not None], names)
    if isinstance(problem, str) and problem.strip():
        system, turns = None, [("user", problem)]
    elif isinstance(problem, list):
        system, turns = _conversation(problem, names.problem)
    elif column is not None:
        system, turns = _conversation(values[column], column)
    else:
        raise UnusableRow(f"no {names.problem}")
    question = Question(
        images=_images(values.get(names.image)),
        turns=turns,
        system=system,
        solution=_string(solution),
        slice=_string(values.get(names.slice)) if names.slice else "",
        labels={name: _string(value) for name in names.slices if (value := values.get(name)) is not None},
    )
    texts = [question.solution, question.slice, *question.labels.values(), system or "", *(text for _, text in turns)]
    try:
        "".join(texts).encode()
    except UnicodeEncodeError:
        raise UnusableRow("text with a lone surrogate (half a character)") from None
    return question


def is_missing(value: Any) -> bool:
    """Whether a cell is empty: None, or NaN in columns of numbers, or NaT in columns of times."""
    return value is None or (isinstance(value, Number | date | timedelta) and value != value)


def _string(value: Any) -> str:
    """A cell as text; empty if the cell is.

    Integers are written without a decimal point: an integer column with gaps contains 2.0 instead of 2.
    """
    if is_missing(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else str(value)


def _conversation_column(columns: Sequence[str], names: ColumnsConfig) -> str | None:
    if names.messages:
        return names.messages if names.messages in columns else None
    return None if names.problem in columns else next((name for name in CONVERSATIONS if name in columns), None)


def _images(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _conversation(value: Any, column: str) -> tuple[str | None, list[tuple[str, str]]]:
    """System message and turns of a conversation, without the assistant's answer at its end."""
    if isinstance(value, str):
        value = [{"role": "user", "content": value}]
    if not isinstance(value, list) or not all(isinstance(message, Mapping) for message in value):
        raise UnusableRow(f"{column} is not a list of messages")
    turns = [(str(message.get("role")), _text(message.get("content"))) for message in value]
    while turns and turns[-1][0] == "assistant":
        turns.pop()
    system = None
    if turns and turns[0][0] == "system":
        system = turns.pop(0)[1]
    if not turns or turns[-1][0] != "user" or not any(text.strip() for role, text in turns if role == "user"):
        raise UnusableRow(f"{column} does not end with a question from the user")
    if odd := sorted({role for role, _ in turns} - {"user", "assistant"}):
        raise UnusableRow(f"{column} has messages with the role {', '.join(odd)}")
    return system, turns


def _text(content: Any) -> str:
    """Text of a message; image parts become placeholders."""
    if not isinstance(content, list):
        return _string(content)
    pieces = []
    for part in content:
        if isinstance(part, Mapping) and str(part.get("type", "")).startswith("image"):
            pieces.append(PLACEHOLDER)
        elif isinstance(part, Mapping):
            pieces.append(_string(part.get("text")))
        else:
            pieces.append(_string(part))
    return "".join(pieces)
