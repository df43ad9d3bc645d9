"""Extracts the answer of a completion: its text, or the letter it chose.

A thought that was closed never contains the answer. It ends at the first `</think>`; if the completion closes a thought
that it did not open (the prompt did), all text before belongs to it. A thought that is never closed runs to the end of
the text; its last `<answer>` block counts, or its last line if that states an answer or is one.

`read_choice` looks in this order, and in each place the last match wins, since a model may correct itself:

1. the last complete `<answer>…</answer>`. A block that names several letters ("A or B") means no answer; a block
   without a letter is skipped. Of a block that is never closed the first line counts;
2. what the text calls its answer: "The answer is B", "I choose (C)", "答案是 B", "故选：A", `\\boxed{B}`, unless it
   takes that back ("Wait, …"); else the one that it calls wrong, where the question asks for that; a list of the
   options that calls one of them right; "D is correct"; the only letter in bold; a text that begins with one option
   ("B. green …");
3. a lone letter. The article in "A red circle" and the pronoun "I" are words, and a letter that the text rules out
   ("not B", "不选 B", "B is wrong"), names with others ("A and B") or uses in a name ("angle B") is not chosen.

Letters are A to J, full-width ones included. Lower case counts inside `<answer>`, in brackets, and where a stated
answer ends with it.
"""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from contextlib import suppress
from functools import lru_cache
from typing import Any, Literal, NamedTuple, TypeVar

from dapo_stages.rewards.letters import NONE, UNDECIDED, Letters, leading, letter_set, only_letters, several
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.sentences import conclusion, last_line
from dapo_stages.rewards.statements import judged, last_option, last_option_line, lone, stated
from dapo_stages.rewards.tags import (
    answer_blocks,
    outside_json,
    outside_think,
    unboxed,
    unclosed_answer,
    unclosed_thought,
    without_answer_tags,
    without_markup,
)

_STATED_TEXT = re.compile(
    r"(?:\banswer\s*(?:(?:is|was|(?:should|would|must|will|has\s+to)\s+be)(?:\s+(?:therefore|thus|then|clearly|simply))?\b|:|=)\s*:?"
    r"|答案\s*+(?:应该|应)?\s*+(?:是|为|:|：)\s*[:：]?|【答案】|故填\s*[:：]?|^[ \t]*+####)"
    r"\s*(?:\$\$\s*\n|\\\[\s*\n)?\s*([^\n]+)",  # or the line after that opens display mathematics
    re.IGNORECASE | re.MULTILINE,
)
# What is said of an answer, rather than the answer.
_REMARK = re.compile(
    r"(?:indeed |therefore |thus |also )?"
    r"(?:consistent|correct|right|reasonable|plausible|valid|clear|as follows|below|above)\b",
    re.IGNORECASE,
)
_TAKEN_BACK = re.compile(
    r"(?:\b(?:wait|actually|correction|sorry|oops|no(?=,))\b[^\n]{0,200}?\b(?:it|that|this|answer)\s+(?:is|should\s+be|must\s+be)"
    r"\s+(?!wrong|not|correct|right|just|half|an?\b|the\b|known)|不对[^\n]{0,200}?应该?是)([^\n]+)",
    re.IGNORECASE,
)
_ELEMENT = re.compile(r"<(?P<name>\w+)>(?P<inside>[^<>]*)</(?P=name)>")  # <CONCLUSION>B</CONCLUSION>
# A solution that says more than its letters: "【答案】B", "故选：B．", "Correct Answer: Option B", {"answer": "B"}.
_NAMED_SOLUTION = re.compile(
    r"(?:【答案】|(?:故|本题|答案|所以|因此)?应?选[:]?|答案[是为选:]*|(?:correct\s+)?(?:answer|ans)\s*(?:is)?\s*[:.]?)"
    r"\s*(?:options?\s+)?(?P<letters>[A-J](?:[、,\s]*[A-J])*)\s*[.。]?",
    re.IGNORECASE,
)
# The last line of a thought that was cut off: it states an answer at its end.
_ENDS_IN_ANSWER = re.compile(
    r"(?:\banswer\s*(?:is|:)|答案\s*(?:应该|应)?\s*(?:是|为|:|：|选)|\\boxed)\s*[:：]?\s*\S[^.!?。！？\n]{0,60}[.!?。！？]?\s*$",
    re.IGNORECASE,
)
_DOUBTFUL = re.compile(
    r"[?？]\s*$|\b(?:if|maybe|perhaps|suppose|whether|unless|someone|some\s+(?:might|may|would|people)|doubt"
    r"|not\s+(?:sure|convinced)|would\s+mean|check)\b|如果|假如|难道|是否|也许|可能",
    re.IGNORECASE,
)
_IS_ANSWER = re.compile(r"\s*[*_(\[]{0,3}[A-Ja-j][*_)\].]{0,3}\s*")
_SENTENCE_END = re.compile(
    r"[.!?](?:\s|$)|[;；。！？]|,\s+(?!or\b)(?=[a-z]{2})|[,，]\s*(?=[\u4e00-\u9fff])|(?<!\s)\s+(?=because\b)",
    re.IGNORECASE,
)
_LAST_SENTENCE = re.compile(r"(?<=[.!?])\s+(?=[A-Z])|(?<=[。！？])(?=\s*\S)")
_LONGEST_LINE = 200  # characters of a one-line completion that may as a whole be the answer


