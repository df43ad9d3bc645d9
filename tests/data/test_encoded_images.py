"""Images as text: data URIs and base64."""

from __future__ import annotations

import base64
from collections.abc import Callable

import pytest

from dapo_stages.data.encoded_images import decoded
from dapo_stages.data.images import BadImage

Png = Callable[..., bytes]


@pytest.mark.parametrize(
    "wrap",
    [
        lambda text: f"data:image/png;base64,{text}",
        lambda text: f"data:;base64,{text}",
        lambda text: f"DATA:image/png;charset=utf-8;base64,{text}",
        lambda text: f"data:image/png;base64,{text.rstrip('=')}",
        lambda text: text,
        lambda text: "\n".join(text[at : at + 76] for at in range(0, len(text), 76)) + "\n",
    ],
)
def test_bytes_come_back(wrap: Callable[[str], str], png: Png) -> None:
    assert decoded(wrap(base64.b64encode(png()).decode()), "row 1") == png()


@pytest.mark.parametrize(
    "name",
    ["a.png", "images/0001", "/9j/4AAQ/0001", "a" * 200, "/data/" + "folder/" * 20 + "7", "A" * 4098 + "!", "a" * 5000],
)
def test_file_names_are_not_decoded(name: str) -> None:
    assert decoded(name, "row 1") is None


@pytest.mark.parametrize("text", ["data:image/png,rawbytes", "data:image/png;base64,@@@@", "A" * 4097])
def test_damaged_text_is_a_bad_image(text: str) -> None:
    with pytest.raises(BadImage, match=r"row 1: (expected a data URI in base64|the base64 text is damaged)"):
        decoded(text, "row 1")
