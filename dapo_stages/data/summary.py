"""What prepare-data understood of a dataset, in counts for the manifest and in lines for people."""

from __future__ import annotations

import re
from array import array
from collections import Counter
from collections.abc import Sequence
from typing import Any, Literal

from dapo_stages.config import DataConfig
from dapo_stages.data.columns import wanted_columns
from dapo_stages.data.survey import Survey
from dapo_stages.handoff.shards import Row
from dapo_stages.rewards.answers import accepted_answers
from dapo_stages.rewards.letters import letters_in
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.offered_options import LETTERS, offered_options
from dapo_stages.rewards.tags import opens_thought

# Columns of a prompt that are counted.
READ = ("prompt_id", "source", "problem", "solution", "prompt_text", "prompt_ids", "image_grid_thw")

Kind = Literal["letters", "sets of letters", "numbers", "other text", "several accepted answers"]

_NUMBER = re.compile(r"[-+−]?[\d.,\s]*\d[.,]?\s*[%°]?|[-+]?\d+\s*/\s*\d+|[-+]?\d(?:\.\d+)?e[-+]?\d+", re.IGNORECASE)
_DETAIL = re.compile(r"'[^']*'|\"[^\"]*\"|\d[\d,.]*")
_RENDERED = 3  # prompts that are printed
_LONGEST = 1200  # characters of a printed prompt
_REASONS = 8  # reasons for dropping rows that are printed
_QUANTILES = {"min": 0.0, "median": 0.5, "p95": 0.95, "max": 1.0}


class Summary:
    """Collects what there is to say, row by row; a few bytes of memory per prompt."""

    def __init__(self, columns: Sequence[str], data: DataConfig, survey: Survey, unread: Sequence[str] = ()) -> None:
        """`unread` are table files beside those that are read."""
        self._columns, self._data, self._survey, self._unread = columns, data, survey, unread
        self._kinds: Counter[Kind] = Counter()
        self._images: Counter[int] = Counter()
        self._tokens = array("L")
        self._offered = self._among = self._opened = 0
        self._dropped: Counter[str] = Counter()  # by reason, without details
        self._first: dict[str, str] = {}  # the first row dropped for a reason
        self._rendered: list[str] = []

    def add(self, prompt: Row) -> None:
        """Count a prompt, with at least the columns READ."""
        kind = kind_of(prompt["solution"])
        self._kinds[kind] += 1
        self._images[len(prompt["image_grid_thw"])] += 1
        self._tokens.append(len(prompt["prompt_ids"]))
        if options := offered_options(prompt["problem"]):
            self._offered += 1
            letters = letters_in(prompt["solution"])
            self._among += bool(letters) and letters <= set(LETTERS[: len(options)])
        self._opened += opens_thought(prompt["prompt_text"])
        if len(self._rendered) < _RENDERED:
            self._rendered.append(f"{prompt['prompt_id']} -> {prompt['solution']}\n{prompt['prompt_text']}")

    def drop(self, why: str, where: str) -> None:
        """Count a row that did not become a prompt."""
        reason = _DETAIL.sub("…", why.removeprefix(f"{where}: "))[:120]
        self._dropped[reason] += 1
        self._first.setdefault(reason, why)

    def counts(self) -> dict[str, Any]:
        """The figures, for the manifest."""
        return {
            "solutions": dict(self._kinds.most_common()),
            "solution_format": self._survey.solution_format,
            "with_options": self._offered,
            "solution_among_options": self._among,
            "images": {str(number): count for number, count in sorted(self._images.items())},
            "prompt_tokens": self._quantiles(),
            "dropped": dict(self._dropped.most_common(_REASONS)),
            **({"opens_thought": self._opened} if self._opened else {}),
        }

    def prompting(self, name: str) -> dict[str, Any]:
        """How the questions of a dataset become prompts: later stages hand it on, up to the policy's card."""
        return {
            "dataset": name,
            "system_prompt": self._survey.system_prompt(self._data),
            "template": self._data.template,
        }

    def lines(self) -> list[str]:
        """The same for people, with examples."""
        prompts = len(self._tokens)
        images = ", ".join(f"{count:,} with {number}" for number, count in sorted(self._images.items()))
        tokens = ", ".join(f"{name} {value}" for name, value in self._quantiles().items())
        said = [
            f"solutions: {', '.join(f'{count:,} {kind}' for kind, count in self._kinds.most_common()) or 'none'}",
            f"options: {self._options(prompts)}",
            f"images per question: {images or 'none'}",
            f"prompt length in tokens: {tokens} (at most data.max_prompt_length={self._data.max_prompt_length})",
            f"columns that are not used: {', '.join(self._unused()) or 'none'}",
            f"system prompt: {self._survey.system_prompt(self._data)!r}",
        ]
        if self._opened:
            said.append(
                f"the chat template opens <think> at the end of {self._opened:,} of {prompts:,} prompts: completions "
                "begin inside the thought, and rewards do not expect the tag again"
            )
        if self._data.tags == "plain":
            said.append("tags: plain text, where the tokenizer has added tokens for them (data.tags)")
        said += [f"warning: {doubt}" for doubt in self._survey.doubts]
        said += [f"warning: not read: {', '.join(self._unread)}"] if self._unread else []
        for reason, count in self._dropped.most_common(_REASONS):
            said.append(f"dropped {count:,}: {reason} (the first: {self._first[reason][:200]})")
        return [*said, *(_shortened(text) for text in self._rendered)]

    def _options(self, prompts: int) -> str:
        if not self._offered:
            return "no question shows any"
        names = self._data.columns.options
        source = "" if names is None else f" (from {names if isinstance(names, str) else ', '.join(names)})"
        return (
            f"{self._offered:,} of {prompts:,} questions show them{source}; the solution is among them in "
            f"{self._among:,} (data.solution_format: {self._survey.solution_format})"
        )

    def _quantiles(self) -> dict[str, int]:
        lengths = sorted(self._tokens)
        return {name: lengths[round(at * (len(lengths) - 1))] for name, at in _QUANTILES.items()} if lengths else {}

    def _unused(self) -> list[str]:
        """Columns that neither a setting names nor the template reads."""
        template = self._data.template or ""
        wanted = wanted_columns(self._data.columns)
        return [name for name in self._columns if name not in wanted and name not in template]


def kind_of(solution: str) -> Kind:
    """What a solution of a prompt is, as the accuracy reward reads it."""
    accepted = accepted_answers(solution)
    if len(accepted) > 1:
        return "several accepted answers"
    answer = next(iter(accepted))
    if letters := letters_in(answer):
        return "letters" if len(letters) == 1 else "sets of letters"
    return "numbers" if _NUMBER.fullmatch(nfkc(answer).strip()) else "other text"


def _shortened(text: str) -> str:
    return text if len(text) <= _LONGEST else f"{text[:_LONGEST]}… ({len(text):,} characters)"