T = TypeVar("T")

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
    (or "答案是") in its sentence, else the whole text outside `<think>` if that is one short line, else the conclusion
    of several.
    """
    found = _written(outside_think(text))
    if found.answer is not None:
        return found
    return _reading(_at_the_end(text, lambda block: _stated_answer(block) or block, _last_answer), "unclosed")


def _written(outside: str) -> Reading:
    if tagged := answer_blocks(outside):
        return _reading(tagged[-1], "tags")
    if opened := unclosed_answer(outside):
        return _reading(opened, "tags")
    outside = without_answer_tags(outside).strip()
    if stated_answer := _stated_answer(outside):
        return _reading(stated_answer, "stated")
    whole = outside if "\n" not in outside and len(outside) <= _LONGEST_LINE else conclusion(outside)
    return _reading(whole, "lone")


def _stated_answer(text: str) -> str | None:
    """The last `\\boxed{…}`, else what follows the last "answer is" in its sentence; None if there is neither."""
    if boxed := unboxed(text):
        return boxed[-1][1].strip()
    plain = without_markup(text)
    said = [one for one in _STATED_TEXT.finditer(plain) if not _REMARK.match(one[1].strip())]
    if not said:
        return None
    corrected = _TAKEN_BACK.search(plain, said[-1].start(1))
    return _SENTENCE_END.split((corrected or said[-1])[1].strip(), maxsplit=1)[0].strip()


def read_choice(text: str) -> Reading:
    """The letter A to J that a completion chose, in upper case, and its place. See the module docstring."""
    letters, place = _read_letters(text)
    return _reading(next(iter(letters)) if len(letters) == 1 else None, place)


def read_choices(text: str) -> Reading:
    """The same where several options may be right: all letters that it chose, `A, C`."""
    letters, place = _read_letters(text)
    return _reading(None if UNDECIDED in letters else ", ".join(sorted(letters)), place)


def _read_letters(text: str) -> tuple[Letters, Place]:
    outside = nfkc(outside_think(text))
    blocks = answer_blocks(outside)
    if blocks and (letters := _letters(blocks[-1])) is not None:
        return letters, "tags"
    if not blocks and (opened := unclosed_answer(outside)):
        return _letters(opened) or NONE, "tags"
    if letters := stated(outside_tags := without_answer_tags(outside)):
        return letters, "stated"
    if letters := only_letters(outside_tags) if len(outside_tags) <= _LONGEST_LINE else NONE:
        return letters, "lone"
    if letter := lone(outside_tags):
        return frozenset(letter), "lone"
    return (_at_the_end(nfkc(text), _letters, _last_letters) if not blocks else None) or NONE, "unclosed"


def _letters(text: str) -> Letters | None:
    """The letters that a short answer chooses, or names without a choice; None if it has none."""
    if letters := judged(text) or several(text) or leading(text) or stated(text):
        return letters
    letter = lone(text)
    return None if letter is None else frozenset(letter)


def has_closed_answer(text: str) -> bool:
    """Whether there is a complete `<answer>` block, outside of thoughts or in one that was never closed."""
    return bool(answer_blocks(outside_think(text)) or answer_blocks(unclosed_thought(text) or ""))


def _at_the_end(text: str, read: Callable[[str], T | None], read_last: Callable[[str], T | None]) -> T | None:
    """What a thought that was never closed comes to, read in its last `<answer>` block, else in the thought; None
    without such a thought."""
    thought = unclosed_thought(text)
    if thought is None:
        return None
    marked = next(reversed(answer_blocks(thought)), None) or unclosed_answer(thought)
    return read(marked) if marked else read_last(thought)


def _last_letters(thought: str) -> Letters | None:
    """The letters that the last line of a thought states, or is; what is said before, or in doubt, is no answer."""
    line = last_line(thought)
    if _IS_ANSWER.fullmatch(line):
        return _letters(line)
    sentence = _LAST_SENTENCE.split(line.strip())[-1]
    if _DOUBTFUL.search(sentence):
        return None
    return last_option(thought) or stated(sentence, begun=False)


def _last_answer(thought: str) -> str | None:
    """The same for answers that are not letters."""
    line = last_line(thought)
    if not _ENDS_IN_ANSWER.search(line) or _DOUBTFUL.search(_LAST_SENTENCE.split(line.strip())[-1]):
        return last_option_line(thought)
    return _stated_answer(line) or line


def parse_solution(solution: str) -> str:
    """A dataset's solution: the letter in upper case if it names one option, else its text.

    Recognized: `B`, `(b)`, `Ｂ`, `B. green`, `B) green`, `Answer: B`, `故选：B`, `\\boxed{B}`, each also inside
    `<answer>`. Of text that states its answer ("The answer is 5.", `#### 5`) only that counts.
    Several letters ("A, C") are text; so is text that only begins with one ("A red circle", "D = 5").
    """
    return _remembered(solution) if len(solution) <= _LONGEST_LINE else _parsed(solution)


def _parsed(solution: str) -> str:
    outside = outside_think(solution)
    text = outside_json((answer_blocks(outside) or [outside])[-1]).strip()
    if elements := [one for one in _ELEMENT.finditer(text) if one.end() == len(text)]:
        text = elements[-1]["inside"].strip()
    if boxed := unboxed(text):
        text = boxed[-1][1].strip()
    elif (said := _stated_answer(text)) and not re.match(r"[A-J][.):]", text):
        text = said
    plain = without_markup(nfkc(text)).strip()
    if len(plain) <= _LONGEST_LINE and (named := _NAMED_SOLUTION.fullmatch(plain)):
        return ", ".join(re.findall(r"[A-J]", named["letters"].upper()))
    letters = NONE if letter_set(plain) or several(plain) else leading(plain)
    return next(iter(letters)) if len(letters) == 1 else text


_remembered = lru_cache(1024)(_parsed)  # most datasets have few different ones


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


def _reading(answer: str | None, place: Place) -> Reading:
    answer = (answer or "").strip()
    return Reading(answer, place) if answer else Reading(None, "none")
