"""Numbers in words, in English and Chinese: `twenty-one`, `one half`, `三十二`."""

from __future__ import annotations

import re

_ONES = "zero one two three four five six seven eight nine ten eleven twelve thirteen fourteen fifteen sixteen"
_ONES += " seventeen eighteen nineteen"
_TENS = "twenty thirty forty fifty sixty seventy eighty ninety"
_NUMBERS = {word: number for number, word in enumerate(_ONES.split())}
_NUMBERS |= {word: 10 * number for number, word in enumerate(_TENS.split(), start=2)}
_PARTS = {"half": 2, "halves": 2, "third": 3, "thirds": 3, "quarter": 4, "quarters": 4, "fourth": 4, "fourths": 4}
_PARTS |= {"fifth": 5, "fifths": 5, "eighth": 8, "eighths": 8, "tenth": 10, "tenths": 10}
_MAGNITUDES = {"hundred": 100, "thousand": 1000, "million": 1_000_000, "billion": 1_000_000_000}
_NEGATIVE = re.compile(r"(?:negative|minus)\s+|负", re.IGNORECASE)
_DIGITS = {character: number for number, character in enumerate("零一二三四五六七八九")} | {"两": 2, "〇": 0}
_PLACES = {"十": 10, "百": 100, "千": 1000, "万": 10_000}
_CHINESE = re.compile(f"[{''.join(_DIGITS)}{''.join(_PLACES)}]+")


def number_in_words(text: str) -> str | None:
    """The number as digits or a fraction in LaTeX; None if the text is anything else."""
    text = text.strip()
    if negative := _NEGATIVE.match(text):
        rest = text[negative.end() :]
        positive = rest if re.fullmatch(r"\d+(?:\.\d+)?", rest) else number_in_words(rest)
        return None if positive is None or positive.startswith("-") else f"-{positive}"
    whole, divided, part = text.partition("分之")
    if divided and _CHINESE.fullmatch(whole) and (number := number_in_words(part)) is not None:
        return rf"{number}\%" if whole == "百" else rf"\frac{{{number}}}{{{_in_chinese(whole)}}}"
    if _CHINESE.fullmatch(text):
        return _in_chinese(text)
    words = text.casefold().replace("-", " ").split()
    if words and words[-1] in _PARTS:
        many = _in_english([word for word in words[:-1] if word not in ("a", "an")] or ["one"])
        return None if many is None else rf"\frac{{{many}}}{{{_PARTS[words[-1]]}}}"
    found = _in_english(words)
    return None if found is None else str(found)


def _in_english(words: list[str]) -> int | None:
    words = [word for word in words if word != "and"]
    for name, size in reversed(_MAGNITUDES.items()):
        if name in words:
            before, after = words[: words.index(name)], words[words.index(name) + 1 :]
            many, rest = _in_english(before or ["one"]), _in_english(after or ["zero"])
            return None if many is None or rest is None else size * many + rest
    if len(words) == 1:
        return _NUMBERS.get(words[0])
    if len(words) == 2 and words[0] in _TENS.split() and 0 < _NUMBERS.get(words[1], 0) < 10:
        return _NUMBERS[words[0]] + _NUMBERS[words[1]]
    return None


def _in_chinese(text: str) -> str | None:
    total, digit, last = 0, 0, 100_000
    for character in text:
        if character in _PLACES:
            if _PLACES[character] >= last:
                return None
            last = _PLACES[character]
            total += (digit or 1) * last
            digit = 0
        elif digit:  # digits in a row are no number in words
            return None
        else:
            digit = _DIGITS[character]
    return str(total + digit)
