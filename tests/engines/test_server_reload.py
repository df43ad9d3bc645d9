"""rollout and evaluate with a server that reloads: a stand-in that speaks vLLM's and SGLang's requests.

tests/with_vllm/test_server_reload.py does the same with vLLM itself. SGLang itself was not tried.
"""

from __future__ import annotations

import stat
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from support.commands import Result
from support.pipeline import Run
from support.reloading import ReloadingServer
from support.server import Fault, fails, gone

from dapo_stages import ranks
from dapo_stages.config import load_config
from dapo_stages.engines.canary import few
from dapo_stages.handoff.manifests import Source

QUICK = {
    "rollout__engine": "server",
    "engines__server__backoff": 0,
    "engines__server__retries": 1,
    "rollout__dynamic_sampling": "false",
    "rollout__prompts_per_iteration": 4,
    "rollout__groups_per_shard": 2,
}
KINDS = ("vllm", "sglang")


def attempt(run: Run, server: ReloadingServer, out: Path, number: int = 1, **settings: Any) -> Result:
    """The rollout of an iteration."""
    settings = {**QUICK, "engines__server__url": server.url, "engines__server__reload": server.kind, **settings}
    return run.attempt("rollout", *run.rollout_inputs(number), "--out", out, **settings)


def content(folder: Path) -> str:
    return Source(folder).manifest.content_hash


