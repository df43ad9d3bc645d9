"""Runs in the environment with vLLM (`make test-vllm`), as processes of its Python; all other stages run here."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest
from support.pipeline import Run
from support.vllm import Rollout, there

# 16 prompts × 4: 64 completions.
SIZES = ("rollout.prompts_per_iteration=16", "rollout.groups_per_shard=8", "rollout.dynamic_sampling=false")


@pytest.fixture(scope="session")
def run(small_run: Run) -> Run:
    """The run whose policy and prompts are used, with the settings of these tests."""
    return replace(small_run, settings=(*small_run.settings, *SIZES))


@pytest.fixture(scope="session")
def rollout(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """A rollout by vLLM in its own environment, or by a program there; returns the folder written."""

    def sample(*settings: str, program: tuple[str, str] = ("-m", "dapo_stages"), **inputs: object) -> Path:
        out = tmp_path_factory.mktemp("vllm") / "rollout"
        given = {"policy": run.policy(0), "data": run.folder / "data", "iteration": 1, "out": out, **inputs}
        there("rollout", (*run.settings, "rollout.engine=vllm", *settings), given, program)
        return out

    return sample


@pytest.fixture(scope="session")
def evaluated(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An evaluation by vLLM."""
    out = tmp_path_factory.mktemp("vllm") / "eval"
    given: dict[str, object] = {"policy": run.policy(0), "data": run.folder / "data", "out": out}
    there("evaluate", (*run.settings, "evaluate.engine=vllm"), given)
    return out


@pytest.fixture(scope="session")
def sampled(rollout: Rollout) -> Path:
    """64 completions of the small policy."""
    return rollout()
