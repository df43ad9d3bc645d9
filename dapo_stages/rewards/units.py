"""Units of quantities by their symbols and names, in English and Chinese, and how many of the base unit each is."""

from __future__ import annotations

import re
from typing import NamedTuple

# Base unit -> symbols and names -> factor. Plurals and British spellings are found, too.
_TABLE: dict[str, dict[str, float]] = {
    "m": {
        "mm millimeter 毫米": 1e-3, "cm centimeter 厘米": 1e-2, "dm decimeter 分米": 1e-1, "m meter 米": 1.0,
        "km kilometer 千米 公里": 1e3, "nm nanometer 纳米": 1e-9, "μm um micrometer 微米": 1e-6,
        "in inch inches 英寸": 0.0254, "ft foot feet 英尺": 0.3048, "yd yard": 0.9144, "mi mile 英里": 1609.344,
    },
    "m^3": {"l L liter 升": 1e-3, "ml milliliter 毫升": 1e-6},
    "g": {
        "mg milligram 毫克": 1e-3, "g gram 克": 1.0, "kg kilogram 千克 公斤": 1e3, "t ton tonne 吨": 1e6,
        "lb lbs pound 磅": 453.59237, "oz ounce": 28.349523125,
    },
    "s": {
        "ms millisecond 毫秒": 1e-3, "s sec second 秒": 1.0, "min minute 分钟": 60.0, "h hr hour 小时": 3600.0,
        "day 天 日": 86400.0, "week 周 星期": 604800.0,
    },
    "m/s": {"mph": 0.44704},
    "degree": {"° degree deg 度": 1.0, "′ arcminute": 1 / 60, "″ arcsecond": 1 / 3600},
    "dollar": {"$ dollar usd 美元": 1.0, "¢ cent": 0.01},
    "yuan": {"¥ yuan rmb 元 块 块钱": 1.0},
    "euro": {"€ euro eur 欧元": 1.0},
}  # fmt: skip
_FACTORS = {
    name: (base, factor) for base, rows in _TABLE.items() for names, factor in rows.items() for name in names.split()
}
# Units that are used with prefixes: symbol, names.
_PREFIXES = {
    "": ("", 1.0), "μ": ("micro", 1e-6), "m": ("milli", 1e-3), "k": ("kilo", 1e3), "M": ("mega", 1e6),
    "G": ("giga", 1e9),
}  # fmt: skip
_PREFIXED = {
    "N": "newton 牛 牛顿", "J": "joule 焦 焦耳", "W": "watt 瓦 瓦特", "V": "volt 伏 伏特", "A": "ampere amp 安 安培",
    "Ω": "ohm 欧 欧姆", "Hz": "hertz 赫兹", "Pa": "pascal 帕 帕斯卡",
}  # fmt: skip
for _symbol, _names in _PREFIXED.items():
    for _prefix, (_spelled, _factor) in _PREFIXES.items():
        _FACTORS[_prefix + _symbol] = (_symbol, _factor)
        _FACTORS |= {_spelled + name: (_symbol, _factor) for name in _names.split() if name.isascii() or not _prefix}
_DIMENSIONS = {dimension for dimension, _ in _FACTORS.values()}
_POWERS = dict.fromkeys(("square", "sq", "squared", "平方", "2"), 2) | dict.fromkeys(
    ("cubic", "cu", "cubed", "立方", "3"), 3
)
_POWER = re.compile(
    r"^(?:(square|sq\.?|cubic|cu\.?)\s+|(平方|立方)\s*)(.+)$|^(.+?)\s*(?:\^\s*\{?\s*([23])\s*\}?|([23])|\s+(squared|cubed))$"
)
_COUNTED = re.compile(r"[个只条张本块颗头辆件名位人]")  # Chinese measure words say nothing about the dimension


class Unit(NamedTuple):
    """What is measured (`m^2`, `m/s`, or the word itself if it is not in the table), and in how many base units."""

    dimension: str
    factor: float


def unit_of(text: str) -> Unit | None:
    """The unit that a text names; None if it is empty or a Chinese measure word."""
    words = " ".join(text.replace("·", "*").split())
    if not words or _COUNTED.fullmatch(words):
        return None
    over, divided, under = re.sub(r"\s+per\s+|每", "/", words).partition("/")
    above, below = _simple(over.strip()), _simple(under.strip()) if divided else Unit("", 1.0)
    if not divided:
        return above
    return Unit(f"{above.dimension}/{below.dimension}", above.factor / below.factor)


def is_known(text: str) -> bool:
    """Whether a word is a unit of the table."""
    return _named(text).dimension in _DIMENSIONS


def _simple(text: str) -> Unit:
    """A unit without a fraction: `cm^2`, `square centimeters`, `平方厘米`."""
    if power := _POWER.match(text.casefold()):
        exponent = _POWERS[(power[1] or "").rstrip(".") or power[2] or power[5] or power[6] or power[7]]
        inner = _named(power[3] or power[4])
        return Unit(f"{inner.dimension}^{exponent}", inner.factor**exponent)
    return _named(text)


def _named(text: str) -> Unit:
    """A unit by its symbol, as written, or by its name: in either case and spelling, singular or plural."""
    word = re.sub(r"(met|lit)re(?=s?$)", r"\1er", text.casefold().rstrip("."))
    for name in (text, *(one for one in (word, word.removesuffix("s"), word.removesuffix("es")) if len(one) > 1)):
        if name in _FACTORS:
            return Unit(*_FACTORS[name])
    return Unit(word.removesuffix("s") if len(word) > 3 else text, 1.0)
