"""Where tokens looked: bytes against values worked out by hand, pooling, and numbers that do not fit the image."""

from __future__ import annotations

import base64
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting import looked_run, tiny_run

from dapo_stages.reporting.iteration import heat
from dapo_stages.reporting.iteration.browse import LONGEST, browsed
from dapo_stages.reporting.iteration.heat import maps, patch_attention, shapes_of, with_patches
from dapo_stages.runs.run_folder import Run


def cells(found: dict[str, Any] | None) -> list[list[int]]:
    assert found is not None
    data = base64.b64decode(found["data"])
    return [list(data[start : start + found["cells"]]) for start in range(0, len(data), found["cells"])]


def look(*rows: list[float]) -> dict[str, Any]:
    return {"all": np.array(rows, np.float32)}


def test_each_row_is_brightest_at_255_and_the_last_is_the_mean_over_tokens() -> None:
    found = maps(look([0.0, 0.1, 0.2, 0.4], [0.4, 0.0, 0.0, 0.0]), [[1, 4, 4]])
    assert cells(found) == [[0, 64, 128, 255], [255, 0, 0, 0], [255, 64, 128, 255]]
    assert found is not None and found["shapes"] == [[2, 2]]
    assert found["seen"] == [[0.7, 0.4, 0.55]]


def test_two_images_share_a_scale() -> None:
    found = maps(look([0.1, 0.2, 0.4, 0.0, 0.1, 0.0]), [[1, 2, 4], [1, 4, 4]])
    assert found is not None and found["shapes"] == [[1, 2], [2, 2]]
    assert cells(found)[0] == [64, 128, 255, 0, 64, 0]


def test_nothing_looked_at_is_dark() -> None:
    assert cells(maps(look([0.0] * 4), [[1, 4, 4]])) == [[0] * 4] * 2


@pytest.mark.parametrize(
    ("grid", "tokens", "shapes"),
    [
        ([[1, 14, 22]], 77, [(7, 11)]),  # Qwen2.5-VL: 2 × 2 patches each
        ([[1, 7, 11]], 77, [(7, 11)]),
        ([[1, 6, 9]], 6, [(2, 3)]),
        ([[1, 14, 22]], 76, None),
        ([[1, 14, 22]], 0, None),
        ([[2, 14, 22]], 154, [(7, 11)] * 2),  # two temporal steps of a video
        ([[2, 14, 22]], 77, None),
        ([], 4, None),
    ],
)
def test_rows_and_columns_come_from_the_grid(grid: list[list[int]], tokens: int, shapes: object) -> None:
    assert shapes_of(grid, tokens) == shapes


def test_large_maps_are_means_over_blocks(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(heat, "LIMIT", 8)  # two rows of at most four cells
    values = np.zeros((3, 5), np.float32)
    values[2, 4] = 0.4  # alone in the last block of 1 row and 2 columns
    values[0, 0] = 0.4  # one of 2 rows and 3 columns
    found = maps({"all": values.reshape(1, -1)}, [[1, 6, 10]])
    assert found is not None and found["block"] == 3 and found["cells"] == 2
    # 3 × 3 and 3 × 2 image tokens: 0.4 / 9 and 0.4 / 6.
    assert cells(found)[0] == [170, 255]


def test_attention_is_read_by_layers_for_those_asked_for(tmp_path: Path) -> None:
    run = Run(looked_run.build(tmp_path / "run"))
    attention = run.sources(1)["attention"]
    assert with_patches(attention) == {"it1-p0-s0", "it1-p0-s1"}
    ((key, patches),) = patch_attention(attention, {"it1-p0-s1", "it1-p0-s3"})
    assert key == "it1-p0-s1" and list(patches) == ["early", "middle", "late", "all"]
    for segment, found in patches.items():
        assert found.shape == (11, 77)
        for token in range(11):
            assert divmod(int(found[token].argmax()), 11) == looked_run.place(segment, token)


def test_an_iteration_is_browsed_with_replayed_groups_behind(tmp_path: Path) -> None:
    run = Run(tiny_run.build(tmp_path / "run"))
    groups = browsed(2, run.sources(2), 100)["groups"]
    facts = [(group["id"], group["replayed"], group["informative"], group["sampled"]) for group in groups]
    assert facts == [("it2-p0", False, True, 2), ("it2-p1", False, False, 2), ("it1-p0", True, False, 1)]
    assert [one["heat"] is not None for one in groups[0]["completions"]] == [True, True, False, False]
    assert groups[0]["completions"][3]["tokens"][0].startswith("<script>alert(1)</script> [/box]")


def test_very_long_texts_are_cut_and_say_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert LONGEST >= 1_000_000
    monkeypatch.setattr("dapo_stages.reporting.iteration.browse.LONGEST", 12)
    run = Run(tiny_run.build(tmp_path / "run"))
    one = browsed(1, run.sources(1), 4)["groups"][0]["completions"][0]
    assert one["tokens"] == ["<think>", " The", " "] and one["cut"] == len("circle is red.</think>\n<answer>A</answer>")
