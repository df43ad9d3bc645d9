"""data.template: a question's text from the row's columns."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from dapo_stages.config import Config
from dapo_stages.data.prompts import PromptMaker
from dapo_stages.data.sources import open_source
from dapo_stages.data.survey import survey
from dapo_stages.data.templates import question_template
from dapo_stages.errors import ConfigError

Configure = Callable[..., Config]


def test_the_problem_comes_with_its_options_and_columns_are_variables(
    tmp_path: Path, processor: Any, configure: Configure
) -> None:
    row = {"image": None, "q": "Which?", "choices": ["red", "blue"], "hint": "Look.", "note": None, "solution": 1}
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    config = configure(
        tmp_path / "a.jsonl",
        template="{{ hint }}{{ note }}\n{{ problem }}\nOne of {{ options | join(' / ') }}.",
        columns={"problem": "q", "options": "choices"},
    )
    source = open_source(config)
    maker = PromptMaker(source, processor, config.data, survey(source, config.data))
    made = maker.make(next(iter(source.rows("train"))), "train-000000")
    assert isinstance(made, dict)
    assert made["problem"] == "Look.\nWhich?\nA. red\nB. blue\nOne of red / blue."
    assert made["solution"] == "B"


def test_a_template_may_show_the_options_itself(tmp_path: Path, processor: Any, configure: Configure) -> None:
    row = {"image": None, "problem": "Which?", "first": "red", "second": "blue", "solution": "blue"}
    (tmp_path / "a.jsonl").write_text(2 * (json.dumps(row) + "\n"))
    config = configure(tmp_path / "a.jsonl", template="{{ problem }}\n(A) {{ first }}\n(B) {{ second }}")
    source = open_source(config)
    found = survey(source, config.data)
    made = PromptMaker(source, processor, config.data, found).make(next(iter(source.rows("train"))), "train-000000")
    assert isinstance(made, dict) and made["solution"] == "B" and found.answers == "letters"


@pytest.mark.parametrize(
    ("template", "problem"),
    [
        ("{{ problem", "line 1: unexpected end of template"),
        ("{{ gone }}", "'gone' is undefined. Use only the columns that there are: problem, options, level."),
        ("{{ level.__class__.__mro__ }}", "access to attribute '__class__' of 'int' object is unsafe"),
        ("{{ level / 0 }}", "division by zero"),
        ("{{ options.append(1) }}", "unsafe"),
    ],
)
def test_a_template_that_cannot_work_is_refused(template: str, problem: str) -> None:
    with pytest.raises(ConfigError) as caught:
        question_template(template)({"level": 3}, "Why?", ["a", "b"])
    assert str(caught.value).startswith("data.template: ") and problem in str(caught.value)


def test_a_template_is_data_to_nobody_else() -> None:
    """What a column contains is text, not a template."""
    assert question_template("{{ problem }}")({}, "{{ 7 * 7 }} {% raw %}", []) == "{{ 7 * 7 }} {% raw %}"
