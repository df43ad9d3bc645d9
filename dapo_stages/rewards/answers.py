"""Extracts the answer of a completion: its text, or the letter it chose.

A thought that was closed never contains the answer. It ends at the first `</think>`; if the completion closes a thought
that it did not open (the prompt did), all text before belongs to it. A thought that is never closed runs to the end of
the text; its last `<answer>` block counts, or its last line if that states an answer or is one.

`read_choice` looks in this order, and in each place the last match wins, since a model may correct itself:

1. the last complete `<answer>…</answer>`. A block that names several letters ("A or B") means no answer; a block
   without a letter is skipped. Of a block that is never closed the first line counts;
2. a stated answer: "The answer is B", "D is correct", "I choose (C)", "答案是 B", "故选：A", `\\boxed{B}`; then bold
   `**B**`; a list of the options that calls one of them right; a text that begins with one option ("B. green …");
3. a lone letter. The article in "A red circle" and the pronoun "I" are words, and a letter that the text rules out
   ("not B", "不选 B", "B is wrong") is not chosen.

Letters are A to J, full-width ones included. Lower case counts inside `<answer>`, in brackets, and where a stated
answer ends with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from typing import Any, Literal, NamedTuple

from dapo_stages.rewards.letters import leading, letter_set, lone, names_several, stated
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.tags import (
    answer_blocks,
    outside_think,
    unboxed,
    unclosed_answer,
    unclosed_thought,
    without_answer_tags,
    without_markup,
)

_STATED_TEXT = re.compile(
    r"(?:\banswer\s*(?:is|was|:|=)\s*:?|答案\s*+(?:应该|应)?\s*+(?:是|为|:|：)\s*[:：]?|^\s*####)\s*([^\n]+)",
    re.IGNORECASE | re.MULTILINE,
)
# What is said of an answer, rather than the answer.
_REMARK = re.compile(
    r"(?:indeed |therefore |thus |also )?"
    r"(?:consistent|correct|right|reasonable|plausible|valid|clear|as follows|below|above)\b",
    re.IGNORECASE,
)
_ELEMENT = re.compile(r"<(?P<name>\w+)>(?P<inside>.*)</(?P=name)>", re.DOTALL)  # <CONCLUSION>B</CONCLUSION>
_INITIALS = re.compile(r"[A-Z]\.\s*[A-Z]\.\s*[A-Z][a-z]")  # of a person
# The last line of a thought that was cut off: it states an answer at its end, or is nothing but one.
_ENDS_IN_ANSWER = re.compile(
    r"(?:\banswer\s*(?:is|:)|答案\s*(?:应该|应)?\s*(?:是|为|:|：|选)|故选|所以选|\\boxed)\s*[:：]?\s*\S[^.!?。！？\n]{0,60}[.!?。！？]?\s*$",
    re.IGNORECASE,
)
_IS_ANSWER = re.compile(r"\s*[*_(\[]{0,3}[A-Ja-j][*_)\].]{0,3}\s*")
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[;；。！？]|,\s+(?=[a-z]{2})|[,，]\s*(?=[\u4e00-\u9fff])")
_LONGEST_LINE = 200  # characters of a one-line completion that may as a whole be the answer


Place = Literal["tags", "stated", "lone", "unclosed", "none"]


class Reading(NamedTuple):
    """An answer and where it was read: inside `<answer>`, stated outside, alone (a last letter, or a whole one-line
    completion), at the end of a thought that was never closed, or nowhere, which includes an `<answer>` block that
    counts as no answer.
    """

    answer: str | None
    place: Place


def read_answer(text: str) -> Reading:
    """The answer as written, for answers that are not letters, and its place.

    The last complete `<answer>` outside `<think>`, else the last `\\boxed{…}`, else what follows the last "answer is"
    (or "答案是") in its sentence, else the whole text outside `<think>` if that is one short line.
    """
    found = _written(outside_think(text))
    return found if found.answer is not None else _at_the_end(text, lambda end: _stated_answer(end) or end)


def _written(outside: str) -> Reading:
    if tagged := answer_blocks(outside):
        return _reading(tagged[-1], "tags")
    if opened := unclosed_answer(outside):
        return _reading(opened, "tags")
    outside = without_answer_tags(outside).strip()
    if stated_answer := _stated_answer(outside):
        return _reading(stated_answer, "stated")
    return _reading(outside if "\n" not in outside and len(outside) <= _LONGEST_LINE else None, "lone")


def _stated_answer(text: str) -> str | None:
    """The last `\\boxed{…}`, else what follows the last "answer is" in its sentence; None if there is neither."""
    if boxed := unboxed(text):
        return boxed[-1][1].strip()
    said = [one.strip() for one in _STATED_TEXT.findall(without_markup(text)) if not _REMARK.match(one.strip())]
    return _SENTENCE_END.split(said[-1], maxsplit=1)[0].strip() if said else None


def read_choice(text: str) -> Reading:
    """The letter A to J that a completion chose, in upper case, and its place. See the module docstring."""
    outside = nfkc(outside_think(text))
    found = _chosen(outside)
    if found.answer is not None or answer_blocks(outside):
        return found
    return _at_the_end(nfkc(text), _letter)


def _chosen(outside: str) -> Reading:
    if blocks := answer_blocks(outside):
        if (letter := _letter(blocks[-1])) is not None:
            return _reading(letter, "tags")
    elif opened := unclosed_answer(outside):
        return _reading(_letter(opened), "tags")
    return _reading(*_stated_or_lone(without_answer_tags(outside)))


def _letter(text: str) -> str | None:
    """The letter that a short answer chooses; "" if it names several, None if it names none."""
    return "" if names_several(text) else leading(text) or _stated_or_lone(text)[0]


def has_closed_answer(text: str) -> bool:
    """Whether there is a complete `<answer>` block, outside of thoughts or in one that was never closed."""
    return bool(answer_blocks(outside_think(text)) or answer_blocks(unclosed_thought(text) or ""))


def _at_the_end(text: str, read: Callable[[str], str | None]) -> Reading:
    """The answer at the end of a thought that was never closed: its last `<answer>` block, else its last line if that
    states an answer or is one. What is said in the middle of a thought is none.
    """
    thought = unclosed_thought(text)
    if thought is None:
        return Reading(None, "none")
    marked = next(reversed(answer_blocks(thought)), None) or unclosed_answer(thought)
    if marked:
        return _reading(read(marked), "unclosed")
    last = thought.rstrip().rpartition("\n")[2]
    return _reading(read(last) if _ENDS_IN_ANSWER.search(last) or _IS_ANSWER.fullmatch(last) else None, "unclosed")


def parse_solution(solution: str) -> str:
    """A dataset's solution: the letter in upper case if it names one option, else its text.

    Recognized: `B`, `(b)`, `Ｂ`, `B. green`, `B) green`, `Answer: B`, `\\boxed{B}`, each also inside `<answer>`.
    Several letters ("A, C") are text; so is text that only begins with one ("A red circle", "D = 5").
    """
    outside = outside_think(solution)
    text = (answer_blocks(outside) or [outside])[-1].strip()
    if element := _ELEMENT.fullmatch(text):
        text = element["inside"].strip()
    if boxed := unboxed(text):
        text = boxed[-1][1].strip()
    plain = without_markup(nfkc(text))
    letter = None if letter_set(plain) or names_several(plain) or _INITIALS.match(plain) else leading(plain)
    return letter or text


def accepted_answers(solution: str) -> dict[str, float]:
    """The answers that a solution accepts, each as `parse_solution` gives it, with its grade from 0 to 1.

    Several are JSON: a list (`["sofa", "couch"]`), each of which is fully right, or an object with their grades
    (`{"sofa": 1, "couch": 0.5}`). A list of letters is a set of options, as anywhere, and one answer.
    """
    found: Any = None
    if solution.startswith(('["', '{"')):
        with suppress(ValueError, RecursionError):
            found = json.loads(solution)
    if isinstance(found, list) and found and all(isinstance(one, str) for one in found):
        if letter_set(nfkc(solution)) is None:
            return {parse_solution(one): 1.0 for one in found}
    elif isinstance(found, dict) and found and all(isinstance(grade, int | float) for grade in found.values()):
        return {parse_solution(one): min(max(float(grade), 0.0), 1.0) for one, grade in found.items()}
    return {parse_solution(solution): 1.0}


def _stated_or_lone(text: str) -> tuple[str | None, Place]:
    """A stated answer, "" if it names several letters; else the last lone letter, None if there is none."""
    statement = stated(text)
    return (lone(text), "lone") if statement is None else (statement, "stated")


def _reading(answer: str | None, place: Place) -> Reading:
    answer = (answer or "").strip()
    return Reading(answer, place) if answer else Reading(None, "none")
