"""Cells: nested names, lists in text, and what is kept of a row."""

from __future__ import annotations

import datetime
import json
from decimal import Decimal
from typing import Any

import pytest
from PIL import Image

from dapo_stages.data.cells import as_json, cell, has_column, structured

ROW = {
    "reward_model": {"ground_truth": "7", "style": {"kind": "rule"}},
    "extra": '{"index": 3}',
    "a.b": "dotted",
    "a": {"b": "nested"},
    "plain": "text",
}


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("reward_model.ground_truth", "7"),
        ("reward_model.style.kind", "rule"),
        ("extra.index", 3),
        ("a.b", "dotted"),
        ("plain", "text"),
        ("plain.x", None),
        ("gone", None),
        ("reward_model.gone", None),
        ("reward_model.gone.deeper", None),
    ],
)
def test_a_dot_leads_into_a_column(name: str, value: Any) -> None:
    assert cell(ROW, name) == value


def test_a_field_may_be_there_if_its_column_is() -> None:
    assert has_column(list(ROW), "reward_model.ground_truth") and has_column(list(ROW), "a.b")
    assert not has_column(list(ROW), "gone.ground_truth")


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ('["a", "b"]', ["a", "b"]),
        ("['a', 'b']", ["a", "b"]),
        ("{'A': 1}", {"A": 1}),
        (" [1, 2] ", [1, 2]),
        ("[not a list]", "[not a list]"),
        ("[__import__('os')]", "[__import__('os')]"),
        ("[" * 5000 + "]" * 5000, "[" * 5000 + "]" * 5000),
        ("(1, 2)", "(1, 2)"),
        ("text", "text"),
        (["a"], ["a"]),
        (None, None),
    ],
)
def test_a_list_in_text_is_read_and_nothing_is_run(text: Any, value: Any) -> None:
    assert structured(text) == value


def test_a_row_is_kept_as_json_without_its_images() -> None:
    row = {
        "image": "a.png",
        "bytes": b"x",
        "photo": Image.new("RGB", (2, 2)),
        "struct": {"bytes": b"x"},
        "messages": [{"type": "image_url", "url": "data:image/png;base64,AA"}, {"type": "text", "text": "看图"}],
        "level": 3,
        "score": 0.5,
        "missing": float("nan"),
        "infinite": float("inf"),
        "price": Decimal("1.50"),
        "day": datetime.date(2026, 1, 2),
        "tags": ["a", None],
        "none": None,
        "empty": [],
    }
    assert json.loads(as_json(row, {"image"}) or "") == {
        "messages": [{"type": "image_url"}, {"type": "text", "text": "看图"}],
        "level": 3,
        "score": 0.5,
        "missing": None,
        "infinite": None,
        "price": "1.50",
        "day": "2026-01-02",
        "tags": ["a", None],
        "none": None,
        "empty": [],
    }
    assert as_json({"image": b"x"}, {"image"}) is None
    assert json.loads(as_json({"half": "\ud800"}, ()) or "") == {"half": "\ud800"}
