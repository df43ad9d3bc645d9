"""Runs of the environment with vLLM (`make test-vllm`), processes of its own Python; all other stages run here."""

from __future__ import annotations

import subprocess
from dataclasses import replace
from pathlib import Path

import pytest
from support.commands import ROOT
from support.pipeline import CONFIG, Run
from support.vllm import PYTHON, Rollout

# 16 prompts × 4: 64 completions.
SIZES = ("rollout.prompts_per_iteration=16", "rollout.groups_per_shard=8", "rollout.dynamic_sampling=false")


@pytest.fixture(scope="session")
def run(small_run: Run) -> Run:
    """The run whose policy and prompts are used, with the settings of these tests."""
    return replace(small_run, settings=(*small_run.settings, *SIZES))


@pytest.fixture(scope="session")
def rollout(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """A rollout by vLLM in the process of its own environment, or by a program there; the folder it wrote."""

    def sample(*settings: str, program: tuple[str, str] = ("-m", "dapo_stages"), **inputs: object) -> Path:
        out = tmp_path_factory.mktemp("vllm") / "rollout"
        flags = [flag for one in (*run.settings, "rollout.engine=vllm", *settings) for flag in ("--set", one)]
        given = {"policy": run.policy(0), "data": run.folder / "data", "iteration": 1, **inputs}
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        command = [PYTHON, *program, "rollout", "--config", CONFIG, *flags, *options, "--out", out]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return out

    return sample


@pytest.fixture(scope="session")
def sampled(rollout: Rollout) -> Path:
    """64 completions of the small policy."""
    return rollout()
