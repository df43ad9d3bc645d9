"""Numbers, quantities and formulas as a reader compares them: named or not, with units, in lists, in words.

math-verify decides whether two formulas are equal; what it is given are formulas without names and units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from typing import NamedTuple

from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.number_words import number_in_words
from dapo_stages.rewards.tags import open_text_commands
from dapo_stages.rewards.units import Unit, unit_of

_CLOSE_TO = 1e-9  # relative difference of decimal numbers that count as equal: rounding of their conversion

_SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\q?quad\b|(?<!\\)~|[\u00a0\u2009\u202f]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_DEGREES = re.compile(r"\s*(?:\^\s*\{?\s*\\circ\s*\}?|\\degree\b|°|º)(?!\s*[CFcf]\b)")
_SCALE = re.compile(r"\s*(?:°|\^\s*\{?\s*\\circ\s*\}?|degrees?)\s*(celsius|fahrenheit|[CF]\b)|摄氏度", re.IGNORECASE)
_SCALES = {"c": "celsius", "f": "fahrenheit"}
_CURRENCY = re.compile(r"^(?:\\?\$|€|£|¥)\s*(?=[\d.-])")
_MINUS = re.compile(r"[−–—](?=\s*[\d\\(√π.a-zA-Z])")
_ROOT = re.compile(r"√\s*(?:\(([^()]*)\)|\{([^{}]*)\}|(\d+(?:\.\d+)?|[a-z]))")
_DIGIT_GROUPS = re.compile(r"(?<![\d.,])\d{1,3}(?:[ ,]\d{3})+(?![\d,])")
_MIXED = re.compile(r"(?<![\d/])(\d+)\s+(\d+)\s*/\s*(\d+)(?![\d/])")
_SCIENTIFIC = re.compile(r"(?<![A-Za-z\d.])(\d+(?:\.\d+)?)[eE]([+-]?\d+)(?![A-Za-z\d.])")
_POWER_OF_TEN = re.compile(r"([+-]?\d+(?:\.\d+)?)?\s*(?:\\times|\\cdot|\*|x)?\s*10\s*\^\s*\{?\s*([+-]?\d+)\s*\}?")
_EXPONENT = re.compile(r"\^\s*(-\d+)")
_EXP = re.compile(r"(?<![A-Za-z\\])\\?exp\s*\(([^()]*)\)")

# A unit: words after a number; single letters only if they are units and separate ("5 m", not "5x").
_UNIT = re.compile(
    r"(?P<number>.*(?:[\d)}\]]|\\pi|π))"
    r"(?P<unit>\s*(?:[A-Za-zµμΩ]{2,}+|(?<=\s)[mgslLVAWNJKCFh]\b|[\u4e00-\u9fff]{1,6})"
    r"(?:[\s·*/]*+[A-Za-zµμΩ]++|\^\{?-?\d\}?)*+\.?)"
)
# What is named and what it is: AB = 5, \angle ABC = 60, S_{\triangle ABC} = 5, \text{Area} = 5, 面积为 5.
_NAME = re.compile(
    r"(?P<name>(?:\\(?:angle|triangle|overline|widehat|vec|measuredangle|odot)\s*+|∠|△|[A-Za-z\u4e00-\u9fff_'{}()\s]|"
    r"\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega|Delta))+?)\s*(?:=|≈|\\approx|为|是)\s*(?P<value>[^=≈]+)"
)
_APPROXIMATELY = re.compile(r"^(?:=|≈|~|\\approx|\\sim|about|approximately|roughly|约为?|大约)\s*", re.IGNORECASE)
_SENTENCE = re.compile(
    r"^(?:(?:therefore|thus|so|hence|因此|所以)[,，]?\s*)?"
    r"(?:there\s+(?:are|is)|it\s+(?:is|has|was)|it['’]s"
    r"|(?:the|its)\s+[a-z][a-z' ]{0,40}?\s+(?:is|are|equals?)(?:\s+equal\s+to)?"
    r"|(?:the\s+)?(?:final\s+|correct\s+)?answer\s*(?:is|:|=)\s*:?|####"
    r"|答案\s*(?:是|为|:|：)?\s*[:：]?|[\u4e00-\u9fff]{1,8}[是为有])\s*",
    re.IGNORECASE,
)
_RANGE = re.compile(r"\d+(?:\.\d+)?[-–—~]\d+(?:\.\d+)?(?:[-–—]\d+)?")  # 3-4, 10–15, 2024-05-01: no difference
_APART = re.compile(
    r"\s*(?:[;；、]|,(?!\d{3}(?:\D|$))|，|,\s+|(?:,\s*)?(?:\band\b|\bor\b|和|或)|\\text\s*\{\s*(?:and|or)\s*\})\s*"
)
_ENCLOSED = re.compile(r"\s*(?:\\left\s*)?[(\[].*[)\]]\s*", re.DOTALL)
_SET = re.compile(r"\s*\\?\{(.*,.*?)\\?\}\s*", re.DOTALL)
_NO_UNIT = frozenset(("or", "and", "to", "of", "is", "are", "if", "but", "not", "in", "on", "than"))
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]{2,}")
_FUNCTIONS = frozenset(
    ("sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "abs")
)
_COMMAND_OR_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")
_TWO_NUMBERS = re.compile(r"\d\s+\d")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")


class Quantity(NamedTuple):
    """An expression in LaTeX, its unit, and the name it was given ("" if none)."""

    expression: str
    unit: Unit | None
    name: str


def equal(wanted: str, answer: str, same: Callable[[str, str], bool]) -> bool:
    """Whether two answers are the same quantities. `same` compares two expressions in LaTeX.

    Units must agree where both have one (converted: 5 kg is 5000 g), and so must names. Lists are equal in any order;
    tuples are not. Ranges, scores and dates ("3-4") are text and equal to no number.
    """
    if _is_range(wanted) or _is_range(answer):
        return _plain_range(wanted) == _plain_range(answer)
    left, right = _listed(wanted), _listed(answer)
    return _match(left, right, same) or _as_written(wanted, answer, same)


def _as_written(wanted: str, answer: str, same: Callable[[str, str], bool]) -> bool:
    """Equations, tuples, sets and matrices, as math-verify reads them: `x = 2, y = 3` is (2, 3)."""
    one, other = (_latex(_readable(text)) for text in (wanted, answer))
    structured = re.search(r"[=,&]", one + other) is not None
    return structured and is_mathematics(one) and is_mathematics(other) and same(one, other)


def _match(left: list[Quantity], right: list[Quantity], same: Callable[[str, str], bool]) -> bool:
    if len(left) != len(right):
        return False
    if len(left) == 1:
        return _same(left[0], right[0], same)
    for one in left:
        match = next((other for other in right if _same(one, other, same)), None)
        if match is None:
            return False
        right.remove(match)
    return True


def quantity(text: str) -> Quantity:
    """`AB = 12 cm` -> an expression `12`, the unit, and the name `AB`."""
    text = _readable(text)
    name = ""
    if named := _NAME.fullmatch(text):
        name, text = re.sub(r"[\s{}\\]", "", named["name"]), named["value"].strip()
    text = _APPROXIMATELY.sub("", text).strip()
    if (spelled := number_in_words(text)) is not None:
        return Quantity(spelled, None, name)
    unit = None
    currency = _CURRENCY.match(text)
    if currency:
        unit, text = unit_of(currency[0].strip().lstrip("\\")), text[currency.end() :]
    if (measured := _UNIT.fullmatch(text)) and measured["unit"].split()[0].casefold() not in _NO_UNIT:
        found = re.sub(r"\s+", " ", re.sub(r"[{}]", "", measured["unit"])).strip(" .")
        unit, text = unit_of(found) or unit, measured["number"]
    elif (words := text.partition(" "))[1] and (spelled := number_in_words(words[0])) is not None:
        unit, text = unit_of(words[2].strip(" .")), spelled
    return Quantity(_latex(text), unit, name)


def _same(wanted: Quantity, answer: Quantity, same: Callable[[str, str], bool]) -> bool:
    if wanted.name and answer.name and wanted.name != answer.name:
        return False
    scale = 1.0
    if wanted.unit and answer.unit:
        if wanted.unit.dimension != answer.unit.dimension:
            return False
        scale = answer.unit.factor / wanted.unit.factor
    one, other = decimal(wanted.expression), decimal(answer.expression)
    if one is not None and other is not None:
        return math.isclose(one, other * scale, rel_tol=_CLOSE_TO)
    if not (is_mathematics(wanted.expression) and is_mathematics(answer.expression)):
        return False
    return same(wanted.expression, answer.expression if scale == 1 else f"({answer.expression})*{scale!r}")


def decimal(expression: str) -> float | None:
    """The number that an expression writes out, with a power of ten or without; None for anything else."""
    text = expression.replace(" ", "")
    if _NUMBER.fullmatch(text):
        return float(text)
    if (power := _POWER_OF_TEN.fullmatch(text)) and abs(int(power[2])) < 300:
        return float(f"{power[1] or 1}e{power[2]}")
    return None


def is_mathematics(text: str) -> bool:
    """Whether it is a number, formula or symbol: no words, and no numbers in a row, which LaTeX would combine."""
    without_commands = _COMMAND_OR_ENVIRONMENT.sub(" ", text)
    if _TWO_NUMBERS.search(text) or any(word not in _FUNCTIONS for word in _WORD.findall(without_commands)):
        return False
    return re.search(r"[\dA-Za-zπ\\]", text) is not None and re.search(r"[\u4e00-\u9fff]", text) is None


def without_sentence(text: str) -> str:
    """`There are 4 red balls` -> `4 red balls`; `The answer is 42.` -> `42`."""
    return _SENTENCE.sub("", text, count=1).strip()


def _listed(text: str) -> list[Quantity]:
    """The quantities of a list; one, for everything that is not a list."""
    text = _SPACES.sub(" ", text)
    inside = _SET.fullmatch(text)
    if inside is None and _ENCLOSED.fullmatch(text):
        return [quantity(text)]
    pieces = [piece for piece in _APART.split(inside[1] if inside else text) if piece.strip()]
    found = [quantity(piece) for piece in pieces]
    whole = all(is_mathematics(one.expression) and _is_balanced(one.expression) for one in found)
    return found if len(found) > 1 and whole else [quantity(text)]


def _is_balanced(text: str) -> bool:
    return text.count("{") == text.count("}") and text.count("(") == text.count(")")


def _is_range(text: str) -> bool:
    return _RANGE.fullmatch(text.strip(" $.")) is not None


def _plain_range(text: str) -> str:
    return re.sub(r"[–—~]", "-", text.strip(" $."))


def _readable(text: str) -> str:
    """LaTeX's spacing and text commands, Unicode's signs and full-width characters in their plain form."""
    text = open_text_commands(_SPACES.sub(" ", text))
    text = re.sub("[⁰¹²³⁴⁵⁶⁷⁸⁹⁻]+", lambda power: "^{" + power[0].translate(_SUPERSCRIPTS) + "}", text)
    text = _SCALE.sub(lambda scale: f" {_SCALES[(scale[1] or 'c')[0].casefold()]}", nfkc(text))
    text = _DEGREES.sub(" degrees", text).replace("\u2044", "/")
    text = re.sub(r"(?<![A-Za-z\\])(?:pi|π)(?![A-Za-z])", r"\\pi ", text)
    return _MINUS.sub("-", text).strip()


def _latex(text: str) -> str:
    """An expression without a unit, as LaTeX reads it."""
    text = text.replace("×", r"\times ").replace("÷", r"\div ").replace("**", "^").replace("∞", r"\infty ")
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    text = _EXP.sub(r"e^{\1}", text)
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", text)
    text = re.sub(r"(\d)\s+(?=\\(?:pi|sqrt))", r"\1", text)
    text = _DIGIT_GROUPS.sub(lambda digits: re.sub(r"\D", "", digits[0]), text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    text = re.sub(r"(?<![\d.])1(?=i\b)", "", re.sub(r"\+\s*-\s*", "-", text))
    return _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text).rstrip(" .").lstrip()
