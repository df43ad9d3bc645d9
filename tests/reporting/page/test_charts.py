"""Charts as files of their own."""

from __future__ import annotations

import re
from xml.etree import ElementTree

from dapo_stages.reporting.page.charts import COLORS, Chart, Series, drawn_as_svg

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
