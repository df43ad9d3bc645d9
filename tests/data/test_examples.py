"""What supervised steps learn from: training rows, and nothing that is held out."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from support.commands import run
from support.pipeline import table
from support.taught import png, write_rows

from dapo_stages.config import Config
from dapo_stages.data.examples import Examples, training_examples
from dapo_stages.data.image_workers import ImageWorkers
from dapo_stages.errors import ConfigError

ROWS = 20


@pytest.fixture(scope="module")
def processor() -> Any:
    from dapo_stages.models.embedded.embedded_policy import build_processor
    from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer

    return build_processor(build_tokenizer())


def of(data: dict[str, Any], processor: Any, count: int = 100, **sft: Any) -> Examples:
    config = Config.model_validate({"data": {"held_out_fraction": 0.3, **data}, "sft": sft})
    return training_examples(config, processor, None, ImageWorkers(0), count)


def learned(examples: Examples) -> set[bytes]:
    """Bytes of all images that are learned from."""
    return {image["bytes"] for one in examples.found for image in examples.prompt_row(one)["images"]}


def prepared(tmp_path: Path, *settings: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """What prepare-data makes of the same rows: for training, and held out."""
    (tmp_path / "run.yaml").write_text("model: {name: embedded}\ndata: {held_out_fraction: 0.3}\n")
    overrides = [f"--set={one}" for one in settings]
    done = run("prepare-data", "--config", tmp_path / "run.yaml", "--out", tmp_path / "data", *overrides)
    assert done.code == 0, done.stderr
    return table(tmp_path / "data", "train"), table(tmp_path / "data", "held_out")


def test_the_rows_that_are_learned_from_are_those_that_prepare_data_trains_on(tmp_path: Path, processor: Any) -> None:
    source = str(write_rows(tmp_path / "rows.parquet", list(range(ROWS))))
    train, held_out = prepared(tmp_path, f"data.source={source}")
    examples = of({"source": source}, processor)
    assert len(held_out) > 2
    assert {one.prompt["prompt_id"] for one in examples.found} == set(train["prompt_id"])
    assert learned(examples) == {images[0]["bytes"] for images in train["images"]}
    assert not learned(examples) & {images[0]["bytes"] for images in held_out["images"]}


def test_a_held_out_row_is_not_even_read(tmp_path: Path, processor: Any) -> None:
    """Planted: the images of held-out rows are none, which would end the command."""
    source = write_rows(tmp_path / "rows.parquet", list(range(ROWS)))
    _, held_out = prepared(tmp_path, f"data.source={source}")
    planted = pd.read_parquet(source)
    for name in held_out["prompt_id"]:
        planted.at[int(name.split("-")[1]), "image"] = {"bytes": b"no image", "path": None}
    planted.to_parquet(source)
    assert len(of({"source": str(source), "on_bad_image": "error"}, processor).found) == ROWS - len(held_out)


def test_rows_of_another_dataset_with_a_held_out_image_are_left_out(tmp_path: Path, processor: Any) -> None:
    source = str(write_rows(tmp_path / "rows.parquet", list(range(ROWS))))
    _, held_out = prepared(tmp_path, f"data.source={source}")
    leaked = int(held_out["prompt_id"][1].split("-")[1])
    other = str(write_rows(tmp_path / "other.parquet", [100, leaked, 101]))
    examples = of({"source": source}, processor, source=other)
    assert [one.prompt["solution"] for one in examples.found] == ["n100", "n101"]
    assert examples.counts == {"dropped_held_out": 1} and png(leaked) not in learned(examples)


def test_only_as_many_rows_are_read_as_there_are_steps_for(tmp_path: Path, processor: Any) -> None:
    source = str(write_rows(tmp_path / "rows.parquet", list(range(ROWS))))
    chosen = {one.prompt["prompt_id"] for one in of({"source": source}, processor, count=4).found}
    everything = [one.prompt["prompt_id"] for one in of({"source": source}, processor).found]
    assert len(chosen) == 4 and chosen < set(everything) and chosen != set(everything[:4])


def test_the_completion_is_made_of_the_solution_and_the_rows_columns(tmp_path: Path, processor: Any) -> None:
    source = str(write_rows(tmp_path / "rows.parquet", [0, 1], why="I counted."))
    examples = of({"source": source}, processor, completion="<think>{{ why }}</think><answer>{{ solution }}</answer>")
    assert [one.completion for one in examples.found] == ["<think>I counted.</think><answer>n0</answer>"]
    with pytest.raises(
        ConfigError, match=r"sft.completion: 'reason' is undefined. Use only the columns that there are"
    ):
        of({"source": source}, processor, completion="{{ reason }}")
