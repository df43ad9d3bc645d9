"""The options of a question: read from any column, shown with letters, and found again in the solution."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal

from dapo_stages.data.cells import as_text, cell, structured
from dapo_stages.rewards.answers import parse_solution
from dapo_stages.rewards.letters import letters_in
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.offered_options import LETTERS, offered_options

SolutionFormat = Literal["letter", "index", "index_from_1", "text"]

_TEXT_KEYS = ("text", "value", "content", "option")  # of an option that is an object
_LABEL_KEYS = ("label", "key", "letter", "id")
_KEY = re.compile(r"^(?:option|choice|answer)[_ ]?", re.IGNORECASE)
_QUOTED = re.compile(r"'[^']*'|\"[^\"]*\"")
_NUMPY = re.compile(r"\[(?:'[^']*'|\"[^\"]*\")(?:\s+(?:'[^']*'|\"[^\"]*\"))+\]")
_MARKS = ("|", ";", " / ", ",")  # between options in one line
_WHOLE = re.compile(r"\s*\+?(\d{1,4})(?:\.0)?\s*")


YES_OR_NO = {True: ("yes", "true"), False: ("no", "false")}  # what a Boolean means as an answer


class BadOptions(Exception):
    """Options that cannot be read, or a solution that is none of them."""


def options_of(values: Mapping[str, Any], name: str | Sequence[str]) -> list[str]:
    """The options of a row, from one column or from one for each; empty if the row has none.

    One column may contain a list (of text, or of objects with a `text`), an object (`{"A": "red", …}`), or text: a
    list as JSON or as Python writes it, labeled options ("A. red B. green"), or one option per line.
    Raises BadOptions.
    """
    if isinstance(name, str):
        value = cell(values, name)
        found = _numpy_list(value) or _listed(structured(value))
    else:
        found = [as_text(cell(values, one)).strip() for one in name]
    while found and found[-1] in ("", "nan"):  # columns and lists are filled up to the length of the longest
        found.pop()
    found = _without_labels(found)
    if len(found) < 2:
        return []
    if empty := [LETTERS[at] for at, text in enumerate(found[: len(LETTERS)]) if not text]:
        raise BadOptions(f"option {empty[0]} is empty")
    if len(found) > len(LETTERS):
        raise BadOptions(f"{len(found)} options, but the letters of answers end at {LETTERS[-1]}")
    return found


def _listed(value: Any) -> list[str]:
    if value is None:
        return []
    if isinstance(value, Mapping):
        inner = next((value[key] for key in _TEXT_KEYS if isinstance(value.get(key), list | tuple)), None)
        return _listed(inner if inner is not None else [value[key] for key in _in_order(value)])
    if isinstance(value, str):
        lines = [line.strip() for line in value.splitlines() if line.strip()]
        if len(lines) == 1:
            lines = next((parts for mark in _MARKS if len(parts := lines[0].split(mark)) > 1), lines)
        return offered_options(value) or [line.strip() for line in lines]
    if not isinstance(value, list | tuple):
        raise BadOptions(f"the options are a {type(value).__name__}, expected a list or text")
    return [_option(one) for one in _by_label(value)]


def _numpy_list(value: Any) -> list[str]:
    """The texts of an array of numpy as it prints itself: `['red' 'green']`; empty for anything else."""
    if not isinstance(value, str) or not _NUMPY.fullmatch(value.strip()):
        return []
    return [one[1:-1].strip() for one in _QUOTED.findall(value)]


def _by_label(options: Sequence[Any]) -> Sequence[Any]:
    """Options that are objects with the labels A, B, C, … in the order of these."""
    labels = [
        next((str(one[key]).strip("() .").upper() for key in _LABEL_KEYS if key in one), "")
        for one in options
        if isinstance(one, Mapping)
    ]
    if len(labels) < len(options) or sorted(labels) != list(LETTERS[: len(options)]):
        return options
    return [one for _, one in sorted(zip(labels, options, strict=True), key=lambda pair: pair[0])]


def _in_order(options: Mapping[str, Any]) -> list[str]:
    """The keys A, B, C, … (or 0, 1, 2, …, or option_a, option_b, …) that have a value, in order.

    Parquet gives a null for keys that other rows have.
    """
    keys = {
        key: _KEY.sub("", str(key)).strip("() .").upper() for key, value in options.items() if as_text(value).strip()
    }
    for first in (LETTERS, "0123456789", "123456789"):
        if sorted(keys.values()) == list(first[: len(keys)]):
            return sorted(keys, key=lambda key: keys[key])
    raise BadOptions(f"options with the keys {', '.join(map(str, keys))}, expected A, B, C, …")


def _option(value: Any) -> str:
    if isinstance(value, Mapping):
        value = next((value[key] for key in _TEXT_KEYS if key in value), None)
    return as_text(value).strip()


def _without_labels(options: list[str]) -> list[str]:
    """Options that bring their letters along ("A. red", "B. green") without these."""
    plain = offered_options("\n".join(options)) if not any("\n" in option for option in options) else []
    return plain if len(plain) == len(options) else options


def with_options(problem: str, options: Sequence[str]) -> str:
    """The question, with the options below unless it shows them itself: as many, and most with the same text."""
    offered = {plain(one) for one in offered_options(problem)}
    if not options or 2 * sum(plain(one) in offered for one in options) > len(options):
        return problem
    return "\n".join([problem.rstrip(), *(f"{letter}. {text}" for letter, text in zip(LETTERS, options, strict=False))])


def shown_order(problem: str, options: Sequence[str]) -> list[str]:
    """The options in the order of the letters that the question shows, which may be another than the column's."""
    offered = offered_options(problem)
    if not options or sorted(map(plain, offered)) == sorted(map(plain, options)):
        return offered
    return list(options)


