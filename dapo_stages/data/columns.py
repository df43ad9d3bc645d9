"""From the columns of any dataset to a question: its images, the conversation, the options, the answer."""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dapo_stages.config import ColumnsConfig
from dapo_stages.data.accepted import accepted_answers_of
from dapo_stages.data.answer_options import (
    YES_OR_NO,
    BadOptions,
    SolutionFormat,
    letters_of,
    options_of,
    shown_order,
    with_options,
)
from dapo_stages.data.cells import as_text, cell, has_column, is_missing, structured
from dapo_stages.data.chat import PLACEHOLDER
from dapo_stages.data.conversations import Conversation, UnusableRow, is_conversation, read_conversation
from dapo_stages.data.templates import Template
from dapo_stages.data.video_cells import videos_of
from dapo_stages.errors import DataError
from dapo_stages.rewards.answers import parse_solution, read_choice
from dapo_stages.rewards.letters import letters_in
from dapo_stages.rewards.offered_options import LETTERS

CONVERSATIONS = ("prompt", "messages", "conversations")  # used if there is no problem column
IMAGES = "images"  # used if there is no column `image`
_USUAL = {  # names of columns in public datasets
    "image": ("decoded_image", "img"),
    "problem": ("question", "query", "text", "instruction", "prompt", "messages"),
    "solution": ("answer", "label", "ground_truth", "correct_choice_idx", "correct_answer", "answers", "target"),
    "options": ("choices",),
}
DATASET = "dataset"  # label with the name of a prompt's dataset, if there are several
_DEFAULTS = ColumnsConfig()
_NUMBERED = re.compile(r"<image[ _]?(\d{1,3})>")  # <image 2>, <image2>


@dataclass(frozen=True)
class Question:
    """The content of a row, in whatever form it came."""

    images: list[Any]
    turns: list[tuple[str, str]]  # (role, text) after the system message; <image> marks where images go
    system: str | None  # the row's own system message
    solution: str  # as rewards compare it: a letter where there are options
    slice: str
    labels: dict[str, str] = field(default_factory=dict)  # more slices: column -> value
    options: list[str] = field(default_factory=list)  # in the order of their letters; empty if it offers none
    videos: list[Any] = field(default_factory=list)  # <video> marks where they go

    @property
    def problem(self) -> str:
        """The text of the user's messages."""
        return "\n\n".join(text for role, text in self.turns if role == "user")

    @property
    def by_letter(self) -> bool:
        """Whether the answer is a letter, or a set of letters."""
        return bool(letters_in(self.solution))


def image_columns(names: ColumnsConfig) -> tuple[str, ...]:
    """The columns with images, at least one."""
    return (names.image,) if isinstance(names.image, str) else names.image


def _option_columns(names: ColumnsConfig) -> tuple[str, ...]:
    return (names.options,) if isinstance(names.options, str) else names.options or ()


def wanted_columns(names: ColumnsConfig) -> frozenset[str]:
    """Every column that a setting names, and the columns that `a.b` may be in."""
    named = {
        *image_columns(names),
        IMAGES,
        names.videos,
        names.problem,
        names.solution,
        *CONVERSATIONS,
        *_option_columns(names),
    }
    named |= {name for name in (names.messages, names.slice, *names.slices) if name}
    return frozenset(named | {name.split(".")[0] for name in named})


