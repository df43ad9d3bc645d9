"""Twenty images in a question, and videos, through every stage; and what of them is bad input."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from support.commands import Result
from support.pipeline import BY_PLACE, PLACE, Run, table

from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration.search import find
from dapo_stages.runs.run_folder import Run as Opened

TRAINED = 7  # rows: those of 15 that are not held out, whatever the seed
SETTINGS = {
    "data__held_out_fraction": 0.5,
    "data__min_image_size": 28,
    **BY_PLACE,
    "rollout__prompts_per_iteration": TRAINED,
    "rollout__num_generations": 4,
    "evaluate__num_generations": 1,
    "attention__patch_completions": 28,  # all
    "attention__groups": "all",
    "attention__blank_image": "true",
    "weights__replay": "{size: 8, min_reward: -1}",
    "report__samples": 4,
}
FRAMES = (0.0, 0.5, 1.0)
KINDS = {"images": pa.list_(pa.binary()), "videos": pa.list_(pa.list_(pa.binary()))}


def png(seed: int, size: tuple[int, int] = (56, 56)) -> bytes:
    buffer = io.BytesIO()
    pixels = np.random.default_rng(seed).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def write(path: Path, rows: list[dict[str, Any]]) -> Path:
    schema = pa.schema([*KINDS.items(), ("problem", pa.string()), ("solution", pa.string())])
    asked = [{"images": [], "videos": [], "problem": "A or B?", "solution": "AB"[at % 2]} for at in range(len(rows))]
    pq.write_table(pa.Table.from_pylist([one | row for one, row in zip(asked, rows, strict=True)], schema=schema), path)
    return path


@pytest.fixture(scope="module")
def run(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An iteration on questions with twenty images, with a video and an image, and with nothing to see."""
    here = tmp_path_factory.mktemp("many")
    many = {"images": [png(seed, (56 + 28 * (seed % 2), 56)) for seed in range(20)]}
    mixed = {"images": [png(30)], "videos": [[png(31), png(32), png(33)]], "problem": "<video> and <image>: A or B?"}
    source = write(here / "rows.parquet", [many, mixed, {}] * 5)
    more = [f"{key.replace('__', '.')}={value}" for key, value in SETTINGS.items()]
    made = Run(here, (*small_run.settings, f"data.source={source}", *more))
    (here / "place.py").write_text(PLACE)
    (here / "policy").symlink_to(small_run.policy(0))
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(here)
        made.command("config", "--out", here / "config.yaml")
        made.command("prepare-data", "--policy", here / "policy", "--out", here / "data")
        made.iteration(1)
        made.command("report", "--run", here, "--iteration", 1)
    return made


def test_prompts_have_all_of_their_images(run: Run) -> None:
    prompts = table(run.at(1) / "rollout", "prompts")
    grids = {tuple(map(tuple, row)) for row in prompts.image_grid_thw}
    assert grids == {((1, 4, 4), (1, 4, 6)) * 10, ((2, 4, 4), (1, 4, 4)), ()} and len(prompts) == TRAINED
    for row in prompts.itertuples():
        if len(row.images) == 4:
            assert list(row.frame_seconds) == [*FRAMES, -1.0]
            assert [image["bytes"] for image in row.images] == [png(seed) for seed in (31, 32, 33, 30)]
        else:
            assert row.frame_seconds is None and len(row.images) in (0, 20)
    counts = Source(run.folder / "data").manifest.counts
    assert counts["videos"] == 5 and counts["train"] + counts["held_out"] == 15


def test_the_shares_of_the_images_add_up_to_that_of_vision(run: Run) -> None:
    attention, rollout = table(run.at(1) / "attention", "attention"), table(run.at(1) / "rollout", "completions")
    prompts = table(run.at(1) / "rollout", "prompts").set_index("group_id").image_grid_thw
    sizes = set()
    for row, group in zip(attention.itertuples(), rollout.group_id, strict=True):
        units = sum(grid[0] for grid in prompts[group])
        sizes.add(units)
        if not units:
            assert row.attn_vision_by_image is None and row.status == "no_image"
            continue
        assert len(row.attn_vision_by_image) == units and min(row.attn_vision_by_image) > 0
        assert sum(row.attn_vision_by_image) == pytest.approx(row.attn_vision_all, abs=1e-6)
    assert sizes == {0, 3, 20}
    first = next(row for row in attention.itertuples() if row.status == "ok")
    assert np.stack(first.patch_attention_all).shape[1] == first.num_vision_tokens


def test_training_reads_them_and_the_buffer_keeps_them(run: Run) -> None:
    frames = table(run.at(1) / "weights", "buffer").frame_seconds
    assert {None if row is None else tuple(row) for row in frames} == {None, (*FRAMES, -1.0)}
    assert Source(run.at(1) / "train").manifest.counts["groups"] == len(frames) == TRAINED


def test_the_page_shows_a_frame_of_each_temporal_step(run: Run) -> None:
    samples = json.loads((run.at(1) / "report/samples.json").read_text())
    seen = {tuple(image.get("second") for image in sample["images"]) for sample in samples}
    assert seen <= {(None,) * 20, (0.0, 1.0, None), ()} and len(samples) == 4
    for sample in samples:
        for one in sample["completions"]:
            assert len(one.get("by_image", [])) == len(sample["images"])


def test_maps_are_over_the_images_that_are_shown(run: Run) -> None:
    attention = table(run.at(1) / "attention", "attention")
    for key in attention[attention.status == "ok"].completion_id:
        hit = find(Opened(run.folder), key)
        look = hit.look()
        assert look is not None and len(look.shades) == len(hit.shown) in (3, 20)


@pytest.mark.parametrize(
    ("row", "words"),
    [
        ({"videos": [[]]}, "row 0: the video has no frames"),
        ({"videos": [[png(1)] * 17]}, "the video has 17 frames, more than data.max_video_frames=16"),
        ({"videos": [[png(1), b"\x89PNG broken"]]}, "frame 1: "),
    ],
)
def test_bad_videos_end_with_exit_code_3(row: dict[str, Any], words: str, small_run: Run, tmp_path: Path) -> None:
    source = write(tmp_path / "rows.parquet", [row, row])

    def prepare(**settings: str) -> Result:
        options = ("--policy", small_run.policy(0), "--out", tmp_path / "data")
        return small_run.attempt("prepare-data", *options, data__source=source, **settings)

    for settings in ({}, {"data__on_bad_image": "error"}):
        result = prepare(**settings)
        assert result.code == 3 and words in result.stderr, result.stderr
        assert not list(tmp_path.glob("data/*.parquet"))
