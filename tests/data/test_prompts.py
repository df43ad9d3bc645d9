"""Prompts, compared with the processor called directly on the same conversation."""

from __future__ import annotations

import io
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from dapo_stages.config import Config
from dapo_stages.data.chat import SYSTEM_PROMPT
from dapo_stages.data.images import BadImage
from dapo_stages.data.prompts import Dropped, PromptMaker
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.handoff.schemas import SCHEMAS

Configure = Callable[..., Config]
Png = Callable[..., bytes]
Make = Callable[..., Any]


@pytest.fixture()
def make(processor: Any, configure: Configure) -> Make:
    """The prompt of a row with these cells."""

    def prompt(values: dict[str, Any], folder: Path | None = None, **data: Any) -> Any:
        source = RawSource("cats", list(values), lambda _: iter(()), folder=folder)
        maker = PromptMaker(source, processor, configure("cats", **data).data)
        return maker.make(RawRow(3, values, "cats row 3", folder), "train-000003")

    return prompt


def directly(processor: Any, conversation: list[dict[str, Any]]) -> tuple[list[int], list[list[int]]]:
    """Tokens and grids as transformers makes them in one step, with images inside the conversation."""
    encoded = processor.apply_chat_template(
        [conversation], tokenize=True, add_generation_prompt=True, return_dict=True, return_tensors="np"
    )
    return encoded["input_ids"][0].tolist(), np.asarray(encoded.get("image_grid_thw", [])).tolist()


def text(content: str) -> dict[str, Any]:
    return {"type": "text", "text": content}


def shown(size: tuple[int, int], color: str = "red") -> dict[str, Any]:
    return {"type": "image", "image": Image.new("RGB", size, color)}


OURS = {"role": "system", "content": [text(SYSTEM_PROMPT)]}


def test_tokens_are_those_of_the_processor(make: Make, processor: Any, png: Png) -> None:
    row = make({"image": {"bytes": png(), "path": None}, "problem": "Which colour?\nA. red", "solution": "A"})
    ids, grids = directly(
        processor, [OURS, {"role": "user", "content": [shown((56, 56)), text("Which colour?\nA. red")]}]
    )
    assert (row["prompt_ids"], row["image_grid_thw"]) == (ids, grids)
    assert grids == [[1, 4, 4]]  # 56 / 14 patches per side
    assert row["prompt_ids"].count(processor.image_token_id) == 4  # 2 x 2 of them become one token
    assert row["prompt_text"].endswith("Which colour?\nA. red<|im_end|>\n<|im_start|>assistant\n")
    assert row.keys() == set(SCHEMAS["held_out"].names) - {"frame_seconds"}  # of videos
    assert (row["prompt_id"], row["source"], row["slice"]) == ("train-000003", "cats", "")


def test_images_of_different_sizes_go_where_their_placeholders_are(make: Make, processor: Any, png: Png) -> None:
    sizes = [(56, 112), (140, 84), (56, 56)]
    row = make(
        {
            "image": [png("red", size) for size in sizes],
            "problem": "Is <image> larger than <image>?",
            "solution": "<answer>B</answer>",
        }
    )
    first, second, third = (shown(size) for size in sizes)
    user = [first, text("Is "), second, text(" larger than "), third, text("?")]
    ids, grids = directly(processor, [OURS, {"role": "user", "content": user}])
    assert (row["prompt_ids"], row["image_grid_thw"]) == (ids, grids)
    assert grids == [[1, 8, 4], [1, 6, 10], [1, 4, 4]]
    assert [Image.open(io.BytesIO(image["bytes"])).size for image in row["images"]] == sizes
    assert row["solution"] == "B"


def test_a_conversation_keeps_its_turns_and_its_system_message(make: Make, processor: Any, png: Png) -> None:
    messages = [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": [{"type": "image", "text": None}, text("What is this?")]},
        {"role": "assistant", "content": "A circle."},
        {"role": "user", "content": "Its colour?"},
        {"role": "assistant", "content": "<answer>A</answer>"},
    ]
    row = make({"image": png(), "messages": messages, "solution": "A"})
    ids, _ = directly(
        processor,
        [
            {"role": "system", "content": [text("Be brief.")]},
            {"role": "user", "content": [shown((56, 56)), text("What is this?")]},
            {"role": "assistant", "content": [text("A circle.")]},
            {"role": "user", "content": [text("Its colour?")]},
        ],
    )
    assert row["prompt_ids"] == ids
    assert "<answer>A" not in row["prompt_text"]
    assert row["problem"] == "<image>What is this?\n\nIts colour?"


