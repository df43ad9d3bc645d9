"""vLLM in a process that stays (docs/resident.md): one policy after another, without loading it anew."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

from support.commands import ROOT
from support.pipeline import CONFIG, Run
from support.vllm import PYTHON, Rollout

from dapo_stages.handoff.manifests import Source

# Rollouts one after another in a process that keeps vLLM, whose worker is the one that is named.
PROGRAM = """
import sys
from dapo_stages.engines import vllm_engine
from dapo_stages.entrypoints.cli import main
from dapo_stages.handoff import kept
kept.begin()
worker, *commands = sys.argv[1:]
vllm_engine._RELOADS = worker
for command in commands:
    sys.argv = ["dapo-stages", *command.split("\\n")]
    try:
        main()
    except SystemExit as stop:
        assert not stop.code, stop.code
    kept.present("engine").rest()
"""
RELOADING, PLAIN = "dapo_stages.engines.vllm_cpu_worker.ReloadingWorker", "vllm.v1.worker.cpu_worker.CPUWorker"


def sample(run: Run, folder: Path, worker: str, policies: list[int]) -> str:
    """Rollouts by these policies in one process; what it printed."""
    flags = [flag for one in (*run.settings, "rollout.engine=vllm") for flag in ("--set", one)]
    commands = []
    for number in policies:
        given = ["--policy", run.policy(number), "--data", run.folder / "data", "--iteration", number + 1]
        command = ["rollout", "--config", CONFIG, *flags, *given, "--out", folder / str(number)]
        commands.append("\n".join(str(part) for part in command))
    done = subprocess.run(
        [str(PYTHON), "-c", PROGRAM, worker, *commands],
        cwd=ROOT, env=dict(os.environ), capture_output=True, text=True, timeout=900,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stderr


def test_three_policies_without_loading_anew(run: Run, rollout: Rollout, tmp_path: Path) -> None:
    said = sample(run, tmp_path, RELOADING, [0, 1, 2])
    proven = re.findall(r"serves this policy now; its logprobs differ by (\S+) on average and (\S+) at most", said)
    print(proven)
    assert len(proven) == 2 and all(float(figure) < 1e-3 for figures in proven for figure in figures)
    assert "loading it anew" not in said
    fresh = rollout(policy=run.policy(2), iteration=3)
    assert Source(tmp_path / "2").manifest.content_hash == Source(fresh).manifest.content_hash


def test_a_head_that_is_left_behind_is_noticed(run: Run, rollout: Rollout, tmp_path: Path) -> None:
    """vLLM's own worker on CPUs leaves a tied head behind (test_server_reload.py)."""
    said = sample(run, tmp_path, PLAIN, [0, 2])
    assert "after reloading, its logprobs differ from those of policy" in said and "; loading it anew" in said
    fresh = rollout(policy=run.policy(2), iteration=3)
    assert Source(tmp_path / "2").manifest.content_hash == Source(fresh).manifest.content_hash


def test_the_worker_of_its_environment_keeps_it(run: Run, rollout: Rollout, tmp_path: Path) -> None:
    """The command line that make uses with RESIDENT=1; the worker stays although vLLM changes sys.path."""
    program = ("-m", "dapo_stages.entrypoints.resident")
    environment = {**os.environ, "DAPO_STAGES_RESIDENT_IDLE": "20"}
    flags = [flag for one in (*run.settings, "rollout.engine=vllm") for flag in ("--set", one)]
    said = []
    for number in (0, 1):
        given = ["--policy", run.policy(number), "--data", run.folder / "data", "--iteration", number + 1]
        command = [PYTHON, *program, "rollout", "--config", CONFIG, *flags, *given, "--out", tmp_path / str(number)]
        done = subprocess.run(
            [str(part) for part in command], cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900
        )
        assert done.returncode == 0, done.stderr
        said.append(done.stderr)
    assert "serves this policy now" not in said[0] and "serves this policy now" in said[1]
