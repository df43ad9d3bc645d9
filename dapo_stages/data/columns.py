"""From the columns of any data set to a question: its pictures, the conversation, the answer."""

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

CONVERSATIONS = ("prompt", "messages")  # looked for where there is no problem column
_EXACT = 2**53  # up to here every whole number is a float of its own


@dataclass(frozen=True)
class Question:
    """What a row asks, whatever form it came in."""

    pictures: list[Any]
    turns: list[tuple[str, str]]  # (role, text) after the system message; <image> marks where pictures go
    system: str | None  # the row's own system message
    solution: str
    slice: str
    labels: dict[str, str] = field(default_factory=dict)  # further slices: column -> value

    @property
    def problem(self) -> str:
        """What the user says."""
        return "\n\n".join(text for role, text in self.turns if role == "user")


class UnusableRow(Exception):
    """A row without a question or an answer."""


def wanted_columns(names: ColumnsConfig) -> frozenset[str]:
    """Every column that may be needed."""
    optional = {name for name in (names.messages, names.slice, *names.slices) if name}
    return frozenset({names.image, names.problem, names.solution, *CONVERSATIONS, *optional})


def check_columns(source: str, found: Sequence[str], names: ColumnsConfig) -> None:
    """Raise DataError naming the source, its columns, the one that is missing, and the key to set."""
    needed = [("image", names.image, "the picture(s)"), ("solution", names.solution, "the right answer")]
    if names.messages:
        needed.append(("messages", names.messages, "the conversation"))
    elif _conversation_column(found, names) is None:
        needed.insert(1, ("problem", names.problem, "the question (or a conversation in `prompt` or `messages`)"))
    if names.slice:
        needed.append(("slice", names.slice, "the slice"))
    needed += [("slices", name, "a further slice") for name in names.slices]
    for key, name, meaning in needed:
        if name not in found:
            close = next(iter(difflib.get_close_matches(name, found, n=1)), None)
            raise DataError(
                source,
                f"columns {', '.join(found)}",
                f"a column `{name}` with {meaning}",
                f"Set data.columns.{key}={close or '…'} to the name that it has here.",
            )


def question_of(values: Mapping[str, Any], names: ColumnsConfig) -> Question:
    """The question of a row; raises UnusableRow saying what it lacks."""
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
        pictures=_pictures(values.get(names.image)),
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
        raise UnusableRow("text with half a character (a lone surrogate)") from None
    return question


def is_missing(value: Any) -> bool:
    """Whether a cell holds nothing: None, or what stands for it in columns of numbers (NaN) and of times (NaT)."""
    return value is None or (isinstance(value, Number | date | timedelta) and value != value)


def _string(value: Any) -> str:
    """A cell as text; nothing for one that is missing.

    A whole number is written without a point: a column of whole numbers with gaps holds 2.0 where 2 was meant.
    """
    if is_missing(value):
        return ""
    return str(int(value)) if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT else str(value)


def _conversation_column(found: Sequence[str], names: ColumnsConfig) -> str | None:
    if names.messages:
        return names.messages if names.messages in found else None
    return None if names.problem in found else next((name for name in CONVERSATIONS if name in found), None)


def _pictures(value: Any) -> list[Any]:
    if value is None or value == "":
        return []
    return list(value) if isinstance(value, list | tuple) else [value]


def _conversation(value: Any, column: str) -> tuple[str | None, list[tuple[str, str]]]:
    """System message and turns of a conversation, without the answer that it may end with."""
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
        raise UnusableRow(f"{column} does not end with a question of the user")
    if odd := sorted({role for role, _ in turns} - {"user", "assistant"}):
        raise UnusableRow(f"{column} has messages of {', '.join(odd)}")
    return system, turns


def _text(content: Any) -> str:
    """Text of a message; pictures among its parts become placeholders."""
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
