"""Charts: what is drawn where, and as files of their own."""

from __future__ import annotations

import re
from typing import Any
from xml.etree import ElementTree

import pytest

from dapo_stages.reporting.page.charts import COLORS, Chart, Series, aligned, draw, drawn_as_svg, latest

SVG = "{http://www.w3.org/2000/svg}"


def test_every_curve_of_an_image_has_a_color_and_a_name() -> None:
    """A curve whose class has no color in the file's own style is not seen at all."""
    names = [f"<b>{index}</b>\n&" for index in range(COLORS + 1)]
    text = drawn_as_svg(Chart("a title", "y", [Series(name, [(0.0, 1.0), (1.0, 2.0)]) for name in names]))
    drawn = ElementTree.fromstring(text)
    style = drawn.findtext(f"{SVG}style") or ""
    groups = [group for group in drawn.iter(f"{SVG}g") if group.find(f"{SVG}polyline") is not None]
    assert len(groups) == len(names)
    colors = [re.search(rf"\.{group.get('class')}{{--c:(#[0-9a-f]{{6}})}}", style) for group in groups]
    assert all(colors) and len({found[1] for found in colors if found}) == COLORS
    legend = [text.text or "" for text in drawn.iter(f"{SVG}text") if text.get("class") == "name"]
    assert legend == [f"<b>{index}</b>⏎&" for index in range(COLORS + 1)]


def curve(*xs: float, **more: Any) -> str:
    return draw(Chart("t", "y", [Series("s", [(x, x) for x in xs])], **more))


@pytest.mark.parametrize(
    ("xs", "parts"),
    [
        ((1, 2, 3), [3]),
        ((1, 2, 5, 6), [2, 2]),
        ((0, 5, 10, 15), [4]),  # evaluated every five iterations
        ((0, 5, 10, 20, 25), [3, 2]),
        ((1, 2, 9), [2, 1]),
        ((4,), [1]),
    ],
)
def test_a_curve_is_broken_where_nothing_was_measured(xs: tuple[float, ...], parts: list[int]) -> None:
    lines = re.findall(r'class="line" points="([^"]*)"', curve(*xs))
    assert [len(line.split()) for line in lines] == parts
    assert len(re.findall(r"<circle", curve(*xs))) == len(xs)


def test_a_curve_over_something_else_is_whole() -> None:
    assert len(re.findall(r'class="line"', curve(1, 2, 4, 8, x_label="k"))) == 1


def ticks(svg: str) -> list[str]:
    return re.findall(r'class="tick end"[^>]*>([^<]*)<', svg)


def test_values_that_are_all_zero_have_an_axis_from_zero_up() -> None:
    zeros = [Series("s", [(1, 0.0), (2, 0.0)])]
    assert ticks(draw(Chart("t", "y", zeros, "percent"))) == ["0%", "25%", "50%", "75%", "100%"]
    assert ticks(draw(Chart("t", "y", zeros)))[0] == "0"


def test_ticks_differ_from_each_other_and_fit() -> None:
    for high, unit in ((0.08, "percent"), (0.008, "percent"), (1e-7, "number"), (123456.0, "number"), (3e9, "number")):
        svg = draw(Chart("t", "y", [Series("s", [(1, high / 2), (2, high)])], unit))  # type: ignore[arg-type]
        found, left = ticks(svg), float(re.findall(r'data-left="([0-9.]+)"', svg)[0])
        assert len(set(found)) == len(found) and max(map(len, found)) * 7 + 20 < left
    assert ticks(draw(Chart("t", "y", [Series("s", [(1, 0.1)])], "percent")))[1] == "2.5%"
    last = re.findall(r'<text class="tick" x="([0-9.]+)" y="[0-9.]+">100000<', curve(*range(0, 100001, 5000)))
    assert float(last[0]) + 3.5 * len("100000") <= 460


def test_charts_over_iterations_have_the_same_range_and_marks() -> None:
    charts = [
        Chart("a", "y", [Series("s", [(0, 1.0), (9, 2.0)])]),
        Chart("b", "y", [Series("s", [(3, 1.0), (5, 2.0)])]),
        Chart("c", "y", [Series("s", [(1, 1.0), (8, 2.0)])], x_label="k"),
    ]
    first, second, third = aligned(charts, {4: "x 1 → 2", 30: "later"})
    assert first.span == second.span == (0, 9) and third.span is None and third.marks == {}
    svg = draw(second)
    assert "<title>iteration 4: x 1 → 2</title>" in svg and "later" not in svg
    where = {float(x): float(cx) for cx, x in re.findall(r'cx="([0-9.]+)"[^>]*data-x="([0-9]+)"', svg)}
    mark = float(re.findall(r'<g class="mark"[^>]*><line x1="([0-9.]+)"', svg)[0])
    assert mark == pytest.approx((where[3] + where[5]) / 2, abs=0.1)


def test_the_latest_value_stands_beside_the_name_with_its_interval() -> None:
    series = [Series("a", [(1, 0.5), (2, 0.75)], [(2, 0.5, 1.0)]), Series("b", [(1, 0.25)])]
    assert latest(Chart("t", "y", series, "percent")) == ["75.0% (50.0% to 100.0%)", "25.0%"]
