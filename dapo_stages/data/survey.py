"""What the first rows of a dataset tell about all of them: what a solution is, and what answers are asked for."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from dapo_stages.config import DataConfig
from dapo_stages.data.cells import cell
from dapo_stages.data.chat import SYSTEM_PROMPTS
from dapo_stages.data.columns import Question, question_of, solution_and_options
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.data.options import BadOptions, SolutionFormat, fits, options_of
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.templates import Template, question_template
from dapo_stages.errors import DataError
from dapo_stages.rewards.letters import letters_in
from dapo_stages.rewards.offered_options import LETTERS

Answers = Literal["letters", "free", "mixed"]

_ROWS = 256
_LONE = re.compile(r"(?<![A-Za-z0-9])[A-HJ](?![A-Za-z0-9])")  # I is a word
_NEARLY_ALL = 0.98
_OPTION_COLUMNS = ("options", "choices", "candidates", "multiple_choices")  # usual names
# Where several formats fit equally many rows, the first of these is taken.
_FORMATS: dict[bool, tuple[SolutionFormat, ...]] = {
    False: ("letter", "text", "index", "index_from_1"),
    True: ("index", "index_from_1", "text", "letter"),  # of numbers, as opposed to text
}


@dataclass(frozen=True)
class Survey:
    """What is assumed of every row."""

    solution_format: SolutionFormat = "letter"
    answers: Answers = "letters"

    def system_prompt(self, data: DataConfig) -> str:
        """The configured system prompt, or the built-in one that fits the answers; empty for none."""
        return SYSTEM_PROMPTS[self.answers] if data.system_prompt is None else data.system_prompt


def survey(source: RawSource, data: DataConfig) -> Survey:
    """Look at the first rows, for training unless all are held out.

    Raises DataError if none of them can be answered right, and ConfigError for a template that fails.
    """
    rows = list(islice(source.rows("held_out" if data.held_out_fraction == 1.0 else "train"), _ROWS))
    template = None if data.template is None else question_template(data.template)
    form = data.solution_format if data.solution_format != "auto" else _format(rows, data, template)
    questions = [(row, question) for row in rows if (question := _question(row, data, form, template)) is not None]
    if not data.allow_unwinnable:
        _check_winnable(source, questions, data)
    return Survey(form, _answers([question for _, question in questions]))


def _question(row: RawRow, data: DataConfig, form: SolutionFormat, template: Template | None) -> Question | None:
    try:
        return question_of(row.values, data.columns, form, template)
    except UnusableRow:
        return None


def _format(rows: list[RawRow], data: DataConfig, template: Template | None) -> SolutionFormat:
    """The format that fits most rows with options."""
    fitting: Counter[SolutionFormat] = Counter()
    numbers = 0
    for row in rows:
        try:
            solution, options, shown = solution_and_options(row.values, data.columns, template)
        except UnusableRow:
            continue
        fitting.update(form for form, fit in fits(solution, options, shown).items() if fit)
        numbers += isinstance(cell(row.values, data.columns.solution), int)
    formats = _FORMATS[numbers > len(rows) / 2]
    return max(formats, key=lambda form: (fitting[form], -formats.index(form))) if fitting else "letter"


def _answers(questions: list[Question]) -> Answers:
    """Whether the questions ask for letters, for other answers, or for both."""
    letters = sum(question.by_letter for question in questions)
    if letters >= _NEARLY_ALL * len(questions):
        return "letters"
    return "free" if letters <= (1 - _NEARLY_ALL) * len(questions) else "mixed"


def _check_winnable(source: RawSource, questions: list[tuple[RawRow, Question]], data: DataConfig) -> None:
    first = None
    for row, question in questions:
        if (why := _unwinnable(row, question, data)) is None:
            return
        first = first or (row, *why)
    if first is not None:
        row, problem, setting = first
        raise DataError(
            source.name,
            f"no question can be answered right (looked at {len(questions)}; row {row.index}: {problem})",
            f"Set {setting}, or data.allow_unwinnable=true to carry on.",
        )


def _unwinnable(row: RawRow, question: Question, data: DataConfig) -> tuple[str, str] | None:
    """Why no completion of a question can be right, and what to set; None if one can."""
    solution, number = question.solution, len(question.options)
    column = _options_column(row, data)
    if question.by_letter and not number and not _names_letters(question):
        setting = f"data.columns.options={column or '…'} to the column that has the options"
        return f"the solution is {solution}, but the question shows no options", setting
    if not question.by_letter and number:
        setting = "data.solution_format to what the solution is, or data.columns.solution to another column"
        return f"the solution {solution[:40]!r} is none of its {number} options", setting
    if not number and column is not None:
        setting = f"data.columns.options={column} to show them"
        return f"the column `{column}` has options, but the question does not show them", setting
    if number and max(letters_in(solution), default="") > LETTERS[number - 1]:
        setting = "data.columns.options or data.columns.solution to another column"
        return f"the solution is {solution}, but the question shows only {number} options", setting
    return None


def _names_letters(question: Question) -> bool:
    """Whether a question names the letters of its solution without listing options: "Is A or B larger?"."""
    named = set(_LONE.findall(question.problem))
    return len(named) > 1 and named >= letters_in(question.solution)


def _options_column(row: RawRow, data: DataConfig) -> str | None:
    """A column that is named as those with options are, and has some; None if data.columns.options is set."""
    if data.columns.options is not None:
        return None
    for name in _OPTION_COLUMNS:
        with suppress(BadOptions):
            if name in row.values and options_of(row.values, name):
                return name
    with suppress(BadOptions):
        if len(options_of(row.values, tuple("ABCD"))) > 1:
            return "[A,B,C,D]"
    return None