def test_an_image_without_a_placeholder_comes_first_and_once(make: Make, processor: Any, png: Png) -> None:
    turns = [("user", "What is this?"), ("assistant", "A circle."), ("user", "Its colour?")]
    row = make({"image": png(), "prompt": [{"role": r, "content": c} for r, c in turns], "solution": "A"})
    shown_first: list[dict[str, Any]] = [{"role": r, "content": [text(c)]} for r, c in turns]
    shown_first[0]["content"].insert(0, shown((56, 56)))
    assert row["prompt_ids"] == directly(processor, [OURS, *shown_first])[0]


@pytest.mark.parametrize(
    ("ours", "expected"),
    [(None, SYSTEM_PROMPT), ("Look twice.", "Look twice."), ("", "You are a helpful assistant.")],
)
def test_the_system_message_is_configured(ours: str | None, expected: str, make: Make, png: Png) -> None:
    row = make({"image": png(), "problem": "?", "solution": "A"}, system_prompt=ours)
    assert row["prompt_text"].startswith(f"<|im_start|>system\n{expected}<|im_end|>\n")  # the last is Qwen's own


def test_a_row_without_an_image_is_a_prompt_too(make: Make, processor: Any) -> None:
    row = make({"image": None, "problem": "1 + 1?", "solution": "2"})
    ids, _ = directly(processor, [OURS, {"role": "user", "content": [text("1 + 1?")]}])
    assert (row["images"], row["image_grid_thw"], row["prompt_ids"], row["solution"]) == ([], [], ids, "2")


def test_large_images_are_fitted_before_they_are_counted(make: Make, processor: Any, png: Png) -> None:
    row = make({"image": png("red", (560, 280)), "problem": "?", "solution": "A"}, max_image_size=112)
    _, grids = directly(processor, [OURS, {"role": "user", "content": [shown((112, 56)), text("?")]}])
    assert row["image_grid_thw"] == grids == [[1, 4, 8]]
    with Image.open(io.BytesIO(row["images"][0]["bytes"])) as stored:
        assert stored.size == (112, 56)


def test_long_prompts_are_dropped_and_never_cut(make: Make, png: Png) -> None:
    cells = {"image": png(), "problem": "Which colour?", "solution": "A"}
    length = len(make(cells)["prompt_ids"])
    assert len(make(cells, max_prompt_length=length)["prompt_ids"]) == length
    dropped = make(cells, max_prompt_length=length - 1)
    assert dropped == Dropped("long", f"cats row 3: {length} tokens, more than data.max_prompt_length")


@pytest.mark.parametrize(
    ("cells", "why"),
    [
        ({"problem": "Is <image> <image>?"}, "2 <image> placeholders for 1 images"),
        ({"problem": "Is <image>?", "image": None}, "1 <image> placeholders for 0 images"),
        ({"problem": " "}, "no problem"),
        ({"solution": None}, "no solution"),
        ({"solution": "<answer></answer>"}, "no answer in '<answer></answer>'"),
    ],
)
def test_rows_that_make_no_sense_are_dropped_with_a_reason(
    cells: dict[str, Any], why: str, make: Make, png: Png
) -> None:
    dropped = make({"image": png(), "problem": "?", "solution": "A", **cells})
    assert dropped == Dropped("other", f"cats row 3: {why}")


@pytest.mark.parametrize(
    ("cell", "problem"),
    [
        (3, "expected an image, got int '3'"),
        ({"bytes": None, "path": None}, "expected an image, got NoneType 'None'"),
        ({"bytes": b"", "path": "a.png"}, r"the image is empty \(0 bytes\)"),
        ([None], "expected an image, got NoneType 'None'"),
    ],
)
def test_cells_that_hold_no_image_are_bad_images(cell: Any, problem: str, make: Make) -> None:
    with pytest.raises(BadImage, match=rf"cats row 3: {problem}\. Fix the row"):
        make({"image": cell, "problem": "?", "solution": "A"})


def test_a_damaged_file_is_named_with_its_row(make: Make, tmp_path: Path) -> None:
    (tmp_path / "half.png").write_bytes(b"\x89PNG")
    with pytest.raises(BadImage, match=r"cats row 3: half\.png: not an image \(4 bytes\)"):
        make({"image": "half.png", "problem": "?", "solution": "A"}, folder=tmp_path)
