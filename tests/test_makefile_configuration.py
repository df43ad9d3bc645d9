"""What the Makefile knows of the configuration: the same as `dapo-stages config`, which it asks."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.commands import run
from support.make import attempt, dry, make, project_with

pytestmark = pytest.mark.long


@pytest.fixture()
def project(tmp_path: Path) -> Path:
    """A folder with our Makefile and a virtual environment whose Python is the stand-in."""
    return project_with(tmp_path, 2)


def planned(folder: Path, config: str, sets: str = "") -> tuple[int, list[bool]]:
    """Train-steps that make plans, and for each of its rollouts whether it looks back on earlier ones."""
    lines = dry(folder, "iterate", f"CONFIG={config}", f"SET={sets}")
    rollouts = [" --history training_logs/t " in line for line in lines if " rollout --config" in line]
    return sum(" train-step --config" in line for line in lines), rollouts


def configured(folder: Path, config: str, sets: str = "") -> dict[str, Any]:
    """What `dapo-stages config` says of the same."""
    done = run("config", "--config", folder / config, *shlex.split(sets))
    assert done.code == 0, done.stderr
    values: dict[str, Any] = yaml.safe_load(done.stdout)
    return values


@pytest.mark.parametrize(
    ("text", "sets", "steps"),
    [
        ("{extends: pipelines/base.yaml, planned_iterations: 3}", "", 3),
        ("{extends: pipelines/base.yaml,\n  planned_iterations: 3}", "", 3),
        ('"extends": "pipelines/base.yaml"', "", 5),
        ("extends: pipelines/middle.yaml  # and more\nseed: 7", "", 5),
        ("planned_iterations: 1_0", "", 10),
        ("extends: pipelines/base.yaml", "--set 'planned_iterations=4'", 4),
    ],
)
def test_make_plans_as_many_iterations_as_are_configured(project: Path, text: str, sets: str, steps: int) -> None:
    (project / "mine.yaml").write_text(text)
    (project / "pipelines/base.yaml").write_text("planned_iterations: 5\n")
    (project / "pipelines/middle.yaml").write_text("extends: base.yaml\n")
    assert planned(project, "mine.yaml", sets)[0] == steps
    assert configured(project, "mine.yaml", sets)["planned_iterations"] == steps


@pytest.mark.parametrize(
    ("text", "sets", "on"),
    [
        ("rollout: {curriculum: {}}", "", True),
        ("rollout:\n  curriculum:\n    target: 0.4", "", True),
        ("rollout:\n  curriculum: null", "", False),
        ("# curriculum: yes", "", False),
        ("seed: 7", "--set rollout.curriculum={}", True),
        ("seed: 7", "--set rollout.curriculum=null", False),
        ("rollout: {curriculum: {}}", "--set rollout.curriculum=null", False),
    ],
)
def test_rollouts_look_back_where_a_curriculum_is_configured(project: Path, text: str, sets: str, on: bool) -> None:
    (project / "mine.yaml").write_text(f"planned_iterations: 2\n{text}\n")
    assert planned(project, "mine.yaml", sets) == (2, [on, on])
    assert (configured(project, "mine.yaml", sets)["rollout"]["curriculum"] is not None) == on


def test_the_lag_may_stand_in_what_the_configuration_extends(project: Path) -> None:
    (project / "mine.yaml").write_text("extends: pipelines/embedded.yaml\n")
    (project / "pipelines/embedded.yaml").write_text("{planned_iterations: 2, lag: 1}\n")
    lines = [line for line in dry(project, "iterate", "CONFIG=mine.yaml") if " rollout --config" in line]
    assert [" --policy training_logs/t/policy " in line for line in lines] == [True, True]


def test_a_run_keeps_its_configuration_unless_another_is_named(project: Path) -> None:
    run_ = project / "training_logs/t"
    run_.mkdir(parents=True)
    (run_ / "config.yaml").write_text("planned_iterations: 3\n")
    steps = [sum(" train-step " in line for line in dry(project, "iterate", *more)) for more in ((), ("ITERS=1",))]
    assert steps == [3, 1]
    assert planned(project, "pipelines/embedded.yaml")[0] == 2


def files(folder: Path) -> dict[Path, int]:
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*")}


def test_a_dry_run_leaves_the_runs_folder_alone(project: Path) -> None:
    assert planned(project, "pipelines/embedded.yaml")[0] == 2
    assert not (project / "training_logs").exists()
    make(project, "iterate", "ITERS=1")
    before = files(project / "training_logs")
    assert planned(project, "training_logs/t/config.yaml", "--set planned_iterations=3")[0] == 2
    assert files(project / "training_logs") == before


def test_what_make_was_told_is_written_again_only_where_it_has_changed(project: Path) -> None:
    told = project / "build/make/study/x-1.mk"
    arguments = ("iterate", "RUN=study/x-1", "CONFIG=pipelines/embedded.yaml")
    make(project, *arguments)
    before = told.stat().st_mtime_ns
    make(project, *arguments, "ITERS=3", "EVAL_EVERY=2")
    assert told.stat().st_mtime_ns == before
    make(project, *arguments, "SET=--set planned_iterations=3")
    assert told.stat().st_mtime_ns != before


@pytest.mark.parametrize("known", [False, True])
def test_a_wrong_configuration_is_said_once_and_nothing_runs(project: Path, known: bool) -> None:
    if known:  # something that make could go on with
        dry(project, "iterate")
    (project / "wrong.yaml").write_text("sede: 7\n")
    done = attempt(project, "iterate", "CONFIG=wrong.yaml")
    message, advice, stop = done.stderr.splitlines()
    assert message == "wrong.yaml: sede is not a setting (did you mean seed?)"
    assert advice.startswith("Fix the file") and stop.startswith("make: ***") and stop.endswith(" Error 3")
    assert (done.returncode, done.stdout) == (2, "")
    assert not (project / "training_logs").exists()


@pytest.mark.parametrize("argument", ["ITERS=three", "ITER=-1", "EVAL_EVERY=0", "LAG=x"])
def test_what_is_no_number_is_refused(project: Path, argument: str) -> None:
    done = attempt(project, "iterate", argument)
    assert done.returncode == 2 and re.search("expected whole numbers|must be a valid integer", done.stderr)
    assert argument.partition("=")[2] in done.stderr
    assert not (project / "training_logs").exists()


def test_a_configuration_with_a_space_in_its_name(project: Path) -> None:
    (project / "my own.yaml").write_text("planned_iterations: 3\n")
    assert planned(project, "my own.yaml", "--set \"seed=7\"  --set 'train.lora={rank: 4}'")[0] == 3


# Without an environment

NEW_PYTHON = """#!/bin/sh
[ "$2" = venv ] || exit 0
mkdir -p $3/bin; cp stand-in $3/bin/python; echo environment >> calls
"""


@pytest.fixture()
def bare(tmp_path: Path) -> Path:
    """A fresh clone, with a Python that makes an environment of the stand-in."""
    project_with(tmp_path, 2)
    (tmp_path / ".venv/bin/python").rename(tmp_path / "stand-in")
    for path in (tmp_path / ".venv/ready", tmp_path / ".venv/bin", tmp_path / ".venv"):
        path.rmdir() if path.is_dir() else path.unlink()
    (tmp_path / "new-python").write_text(NEW_PYTHON)
    (tmp_path / "new-python").chmod(0o755)
    return tmp_path


def test_a_fresh_clone_gets_its_environment_before_make_asks(bare: Path) -> None:
    calls = make(bare, "iterate", "PYTHON=./new-python")
    assert calls[:2] == ["environment", "init-policy policy"]
    assert sum(call.startswith("train-step") for call in calls) == 2


def test_a_dry_run_of_a_fresh_clone_installs_nothing_and_says_what_it_lacks(bare: Path) -> None:
    done = attempt(bare, "-n", "iterate", "PYTHON=./new-python")
    assert done.returncode == 2
    problem = "make -n: pipelines/embedded.yaml cannot be read before .venv/ready is there"
    assert f"{problem}. Run make setup first." in done.stderr
    assert not (bare / ".venv").exists() and not (bare / "calls").exists()


def test_help_needs_no_environment_and_asks_nothing(bare: Path) -> None:
    done = attempt(bare, "help", "PYTHON=./new-python")
    assert done.returncode == 0 and "make iterate" in done.stdout
    assert "ITERS=planned_iterations " in done.stdout
    assert {path.name for path in bare.iterdir()}.isdisjoint({".venv", "build", "calls", "training_logs"})


def test_a_second_make_with_other_settings_leaves_the_first_ones_alone(project: Path) -> None:
    """The stages stand in; what is written as configuration is the real thing."""
    python = project / ".venv/bin/python"
    waits = f"""case "$*" in
  *" config "*" --out "*) exec "{sys.executable}" "$@" ;;
  *" rollout "*) touch started; while [ -e wait ]; do sleep 0.02; done ;;
esac
"""
    head, _, rest = python.read_text().partition("\n")
    python.write_text(f"{head}\n{waits}{rest}")
    (project / "wait").touch()
    words = ["make", "iterate", "RUN=t", "ITERS=1", "PRELOAD=0"]
    first = subprocess.Popen(words, cwd=project, env={"PATH": os.environ["PATH"]}, stdout=subprocess.DEVNULL)
    try:
        while not (project / "started").exists():
            assert first.poll() is None
            time.sleep(0.02)
        before = (project / "training_logs/t/config.yaml").read_bytes()
        second = attempt(project, "iterate", "ITERS=1", "PRELOAD=0", "SET=--set seed=7")
        assert second.returncode == 2 and "Error 4" in second.stderr
        assert f": in use with other settings (make (process {first.pid})). Wait for that to end, " in second.stderr
        assert (project / "training_logs/t/config.yaml").read_bytes() == before
    finally:
        (project / "wait").unlink()
        assert first.wait(timeout=60) == 0
    assert attempt(project, "report", "PRELOAD=0", "SET=--set seed=7").returncode == 0
    assert (project / "training_logs/t/config.yaml").read_text().startswith("seed: 7")
