"""Extracts the answer of a completion: its text, or the letter it chose.

A thought never contains the answer. It ends at the first `</think>`; one that is never closed runs to the end of the
text; if the completion closes a thought that it did not open (the prompt did), all text before belongs to it.

`extract_choice` looks in this order, and in each place the last match wins, since a model may correct itself:

1. the last complete `<answer>…</answer>`. A block that names several letters ("A or B") means no answer; a block
   without a letter is skipped;
2. a stated answer: "The answer is B", "D is correct", "I choose (C)", "答案是 B", "故选：A", `\\boxed{B}`; then bold
   `**B**`;
3. a lone letter. The article in "A red circle" and the pronoun "I" are words, and a letter that the text rules out
   ("not B", "不选 B", "B is wrong") is not chosen.

Letters are A to J, full-width ones included. Lower case counts inside `<answer>`, in brackets, and where a stated
answer ends with it.
"""

from __future__ import annotations

import re
from typing import Literal, NamedTuple

from dapo_stages.rewards.letters import leading, lone, names_several, stated
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.tags import answer_blocks, outside_think, unboxed, without_answer_tags, without_markup

_STATED_TEXT = re.compile(
    r"(?:\banswer\s*(?:is|was|:|=)\s*:?|答案\s*+(?:应该|应)?\s*+(?:是|为|:|：)\s*[:：]?)([^\n]+)", re.IGNORECASE
)
_SENTENCE_END = re.compile(r"[.!?](?:\s|$)|[;；。！？]|,\s+(?=[a-z]{2})|[,，]\s*(?=[\u4e00-\u9fff])")
_LONGEST_LINE = 200  # characters of a one-line completion that may as a whole be the answer


Place = Literal["tags", "stated", "lone", "none"]


class Reading(NamedTuple):
    """An answer and where it was read: inside `<answer>`, stated outside, alone (a last letter, or a whole one-line
    completion), or nowhere, which includes an `<answer>` block that counts as no answer.
    """

    answer: str | None
    place: Place


def extract_answer(text: str) -> str | None:
    """The answer as written, for answers that are not letters; None if there is none. See `read_answer`."""
    return read_answer(text).answer


def extract_choice(text: str) -> str | None:
    """The letter A to J that a completion chose, in upper case; None if it chose none. See the module docstring."""
    return read_choice(text).answer


def read_answer(text: str) -> Reading:
    """The answer as written, for answers that are not letters, and its place.

    The last complete `<answer>` outside `<think>`, else the last `\\boxed{…}`, else what follows the last "answer is"
    (or "答案是") in its sentence, else the whole text outside `<think>` if that is one short line.
    """
    outside = outside_think(text)
    if tagged := answer_blocks(outside):
        return _reading(tagged[-1].strip(), "tags")
    outside = without_answer_tags(outside).strip()
    if boxed := unboxed(outside):
        return _reading(boxed[-1][1].strip(), "stated")
    if stated_texts := _STATED_TEXT.findall(without_markup(outside)):
        return _reading(_SENTENCE_END.split(stated_texts[-1].strip(), maxsplit=1)[0].strip(), "stated")
    return _reading(outside if "\n" not in outside and len(outside) <= _LONGEST_LINE else None, "lone")


def read_choice(text: str) -> Reading:
    """The letter A to J that a completion chose, in upper case, and its place. See the module docstring."""
    outside = nfkc(outside_think(text))
    for content in answer_blocks(outside)[-1:]:
        if names_several(content):
            return Reading(None, "none")
        chosen = leading(content) or _stated_or_lone(content)[0]
        if chosen is not None:
            return _reading(chosen, "tags")
    return _reading(*_stated_or_lone(without_answer_tags(outside)))


def parse_solution(solution: str) -> str:
    """A dataset's solution: the letter in upper case if it names one option, else its text.

    Recognized: `B`, `(b)`, `Ｂ`, `B. green`, `B) green`, `Answer: B`, `\\boxed{B}`, each also inside `<answer>`.
    Several letters ("A, C") are text; so is text that only begins with one ("A red circle", "D = 5").
    """
    outside = outside_think(solution)
    text = (answer_blocks(outside) or [outside])[-1].strip()
    if boxed := unboxed(text):
        text = boxed[-1][1].strip()
    plain = without_markup(nfkc(text))
    letter = None if names_several(plain) else leading(plain)
    return letter or text


def _stated_or_lone(text: str) -> tuple[str | None, Place]:
    """A stated answer, "" if it names several letters; else the last lone letter, None if there is none."""
    statement = stated(text)
    return (lone(text), "lone") if statement is None else (statement, "stated")


def _reading(answer: str | None, place: Place) -> Reading:
    return Reading(answer, place) if answer else Reading(None, "none")
