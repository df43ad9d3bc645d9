"""What kind of token each one of a completion is, by its text: a tag, the answer, a number, a mark, a word."""

from __future__ import annotations

import re
from collections.abc import Sequence
from itertools import accumulate

# In the order of tables. A token is of the first kind in this order that it matches: tags, answer, numbers, marks.
KINDS = ("words", "function words", "punctuation", "numbers", "answer", "tags")

_TAG = re.compile(r"</?(?:think|answer)>|<\|[^|>]{1,40}\|>", re.IGNORECASE)
_ANSWER = re.compile(r"(?<=<answer>)(?:(?!<answer>).)*?(?=</answer>|\Z)", re.IGNORECASE | re.DOTALL)
_WORD = re.compile(r"[^\W\d_]+(?:['’][^\W\d_]+)*")
_CHINESE = re.compile(r"[\u3400-\u9fff]")
_BROKEN = "\ufffd"  # a part of a character, in the text of a token

_ENGLISH = (
    "a an the this that these those it its it's he she they them their his her we our you your i my me us "
    "is are was were be been being am do does did has have had will would can could may might must shall should "
    "of in on at by to from with without into onto over under between among about as for than then so thus "
    "and or nor but if because while since when where which who whom whose what how why there here "
    "not no yes also only just very too all any both each every some such other another same "
    "up down out off again once more most few own there"
)
_CHINESE_WORDS = (
    "的 了 是 在 和 与 或 及 也 都 就 而 但 所 以 所以 因为 因 为 如 如果 这 那 这个 那个 这些 那些 它 他 她 我 我们 你 们 "
    "有 没有 不 没 被 把 从 到 对 于 中 上 下 里 之 其 个 一个 还 又 再 很 更 最 会 能 可以 可 要 应 该 应该 即 则 由 "
    "着 过 吗 呢 吧 啊 将 并 且 并且"
)
FUNCTION_WORDS = frozenset(_ENGLISH.split()) | frozenset(_CHINESE_WORDS.split())


def token_kinds(texts: Sequence[str]) -> list[str]:
    """The kind of each token of a completion, [T] -> [T], from the texts of its tokens.

    A token belongs to a tag or to the answer if any of its characters does: tokens may hold several words. `answer` is
    what an `<answer>` encloses, whether closed or not, without white space. Numbers have a digit. A token without a
    letter or a digit is punctuation, white space included. A piece of a word is a function word if the whole word is;
    Chinese is written without spaces, so there the token itself is looked up.
    """
    whole = "".join(texts)
    tagged, answered = bytearray(len(whole)), bytearray(len(whole))
    for found in _TAG.finditer(whole):
        tagged[found.start() : found.end()] = b"\1" * len(found[0])
    for found in _ANSWER.finditer(whole):
        answered[found.start() : found.end()] = bytes(not char.isspace() for char in found[0])
    words = [""] * len(whole)
    for found in _WORD.finditer(whole):
        words[found.start() : found.end()] = [found[0].lower().replace("’", "'")] * len(found[0])
    ends = list(accumulate(map(len, texts)))
    kinds = []
    for text, end in zip(texts, ends, strict=True):
        place = slice(end - len(text), end)
        kinds.append(_kind(text, any(tagged[place]), any(answered[place]), words[place]))
    return kinds


def _kind(text: str, tagged: bool, answered: bool, words: Sequence[str]) -> str:
    if tagged:
        return "tags"
    if answered:
        return "answer"
    if any(char.isdigit() for char in text):
        return "numbers"
    if not any(char.isalpha() or char == _BROKEN for char in text):
        return "punctuation"
    if _CHINESE.search(text):
        return "function words" if text.strip() in FUNCTION_WORDS else "words"
    return "function words" if all(word in FUNCTION_WORDS for word in words if word) and any(words) else "words"
