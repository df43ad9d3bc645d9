"""The walk-throughs of CONTRIBUTING.md: each change, applied to a copy of the code, does what it says."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from support.commands import ROOT
from support.pipeline import Run, table

from dapo_stages.config import load_config
from dapo_stages.handoff.manifests import read_manifest
from dapo_stages.rewards.isolated.plugins import Plugins

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
Code = Callable[..., subprocess.CompletedProcess[str]]


def section(title: str) -> str:
    return PAGE.split(f"\n### {title}\n")[1].split("\n### ")[0].split("\n## ")[0]


def block(title: str, language: str) -> str:
    [text] = re.findall(rf"```{language}\n(.*?)```", section(title), re.S)
    return str(text)


@pytest.fixture()
def copy(tmp_path: Path) -> Path:
    """A copy of the code, to change."""
    place = tmp_path / "code"
    for part in ("dapo_stages", "pipelines"):
        shutil.copytree(ROOT / part, place / part, ignore=shutil.ignore_patterns("__pycache__"))
    (place / "docs").mkdir()
    shutil.copy(ROOT / "docs/columns.py", place / "docs")
    return place


def change(copy: Path, title: str) -> None:
    command = ["git", "apply", "-"]
    done = subprocess.run(command, cwd=copy, input=block(title, "diff"), capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def python(copy: Path, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Python with the changed code."""
    command = [sys.executable, *(str(argument) for argument in arguments)]
    environment = {**os.environ, "PYTHONPATH": str(copy), "COLUMNS": "200"}
    done = subprocess.run(command, cwd=copy, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return done


def test_a_new_reward(tmp_path: Path) -> None:
    title = "A new reward"
    (tmp_path / "my_rewards.py").write_text(block(title, "python"))
    (tmp_path / "run.yaml").write_text(block(title, "yaml"))
    config = load_config(tmp_path / "run.yaml")
    assert config.weights.reward_weights.plugins == {"brevity": 0.2}
    texts = ["", "x" * 100, "x" * 400, "x" * 500]
    assert Plugins(config.rewards, tmp_path).score(texts, [0, 1, 2, 3], {"images": []})["brevity"] == [1, 0.75, 0, 0]


@pytest.mark.long
def test_another_bound_for_token_weights(copy: Path, small_run: Run, tmp_path: Path) -> None:
    change(copy, "Another bound for token weights")
    imported = "from dapo_stages.maths.token_weights import token_weights"
    call = f"{imported}; print(token_weights([8, 1, 1, 1, 1], (0.2, 4), max_share=0.4))"
    # Of five tokens one has at most 0.4 of the weight, 2 of 5; the others share what is left.
    assert python(copy, "-c", call).stdout == "(array([2.  , 0.75, 0.75, 0.75, 0.75]), True)\n"
    command = ["-m", "dapo_stages", "weight-tokens", *small_run.options(), *small_run.weights_inputs(1)]
    python(copy, *command, "--out", tmp_path / "as-before")
    small_run.command("weight-tokens", *small_run.weights_inputs(1), "--out", tmp_path / "before")
    hashes = [read_manifest(tmp_path / name).content_hash for name in ("before", "as-before")]
    assert hashes[0] == hashes[1]  # Later: a setting at its first default changes no output
    python(copy, *command, "--set", "weights.max_share=0.1", "--out", tmp_path / "bound")
    for weights in table(tmp_path / "bound", "weights").token_weights:
        assert max(weights) <= max(1.0, 0.1 * len(weights)) + 1e-6


@pytest.mark.long
def test_another_column_in_the_attention_files(copy: Path, small_run: Run, tmp_path: Path) -> None:
    change(copy, "Another column in the attention files")
    before = table(small_run.at(1) / "attention", "attention")
    assert "lowest_vgr" not in before
    inputs = ["--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout"]
    python(copy, "-m", "dapo_stages", "score-attention", *small_run.options(), *inputs, "--out", tmp_path / "attention")
    files = sorted((tmp_path / "attention").glob("attention-*.parquet"))
    rows = pd.concat([pd.read_parquet(file) for file in files], ignore_index=True)
    assert (rows.status == "ok").any()
    for row in rows.itertuples():
        if row.status == "ok":
            assert row.lowest_vgr == pytest.approx(float(np.nanmin(row.vgr)), rel=1e-6)
        else:
            assert np.isnan(row.lowest_vgr)
    # Files without the column are read as before.
    python(
        copy,
        "-m",
        "dapo_stages",
        "weight-tokens",
        *small_run.options(),
        *small_run.weights_inputs(1),
        "--out",
        tmp_path / "w",
    )


@pytest.mark.long
def test_a_new_stage(copy: Path, small_run: Run, tmp_path: Path) -> None:
    """make, status, doctor, Slurm's jobs and --help know it, by one line in the table, a module and a schema."""
    change(copy, "A new stage")
    (copy / "dapo_stages" / "stages" / "measure_lengths.py").write_text(block("A new stage", "python"))
    python(copy, "-m", "dapo_stages", "new", tmp_path / "x")
    run = tmp_path / "x/training_logs/t"
    shutil.copytree(small_run.folder, run, symlinks=True)
    environment = {**os.environ, "PYTHONPATH": str(copy)}

    def make(*arguments: str) -> str:
        command = ["make", "RUN=t", "PRELOAD=0", *arguments]
        done = subprocess.run(command, cwd=tmp_path / "x", env=environment, capture_output=True, text=True, timeout=300)
        assert done.returncode == 0, done.stderr
        return done.stdout

    make("measure-lengths", "ITER=1")
    rollouts = table(run / "iter-0001/rollout", "completions")
    lengths = rollouts.completion_ids.map(len).groupby(rollouts.group_id)
    measured = pd.concat(pd.read_parquet(file) for file in sorted((run / "iter-0001/lengths").glob("*.parquet")))
    measured = measured.set_index("group_id")
    assert len(measured) == rollouts.group_id.nunique() > 1
    assert measured.mean_tokens.to_dict() == pytest.approx(lengths.mean().to_dict())
    assert measured.longest.to_dict() == lengths.max().to_dict()

    planned = re.findall(r" (measure-lengths|rollout|score-attention|weight-tokens|train-step) ", make("-n", "iterate"))
    assert planned == ["measure-lengths"]  # of the second iteration
    status = python(copy, "-m", "dapo_stages", "status", "--run", run).stdout
    assert "lengths" in status
    assert "measure-lengths" in python(copy, "-m", "dapo_stages", "--help").stdout
    config = ["-m", "dapo_stages", "config", "--config", run / "config.yaml", "--jobs", 1, 1]
    jobs = [line.split() for line in python(copy, *config).stdout.splitlines()]
    assert ["score", "1", "score-attention,measure-lengths,weight-tokens", "rollout/1"] in jobs
    damaged = min((run / "iter-0001/lengths").glob("*.parquet"))
    damaged.write_bytes(damaged.read_bytes()[:-1])
    doctor = subprocess.run(
        [sys.executable, "-m", "dapo_stages", "doctor", "--run", str(run)],
        cwd=copy,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert doctor.returncode == 3 and "iter-0001/lengths" in doctor.stdout
    assert "dapo-stages measure-lengths --config" in doctor.stdout


def test_every_walk_through_is_tried() -> None:
    titles = re.findall(r"^### (.*)$", PAGE, re.M)
    tests = {name.removeprefix("test_").replace("_", " ") for name in globals() if name.startswith("test_")}
    assert len(titles) >= 4 and {title.lower() for title in titles} <= tests
