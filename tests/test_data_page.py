"""docs/data.md: its settings are settings, and its mappings fit the shapes that tests/data reads."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
import yaml
from support.commands import ROOT

from dapo_stages.config import Config, load_config
from dapo_stages.data.summary import Summary
from dapo_stages.data.survey import Survey

PAGE = (ROOT / "docs/data.md").read_text(encoding="utf-8")
MAPPINGS = dict(re.findall(r"^\| ([^|`]+) \| (`data\.[^|]*=[^|]*) \|$", PAGE, re.M))


@pytest.mark.parametrize("dataset", MAPPINGS)
def test_a_mapping_is_accepted(dataset: str, tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("model: {name: embedded}\n")
    overrides = re.findall(r"`([^`]+)`", MAPPINGS[dataset])
    assert load_config(tmp_path / "run.yaml", overrides) != Config.model_validate({"model": {"name": "embedded"}})


def test_there_are_as_many_as_the_table_has() -> None:
    assert len(MAPPINGS) == 15


def test_the_yaml_is_a_configuration() -> None:
    for block in re.findall(r"```yaml\n(.*?)```", PAGE, re.S):
        Config.model_validate(yaml.safe_load(block))


def test_the_lines_it_shows_are_those_of_the_code() -> None:
    config = Config.model_validate({"data": {"columns": {"options": "options"}}})
    summary = Summary(["image", "problem", "solution", "options"], config.data, Survey("index"))
    for at in range(24):
        summary.add(
            {
                "prompt_id": f"train-{at:06d}",
                "problem": "What?\nA. red\nB. blue",
                "solution": "AB"[at % 2],
                "prompt_text": "…",
                "prompt_ids": [0] * 68,
                "image_grid_thw": [[1, 4, 4]],
            }
        )
    block = re.findall(r"## What prepare-data says\n\n```\n(.*?)```", PAGE, re.S)[0]
    *shown, prompt = block.splitlines()
    assert shown == summary.lines()[:5]
    assert summary.lines()[5].startswith(prompt.partition("inside …'")[0])
