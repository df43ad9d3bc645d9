"""What the first rows of a dataset tell about all of them: what a solution is, and what answers are asked for."""

from __future__ import annotations

import re
from collections import Counter
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from typing import Literal

from dapo_stages.config import DataConfig
from dapo_stages.data.answer_options import BadOptions, SolutionFormat, fits, options_of
from dapo_stages.data.cells import cell
from dapo_stages.data.chat import SYSTEM_PROMPTS
from dapo_stages.data.columns import Question, question_of, solution_and_options
from dapo_stages.data.conversations import UnusableRow
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.templates import Template, question_template
from dapo_stages.errors import DataError
from dapo_stages.rewards.letters import letters_in
from dapo_stages.rewards.offered_options import LETTERS

Answers = Literal["letters", "free", "mixed"]

_ROWS = 256
_LONE = re.compile(r"(?<![A-Za-z0-9])[A-HJ](?![A-Za-z0-9])")  # I is a word
_NEARLY_ALL = 0.98
_OPTION_COLUMNS = ("options", "choices", "candidates", "multiple_choices", "option", "answer_choices")  # usual names
_OPTION_SETS = (tuple("ABCD"), *(tuple(f"{name}{letter}" for letter in "abcd") for name in ("choice_", "option_")))
_ANSWER_COLUMNS = ("answer", "final_answer", "ground_truth", "gt_answer")
_LONG = 12  # words of a solution beyond which it is rather a derivation than an answer
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
    doubts: tuple[str, ...] = ()  # what people should look at, in sentences

    def system_prompt(self, data: DataConfig) -> str:
        """The configured system prompt, or the built-in one that fits the answers; empty for none."""
        return SYSTEM_PROMPTS[self.answers] if data.system_prompt is None else data.system_prompt


def survey(source: RawSource, data: DataConfig) -> Survey:
    """Look at the first rows, for training unless all are held out.

    Raises DataError if none of them can be answered right, and ConfigError for a template that fails.
    """
    rows = list(islice(source.rows("held_out" if data.held_out_fraction == 1.0 else "train"), _ROWS))
    template = None if data.template is None else question_template(data.template)
    doubts: list[str] = []
    form = data.solution_format
    if form == "auto":
        form, other = _format(rows, data, template)
        if other is not None:
            doubts.append(f"solutions fit data.solution_format={form} and {other} equally well; {form} is used")
    questions = [(row, question) for row in rows if (question := _question(row, data, form, template)) is not None]
    if not data.allow_unwinnable:
        _check_options(source, rows, questions, data)
        _check_length(source, questions, data)
        doubts += _check_winnable(source, questions, data)
    return Survey(form, _answers([question for _, question in questions]), tuple(doubts))


def _question(row: RawRow, data: DataConfig, form: SolutionFormat, template: Template | None) -> Question | None:
    try:
        return question_of(row.values, data.columns, form, template)
    except UnusableRow:
        return None


def _format(
    rows: list[RawRow], data: DataConfig, template: Template | None
) -> tuple[SolutionFormat, SolutionFormat | None]:
    """The format that fits most rows with options, and another one that would mean other options in as many."""
    fitting: Counter[SolutionFormat] = Counter()
    numbers = 0
    for row in rows:
        try:
            solution, options, shown = solution_and_options(row.values, data.columns, template)
        except UnusableRow:
            continue
        fitting.update(form for form, fit in fits(solution, options, shown).items() if fit)
        numbers += isinstance(cell(row.values, data.columns.solution), int)
    if not fitting:
        return "letter", None
    formats = _FORMATS[numbers > len(rows) / 2]
    best = max(formats, key=lambda form: (fitting[form], -formats.index(form)))
    indices = {"index", "index_from_1", "text"} if best in ("index", "index_from_1") else set()
    return best, next((form for form in formats if form in indices - {best} and fitting[form] == fitting[best]), None)


def _answers(questions: list[Question]) -> Answers:
    """Whether the questions ask for letters, for other answers, or for both."""
    letters = sum(question.by_letter for question in questions)
    if letters >= _NEARLY_ALL * len(questions):
        return "letters"
    return "free" if letters <= (1 - _NEARLY_ALL) * len(questions) else "mixed"


def _check_options(
    source: RawSource, rows: list[RawRow], questions: list[tuple[RawRow, Question]], data: DataConfig
) -> None:
    """Raise DataError if data.columns.options is set, and no row has options in it."""
    names = data.columns.options
    if names is None or not questions or any(question.options for _, question in questions):
        return
    first = [] if not rows else [cell(rows[0].values, name) for name in ((names,) if isinstance(names, str) else names)]
    raise DataError(
        source.name,
        f"no options in {names if isinstance(names, str) else ', '.join(names)} (looked at {len(questions)} rows; the "
        f"first has {', '.join(repr(str(one)[:60]) for one in first)})",
        "Set data.columns.options to a column with a list or labeled text, or data.allow_unwinnable=true to carry on.",
    )


def _check_length(source: RawSource, questions: list[tuple[RawRow, Question]], data: DataConfig) -> None:
    """Raise DataError if solutions are derivations, and another column probably has the answers."""
    lengths = sorted(len(question.solution.split()) for _, question in questions)
    unused = [name for name in _ANSWER_COLUMNS if name in source.columns and name != data.columns.solution]
    if not lengths or not unused or lengths[len(lengths) // 2] <= _LONG:
        return
    raise DataError(
        source.name,
        f"the solutions are long texts ({lengths[len(lengths) // 2]} words in the middle of {len(lengths)}), and no "
        f"completion is compared with the column `{unused[0]}`",
        f"Set data.columns.solution={unused[0]}, or data.allow_unwinnable=true to carry on.",
    )


def _check_winnable(source: RawSource, questions: list[tuple[RawRow, Question]], data: DataConfig) -> list[str]:
    """What to say if some questions cannot be answered right. Raises DataError if none can."""
    lost = [(row, why) for row, question in questions if (why := _unwinnable(row, question, data)) is not None]
    if not lost:
        return []
    row, (problem, setting) = lost[0]
    if len(lost) == len(questions):
        raise DataError(
            source.name,
            f"no question can be answered right (looked at {len(questions)}; row {row.index}: {problem})",
            f"Set {setting}, or data.allow_unwinnable=true to carry on.",
        )
    return [
        f"{len(lost)} of the first {len(questions)} questions cannot be answered right (row {row.index}: {problem}); "
        f"set {setting}"
    ]


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
    for names in _OPTION_SETS:
        with suppress(BadOptions):
            if names[0] in row.values and options_of(row.values, names):
                return f"[{','.join(name for name in names if name in row.values)}]"
    return None