def check_columns(source: str, columns: Sequence[str], names: ColumnsConfig) -> None:
    """Raise DataError naming the source, the missing column, the columns there are, and the setting to change."""
    conversation = _conversation_column(columns, names)
    required = [("image", name, "the image(s)") for name in image_columns(names)]
    required += [("solution", names.solution, "the correct answer")]
    if names.messages:
        required.append(("messages", names.messages, "the conversation"))
    elif conversation is None:
        known = f"`{'`, `'.join(CONVERSATIONS[:-1])}` or `{CONVERSATIONS[-1]}`"
        required.insert(1, ("problem", names.problem, f"the question (or a conversation in {known})"))
    required += [("options", name, "the options") for name in _option_columns(names)]
    if names.slice:
        required.append(("slice", names.slice, "the slice"))
    required += [("slices", name, "another slice") for name in names.slices]
    others = [name for name in columns if name not in wanted_columns(names)]
    for key, name, meaning in required:
        # Conversations may contain the images and the answer.
        inside = conversation is not None and key in ("image", "solution") and name == getattr(_DEFAULTS, key)
        instead = IMAGES in columns or has_column(columns, names.videos)
        inside |= key == "image" and name == _DEFAULTS.image and instead
        if not inside and not has_column(columns, name):
            raise DataError(
                source,
                f"no column `{name}` with {meaning} (the columns are {', '.join(columns)})",
                f"Set data.columns.{key}={_suggested(key, name, others)} to name the right column.",
            )


def _suggested(key: str, name: str, columns: Sequence[str]) -> str:
    """The column that was probably meant: one with a similar name, or with one that is usual."""
    numbered = [column for column in columns if re.fullmatch(r"(?:image|img)_?\d+", column)]
    if key == "image" and len(numbered) > 1:
        return f"[{','.join(numbered)}]"
    close = difflib.get_close_matches(name, columns, n=1) or [one for one in _USUAL.get(key, ()) if one in columns]
    return close[0] if close else "…"


def question_of(
    values: Mapping[str, Any], names: ColumnsConfig, form: SolutionFormat = "letter", template: Template | None = None
) -> Question:
    """The question of a row. `form` is what solutions are where there are options; `template` makes the text of the
    question from the row, the problem and its options.

    Raises UnusableRow saying what is missing.
    """
    conversation, problem, given, shown = _asked(values, names, template)
    solution = _solution(cell(values, names.solution), conversation.answer, names.solution)
    try:
        answer = letters_of(solution, given, shown, form) if shown else None
        if shown and answer is None and solution is conversation.answer:  # a turn may think before it answers
            chosen = read_choice(as_text(solution)).answer
            answer = chosen if chosen and chosen in LETTERS[: len(shown)] else None
    except BadOptions as reason:
        raise UnusableRow(str(reason)) from None
    turns, images = _placed([*conversation.turns[:-1], ("user", problem)], _images(values, names, conversation))
    question = Question(
        images=images,
        turns=turns,
        system=conversation.system,
        solution=answer or _free(solution),
        slice=as_text(cell(values, names.slice)) if names.slice else "",
        labels={name: as_text(value) for name in names.slices if (value := cell(values, name)) is not None},
        options=shown,
        videos=videos_of(values, names),
    )
    texts = [question.solution, question.slice, *question.labels.values(), question.system or ""]
    try:
        "".join([*texts, *(text for _, text in turns)]).encode()
    except UnicodeEncodeError:
        raise UnusableRow("text with a lone surrogate (half a character)") from None
    return question


def solution_and_options(
    values: Mapping[str, Any], names: ColumnsConfig, template: Template | None = None
) -> tuple[Any, list[str], list[str]]:
    """The solution as the row has it, and its options in the order of the column and in that of the letters.

    Raises UnusableRow for a row without options.
    """
    conversation, _, given, shown = _asked(values, names, template)
    if not shown:
        raise UnusableRow("no options")
    return _solution(cell(values, names.solution), conversation.answer, names.solution), given, shown


def _asked(
    values: Mapping[str, Any], names: ColumnsConfig, template: Template | None
) -> tuple[Conversation, str, list[str], list[str]]:
    """The conversation, the text of its last question, and its options: as an index counts them, and by letter."""
    conversation = _conversation_of(values, names)
    try:
        given = [] if names.options is None else options_of(values, names.options)
    except BadOptions as reason:
        raise UnusableRow(str(reason)) from None
    problem = with_options(conversation.turns[-1][1], given)
    shown = shown_order(problem, given)
    if template is not None:
        problem = template(values, problem, shown)
        shown = shown_order(problem, given)
    return conversation, problem, given or shown, shown


