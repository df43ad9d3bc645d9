"""new: a folder to train in without a clone."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from support.commands import run

from dapo_stages.config.packaged import packaged_config, pipelines
from dapo_stages.errors import ConfigError


def make(folder: Path, *arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    variables = {"PATH": os.environ["PATH"], **environment}
    return subprocess.run(["make", *arguments], cwd=folder, env=variables, capture_output=True, text=True, timeout=120)


@pytest.mark.long
def test_make_in_the_new_folder_plans_the_whole_pipeline_with_this_python(tmp_path: Path) -> None:
    folder = tmp_path / "my folder"
    done = run("new", folder)
    assert done.code == 0 and done.stdout == ""
    assert done.stderr == f"new: wrote {folder}. Next: cd {folder} && make iterate CONFIG=dapo:smoke\n"
    assert sorted(path.name for path in folder.iterdir()) == ["Makefile", "README.md", "run.yaml"]
    planned = make(folder, "-n", "iterate", "CONFIG=dapo:smoke", "ITERS=1")
    assert planned.returncode == 0, planned.stderr
    lines = [line.split() for line in planned.stdout.splitlines() if " --out " in line or " report " in line]
    assert {line[0] for line in lines} == {sys.executable}
    commands = [line[3] for line in lines]
    before, iteration = ["config", "init-policy", "prepare-data", "evaluate", "report"], ["rollout", "score-attention"]
    assert commands == [*before, *iteration, "weight-tokens", "train-step", "evaluate", "report", "report"]
    assert not (folder / "training_logs").exists()
    help_ = make(folder, "help")
    assert "CONFIG=run.yaml" in help_.stdout and "make iterate " in help_.stdout and "make lint" not in help_.stdout


@pytest.mark.long
def test_its_configuration_is_valid_and_several_processes_find_their_files(tmp_path: Path) -> None:
    run("new", tmp_path / "x")
    planned = make(tmp_path / "x", "-n", "iterate", "ITERS=1", "LAUNCH=2")
    [train] = [line for line in planned.stdout.splitlines() if " train-step " in line]
    assert f"--config_file {pipelines()}/accelerate/processes.yaml --num_processes 2 " in " ".join(train.split())
    jobs = make(tmp_path / "x", "slurm", "ITERS=1", "DRY_RUN=1")
    assert jobs.returncode == 0, jobs.stderr
    assert f"{pipelines()}/slurm/stage.sh train 1" in jobs.stdout and f"node.sh {sys.executable}'" in jobs.stdout


@pytest.mark.long
def test_a_python_without_the_package_is_named(tmp_path: Path) -> None:
    run("new", tmp_path / "x")
    (tmp_path / "python").write_text("#!/bin/sh\nexit 1\n")
    (tmp_path / "python").chmod(0o755)
    done = make(tmp_path / "x", "iterate", f"PY={tmp_path}/python")
    assert (
        done.returncode == 2 and f"{tmp_path}/python has no dapo-stages. Install it there, or correct PY" in done.stderr
    )


def test_a_folder_with_files_is_left_alone(tmp_path: Path) -> None:
    (tmp_path / "notes.txt").touch()
    done = run("new", tmp_path)
    assert done.code == 3
    problem = "expected a new or an empty folder, got one with files in it"
    assert done.stderr == f"{tmp_path}: {problem}. Name another one.\n"
    assert [path.name for path in tmp_path.iterdir()] == ["notes.txt"]
    done = run("new", tmp_path / "notes.txt")
    assert (done.code, done.stderr) == (3, f"{tmp_path}/notes.txt: expected a folder, got a file. Name another one.\n")


def test_a_python_that_make_cannot_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/home/me/my venv/bin/python")
    done = run("new", tmp_path / "x")
    assert done.code == 3 and done.stderr.startswith("/home/me/my venv/bin/python: make cannot use a path with")
    assert not (tmp_path / "x").exists()


def test_packaged_configurations_are_named_like_files(tmp_path: Path) -> None:
    assert packaged_config("dapo:smoke") == pipelines() / "smoke.yaml"
    assert packaged_config("smoke.yaml") is None
    with pytest.raises(
        ConfigError, match=r"^dapo:smok: no such configuration. Use one of dapo:embedded, .*dapo:smoke\.$"
    ):
        packaged_config("dapo:smok")
    (tmp_path / "mine.yaml").write_text("extends: dapo:reference-7b\nseed: 7\n")
    shown = run("config", "--config", tmp_path / "mine.yaml")
    named = run("config", "--config", "dapo:reference-7b")
    assert shown.code == 0, shown.stderr
    different = set(shown.stdout.splitlines()) ^ set(named.stdout.splitlines())
    assert {line.partition(":")[0] for line in different} == {"seed"}