@pytest.fixture(scope="module")
def cold(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> str:
    """The content of the second rollout by a server that was started on its policy."""
    out = tmp_path_factory.mktemp("cold") / "rollout"
    with ReloadingServer(small_run.policy(1)) as server:
        assert attempt(small_run, server, out, 2, engines__server__reload="none").code == 0
        assert not server.orders
    return content(out)


@pytest.mark.parametrize("kind", KINDS)
def test_one_server_for_three_policies(kind: Any, small_run: Run, cold: str, tmp_path: Path) -> None:
    policies = [small_run.policy(number) for number in range(3)]
    assert len({content(policy) for policy in policies}) == 3
    with ReloadingServer(policies[0], kind=kind) as server:
        for number, policy in enumerate(policies, 1):
            result = attempt(small_run, server, tmp_path / f"r{number}", number)
            assert result.code == 0, result.stderr
            assert "serves this policy now; its logprobs differ by " in result.stderr
            assert server.version == content(policy)
        assert server.loaded == policies
        before = len(server.orders)
        again = attempt(small_run, server, tmp_path / "again", 3)
        evaluated = small_run.attempt(
            "evaluate", "--policy", policies[2], "--data", small_run.folder / "data", "--out", tmp_path / "eval",
            evaluate__engine="server", engines__server__url=server.url, engines__server__reload=kind,
        )  # fmt: skip
        assert again.code == evaluated.code == 0, evaluated.stderr
        assert len(server.orders) == before  # it was proven to serve this policy
    assert content(tmp_path / "r2") == cold
    assert content(tmp_path / "again") == content(tmp_path / "r3")


def test_what_vllm_is_asked_in_which_order(small_run: Run, tmp_path: Path) -> None:
    with ReloadingServer(small_run.policy(0)) as server:
        assert attempt(small_run, server, tmp_path / "r", 2).code == 0
    version = content(small_run.policy(1))
    marks = [{"new_version": text, "abort_all_requests": False} for text in (f"unproven {version}", version)]
    folder = {"method": "reload_weights", "kwargs": {"weights_path": str(small_run.policy(1))}}
    assert server.orders == [
        ("/update_weight_version", marks[0]),
        ("/pause?mode=wait", {}),
        ("/collective_rpc", folder),
        ("/reset_prefix_cache?reset_external=true", {}),
        ("/reset_encoder_cache", {}),
        ("/reset_mm_cache", {}),
        ("/resume", {}),
        ("/update_weight_version", marks[1]),
    ]


def test_what_sglang_is_asked_in_which_order(small_run: Run, tmp_path: Path) -> None:
    with ReloadingServer(small_run.policy(0), kind="sglang") as server:
        assert attempt(small_run, server, tmp_path / "r", 2).code == 0
    version = content(small_run.policy(1))
    policy = {"model_path": str(small_run.policy(1)), "weight_version": f"unproven {version}", "flush_cache": True}
    assert [order for order in server.orders if order[0] != "/update_weight_version"] == [
        ("/update_weights_from_disk", policy)
    ]
    assert server.version == version


def refused_whole(result: Result, server: ReloadingServer, out: Path, policy: Path) -> None:
    """Exit code 3 with how to restart the server, nothing written, nothing said to be proven."""
    assert result.code == 3
    assert "Restart it (VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server " in result.stderr
    assert f"--model {policy}) and run the same command again: " in result.stderr
    assert not list(out.glob("*.parquet"))
    assert server.version != content(policy)


def test_a_stale_head_is_noticed(small_run: Run, tmp_path: Path) -> None:
    """As vLLM's on CPUs: the embeddings are new, the head tied to them is not."""
    out, policy = tmp_path / "r", small_run.policy(2)
    with ReloadingServer(small_run.policy(0), stale_head=True) as server:
        result = attempt(small_run, server, out, 3)
        refused_whole(result, server, out, policy)
        assert f"after reloading, its logprobs differ from those of policy {policy} by " in result.stderr
        assert "expected at most 0.001 on average" in result.stderr
        assert [request["n"] for request in server.requests] == [2, 2]  # the canary's; a shard has two prompts
        second = attempt(small_run, server, out, 3)  # nothing has changed, so neither does the answer
        refused_whole(second, server, out, policy)
        assert server.loaded == [policy, policy]
        server.stale_head = False
        assert attempt(small_run, server, out, 3).code == 0


def test_logprobs_that_ignore_the_temperature_are_noticed(small_run: Run, tmp_path: Path) -> None:
    with ReloadingServer(small_run.policy(0), cold=1 / 1.2) as server:  # it is 1.2
        refused_whole(attempt(small_run, server, tmp_path / "r"), server, tmp_path / "r", small_run.policy(0))
        assert attempt(small_run, server, tmp_path / "r", engines__server__canary=10).code == 0


def says_no(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Status 200 with success: false."""


@pytest.mark.parametrize(
    ("path", "fault", "said"),
    [
        ("/pause", fails(500), "status 500"),
        ("/collective_rpc", fails(500), "status 500 ({"),
        ("/collective_rpc", gone, "RemoteProtocolError"),
        ("/reset_prefix_cache", says_no, "it refused /reset_prefix_cache"),
        ("/reset_mm_cache", fails(404), "status 404"),
        ("/resume", gone, "RemoteProtocolError"),
    ],
)
def test_a_reload_that_fails_samples_nothing(
    small_run: Run, cold: str, tmp_path: Path, path: str, fault: Fault, said: str
) -> None:
    """vLLM answers 500 to a folder that is missing and to a file that is cut; what it holds then, nobody knows."""
    out, policy = tmp_path / "r", small_run.policy(1)
    with ReloadingServer(small_run.policy(0), refused={path: fault}) as server:
        result = attempt(small_run, server, out, 2)
        refused_whole(result, server, out, policy)
        assert f"it could not be given policy {policy} (" in result.stderr and said in result.stderr
        assert "retrying" not in result.stderr  # an order is given once
        assert not server.requests
        assert server.version == f"unproven {content(policy)}"
        server.start(small_run.policy(0))
        result = attempt(small_run, server, out, 2)
        assert result.code == 0, result.stderr
    assert content(out) == cold


def test_sglang_that_fails_to_load(small_run: Run, tmp_path: Path) -> None:
    refusal = {"/update_weights_from_disk": fails(400)}
    with ReloadingServer(small_run.policy(0), kind="sglang", refused=refusal) as server:
        result = attempt(small_run, server, tmp_path / "r", 2)
    assert result.code == 3 and "request refused with status 400" in result.stderr
    assert (
        f"Restart it (SGLANG_VLM_CACHE_SIZE_MB=0 python -m sglang.launch_server --model-path {small_run.policy(1)})"
        in result.stderr
    )
    assert not server.requests


def test_who_was_killed_before_the_canary_begins_anew(small_run: Run, tmp_path: Path) -> None:
    with ReloadingServer(small_run.policy(0)) as server:
        server.version, server.paused = f"unproven {content(small_run.policy(0))}", True
        assert attempt(small_run, server, tmp_path / "r").code == 0
        assert server.loaded == [small_run.policy(0)]


@pytest.mark.parametrize("restarted", [True, False])
def test_weights_that_change_during_a_batch_give_no_shard(small_run: Run, tmp_path: Path, restarted: bool) -> None:
    out = tmp_path / "r"

    def changes(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        if restarted:
            server.start(small_run.policy(0))
        else:
            server.version = "of another run"

    with ReloadingServer(small_run.policy(0), faults=[None] * 5 + [changes]) as server:
        result = attempt(small_run, server, out, 2)
        assert result.code == 3
        now = "default" if restarted else "of another run"
        assert f"expected version {content(small_run.policy(1))}, got {now}. Let one run" in result.stderr
        assert {path.name for path in out.glob("*.parquet")} == {"completions-00000.parquet"}
        assert attempt(small_run, server, out, 2).code == 0
        assert server.loaded == [small_run.policy(1)] * 2


def test_a_server_that_cannot_reload(small_run: Run, tmp_path: Path) -> None:
    with ReloadingServer(small_run.policy(0)) as server:
        server.version = None
        result = attempt(small_run, server, tmp_path / "r")
    assert result.code == 3 and not server.requests
    assert (
        "it cannot take policies as engines.server.reload=vllm wants (/weight_info is not found). Start it with "
        "VLLM_SERVER_DEV_MODE=1 python -m vllm.entrypoints.openai.api_server"
    ) in result.stderr


def test_an_adapter_is_merged_for_the_server(small_run: Run, tmp_path: Path) -> None:
    lora = {"train__lora": "{rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}"}
    small_run.command("train-step", *small_run.train_inputs(1), "--out", tmp_path / "train", **lora)
    adapter = tmp_path / "train/policy"
    with ReloadingServer(small_run.policy(0)) as server:
        settings = {**QUICK, "engines__server__url": server.url, "engines__server__reload": "vllm"}
        inputs = ["--policy", adapter, *small_run.rollout_inputs(2)[2:], "--out", tmp_path / "r"]
        result = small_run.attempt("rollout", *inputs, **settings)
        assert result.code == 0, result.stderr
        assert server.version == f"{content(adapter)}+{content(small_run.policy(0))}"
        [folder] = server.loaded
    assert folder.name.startswith("dapo-stages-merged-") and not folder.exists()


# ---- engines.server.restart


def script(folder: Path, words: str) -> Path:
    """A program that writes down what it was called with."""
    path = folder / "restart.sh"
    path.write_text(f'#!/bin/sh\necho "$@" >> {folder / "called"}\n{words}\n')
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


def test_a_failed_reload_restarts_the_server_and_goes_on(small_run: Run, cold: str, tmp_path: Path) -> None:
    program = script(tmp_path, "exit 0")
    with ReloadingServer(small_run.policy(0), refused={"/collective_rpc": fails(500)}) as server:
        command = f"[{program}, --model, '{{policy}}']"
        result = attempt(small_run, server, tmp_path / "r", 2, engines__server__restart=command)
    assert result.code == 0, result.stderr
    assert "it could not be given policy " in result.stderr and "; restarting it" in result.stderr
    assert (tmp_path / "called").read_text() == f"--model {small_run.policy(1)}\n"
    assert content(tmp_path / "r") == cold


def test_a_restart_that_does_not_help_ends_the_stage(small_run: Run, tmp_path: Path) -> None:
    program = script(tmp_path, "exit 0")
    with ReloadingServer(small_run.policy(0), stale_head=True) as server:
        result = attempt(small_run, server, tmp_path / "r", 3, engines__server__restart=f"[{program}]")
        refused_whole(result, server, tmp_path / "r", small_run.policy(2))
    assert (tmp_path / "called").read_text() == "\n"  # once


@pytest.mark.parametrize(("words", "said"), [("exit 7", "ended with exit code 7"), (None, "cannot be run (No such")])
def test_a_restart_that_fails(small_run: Run, tmp_path: Path, words: str | None, said: str) -> None:
    program = script(tmp_path, words) if words else tmp_path / "nothing"
    with ReloadingServer(small_run.policy(0), refused={"/collective_rpc": gone}) as server:
        result = attempt(small_run, server, tmp_path / "r", engines__server__restart=f"[{program}]")
    assert result.code == 3
    assert f"the command of engines.server.restart, {program}, {said}" in result.stderr
    assert not server.requests


# ---- settings


def test_none_of_it_changes_a_hash(small_run: Run) -> None:
    """Runs of before had neither; and both say where a thing runs, not what comes out."""
    config = load_config(small_run.folder / "config.yaml")
    assert config.engines.server.recorded().keys().isdisjoint({"reload", "canary", "restart"})


def test_several_processes_cannot_reload_one_server(small_run: Run, tmp_path: Path, monkeypatch: Any) -> None:
    from dapo_stages.engines.engine_choice import open_engine
    from dapo_stages.errors import ConfigError
    from dapo_stages.handoff.policy_folders import PolicyFolder

    monkeypatch.setattr(ranks, "count", lambda: 2)
    config = load_config(small_run.folder / "config.yaml", ["rollout.engine=server", "engines.server.reload=vllm"])
    with pytest.raises(ConfigError, match=r"engines.server.reload: rollout must run in one process, not 2"):
        open_engine(PolicyFolder(small_run.policy(0)), config)


@pytest.mark.parametrize(("prompts", "asked"), [(1, [0]), (2, [0, 1]), (3, [0, 1, 2]), (9, [0, 4, 8])])
def test_which_prompts_the_canary_asks(prompts: int, asked: list[int]) -> None:
    assert few([{"number": number} for number in range(prompts)]) == [{"number": number} for number in asked]
