"""One kind for each token of a completion, for tables: tag, answer, function word, number, punctuation or word."""

from __future__ import annotations

import re
from collections.abc import Sequence

from dapo_stages.groups.token_words import token_kinds as token_words
from dapo_stages.rewards.number_words import number_in_words

KINDS = ("words", "function words", "numbers", "punctuation", "answer", "tags")

_END = re.compile(r"<\|[^|>]{1,40}\|>")  # how special tokens are written; no other token has such a text
_BROKEN = "\ufffd"  # a part of a character, in the text of a token
_LANGUAGES = ("en", "zh")


def token_kinds(text: str, token_texts: Sequence[str]) -> list[str]:
    """The kind of each token, [T] -> [T], from the completion's text and the texts of its tokens.

    Function words are the stop words of token_words.py, English and Chinese; the answer is what the last `<answer>`
    encloses, in whole or in part; the end token counts as a tag. Of the rest, numbers have a digit or say one in words,
    and punctuation has neither letter nor digit, white space included.
    """
    kinds = [_by_characters(one) for one in token_texts]
    found = token_words(text, token_texts, _LANGUAGES)
    for name, places in (("function words", found.stop_words), ("tags", found.tags), ("answer", found.answer)):
        for place in places:
            kinds[place] = name
    return kinds


def _by_characters(text: str) -> str:
    if _END.fullmatch(text):
        return "tags"
    if any(char.isdigit() for char in text) or number_in_words(text) is not None:
        return "numbers"
    return "words" if any(char.isalpha() or char == _BROKEN for char in text) else "punctuation"
