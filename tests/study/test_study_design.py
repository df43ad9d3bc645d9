"""The study's own files: its schemes are valid, differ in nothing else, and are those that docs/study.md names."""

from __future__ import annotations

import re
from typing import Any

import pytest
from support.commands import ROOT

from dapo_stages.config import Config, load_config
from dapo_stages.errors import DataError
from pipelines.study.design import Design, Name, overrides

DESIGN = Design.read()
FILES = sorted((ROOT / "pipelines/study").glob("*.yaml"))
TASKS = {path.stem: path for path in FILES if path.stem != "study"}  # those of the design, and one that may join them


def flat(config: Config) -> dict[str, Any]:
    def walk(values: dict[str, Any], prefix: str) -> dict[str, Any]:
        found: dict[str, Any] = {}
        for key, value in values.items():
            found |= walk(value, f"{prefix}{key}.") if isinstance(value, dict) else {prefix + key: value}
        return found

    return walk(config.model_dump(), "")


def test_the_schemes_are_those_of_the_page() -> None:
    page = (ROOT / "docs/study.md").read_text(encoding="utf-8").split("## Schemes")[1].split("\n## ")[0]
    named = [name.strip("`").lower() for name in re.findall(r"^\| (\S+) \|", page, re.M)[1:]]
    assert named == list(DESIGN.schemes)


@pytest.mark.parametrize("task", TASKS)
@pytest.mark.parametrize("scheme", DESIGN.schemes)
def test_a_scheme_changes_only_its_own_settings(task: str, scheme: str) -> None:
    ours, theirs = flat(load_config(TASKS[task], overrides(DESIGN.schemes[scheme]))), flat(load_config(TASKS[task]))
    changed = {key for key in ours.keys() | theirs.keys() if ours.get(key) != theirs.get(key)}
    assert all(key.startswith(("weights.scheme", "weights.", "attention.", "train.perception")) for key in changed)
    assert not any(key.startswith("weights.reward") for key in changed)
    assert ours["weights.scheme"] == ("uniform" if scheme == "papo" else scheme)
    assert changed or scheme == DESIGN.baseline


@pytest.mark.parametrize("task", TASKS)
def test_a_task_has_the_fixed_numbers_of_the_page(task: str) -> None:
    config = load_config(TASKS[task])
    assert (config.planned_iterations, config.train.updates_per_iteration) == (20, 4)
    assert (config.rollout.prompts_per_iteration, config.rollout.num_generations) == (64, 8)
    assert (
        config.weights.replay.size == 0
        and config.weights.early_fraction == 0
        and config.weights.reward_weights.vgr == 0
    )
    assert config.data.synthetic.held_out == 512 and config.evaluate.blank_image and not config.evaluate.num_generations


def test_the_tasks_of_the_design_have_files() -> None:
    assert set(DESIGN.tasks) <= set(TASKS)


def test_names_and_files_stand_for_each_other() -> None:
    for name in (Name("places", 101, "vgr_entropy"), Name("a-task", 1, "vgr", 0.00003)):
        assert Name.of(name.file) == name
    assert Name("places", 1, "vgr", 0.0003).file == "pilot/places/vgr-0.0003-1.json"
    for wrong in ("places/vgr.json", "places/vgr-0.1-1.json", "pilot/places/vgr-1.json"):
        with pytest.raises(DataError, match="expected TASK/SCHEME-SEED"):
            Name.of(wrong)
