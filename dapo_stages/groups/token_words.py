"""What the tokens of a completion are part of: words that say nothing, the answer, the tags of the format.

Token texts alone do not tell: a word may be split over tokens, a character too, and Chinese has no spaces. So tokens
are mapped to spans of the completion's text first.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Sequence
from functools import cache
from pathlib import Path
from typing import NamedTuple

LISTS = Path(__file__).parent / "stop_words"  # of a language each; their first lines say where they come from

_PART = "\ufffd"  # token texts have it where a token is only a part of a character
_TAG = re.compile(r"</?(?:think|answer)>", re.IGNORECASE)
_ANSWER = re.compile(r"<answer>(.*?)</answer>", re.IGNORECASE | re.DOTALL)
_LATIN_WORD = re.compile(r"[^\W\d_\u3400-\u9fff]+(?:['’][^\W\d_\u3400-\u9fff]+)*")
_CHINESE = re.compile(r"[\u3400-\u9fff]+")


class Kinds(NamedTuple):
    """Which tokens of a completion are what, by their index; no token is of two kinds."""

    stop_words: list[int]
    answer: list[int]
    tags: list[int]


class _Unit(NamedTuple):
    """Tokens that share the characters [start, end) of the text: one, or those of a character that is split."""

    start: int
    end: int
    tokens: list[int]


def token_kinds(text: str, token_texts: Sequence[str], languages: Collection[str] = ()) -> Kinds:
    """What each token is part of; `languages` (en, zh) are those whose stop words count.

    A token with a character inside the last `<answer>…</answer>` is the answer's, spaces aside; else, one with a
    character of a tag is a tag's; else, it is a stop word if all its letters belong to stop words. Single capital
    letters never do: they may name an option.
    """
    units = _units(text, token_texts)
    *_, answer = [None, *_ANSWER.finditer(text)]
    content = _places(text, [answer.span(1)] if answer else [])
    tags = _places(text, [match.span() for match in _TAG.finditer(text)])
    kinds = Kinds([], [], [])
    rest = []
    for unit in units:
        if any(place in content for place in range(unit.start, unit.end)):
            kinds.answer.extend(unit.tokens)
        elif any(place in tags for place in range(unit.start, unit.end)):
            kinds.tags.extend(unit.tokens)
        else:
            rest.append(unit)
    silent = _silent(text, rest, languages)
    for unit in rest:
        letters = [place for place in range(unit.start, unit.end) if text[place].isalnum()]
        if letters and silent.issuperset(letters):
            kinds.stop_words.extend(unit.tokens)
    return kinds


def text_of(text: str, token_texts: Sequence[str], mask: Sequence[bool]) -> str:
    """What of a completion's text its tokens in `mask` say."""
    units = _units(text, token_texts)
    return "".join(text[unit.start : unit.end] for unit in units if all(mask[token] for token in unit.tokens))


@cache
def stop_words(language: str) -> frozenset[str]:
    """The words of a list in stop_words/."""
    lines = (LISTS / f"{language}.txt").read_text(encoding="utf-8").splitlines()
    return frozenset(word for line in lines if not line.startswith("#") for word in line.split())


def _places(text: str, spans: Sequence[tuple[int, int]]) -> set[int]:
    """The positions of characters that are not spaces."""
    return {place for start, end in spans for place in range(start, end) if not text[place].isspace()}


def _units(text: str, token_texts: Sequence[str]) -> list[_Unit]:
    """The spans of tokens, in order. A token that is not in the text (an end token) has none."""
    units: list[_Unit] = []
    place, parts = 0, list[int]()
    for index, said in enumerate(token_texts):
        if _PART in said:
            parts.append(index)
            continue
        if parts:
            found = text.find(said, place + 1) if said else -1
            if found < 0:  # an end token: what is left of the text belongs to the parts
                continue
            units.append(_Unit(place, found, parts))
            place, parts = found, []
        start = place
        while not text.startswith(said, start) and start < len(text) and text[start].isspace():
            start += 1  # tokenizers that drop the space of a token that is decoded alone
        if said and text.startswith(said, start):
            units.append(_Unit(place, start + len(said), [index]))
            place = start + len(said)
    if parts:
        units.append(_Unit(place, len(text), parts))
    return units


def _silent(text: str, units: Sequence[_Unit], languages: Collection[str]) -> set[int]:
    """Positions of the letters of stop words."""
    found: set[int] = set()
    if "en" in languages:
        words = stop_words("en")
        for match in _LATIN_WORD.finditer(text):
            capital = len(match[0]) == 1 and match[0].isupper() and match[0] != "I"
            if not capital and match[0].lower().replace("’", "'") in words:
                found.update(range(*match.span()))
    if "zh" in languages:
        for start, end in _chinese(text, units):
            found.update(range(start, end))
    return found


def _chinese(text: str, units: Sequence[_Unit]) -> list[tuple[int, int]]:
    """Spans of Chinese stop words that begin and end where tokens do: 的 of the token 目的 is not one.

    The Chinese characters of a token must all be stop words, one after another, or be those of one with the next ones.
    """
    words = stop_words("zh")
    longest = max(map(len, words))
    spans: list[tuple[int, int]] = []
    number = 0
    while number < len(units):
        unit = units[number]
        joined = 0
        for count in range(1, min(longest, len(units) - number)):
            if text[unit.start : units[number + count].end].strip() in words:
                joined = count  # the longest word wins: 我们, not 我
        runs = list(_CHINESE.finditer(text[unit.start : unit.end]))
        if joined:
            spans.append((unit.start, units[number + joined].end))
        elif runs and all(_made_of(run[0], words, longest) for run in runs):
            spans += [(unit.start + run.start(), unit.start + run.end()) for run in runs]
        number += 1 + joined
    return spans


def _made_of(said: str, words: frozenset[str], longest: int) -> bool:
    """Whether a text is stop words, one after another."""
    ends = {0}
    for end in range(1, len(said) + 1):
        if any(said[start:end] in words for start in ends if end - start <= longest):
            ends.add(end)
    return len(said) in ends
