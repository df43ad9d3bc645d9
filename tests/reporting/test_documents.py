"""Foreign text stays data in Markdown, HTML and SVG; images and curves come out as they should."""

from __future__ import annotations

import base64
import hashlib
import io
import json
import re

import pytest
from PIL import Image
from reporting.tiny_run import HOSTILE, image

from dapo_stages.reporting.documents.markdown import weighted_tokens
from dapo_stages.reporting.iteration.thumbnails import size_of, thumbnail
from dapo_stages.reporting.page.charts import Chart, Series, draw
from dapo_stages.reporting.page.html import page_data, render
from dapo_stages.reporting.page.ticks import nice_ticks
from dapo_stages.terminal.printed_table import Table, aligned
from dapo_stages.terminal.safe_text import markdown_block, markdown_table, number, percent, visible


def test_a_table_keeps_its_columns_whatever_is_in_a_cell() -> None:
    lines = markdown_table(["slice", "n"], [[HOSTILE, "1"], ["a|b\\|c", "2"]]).splitlines()
    assert len(lines) == 4
    assert {len(re.findall(r"(?<!\\)(?:\\\\)*\|", line)) for line in lines} == {3}
    assert "<script>" not in lines[2].replace("\\<", "")


def test_a_fence_is_longer_than_any_in_the_text() -> None:
    block = markdown_block("````\n# no heading\n```")
    assert block.startswith("`````text\n") and block.endswith("\n`````\n")


def test_control_and_direction_characters_are_shown_and_not_obeyed() -> None:
    assert visible("\x1b[31m 红\n\x00\u202e") == "␛[31m 红\n␀⟨U+202E⟩"


def test_tokens_are_strung_together_with_their_weights() -> None:
    assert weighted_tokens([" The", "\n", "  "], [0.914, 1.0, 2]) == "The(0.91) ⏎(1.00) ␣(2.00)"


def test_numbers_as_people_read_them() -> None:
    assert [number(0.12345), number(None), number(2e-5), number(0.0), percent(0.6321)] == [
        "0.123",
        "–",
        "2.00e-05",
        "0.000",
        "63.2%",
    ]


def test_columns_stand_under_each_other_also_with_wide_characters() -> None:
    assert aligned(Table(["n", "红"], [["1", "22"], ["10", "x"]])) == [" n  红", " 1  22", "10   x"]


@pytest.mark.parametrize(
    ("low", "high", "ticks"),
    [(0, 1, [0, 0.25, 0.5, 0.75, 1]), (1, 9, [0, 2, 4, 6, 8, 10]), (-0.05, 0.04, [-0.05, -0.025, 0, 0.025, 0.05])],
)
def test_ticks_are_round_and_enclose_the_values(low: float, high: float, ticks: list[float]) -> None:
    assert nice_ticks(low, high) == pytest.approx(ticks)


def test_a_constant_curve_still_has_an_axis() -> None:
    ticks = nice_ticks(0.5, 0.5)
    assert ticks[0] < 0.5 < ticks[-1]


def test_a_chart_escapes_names_and_puts_its_points_where_they_belong() -> None:
    svg = draw(Chart("<script>", "a & b", [Series('"><script>', [(1, 0.0), (2, 1.0), (3, 0.5)])]))
    assert "<script>" not in svg
    heights = [float(y) for y in re.findall(r'cy="([0-9.]+)"', svg)]
    assert heights[1] < heights[2] < heights[0]
    assert heights[2] == pytest.approx((heights[0] + heights[1]) / 2)
    assert "<title>iteration 2: &quot;&gt;&lt;script&gt; 1.000</title>" in svg


def test_a_large_image_becomes_a_small_one_of_the_same_shape() -> None:
    buffer = io.BytesIO()
    Image.new("RGB", (1000, 500), (1, 2, 3)).save(buffer, format="PNG")
    uri = thumbnail(buffer.getvalue())
    assert uri is not None
    assert size_of(base64.b64decode(uri.split(",")[1])) == (480, 240)


def test_an_image_that_cannot_be_read_is_none() -> None:
    assert thumbnail(b"no image") is None
    assert thumbnail(image(0)[:60]) is None


def test_a_band_is_drawn_between_the_ends_of_its_intervals() -> None:
    svg = draw(Chart("t", "y", [Series("s", [(0, 0.5), (1, 0.75)], [(0, 0.25, 0.75), (1, 0.5, 1.0)])], "percent"))
    heights = [float(y) for y in re.findall(r'cy="([0-9.]+)"', svg)]
    (band,) = re.findall(r'class="band" points="([^"]+)"', svg)
    low_0, low_1, high_1, high_0 = (float(point.split(",")[1]) for point in band.split())
    assert (low_0 + high_0) / 2 == pytest.approx(heights[0], abs=0.1) and low_1 == heights[0] and high_0 == heights[1]
    assert "<title>iteration 1: s 75.0% (50.0% to 100.0%)</title>" in svg and high_1 < heights[1]


def test_bars_are_as_high_as_their_share() -> None:
    svg = draw(Chart("t", "completions", [Series("iteration 1", [(0.5, 0.25), (1.5, 0.75)])], "percent", "reward", 1.0))
    heights = [float(height) for height in re.findall(r'class="bin"[^>]* height="([0-9.]+)"', svg)]
    assert heights[1] == pytest.approx(3 * heights[0], abs=0.2)
    assert "<title>reward 1 to 2: iteration 1 75.0%</title>" in svg


def test_nothing_in_a_script_can_end_it() -> None:
    group = {"completions": [], "problem": "</script><!-- & \u2028 \u2029"}
    text = render("r", Table([], []), [], {}, [{"iteration": 1, "groups": [group]}], {})
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', text, re.S)
    assert not re.search(r"[<>&\u2028\u2029]", data)
    assert json.loads(data) == [{"iteration": 1, **group}]


def test_the_hashes_of_the_policy_are_those_of_the_style_and_the_script() -> None:
    text = render("r", Table([], []), [], {}, [], {})
    for name, code in re.findall(r"<(style|script)>(.*?)</(?:style|script)>", text, re.S):
        digest = base64.b64encode(hashlib.sha256(code.encode()).digest()).decode()
        assert f"{name}-src 'sha256-{digest}'" in text
    assert "unsafe" not in text and "default-src 'none'" in text


def test_a_page_holds_the_newest_groups_that_fit() -> None:
    def browsed(iteration: int) -> dict[str, object]:
        return {"iteration": iteration, "groups": [{"id": f"{iteration}-{n}", "completions": [{}] * 4} for n in (0, 1)]}

    text, shown = page_data([browsed(3), browsed(2), browsed(1)], completions=12)
    assert [group["id"] for group in json.loads(text)] == ["3-0", "3-1", "2-0"] and shown == 12
    assert page_data([browsed(3)], size=10)[1] == 4  # a page is never empty because a group is large
