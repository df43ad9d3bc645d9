"""The accuracy reward: whether the completion's answer is the solution."""

from __future__ import annotations

import re
from functools import partial

from dapo_stages.rewards.answers import (
    Reading,
    accepted_answers,
    has_closed_answer,
    read_answer,
    read_choice,
    read_choices,
)
from dapo_stages.rewards.isolated import symbolic as _symbolic
from dapo_stages.rewards.letters import letter_set, letters_in
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.quantities import equal
from dapo_stages.rewards.sentences import value_in, without_remark, without_sentence
from dapo_stages.rewards.tags import open_text_commands, outside_json, unboxed

_FINAL = ".,;!。，"
_BRACKETS = {("\\(", "\\)"), ("\\[", "\\]")}
_INLINE = re.compile(r"\$(?=\S)([^$\n]*[^$\s])\$(?!\d)|\\\(([^()\n]*(?:\([^()\n]*\)[^()\n]*)*)\\\)")
_CHOICE = re.compile(r"[A-J]")


def accuracy(
    text: str,
    solution: str,
    *,
    symbolic: bool = True,
    timeout: float = 5.0,
    closed: bool = False,
    partial_credit: bool = False,
) -> float:
    """1.0 if the completion's answer is the solution, else 0.0; in between only for grades and partial credit.

    A solution that names an option (see `parse_solution`) is only compared with the chosen letter. Any other is
    compared as text, without case, articles, quotes and final punctuation; then, with `symbolic`, as an expression by
    math-verify, which gets `timeout` seconds. Words after a number are its unit: two different units are never equal,
    but either may be missing. Other words are not mathematics, so "3 or 4" is not 4, and "cat" is not "act".
    Several letters ("A, C") are compared as a set; with `partial_credit`, some of them and no other give their share.
    Of several accepted answers (see `accepted_answers`) the best one counts, with its grade. With `closed`, only an
    answer in a closed `<answer>` block counts.
    """
    grades = accepted_answers(solution)
    best = 0.0
    for wanted in sorted(grades, key=lambda wanted: -grades[wanted]):
        if grades[wanted] > best:
            best = max(best, grades[wanted] * _share(text, wanted, symbolic, timeout, closed, partial_credit))
    return best


def reading(text: str, solution: str, *, closed: bool = False) -> Reading:
    """The answer that `accuracy` compares with this solution, normalized so that equal answers are equal text.

    A letter, or text without case, articles, quotes and final punctuation. Answers that only math-verify finds equal
    ("1/2" and "0.5") remain different. With `closed`, there is none outside a closed `<answer>` block.
    """
    wanted = next(iter(accepted_answers(solution)), "")
    found = _read(text, wanted, closed)
    if found.answer is None or _CHOICE.fullmatch(wanted):
        return found
    return found._replace(answer=_plain(found.answer))


def _share(text: str, wanted: str, symbolic: bool, timeout: float, closed: bool, partial_credit: bool) -> float:
    """How much of one accepted answer the completion's answer is."""
    answer = _read(text, wanted, closed).answer
    if answer is None or not wanted:
        return 0.0
    if _CHOICE.fullmatch(wanted):
        return float(answer == wanted)
    if (all_of := letter_set(nfkc(wanted))) is not None:
        chosen = letters_in(answer)
        partly = partial_credit and chosen < all_of
        return len(chosen) / len(all_of) if partly else float(chosen == all_of)
    return float(_same_text(wanted, answer) or (symbolic and _same_expression(wanted, answer, timeout)))


def _read(text: str, wanted: str, closed: bool) -> Reading:
    """The letter that was chosen if one is wanted, else the answer as written."""
    if _CHOICE.fullmatch(wanted):
        found = read_choice(text)
    else:
        found = read_choices(text) if letter_set(nfkc(wanted)) else read_answer(text)
    in_block = found.place in ("tags", "unclosed") and has_closed_answer(text)
    return found if in_block or not closed else Reading(None, "none")


def _same_expression(wanted: str, answer: str, timeout: float) -> bool:
    if max(len(wanted), len(answer)) > _symbolic.LONGEST:
        return False
    same = partial(_symbolic.equal, timeout=timeout)
    wanted, answer = _bare(without_sentence(_bare(wanted))), _bare(answer)
    readings = dict.fromkeys((answer, _bare(without_remark(answer)), _bare(value_in(answer))))
    return any(equal(wanted, one, same) for one in readings if one)


