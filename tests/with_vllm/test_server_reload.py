"""rollout with vLLM's own server, which reloads one policy after another without a restart; and what may go wrong."""

from __future__ import annotations

import json
import os
import re
import shutil
import stat
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import httpx
import pytest
from safetensors.torch import load_file
from support.commands import ROOT, Result
from support.pipeline import Run
from support.processes import free_port
from support.vllm import by_prompt, kill, serving, start, wait_for

from dapo_stages.engines import server_reload
from dapo_stages.handoff.manifests import Source

SMALL = {"rollout__prompts_per_iteration": 8, "rollout__groups_per_shard": 4}
SERVER = {"rollout__engine": "server", "engines__server__reload": "vllm", "engines__server__retries": 1, **SMALL}
WORKER = ("--worker-cls", "dapo_stages.engines.vllm_cpu_worker.ReloadingWorker")
TEMPERATURE = 1.2


def attempt(run: Run, url: str, out: Path, number: int, **settings: Any) -> Result:
    """The rollout of an iteration, by the policy of the one before."""
    settings = {**SERVER, "engines__server__url": url, "engines__server__backoff": 0.1, **settings}
    return run.attempt("rollout", *run.rollout_inputs(number), "--out", out, **settings)


def right(run: Run, out: Path, number: int) -> None:
    """Every logprob is the trainer's."""
    found = by_prompt(out, run.policy(number - 1), TEMPERATURE)
    assert max(float(values.max()) for _, values in found) < 1e-3


def version(url: str) -> str:
    found: str = httpx.get(f"{url}/weight_info").json()["weight_version"]
    return found


@pytest.fixture(scope="module")
def server(run: Run, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """One that began with the starting policy; the tests that share it leave it running."""
    with serving(run.policy(0), tmp_path_factory.mktemp("server") / "log", *WORKER, reloads=True) as (url, _):
        yield url


def test_three_policies_on_one_server(run: Run, server: str, tmp_path: Path) -> None:
    for number in (1, 2, 3):
        began = time.monotonic()
        result = attempt(run, server, tmp_path / str(number), number)
        assert result.code == 0, result.stderr
        [line] = [line for line in result.stderr.splitlines() if "serves this policy now" in line]
        print(f"{line} ({time.monotonic() - began:.1f} s)")
        mean, largest = (float(value) for value in re.findall(r"(\S+) (?:on average|at most)", line))
        assert mean < 1e-3 and largest < 1e-3
        assert version(server) == Source(run.policy(number - 1)).manifest.content_hash
        right(run, tmp_path / str(number), number)


@pytest.mark.parametrize(("damage", "number"), [("missing", 2), ("cut", 3)])
def test_a_reload_that_fails_is_refused_and_the_next_one_proven(
    run: Run, server: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, damage: str, number: int
) -> None:
    """The server finds other files than we have verified, as on another machine."""
    seen, out, policy = tmp_path / "seen", tmp_path / "r", run.policy(number - 1)
    if damage == "cut":
        shutil.copytree(policy, seen)
        os.truncate(seen / "model.safetensors", (seen / "model.safetensors").stat().st_size // 2)
    with monkeypatch.context() as patched:
        patched.setattr(server_reload, "merged_checkpoint", lambda policy, settings: nullcontext(seen))
        for _ in range(2):
            result = attempt(run, server, out, number)
            assert result.code == 3
            assert f"it could not be given policy {policy} (" in result.stderr and "status 500" in result.stderr
            assert "Restart it (VLLM_SERVER_DEV_MODE=1 python -m vllm" in result.stderr
            assert not list(out.glob("*.parquet")) and version(server).startswith("unproven ")
    result = attempt(run, server, out, number)
    assert result.code == 0, result.stderr
    right(run, out, number)


def test_vllm_on_a_cpu_leaves_a_tied_head_behind(run: Run, tmp_path: Path) -> None:
    """Why there is vllm_cpu_worker.py, which can go when this fails."""
    heads = [load_file(run.policy(number) / "model.safetensors") for number in (0, 2)]
    name = next(name for name in heads[0] if name.endswith("embed_tokens.weight"))
    assert (heads[0][name] - heads[1][name]).abs().max() > 1e-3 and not any("lm_head" in one for one in heads[0])
    out = tmp_path / "r"
    with serving(run.policy(0), tmp_path / "log", reloads=True) as (url, _):
        result = attempt(run, url, out, 3)
        assert version(url).startswith("unproven ")
    assert result.code == 3
    assert "after reloading, its logprobs differ from those of policy" in result.stderr
    assert not list(out.glob("*.parquet"))


RESTART = """
import sys
from pathlib import Path
sys.path.insert(0, "tests")
from support.vllm import start, wait_for
folder, port, policy = Path(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3])
server = start(policy, port, folder / "second.log", reloads=True)
(folder / "second.pid").write_text(str(server.pid))
wait_for(f"http://127.0.0.1:{port}", server, folder / "second.log")
"""


@pytest.mark.parametrize("restarts", [False, True])
def test_a_server_that_is_killed_while_it_reloads(
    run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, restarts: bool
) -> None:
    """It waits for a pipe that nobody writes into, in place of the weights, and is killed there."""
    seen, out, port = tmp_path / "seen", tmp_path / "r", free_port()
    url, pipe = f"http://127.0.0.1:{port}", seen / "model.safetensors"
    shutil.copytree(run.policy(1), seen)
    pipe.unlink()
    os.mkfifo(pipe)
    process = start(run.policy(0), port, tmp_path / "log", *WORKER, reloads=True)
    real = vars(server_reload)["merged_checkpoint"]
    settings: dict[str, Any] = {}
    if restarts:
        (tmp_path / "restart.py").write_text(RESTART)
        words = [sys.executable, tmp_path / "restart.py", tmp_path, port, "{policy}"]
        settings["engines__server__restart"] = json.dumps([str(word) for word in words])

    def once(policy: Any, of_policy: Any) -> Any:
        monkeypatch.setattr(server_reload, "merged_checkpoint", real)
        return nullcontext(seen)

    def kill_when_it_reads() -> None:
        while True:
            try:
                os.close(os.open(pipe, os.O_WRONLY | os.O_NONBLOCK))
                return kill(process)
            except OSError:  # nobody has opened it to read
                time.sleep(0.01)

    try:
        wait_for(url, process, tmp_path / "log")
        assert stat.S_ISFIFO(pipe.stat().st_mode)
        monkeypatch.setattr(server_reload, "merged_checkpoint", once)
        killing = threading.Thread(target=kill_when_it_reads, daemon=True)
        killing.start()
        monkeypatch.chdir(ROOT)
        result = attempt(run, url, out, 2, **settings)
        killing.join(60)
        assert process.poll() is not None, result.stderr
        assert f"it could not be given policy {run.policy(1)} (" in result.stderr
        if restarts:
            assert result.code == 0, result.stderr
            assert "restarting it" in result.stderr and "serves this policy now" in result.stderr
            right(run, out, 2)
        else:
            assert result.code == 3 and not list(out.glob("*.parquet"))
    finally:
        kill(process)
        if (tmp_path / "second.pid").exists():
            os.killpg(int((tmp_path / "second.pid").read_text()), 9)