def _conversation_of(values: Mapping[str, Any], names: ColumnsConfig) -> Conversation:
    """The conversation of a row; a problem in plain text is one with a single turn."""
    problem = cell(values, names.problem)
    column = _conversation_column([name for name, value in values.items() if not is_missing(value)], names)
    if isinstance(problem, str) and problem.strip() and not is_conversation(problem):
        return Conversation(None, [("user", problem)], [], None)
    if isinstance(problem, list | str) and is_conversation(problem):
        return read_conversation(problem, names.problem)
    if column is not None:
        return read_conversation(cell(values, column), column)
    raise UnusableRow(f"no {names.problem}")


def _conversation_column(columns: Sequence[str], names: ColumnsConfig) -> str | None:
    if names.messages:
        return names.messages if has_column(columns, names.messages) else None
    if has_column(columns, names.problem):
        return None
    return next((name for name in CONVERSATIONS if name in columns), None)


def _solution(value: Any, answered: str | None, name: str) -> Any:
    """The solution of a row: its own column's, else the last turn of its conversation."""
    parsed = structured(value)
    # Numbers in the brackets of a text are an interval or a list that is the answer: [2, 4].
    is_answer = (
        isinstance(value, str) and isinstance(parsed, list) and all(isinstance(one, int | float) for one in parsed)
    )
    value = value if is_answer else parsed
    if isinstance(value, list | tuple):
        value = [one for one in value if not is_missing(one) and as_text(one).strip()]
        value = value[0] if len(value) == 1 else value or None
    if value is None or not as_text(value).strip():
        value = answered
    if value is None or value == {} or not as_text(value).strip():
        raise UnusableRow(f"no {name}")
    return value


def _free(solution: Any) -> str:
    """A solution that is not an option, as rewards compare it. Several are accepted answers, which JSON contains."""
    if isinstance(solution, bool):
        solution = list(YES_OR_NO[solution])
    if isinstance(solution, list | Mapping):
        return accepted_answers_of(solution)
    answer = parse_solution(as_text(solution))
    if not answer:
        raise UnusableRow(f"no answer in {as_text(solution)[:60]!r}")
    return answer


def images_of(values: Mapping[str, Any], names: ColumnsConfig) -> list[Any]:
    """The images of a row, as its cells have them; none if it has no question."""
    try:
        return list(_images(values, names, _conversation_of(values, names)).values())
    except UnusableRow:
        return []


def _images(values: Mapping[str, Any], names: ColumnsConfig, conversation: Conversation) -> dict[int, Any]:
    """The images of a row by number, from 1; of several columns, those that are empty are left out."""
    if isinstance(names.image, str):
        instead = names.image == _DEFAULTS.image and names.image not in values
        value = structured(cell(values, IMAGES if instead else names.image))
        found = [] if value is None or value == "" else list(value) if isinstance(value, list | tuple) else [value]
    elif not any(image is not None for image in conversation.images):
        cells = {number: cell(values, name) for number, name in enumerate(names.image, start=1)}
        return {number: image for number, image in cells.items() if image is not None and image != ""}
    else:
        found = []
    if any(image is not None for image in conversation.images):
        rest = iter(found)
        found = [next(rest, None) if image is None else image for image in conversation.images]
    return dict(enumerate(found, start=1))


def _placed(turns: list[tuple[str, str]], images: Mapping[int, Any]) -> tuple[list[tuple[str, str]], list[Any]]:
    """Turns in which `<image 2>` has become `<image>`, and the images in the order of their placeholders.

    Where an image is named again, the text keeps its number. Raises UnusableRow for a number without an image.
    """
    order: list[int] = []

    def place(match: re.Match[str]) -> str:
        number = int(match[1])
        if number not in images:
            raise UnusableRow(f"{match[0]} in the text, but the row has {len(images)} image(s)")
        if number in order:
            return f"image {number}"
        order.append(number)
        return PLACEHOLDER

    placed = [(role, _NUMBERED.sub(place, text) if role == "user" else text) for role, text in turns]
    first = [image for number, image in images.items() if number not in order]
    return placed, [*first, *(images[number] for number in order)]
