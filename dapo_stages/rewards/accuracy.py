"""The accuracy reward: whether the completion's answer is the solution."""

from __future__ import annotations

import re

from dapo_stages.rewards.answers import (
    Reading,
    extract_answer,
    extract_choice,
    parse_solution,
    read_answer,
    read_choice,
)
from dapo_stages.rewards.isolated import symbolic as _symbolic
from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.tags import open_text_commands, unboxed

_FINAL = ".,;!。，"
_BRACKETS = {("\\(", "\\)"), ("\\[", "\\]")}
_CHOICE = re.compile(r"[A-J]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹", "0123456789")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°)")
_CURRENCY = re.compile(r"^(?:\\?\$|€|£|¥)\s*(?=[\d.-])")
# A unit: words after a number; single letters only if they are units and separate ("5 m", not "5x").
_UNIT = re.compile(
    r"(?P<number>.*(?:[\d)}\]]|\\pi|π))"
    r"(?P<unit>\s*(?:[A-Za-zµμΩ]{2,}+|(?<=\s)[mgslLVAWNJKCFh]\b|[\u4e00-\u9fff]{1,6})(?:[\s·*/]*+[A-Za-zµμΩ]++|\^\{?-?\d\}?)*+\.?)"
)
_DIGIT_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ ,\u00a0\u202f]\d{3})+(?![\d,])")
_MIXED = re.compile(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![A-Za-z\d.])")
_TWO_NUMBERS = re.compile(r"\d\s+\d")
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTIONS = frozenset(
    ("sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "abs")
)
_COMMAND_OR_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")


def accuracy(text: str, solution: str, *, symbolic: bool = True, timeout: float = 5.0) -> float:
    """1.0 if the completion's answer is the solution, else 0.0.

    A solution that names an option (see `parse_solution`) is only compared with the chosen letter. Any other is
    compared as text, without case, articles, quotes and final punctuation; then, with `symbolic`, as an expression by
    math-verify, which gets `timeout` seconds. Words after a number are its unit: two different units are never equal,
    but either may be missing. Other words are not mathematics, so "3 or 4" is not 4, and "cat" is not "act".
    """
    wanted = parse_solution(solution)
    if _CHOICE.fullmatch(wanted):
        return 1.0 if extract_choice(text) == wanted else 0.0
    answer = extract_answer(text)
    if answer is None or not wanted:
        return 0.0
    if _plain(wanted) == _plain(answer) != "":
        return 1.0
    return 1.0 if symbolic and _same_expression(wanted, answer, timeout) else 0.0


def reading(text: str, solution: str) -> Reading:
    """The answer that `accuracy` compares with this solution, normalized so that equal answers are equal text.

    A letter, or text without case, articles, quotes and final punctuation. Answers that only math-verify finds equal
    ("1/2" and "0.5") remain different.
    """
    if _CHOICE.fullmatch(parse_solution(solution)):
        return read_choice(text)
    found = read_answer(text)
    return found if found.answer is None else found._replace(answer=_plain(found.answer))


def _same_expression(wanted: str, answer: str, timeout: float) -> bool:
    if max(len(wanted), len(answer)) > _symbolic.LONGEST:
        return False
    wanted_number, wanted_unit = _quantity(_bare(wanted))
    answer_number, answer_unit = _quantity(_bare(answer))
    if wanted_unit and answer_unit and wanted_unit != answer_unit:
        return False
    if not (_is_mathematics(wanted_number) and _is_mathematics(answer_number)):
        return False
    return _symbolic.equal(wanted_number, answer_number, timeout)


def _plain(text: str) -> str:
    """Text as it is compared: no case, delimiters, articles, or final punctuation, and single spaces."""
    text = nfkc(_bare(text)).casefold()
    text = re.sub(r"^(?:the|an?)\s+", "", text.strip("\"'“”‘’` "))
    text = re.sub(r"(?<=\d)\s+(?=[a-z%°\u4e00-\u9fff])|(?:(?<!\s)\s+)?([,;:=+/*()\[\]{}<>])\s*", r"\1", text)
    return re.sub(r"\s+", " ", text).strip(" .!?。")


def _bare(text: str) -> str:
    """The answer without boxes, LaTeX delimiters, Markdown, text commands and final punctuation."""
    if boxed := unboxed(text):
        text = boxed[-1][1]
    text = open_text_commands(re.sub(r"(?<!\*)\*\*(?=\S)([^*]*)\*\*(?!\*)|`", r"\1", text))
    text = _undelimited(text)
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


def _quantity(text: str) -> tuple[str, str]:
    """(expression in LaTeX, unit in lower case or ""): "12 cm" -> ("12", "cm")."""
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹]+", lambda power: "^{" + power[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _CURRENCY.sub("", nfkc(_DEGREES.sub(" degrees", text)))
    text = text.replace("−", "-").replace("×", r"\times ").replace("÷", r"\div ").replace("**", "^")
    unit = ""
    if measured := _UNIT.fullmatch(text):
        unit = re.sub(r"\s+", " ", re.sub(r"[{}]", "", measured["unit"])).strip(" .")
        unit = unit if len(unit) < 4 else unit.casefold().rstrip("s")
        text = measured["number"]
    text = re.sub(r"(?<![A-Za-z\\])(?:pi|π)(?![A-Za-z])", r"\\pi ", text)
    text = _DIGIT_GROUPS.sub(lambda digits: re.sub(r"\D", "", digits[0]), text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    return _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text).strip(), unit


def _is_mathematics(text: str) -> bool:
    """Whether it is a number, formula or symbol: no words, and no numbers in a row, which LaTeX would combine."""
    without_commands = _COMMAND_OR_ENVIRONMENT.sub(" ", text)
    if _TWO_NUMBERS.search(text) or any(word not in _FUNCTIONS for word in _WORD.findall(without_commands)):
        return False
    return re.search(r"[\dA-Za-zπ\\]", text) is not None and re.search(r"[\u4e00-\u9fff]", text) is None
