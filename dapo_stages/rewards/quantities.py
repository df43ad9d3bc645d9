"""Numbers, quantities and formulas as a reader compares them: named or not, with units, in lists, in words.

math-verify decides whether two formulas are equal; what it is given are formulas without names and units.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

from dapo_stages.rewards.normal import nfkc
from dapo_stages.rewards.number_words import number_in_words
from dapo_stages.rewards.tags import open_text_commands
from dapo_stages.rewards.units import Unit, is_known, unit_of

_CLOSE_TO = 1e-9  # relative difference of decimal numbers that count as equal: rounding of their conversion

_SPACES = re.compile(r"(?<!\\)\\[,;:!> ]|\\q?quad\b|(?<!\\)~|[\u00a0\u2009\u202f]")
_SUPERSCRIPTS = str.maketrans("⁰¹²³⁴⁵⁶⁷⁸⁹⁻", "0123456789-")
_GREEK = {
    ord(letter): rf"\{name} "
    for letter, name in zip(
        "αβγθφλμωΔ",
        ("alpha", "beta", "gamma", "theta", "phi", "lambda", "mu", "omega", "Delta"),
        strict=True,
    )
}
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
    r"(?P<unit>\s*(?:(?:sq|cu)\.\s*)?(?:[A-Za-zµμΩ]{2,}+|Ω|(?<=\s)[mgslLVAWNJKCFhΩ]\b|[mgl](?=\^)|[\u4e00-\u9fff]{1,6})"
    r"(?:[\s·*/]*+[A-Za-zµμΩ]++|\^\{?-?\d\}?)*+\.?)"
)
# What is named and what it is: AB = 5, \angle ABC = 60, S_{\triangle ABC} = 5, \text{Area} = 5, 面积为 5.
_NAME = re.compile(
    r"(?P<name>(?!.*[不没非])(?:\\(?:angle|triangle|overline|widehat|vec|measuredangle|odot)\s*+|∠|△|_\{?\d\}?|[A-Za-z\u4e00-\u9fff_'{}()\s]|"
    r"\\(?:alpha|beta|gamma|theta|phi|lambda|mu|omega|Delta))+?)\s*(?:=|≈|\\approx|为|是)\s*(?P<value>[^=≈]+)"
)
_APPROXIMATELY = re.compile(r"^(?:=|≈|~|\\approx|\\sim|about|approximately|roughly|约为?|大约)\s*", re.IGNORECASE)
_RANGE = re.compile(r"\d+(?:\.\d+)?[-–—~]\d+(?:\.\d+)?(?:[-–—]\d+)?")  # 3-4, 10–15, 2024-05-01: no difference
_APART = re.compile(
    r"\s*(?:[;；、]|,(?!\d{3}(?:\D|$))|，|,\s+|(?:,\s*)?(?:\band\b|\bor\b|和|或)|\\text\s*\{\s*(?:and|or)\s*\})\s*"
)
_ENCLOSED = re.compile(r"\s*(?:\\left\s*)?[(\[].*[)\]]\s*", re.DOTALL)
_SET = re.compile(r"\s*\\?\{(.*,.*?)\\?\}\s*", re.DOTALL)
_NO_UNIT = frozenset(("or", "and", "to", "of", "is", "are", "if", "but", "not", "in", "on", "than"))
_WORD = re.compile(r"(?<!\\)(?<![A-Za-z\\])[A-Za-z]{2,}")
_PERCENT = re.compile(r"\d\s*\\?%")
_PRODUCT = re.compile(r"(?<![A-Za-z\\])[A-Za-z](?:\s?[A-Za-z]){1,2}(?![A-Za-z])")
_FUNCTION = re.compile(r"(?<![A-Za-z\\])(sin|cos|tan|cot|sec|csc|ln|log)(?![A-Za-z])")
_FUNCTIONS = frozenset(
    ("sqrt", "sin", "cos", "tan", "cot", "sec", "csc", "log", "ln", "exp", "arcsin", "arccos", "arctan", "abs")
)
_COMMAND_OR_ENVIRONMENT = re.compile(r"\\(?:begin|end)\s*\{[a-z]+\*?\}|\\[A-Za-z]+")
_TWO_NUMBERS = re.compile(r"\d\s+\d")
_NUMBER = re.compile(r"[+-]?(?:\d+(?:\.\d*)?|\.\d+)")


_MAGNITUDE = re.compile(
    r"(?P<number>\d[\d,]*(?:\.\d+)?)\s*(?P<size>thousand|million|billion|[千万亿])(?![a-z克米瓦])", re.IGNORECASE
)
_SIZES = {"thousand": 1e3, "million": 1e6, "billion": 1e9, "千": 1e3, "万": 1e4, "亿": 1e8}
# 1 hour 30 minutes, 5 ft 3 in, 30°15′
_MEASURES = re.compile(r"(\d+(?:\.\d+)?)\s*([A-Za-z]+|[\u4e00-\u9fff]{1,2}|['′″\"])\s*(?:,|and\b)?\s*", re.IGNORECASE)
_CLOCK = re.compile(r"(\d{1,2}):(\d\d)\s*(?:([ap])\.?\s?m\.?)?", re.IGNORECASE)
_POINT = re.compile(r"(?:point\s+)?[A-Z]'?\s*(?:(?:is\s+)?at\s+)?(\([^()]*,[^()]*\))", re.IGNORECASE)
_RATIO = re.compile(r"(\d+(?:\.\d+)?)\s*(?::|\bto\b)\s*(\d+(?:\.\d+)?)")


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
    times = [_CLOCK.fullmatch(text.strip(" $.")) for text in (wanted, answer)]
    if times[0] and times[1]:
        said = times[0][3] or times[1][3]
        return bool(_minutes(times[0]) & _minutes(times[1])) if said else times[0][0] == times[1][0]
    if _is_range(wanted) or _is_range(answer):
        return _plain_range(wanted) == _plain_range(answer)
    wanted, answer = _undisguised(wanted), _undisguised(answer)
    left, right = _listed(wanted), _listed(answer)
    return _match(left, right, same) or _as_written(wanted, answer, same)


def _undisguised(text: str) -> str:
    """Ratios and points in one form: `2 to 3` is `2:3`, `A(2, 3)` is `(2, 3)`."""
    text = text.replace("∶", ":")
    plain = text.strip(" $.")
    if point := _POINT.fullmatch(plain):
        return point[1]
    ratio = _RATIO.fullmatch(plain)
    return f"{ratio[1]}:{ratio[2]}" if ratio else text


def _minutes(time: re.Match[str]) -> set[int]:
    """Minutes since midnight that a time of the day may mean: two if it is before one o'clock in the afternoon and
    does not say which half of the day."""
    minutes = 60 * int(time[1]) + int(time[2])
    if time[3] is None:
        return {minutes, minutes + 720} if minutes < 780 else {minutes}
    return {minutes % 720 + 720 * (time[3] in "pP")}


def _as_written(wanted: str, answer: str, same: Callable[[str, str], bool]) -> bool:
    """Equations, tuples, sets and matrices, as math-verify reads them: `x = 2, y = 3` is (2, 3)."""
    one, other = (_latex(_readable(text)) for text in (wanted, answer))
    if re.search(r"[=,&<>≤≥]", one + other) is None and not _words(f"{one} {other}"):
        return False
    intervals = re.search(r"[<>≤≥\[(].*[,<>≤≥]|[<>≤≥]", one + other) is not None
    return _same_formula(one, other, same) or (intervals and _same_formula(other, one, same))


def _same_formula(one: str, other: str, same: Callable[[str, str], bool]) -> bool:
    """Letters in a row are products if they are variables of both: `ab` and `ba`. Otherwise they are words.

    Without digits and operators, a text may be a word and has no variables.
    """
    if ("=" in one) != ("=" in other):
        formula = one if "=" in other else other
        if decimal(formula) is not None or re.search(r"[,(\[<>≤≥]", one + other) is None:
            return False  # math-verify would take the right side of the equation
    products = _with_products(one, other)
    if not all(map(is_mathematics, products)):
        return False
    if products[0].replace(" ", "") == products[1].replace(" ", ""):
        return True
    return same(one, other) or (products != (one, other) and same(*products))


def _match(left: list[Quantity], right: list[Quantity], same: Callable[[str, str], bool]) -> bool:
    if len(left) == 1 and len(right) > 1:  # 3/2 or 1.5
        return all(_same(left[0], one, same) for one in right)
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
        name, text = re.sub(r"_\{?\d\}?|[\s{}\\]", "", named["name"]), named["value"].strip()
    text = _APPROXIMATELY.sub("", text).strip()
    if (spelled := number_in_words(text)) is not None:
        return Quantity(spelled, None, name)
    unit = None
    currency = _CURRENCY.match(text)
    if currency:
        unit, text = unit_of(currency[0].strip().lstrip("\\")), text[currency.end() :]
    text = _MAGNITUDE.sub(_written_out, text)
    if (measured := _UNIT.fullmatch(text.strip())) and not _is_product(measured["number"], measured["unit"]):
        found = re.sub(r"\s+", " ", re.sub(r"[{}]", "", measured["unit"])).strip(" .")
        if found.casefold().startswith("percent"):
            return Quantity(_latex(measured["number"]) + r"\%", None, name)
        unit, text = unit_of(found) or unit, measured["number"]
    elif (words := text.partition(" "))[1] and (spelled := number_in_words(words[0])) is not None:
        unit, text = unit_of(words[2].strip(" .")), spelled
    return Quantity(_latex(text), unit, name)


def _written_out(found: re.Match[str]) -> str:
    return f"{float(found['number'].replace(',', '')) * _SIZES[found['size'].casefold()]:.12g} "


def _is_product(number: str, unit: str) -> bool:
    """Whether letters after a number are variables, or words that belong to no unit: `2ab`, `2\\pi rh`, `3 or`."""
    letters = re.sub(r"\s|\^?\{?-?\d+\}?", "", unit.strip(" ."))
    joined = not unit[:1].isspace() or number.rstrip().endswith(("i", ")", "}"))
    return unit.split()[0].casefold() in _NO_UNIT or (
        joined and len(letters) <= 3 and letters.isascii() and letters.isalpha() and not is_known(letters)
    )


def _measured(text: str) -> Quantity | None:
    """The sum of `1 hour 30 minutes`, in the unit of its first part; None for anything else."""
    parts = _MEASURES.findall(text)
    if len(parts) < 2 or _MEASURES.sub("", text).strip(" ."):
        return None
    units = [unit_of({"'": "′", '"': "″"}.get(unit, unit)) or Unit(unit, 1.0) for _, unit in parts]
    smaller = all(one.factor > next_.factor for one, next_ in pairwise(units))
    if not smaller or len({unit.dimension for unit in units}) > 1:
        return None
    total = sum(float(number) * unit.factor for (number, _), unit in zip(parts, units, strict=True))
    return Quantity(f"{total / units[0].factor:.12g}", units[0], "")


def _same(wanted: Quantity, answer: Quantity, same: Callable[[str, str], bool]) -> bool:
    if wanted.name and answer.name and wanted.name != answer.name:
        return False
    scale = 1.0
    if _PERCENT.search(wanted.expression + answer.expression) and (wanted.unit or answer.unit):
        return False
    if wanted.unit and answer.unit:
        if wanted.unit.dimension != answer.unit.dimension:
            return False
        scale = answer.unit.factor / wanted.unit.factor
    one, other = decimal(wanted.expression), decimal(answer.expression)
    if one is not None and other is not None:
        return math.isclose(one, other * scale, rel_tol=_CLOSE_TO)
    if scale != 1:
        answer = answer._replace(expression=f"({answer.expression})*{scale!r}")
    return _same_formula(wanted.expression, answer.expression, same)


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
    if _TWO_NUMBERS.search(text) or _words(text):
        return False
    return re.search(r"[\dA-Za-zπ\\]", text) is not None and re.search(r"[\u4e00-\u9fff]", text) is None


def _words(text: str) -> list[str]:
    words = _WORD.findall(_COMMAND_OR_ENVIRONMENT.sub(" ", text))
    return [word for word in words if word not in _FUNCTIONS]


def _with_products(one: str, other: str) -> tuple[str, str]:
    variables = _variables(one) & _variables(other)

    def product(word: re.Match[str]) -> str:
        letters = word[0].replace(" ", "")
        return " \\cdot ".join(letters) if letters not in _FUNCTIONS and set(letters) <= variables else word[0]

    return _PRODUCT.sub(product, one), _PRODUCT.sub(product, other)


def _variables(text: str) -> frozenset[str]:
    if re.search(r"[\d^+*/=()\\]", text) is None:
        return frozenset()
    return frozenset(re.findall(r"[A-Za-z]", _COMMAND_OR_ENVIRONMENT.sub(" ", text)))


def _listed(text: str) -> list[Quantity]:
    """The quantities of a list; one, for everything that is not a list."""
    text = _SPACES.sub(" ", text)
    if (measured := _measured(_readable(text))) is not None:
        return [measured]
    if number_in_words(text) is not None:
        return [quantity(text)]
    text = re.sub(r"^\s*(?:\\pm|±)\s*(\S+)$", r"\1, -\1", text)
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
    text = _DEGREES.sub(" degrees", _with_signs(text)).replace("\u2044", "/")
    text = re.sub(r"(?<![A-Za-z\\])(?:pi|π)(?![A-Za-z])", r"\\pi ", text)
    return _MINUS.sub("-", text).strip()


def _with_signs(text: str) -> str:
    """`4\\Omega` -> `4 Ω`, `5\\mu m` -> `5 μm`."""
    text = re.sub(r"(?<=\d)\s*\\(?:Omega|Ohm)\b", " Ω", text)
    return re.sub(r"(?<=\d)\s*\\mu\s*(?=[a-zA-Z]\b)", " μ", text)


def _latex(text: str) -> str:
    """An expression without a unit, as LaTeX reads it."""
    text = text.replace("×", r"\times ").replace("÷", r"\div ").replace("**", "^").replace("∞", r"\infty ")
    text = text.replace(r"\varnothing", r"\emptyset").replace("∅", r"\emptyset").translate(_GREEK)
    text = _ROOT.sub(lambda root: rf"\sqrt{{{root[1] or root[2] or root[3]}}}", text)
    text = _FUNCTION.sub(r"\\\1", _EXP.sub(r"e^{\1}", text))
    text = re.sub(r"(\d)\.0+(?!\d)", r"\1", text)
    text = re.sub(r"(\d)\s+(?=\\(?:pi|sqrt))", r"\1", text)
    text = re.sub(r"\\pi(?=\s*[a-z])", r"\\pi \\cdot", text)
    text = _DIGIT_GROUPS.sub(lambda digits: re.sub(r"\D", "", digits[0]), text)
    text = _MIXED.sub(r"(\1+\\frac{\2}{\3})", text)
    text = _EXPONENT.sub(r"^{\1}", text)
    text = re.sub(r"(?<![\d.])1(?=i\b)", "", re.sub(r"\+\s*-\s*", "-", text))
    return _SCIENTIFIC.sub(r"\1\\cdot 10^{\2}", text).rstrip(" .").lstrip()