def letters_of(solution: Any, options: Sequence[str], shown: Sequence[str], form: SolutionFormat) -> str | None:
    """The letter of the option that a solution means, or several ("A, C"); None if it is none of them.

    `options` are in the order that an index counts, `shown` in that of the letters. A list means several options.
    Raises BadOptions for an index beyond the options.
    """
    value = structured(solution)
    if _is_one_hot(value, len(options)):
        # One for each option: whether it is right.
        return ", ".join(sorted(LETTERS[_place(at, options, shown)] for at, one in enumerate(value) if one))
    if isinstance(value, list | tuple) and len(value) > 1:
        found = [_letter(one, options, shown, form) for one in value]
        return None if None in found else ", ".join(sorted({one for one in found if one}))
    if isinstance(value, list | tuple):
        value = value[0] if value else None
    return _letter(value, options, shown, form)


def _letter(solution: Any, options: Sequence[str], shown: Sequence[str], form: SolutionFormat) -> str | None:
    text = as_text(solution)
    if form in ("index", "index_from_1") and (whole := _WHOLE.fullmatch(text)):
        at = int(whole[1]) - (form == "index_from_1")
        if not 0 <= at < len(options):
            raise BadOptions(f"the solution is option {whole[1]} of {len(options)} options")
        return LETTERS[_place(at, options, shown)]
    if isinstance(solution, bool):
        return next((letter for word in YES_OR_NO[solution] if (letter := _by_text(word, shown))), None)
    parsed = parse_solution(text)
    readings = (_by_text, _by_letter) if form == "text" else (_by_letter, _by_text)
    return readings[0](parsed, shown) or readings[1](parsed, shown)


def _is_one_hot(value: Any, number: int) -> bool:
    """Whether it is a list of 0 and 1 (or of Booleans), one for each option."""
    numbers = isinstance(value, list | tuple) and all(isinstance(one, int) for one in value)
    return numbers and len(value) == number and set(value) == {0, 1}


def _place(at: int, options: Sequence[str], shown: Sequence[str]) -> int:
    """Where the question shows the option with this index."""
    same = [place for place, one in enumerate(shown) if plain(one) == plain(options[at])]
    return same[0] if len(same) == 1 else at


def _by_letter(parsed: str, shown: Sequence[str]) -> str | None:
    """The letter, or the set of letters, that a solution is; None if it is none of the options."""
    letters = letters_in(parsed)
    return ", ".join(sorted(letters)) if letters and letters <= set(LETTERS[: len(shown)]) else None


def _by_text(parsed: str, shown: Sequence[str]) -> str | None:
    """The letter of the one option with this text."""
    wanted = plain(parsed)
    same = [letter for letter, one in zip(LETTERS, shown, strict=False) if plain(one) == wanted]
    return same[0] if len(same) == 1 else None


def fits(solution: Any, options: Sequence[str], shown: Sequence[str]) -> dict[SolutionFormat, bool]:
    """For each format, whether a solution in it means one of the options."""
    value = structured(solution)
    one = value[0] if isinstance(value, list | tuple) and value else value
    text, parsed = as_text(one), parse_solution(as_text(one))
    whole = _WHOLE.fullmatch(text)
    return {
        "text": plain(parsed) in map(plain, options),
        "letter": _by_letter(parsed, shown) is not None,
        "index": whole is not None and int(whole[1]) < len(options),
        "index_from_1": whole is not None and 1 <= int(whole[1]) <= len(options),
    }


def plain(text: str) -> str:
    """An option's text as it is compared: without case, white space and a final period."""
    return " ".join(nfkc(text).casefold().split()).strip(" .。")
