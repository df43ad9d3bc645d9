"""Units by symbol and name; the factors are those of the SI and of the international yard and pound."""

from __future__ import annotations

import pytest

from dapo_stages.rewards.units import unit_of


@pytest.mark.parametrize(
    ("one", "other", "times"),
    [
        ("km", "m", 1000),
        ("centimeters", "cm", 1),
        ("Centimetres", "cm", 1),
        ("厘米", "mm", 10),
        ("square meters", "cm^2", 10_000),
        ("m^2", "平方米", 1),
        ("cubic centimeters", "ml", 1),
        ("L", "litres", 1),
        ("km/h", "m/s", 1000 / 3600),
        ("meters per second", "m/s", 1),
        ("hours", "min", 60),
        ("feet", "inches", 12),
        ("kg", "公斤", 1),
        ("lb", "g", 453.59237),
        ("度", "degrees", 1),
        ("apples", "apple", 1),
    ],
)
def test_units_of_one_kind(one: str, other: str, times: float) -> None:
    first, second = unit_of(one), unit_of(other)
    assert first is not None and second is not None and first.dimension == second.dimension
    assert first.factor / second.factor == pytest.approx(times, rel=1e-12)


@pytest.mark.parametrize(
    ("one", "other"), [("m", "min"), ("m", "m^2"), ("g", "s"), ("apples", "oranges"), ("m/s", "s/m")]
)
def test_units_of_different_kinds(one: str, other: str) -> None:
    first, second = unit_of(one), unit_of(other)
    assert first is not None and second is not None and first.dimension != second.dimension


@pytest.mark.parametrize("text", ["", " ", "个"])
def test_what_is_no_unit(text: str) -> None:
    assert unit_of(text) is None
