"""The question template of the configuration (data.template): a row's columns become the text of a question."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from dapo_stages.data.cells import is_missing
from dapo_stages.errors import ConfigError

# (the row's columns, the problem with its options, the options) -> the text of the question
Template = Callable[[Mapping[str, Any], str, Sequence[str]], str]


def question_template(text: str, setting: str = "data.template") -> Template:
    """A Jinja template in its sandbox; missing cells are empty text. Raises ConfigError for what is no template.

    What it makes raises ConfigError if it uses a column that the dataset does not have, or fails. `setting` is what
    messages call it.
    """
    from jinja2 import StrictUndefined, TemplateError, TemplateSyntaxError
    from jinja2.sandbox import ImmutableSandboxedEnvironment

    environment = ImmutableSandboxedEnvironment(undefined=StrictUndefined, keep_trailing_newline=True, autoescape=False)
    try:
        template = environment.from_string(text)
    except TemplateSyntaxError as error:
        raise ConfigError(f"{setting}: line {error.lineno}: {error.message}. Fix the template.") from None

    def render(values: Mapping[str, Any], problem: str, options: Sequence[str]) -> str:
        cells = {name: "" if is_missing(value) else value for name, value in values.items()}
        try:
            return template.render(cells | {"problem": problem, "options": list(options)})
        except (TemplateError, TypeError, ValueError, KeyError, OverflowError, ZeroDivisionError) as error:
            said = " ".join(str(error).split())[:200]
            known = ", ".join(["problem", "options", *cells])
            raise ConfigError(f"{setting}: {said}. Use only the columns that there are: {known}.") from None

    return render
