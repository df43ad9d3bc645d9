"""docs/sampling.md: its commands run, its configuration loads, its keys and defaults are those of the models."""

from __future__ import annotations

import importlib.util
import re
import shlex
import sys
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import ROOT, run
from support.pipeline import Run

from dapo_stages.config import Config, CurriculumConfig, load_config
from dapo_stages.config.schedules import SCHEDULED
from dapo_stages.handoff.manifests import Source

PAGE = (ROOT / "docs/sampling.md").read_text(encoding="utf-8")
COMMANDS = [block.replace("\\\n", " ") for block in re.findall(r"```bash\n(.*?)```", PAGE, re.S)]


@pytest.mark.parametrize("command", COMMANDS, ids=lambda command: command.split()[1])
def test_a_command_runs(command: str, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "training_logs").mkdir()
    (tmp_path / "training_logs/first").symlink_to(small_run.folder)
    monkeypatch.chdir(tmp_path)
    program, *arguments = shlex.split(command)
    result = run(*arguments)
    assert program == "dapo-stages" and result.code == 0, result.stderr
    if "--dry-run" not in arguments:
        Source(tmp_path / arguments[-1]).verify_all()


def test_the_schedules_are_valid(tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text(re.findall(r"```yaml\n(.*?)```", PAGE, re.S)[0])
    config = load_config(tmp_path / "run.yaml")
    assert len(config.schedules) == 4
    assert config.at(51).train.beta == 0.04 and config.at(50).train.beta < 0.04
    assert [config.at(i).weights.reward_weights.vgr for i in (20, 21)] == [0, 1]


def test_what_may_be_scheduled_is_named() -> None:
    paragraph = PAGE[PAGE.index("can be scheduled") :].split("The learning rate")[0]
    assert tuple(re.findall(r"`([a-z_.]+)`", paragraph)) == SCHEDULED


def test_keys_and_defaults_are_those_of_the_configuration() -> None:
    checked = 0
    for table in re.findall(r"^\| setting.*?(?=\n\n)", PAGE, re.S | re.M):
        lines = table.splitlines()
        place = (re.findall(r"`([a-z_.]+)`", lines[0]) or [""])[0]
        config = CurriculumConfig() if place == "rollout.curriculum." else Config()
        for line in lines[2:]:
            keys, values = (re.findall(r"`([^`]+)`", cell) for cell in line.split("|")[1:3])
            for key, value in zip(keys, values, strict=True):
                path = key if isinstance(config, CurriculumConfig) else place + key
                found: Any = reduce(getattr, path.split("."), config)
                assert found == type(found)(yaml.safe_load(value)), key
                checked += 1
    assert checked == 17


def test_the_figures_of_replay_are_those_of_the_simulation(tmp_path: Path) -> None:
    spec = importlib.util.spec_from_file_location("replay", ROOT / "docs/replay.py")
    assert spec is not None and spec.loader is not None
    replay = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = replay  # its dataclass looks itself up there
    spec.loader.exec_module(replay)
    runs = {(data, rule): replay.simulate(data, rule) for data in replay.DATA for rule in replay.SETTINGS}
    made = replay.table(runs).splitlines()
    start = PAGE.index(made[0])
    said = PAGE[start:].splitlines()[: len(made)]
    for pair in zip(made[2:], said[2:], strict=True):
        (name, *cells), (there, *others) = (line.split("|")[1:-1] for line in pair)
        found, want = ([float(cell.strip(" %")) for cell in row] for row in (cells, others))
        assert name == there and found == pytest.approx(want, rel=0.05)