_OPPOSITES = {"yes": "no", "no": "yes", "true": "false", "false": "true", "是": "否", "否": "是"}
_YES_OR_NO = {word: word for word in _OPPOSITES} | {"是的": "是", "不是": "否"}
# After "yes" or "no" the answer goes on like this: "no, it is not", "yes because …", but not "no idea".
_GOES_ON = re.compile(r"$|[^\w\s/]|\s+(?:it|the|there|they|this|that|he|she|because|since|as)\b|[\u4e00-\u9fff]")
_NAMED_PART = re.compile(r"(?:[A-Za-z]+|图|点)\s*\(?([A-J])\)?")  # Figure B, Beaker A
_SIGNS = {"angle": "∠", "triangle": "△", "parallel": "∥", "perp": "⊥", "neq": "≠", "ne": "≠", "Omega": "Ω", "mu": "μ"}
_SIGN = re.compile(rf"\\({'|'.join(_SIGNS)})(?![A-Za-z])\s*")
_AND = re.compile(r"\s*(?:[,;、；]|,?\s+and\s+|和)\s*")


def _same_text(wanted: str, answer: str) -> bool:
    """Whether two answers are the same words: said in a sentence or not, in singular or plural, listed in any order."""
    one, other, value = _plain(wanted), _plain(answer), _plain(value_in(_bare(answer)))
    short = _plain(without_remark(_bare(answer)))
    if not one or not other:
        return False
    if one in _YES_OR_NO:
        return any(_says(text, _YES_OR_NO[one]) for text in (other, value))
    if one in (other, value, short, re.sub(r"(?<=\w) ones?$", "", other)):
        return True
    if (named := _NAMED_PART.fullmatch(wanted.strip())) and _CHOICE.fullmatch(other.upper()):
        return named[1].upper() == other.upper()
    listed, also = (sorted(_AND.split(text.strip("[]"))) for text in (one, other))
    words = all(len(piece) <= (25 if piece.isascii() else 4) for piece in listed)  # no sentences
    if len(listed) > 1 and listed == also and words:
        return True
    return one.isalpha() and other.isalpha() and len(one) > 2 and one.removesuffix("s") == other.removesuffix("s")


def _says(text: str, wanted: str) -> bool:
    """Whether a text says yes, and not "yes or no"; or no, and not "no idea"."""
    first = re.match(r"[a-z]+|[\u4e00-\u9fff]+", text)
    if first is None or _YES_OR_NO.get(first[0]) != wanted:
        return False
    rest = text[first.end() :]
    opposite = _OPPOSITES[wanted]
    return _GOES_ON.match(rest) is not None and re.search(rf"\b{opposite}\b|{opposite}$", rest) is None


def _plain(text: str) -> str:
    """Text as it is compared: no case, delimiters, articles, or final punctuation, and single spaces."""
    text = re.sub(r"(?<=[①-⑳])\s*[、,，和]\s*(?=[①-⑳])", "", _bare(text))
    text = _SIGN.sub(lambda sign: _SIGNS[sign[1]], text)
    text = re.sub(r"(?:(?<!\s)\s+)?([∠△∥⊥≠])\s*", r"\1", text)
    text = nfkc(text).casefold().replace("’", "'")
    text = re.sub(r"\b([a-z])\.(?=[\s-])", r"\1", text)
    text = re.sub(r"^(?:the|an?)\s+", "", text.strip("\"'“”‘` "))
    text = re.sub(r"(?<=[a-z])-(?=[a-z])", " ", re.sub(r"(?<=[a-z)])_\{?(\d+)\}?", r"\1", text))
    text = re.sub(
        r"(?<=\d)\s+(?=[a-z%°\u4e00-\u9fff])|(?<=[\u4e00-\u9fff])\s+(?=\d)|(?:(?<!\s)\s+)?([,;:=+/*()\[\]{}<>])\s*",
        r"\1",
        text,
    )
    return re.sub(r"\s+", " ", text).strip(" .!?。")


def _bare(text: str) -> str:
    """The answer without boxes, LaTeX delimiters, Markdown, text commands and final punctuation."""
    text = outside_json(text)
    if boxed := unboxed(text):
        text = boxed[-1][1]
    text = open_text_commands(re.sub(r"(?<!\*)\*\*(?=\S)([^*]*)\*\*(?!\*)|`", r"\1", text))
    text = _INLINE.sub(lambda found: found[1] or found[2], _undelimited(text))
    kept = len(text.rstrip(_FINAL))
    if not text[:kept].strip() or text[kept - 1].isspace():
        kept += 1  # punctuation that does not end a word is the answer itself
    return text[:kept].strip()


def _undelimited(text: str) -> str:
    """The text without LaTeX delimiters and white space around it, at any depth."""
    start, end = 0, len(text)
    while True:
        while start < end and text[start].isspace():
            start += 1
        while start < end and text[end - 1].isspace():
            end -= 1
        if (both := (text[start : start + 2], text[max(start, end - 2) : end])) in _BRACKETS and end - start > 3:
            start, end = start + 2, end - 2
        elif end - start > 1 and text[start] == text[end - 1] == "$":
            start += 2 if both[0] == "$$" and end - start > 2 else 1
            end -= 2 if text[max(start, end - 2) : end] == "$$" else 1
        else:
            return text[start:end]
