"""docs/rewards.md: its code runs, its configurations load, its keys and links exist."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from support.commands import ROOT

from dapo_stages.config import Config, RewardsConfig, load_config
from dapo_stages.handoff.shards import Row
from dapo_stages.rewards.isolated.plugins import Plugins

PAGE = (ROOT / "docs/rewards.md").read_text(encoding="utf-8")


def blocks(language: str) -> list[str]:
    return re.findall(rf"```{language}\n(.*?)```", PAGE, re.S)


def test_the_plugin_example_runs_and_is_short(tmp_path: Path) -> None:
    [code] = blocks("python")
    assert len(code.splitlines()) < 40
    (tmp_path / "my_rewards.py").write_text(code)
    config = next(block for block in blocks("yaml") if "my_rewards.py" in block)
    (tmp_path / "run.yaml").write_text(config)
    plugins = Plugins(load_config(tmp_path / "run.yaml").rewards, tmp_path)
    texts = ["left of it", "The LEFT corner, below, right", "bright"]
    with_patches: Row = {"images": [{"bytes": b"", "path": None}]}
    blind: Row = {"images": []}
    assert plugins.score(texts, [10, 30, 15], with_patches) == {"brevity": [1, 0, 0.75], "places": [1 / 3, 1, 0]}
    assert plugins.score(texts, [9, 9, 9], blind) == {"brevity": [None] * 3, "places": [None] * 3}


@pytest.mark.parametrize("number", range(len(blocks("yaml"))))
def test_the_configurations_load(tmp_path: Path, number: int) -> None:
    (tmp_path / "run.yaml").write_text(blocks("yaml")[number])
    loaded = load_config(tmp_path / "run.yaml")
    assert loaded.rewards != RewardsConfig() and loaded.weights != Config().weights


def test_every_key_and_every_file_that_is_named_exists() -> None:
    known = set(RewardsConfig.model_fields) | {f"judge.{name}" for name in ("max_requests", "cache")}
    named = set(re.findall(r"`rewards\.([a-z_.]+)`", PAGE))
    assert named and named <= known
    for link in re.findall(r"\]\(([^)]+)\)", PAGE):
        assert (ROOT / "docs" / link).resolve().exists(), link
