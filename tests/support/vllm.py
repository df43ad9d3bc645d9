"""Stages around a rollout by vLLM, and vLLM's own server."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

import httpx
import numpy as np
import pandas as pd
import torch

from dapo_stages.config import ModelConfig
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Group
from support.commands import ROOT
from support.pipeline import CONFIG, Run, metrics, table
from support.processes import free_port

PYTHON = ROOT / os.environ.get("VLLM_PYTHON", ".venv-vllm/bin/python")
Rollout = Callable[..., Path]
DEVELOPERS = "VLLM_SERVER_DEV_MODE=1"


def there(
    stage: str, settings: Sequence[str], options: dict[str, object], program: tuple[str, str] = ("-m", "dapo_stages")
) -> None:
    """Run a stage in the environment with vLLM."""
    flags = [flag for one in settings for flag in ("--set", one)]
    named = [part for name, value in options.items() for part in (f"--{name}", value)]
    command = [PYTHON, *program, stage, "--config", CONFIG, *flags, *named]
    done = subprocess.run([str(part) for part in command], cwd=ROOT, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr


def train(run: Run, rollouts: Path, folder: Path, policy: Path, **settings: object) -> pd.DataFrame:
    """The metrics of a train-step on a rollout, after the stages between them."""
    attention, weights = folder / "attention", folder / "weights"
    run.command("score-attention", "--policy", policy, "--rollouts", rollouts, "--out", attention)
    iteration = Source(rollouts).manifest.config["iteration"]
    inputs = ["--rollouts", rollouts, "--attention", attention, "--iteration", iteration]
    run.command("weight-tokens", *inputs, "--out", weights, weights__replay__size=0)
    inputs = ["--policy", policy, "--rollouts", rollouts, "--weights", weights]
    run.command("train-step", *inputs, "--out", folder / "train", **settings)
    return metrics(folder / "train")


def differences(rollouts: Path, policy: Path, temperature: float) -> dict[int, torch.Tensor]:
    """|Δ logprob| of engine and trainer over all tokens of a prompt, by the row of its source."""
    found = by_prompt(rollouts, policy, temperature)
    return {int(re.findall(r"these (\d+)", row["problem"])[0]): values for row, values in found}


def by_prompt(rollouts: Path, policy: Path, temperature: float) -> Iterator[tuple[Row, torch.Tensor]]:
    """Each prompt, and |Δ logprob| of engine and trainer over all tokens of its completions."""
    trainer = load_policy(policy, ModelConfig(name="embedded", dtype="float32", device="cpu"))
    trainer.attend("grouped")
    forward = GroupLogprobs(trainer, temperature)
    completions = table(rollouts, "completions").groupby("group_id")
    for row in Source(rollouts).rows("prompts"):
        members = completions.get_group(row["group_id"])
        group = Group(prompt_of(row, trainer.processor), [list(ids) for ids in members.completion_ids])
        with torch.no_grad():
            own, _ = forward(trainer.batch([group]))
        yield row, (own - torch.tensor(np.concatenate(members.sampling_logprobs.to_list()))).abs()


@contextmanager
def serving(
    policy: Path, log: Path, *options: object, reloads: bool = False
) -> Iterator[tuple[str, subprocess.Popen[bytes]]]:
    """vLLM's server on a policy: its address and its process."""
    port = free_port()
    process = start(policy, port, log, *options, reloads=reloads)
    url = f"http://127.0.0.1:{port}"
    try:
        wait_for(url, process, log)
        yield url, process
    finally:
        kill(process)


def start(policy: Path, port: int, log: Path, *options: object, reloads: bool = False) -> subprocess.Popen[bytes]:
    """vLLM's server in processes of its own; with `reloads`, one that takes other policies, too."""
    command = [
        *documented(policy, DEVELOPERS if reloads else ""), "--host", "127.0.0.1", "--port", port, "--dtype", "float32",
        "--enforce-eager", "--max-model-len", 600, "--no-enable-chunked-prefill", *options,
    ]  # fmt: skip
    environment = {**os.environ, "VLLM_CPU_KVCACHE_SPACE": "1", "VLLM_NO_USAGE_STATS": "1"}
    name, _, value = DEVELOPERS.partition("=")
    environment |= {name: value} if reloads else {}
    with open(log, "ab") as output:
        return subprocess.Popen(
            [str(part) for part in command], stdout=output, stderr=output, env=environment, start_new_session=True
        )


def documented(policy: Path, environment: str) -> list[object]:
    """The command by which docs/engines.md starts a server, in the environment of these tests."""
    begins = f"{environment} .venv-vllm/".lstrip()
    [line] = [line for line in (ROOT / "docs/engines.md").read_text().splitlines() if line.startswith(begins)]
    program, *words = line.removeprefix(f"{environment} ").removesuffix("&").split()
    return [PYTHON.parent / Path(program).name, *(policy if "training_logs" in word else word for word in words)]


def kill(process: subprocess.Popen[bytes]) -> None:
    """End a server at once, and the processes it started."""
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait(60)


def wait_for(url: str, process: subprocess.Popen[bytes], log: Path) -> None:
    until = time.monotonic() + 500
    while time.monotonic() < until:
        assert process.poll() is None, log.read_text()
        try:
            if httpx.get(f"{url}/v1/models", timeout=5).is_success:
                return
        except httpx.TransportError:
            time.sleep(1)
    raise TimeoutError(log.read_text())
