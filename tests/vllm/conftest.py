"""Runs of the environment with vLLM (`make test-vllm`), each a process of its own Python; the rest of the pipeline stays here."""

from __future__ import annotations

import os
import socket
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import httpx
import pytest
from support.commands import ROOT
from support.pipeline import CONFIG, Run

PYTHON = ROOT / os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")
# 16 prompts × 4: 64 completions.
SIZES = ("rollout.prompts_per_iteration=16", "rollout.groups_per_shard=8", "rollout.dynamic_sampling=false")
Rollout = Callable[..., Path]


@pytest.fixture(scope="session")
def run(small_run: Run) -> Run:
    """The run whose policy and prompts are used, with the settings of these tests."""
    return replace(small_run, settings=(*small_run.settings, *SIZES))


@pytest.fixture(scope="session")
def rollout(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Rollout:
    """A rollout by vLLM in the process of its own environment; the folder it wrote."""

    def sample(**inputs: object) -> Path:
        out = tmp_path_factory.mktemp("vllm") / "rollout"
        flags = [flag for setting in (*run.settings, "rollout.engine=vllm") for flag in ("--set", setting)]
        given = {"policy": run.policy(0), "data": run.folder / "data", "iteration": 1, **inputs}
        options = [part for name, value in given.items() for part in (f"--{name}", value)]
        command = [PYTHON, "-m", "dapo_stages", "rollout", "--config", CONFIG, *flags, *options, "--out", out]
        done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=900)
        assert done.returncode == 0, done.stderr
        return out

    return sample


@pytest.fixture(scope="session")
def sampled(rollout: Rollout) -> Path:
    """64 completions of the small policy."""
    return rollout()


@contextmanager
def serving(policy: Path, log: Path) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """vLLM's server on a policy: its address and its process."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [
        PYTHON, "-m", "vllm.entrypoints.openai.api_server", "--model", policy, "--host", "127.0.0.1", "--port", port,
        "--dtype", "float32", "--enforce-eager", "--max-model-len", 600, "--logprobs-mode", "processed_logprobs",
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    with open(log, "wb") as output:
        process = subprocess.Popen([str(part) for part in command], stdout=output, stderr=output, env=environment)
    try:
        _wait_for(url, process, log)
        yield url, process
    finally:
        process.terminate()
        process.wait(60)


def _wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 500
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise TimeoutError(log.read_text())
