"""rollout with a server: the requests, the checks of responses, and failures."""

from __future__ import annotations

import base64
import os
import signal
import time
from contextlib import nullcontext
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.commands import Result, fresh
from support.pipeline import Run, table
from support.server import FakeServer, Fault, cut, fails, gone, half_json, slow

from dapo_stages.config import ServerConfig
from dapo_stages.data.images import encode
from dapo_stages.engines.server_engine import ServerEngine, messages_of
from dapo_stages.errors import EngineError
from dapo_stages.handoff.manifests import Source
from dapo_stages.models.families import FAMILIES
from dapo_stages.models.tokens import load_tokens
from dapo_stages.processes.servers import Server

QUICK = {"rollout__engine": "server", "engines__server__backoff": 0, "rollout__dynamic_sampling": "false"}


def attempt(run: Run, server: FakeServer, out: Path, **settings: Any) -> Result:
    settings = {**QUICK, "engines__server__url": server.url, **settings}
    return run.attempt("rollout", *run.rollout_inputs(1), "--out", out, **settings)


@pytest.fixture(scope="module")
def well(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, FakeServer]:
    """A rollout without any failure, and the server that wrote it."""
    out = tmp_path_factory.mktemp("well") / "rollout"
    with FakeServer(small_run.policy(0)) as server:
        result = attempt(small_run, server, out)
    assert result.code == 0, result.stderr
    return out, server


def test_what_is_asked(small_run: Run, well: tuple[Path, FakeServer]) -> None:
    out, server = well
    prompts = table(out, "prompts")
    assert len(server.requests) == len(prompts) == 8
    tokens = load_tokens(small_run.policy(0))
    sent = {request["messages"][-1]["content"][0]["image_url"]["url"] for request in server.requests}
    images = {base64.b64encode(images[0]["bytes"]).decode() for images in prompts.images}
    assert sent == {f"data:image/png;base64,{image}" for image in images}
    for request in server.requests:
        assert (request["n"], request["temperature"], request["max_completion_tokens"]) == (4, 1.2, 32)
        assert (request["top_p"], request["top_k"], request["min_p"], request["repetition_penalty"]) == (1, -1, 0, 1)
        assert request["logprobs"] and request["return_token_ids"]
        assert {int(token) for token in request["logit_bias"]} == tokens.special_ids - set(tokens.end_ids)
    assert len({request["seed"] for request in server.requests}) == 8


def test_what_it_writes_is_kept_as_it_is(well: tuple[Path, FakeServer]) -> None:
    out, server = well
    completions = table(out, "completions")
    assert set(completions.engine) == {"server"} and len(completions) == 32
    assert completions.completion_ids.map(len).equals(completions.sampling_logprobs.map(len))
    written = {}
    for request in server.requests:
        for one in server._completions(request)["choices"]:
            written[tuple(one["token_ids"]), tuple(round(c["logprob"], 5) for c in one["logprobs"]["content"])] = 1
    for row in completions.itertuples():
        key = tuple(row.completion_ids), tuple(round(float(value), 5) for value in row.sampling_logprobs)
        near = [np.allclose(key[1], values, atol=2e-5) for ids, values in written if ids == key[0]]
        assert any(near)
        assert row.text.startswith("<think>") and row.text.endswith("</answer>")
    assert (completions["sample"].to_numpy().reshape(-1, 4) == np.arange(4)).all()


@pytest.mark.parametrize(
    ("fault", "said"),
    [
        (fails(500), "status 500"),
        (fails(503), "status 503"),
        (fails(429, Retry_After="1"), "retrying in 1 s"),
        (cut, "RemoteProtocolError"),
        (half_json, "unexpected response ("),
        (slow, "ReadTimeout"),
        (gone, "RemoteProtocolError"),
    ],
)
def test_failures_that_pass_are_tried_again(
    small_run: Run, well: tuple[Path, FakeServer], tmp_path: Path, fault: Fault, said: str
) -> None:
    with FakeServer(small_run.policy(0), faults=[None, fault, None, fault]) as server:
        patience = 1.5 if fault is slow else 30
        result = attempt(small_run, server, tmp_path / "r", engines__server__timeout=patience)
    assert result.code == 0, result.stderr
    again = result.stderr.count("retrying in")
    assert (again >= 2 if fault is slow else again == 2) and said in result.stderr  # a busy machine may be slow, too
    assert Source(tmp_path / "r").manifest.content_hash == Source(well[0]).manifest.content_hash


def test_a_server_that_dies_leaves_whole_shards_and_another_carries_on(
    small_run: Run, well: tuple[Path, FakeServer], tmp_path: Path
) -> None:
    out = tmp_path / "r"
    dying: list[Fault | None] = [None] * 4 + [gone] * 100
    with FakeServer(small_run.policy(0), faults=dying) as server:
        result = attempt(small_run, server, out, engines__server__retries=2)
        where = server.url
    assert result.code == 3
    assert (
        f"server {where}: no valid response in 3 attempts with engines.server.timeout=600 s (last error: "
        "RemoteProtocolError Server disconnected without sending a response.). See the server's log, restart it, and "
        "run the same command again: finished shards are kept."
    ) in result.stderr
    assert {path.name for path in out.glob("*.parquet")} == {"completions-00000.parquet"}
    assert not (out / "manifest.json").exists()
    with FakeServer(small_run.policy(0)) as server:  # at another address, with other retries
        result = attempt(small_run, server, out, engines__server__retries=7, engines__server__concurrency=1)
    assert result.code == 0, result.stderr
    assert len(server.requests) == 4 and server.most == 1
    assert Source(out).manifest.content_hash == Source(well[0]).manifest.content_hash


def test_nobody_there(small_run: Run, tmp_path: Path) -> None:
    with FakeServer(small_run.policy(0)) as server:
        pass
    result = attempt(small_run, server, tmp_path / "r", engines__server__retries=1)
    assert result.code == 3 and "ConnectError" in result.stderr and "no valid response in 2 attempts" in result.stderr


def changed(**values: Any) -> Fault:
    """Other values in the first completion; `top` for the response itself."""

    def fault(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        content.update(values.get("top", {}))
        content["choices"][0].update({name: value for name, value in values.items() if name != "top"})

    return fault


def raw(value: float) -> Fault:
    """This value as every logprob, such as an unprocessed one or a logit."""

    def fault(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        for one in content["choices"][0]["logprobs"]["content"]:
            one["logprob"] = value

    return fault


def longer(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    content["choices"][0]["logprobs"]["content"].append({"logprob": -1.0})


def fewer(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    content["choices"].pop()


def special(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    content["choices"][0]["token_ids"][0] = 575  # of the rows of logits without a token


@pytest.mark.parametrize(
    ("always", "fault", "message"),
    [
        (changed(token_ids=None), None, "its responses have no token ids (return_token_ids)"),
        (changed(top={"prompt_token_ids": None}), None, "its responses have no token ids"),
        (changed(logprobs=None), None, "its responses have no logprobs"),
        (changed(token_ids=[7]), None, "it ignores logit_bias: expected token 0, got [7]"),
        (raw(-3.25), None, "of the distribution sampled from: expected 0 for a forced token, got -3.250"),
        (raw(104.5), None, "expected 0 for a forced token, got 104.500"),
        (None, changed(top={"prompt_token_ids": [1, 2]}), "the engine's prompt (2 tokens) does not match prepare-data"),
        (None, changed(token_ids=[]), "a completion has no token ids"),
        (None, longer, "expected one logprob per token, got "),
        (None, fewer, "expected 4 completions of prompt "),
        (None, special, "a completion contains token 575, which must never be sampled"),
        (None, changed(finish_reason="length"), "with an end token has finish_reason 'length', expected 'stop'"),
        (None, fails(400), "request refused with status 400"),
        (None, fails(401), "Set DAPO_STAGES_API_KEY, or OPENAI_API_KEY (only sent over https or to this machine)"),
    ],
)
def test_what_can_never_be_right_is_an_error_at_once(
    small_run: Run, tmp_path: Path, always: Fault | None, fault: Fault | None, message: str
) -> None:
    with FakeServer(small_run.policy(0), always=always, faults=[fault]) as server:
        result = attempt(small_run, server, tmp_path / "r")
    assert result.code == 3 and message in result.stderr and "retrying" not in result.stderr
    assert not list((tmp_path / "r").glob("*.parquet"))


def test_a_server_of_another_policy_is_refused(small_run: Run, tmp_path: Path) -> None:
    other = small_run.policy(1)
    with FakeServer(small_run.policy(0), root=str(other)) as server:
        result = attempt(small_run, server, tmp_path / "r")
    assert result.code == 3
    assert (
        f"it serves policy {other}, expected {small_run.policy(0)}. Restart it (python -m vllm.entrypoints.openai."
        f"api_server --model {small_run.policy(0)} --logprobs-mode processed_logprobs) and"
    ) in result.stderr


def test_a_server_that_changed_its_policy_gives_no_shard(small_run: Run, tmp_path: Path) -> None:
    """It is restarted between two responses; the shard written before that stays."""
    out, other = tmp_path / "r", small_run.policy(1)

    def restarted(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        server.root = str(other)

    with FakeServer(small_run.policy(0), faults=[None] * 5 + [restarted]) as server:
        result = attempt(small_run, server, out)
    assert result.code == 3
    assert (
        f"it served policy {small_run.policy(0)} (policy) before this batch, but now serves {other} (policy)."
    ) in result.stderr
    assert {path.name for path in out.glob("*.parquet")} == {"completions-00000.parquet"}


def test_a_server_on_another_machine_is_taken_at_its_word(small_run: Run, tmp_path: Path) -> None:
    with FakeServer(small_run.policy(0), root="/of/another/machine") as server:
        result = attempt(small_run, server, tmp_path / "r", rollout__prompts_per_iteration=1)
    assert result.code == 0
    assert "serves /of/another/machine, which cannot be checked from here; make sure that it is " in result.stderr


@pytest.mark.parametrize(
    ("checkpoint", "root", "refused"),
    [
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-7B-Instruct", False),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "Qwen/Qwen2.5-VL-3B-Instruct", True),
        ("Qwen/Qwen2.5-VL-7B-Instruct", "/models/qwen", False),  # may be a download of it
    ],
)
def test_a_model_of_the_hub_is_known_by_its_name(checkpoint: str, root: str, refused: bool) -> None:
    engine = object.__new__(ServerEngine)
    engine._where, engine._stage = "server", "rollout"
    with pytest.raises(EngineError) if refused else nullcontext():
        engine._check_policy(checkpoint, root)


def test_the_key_is_sent_and_never_shown(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.setenv("DAPO_STAGES_API_KEY", "secret-key")
    with FakeServer(small_run.policy(0), faults=[fails(500), fails(401)]) as server:
        result = attempt(small_run, server, tmp_path / "r", rollout__prompts_per_iteration=1)
    assert result.code == 3
    assert {headers["Authorization"] for headers in server.headers} == {"Bearer secret-key"}
    assert "secret-key" not in result.stderr + result.stdout


@pytest.mark.parametrize(
    ("url", "sent"),
    [
        ("http://localhost:8000", True),
        ("http://127.0.0.1:8000", True),
        ("http://[::1]:8000", True),
        ("https://models.example.org", True),
        ("http://models.example.org", False),
        ("http://10.0.0.7:8000", False),
    ],
)
def test_a_key_for_others_is_not_sent_in_the_clear(url: str, sent: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    server = Server("server", "engines.server", "DAPO_STAGES_API_KEY", ServerConfig(url=url))
    monkeypatch.setenv("OPENAI_API_KEY", "other")
    monkeypatch.delenv("DAPO_STAGES_API_KEY", raising=False)
    assert ("Authorization" in server.client().headers) is sent
    monkeypatch.setenv("DAPO_STAGES_API_KEY", "own")
    assert server.client().headers["Authorization"] == "Bearer own"


def test_a_proxy_is_not_asked_for_this_machine(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:9")
    monkeypatch.delenv("NO_PROXY", raising=False)
    monkeypatch.delenv("no_proxy", raising=False)
    one = {"rollout__prompts_per_iteration": 1, "engines__server__retries": 0}
    with FakeServer(small_run.policy(0)) as server:
        result = attempt(small_run, server, tmp_path / "r", **one)
    assert result.code == 0, result.stderr


def test_requests_run_side_by_side(small_run: Run, tmp_path: Path) -> None:
    with FakeServer(small_run.policy(0), seconds=0.1) as server:
        result = attempt(small_run, server, tmp_path / "r", engines__server__concurrency=3)
    assert result.code == 0 and server.most == 3


def test_ctrl_c_does_not_wait_for_answers(small_run: Run, tmp_path: Path) -> None:
    def interrupt(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        os.kill(os.getpid(), signal.SIGINT)

    def forever(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
        time.sleep(120)

    with FakeServer(small_run.policy(0), faults=[interrupt, forever, forever, forever]) as server:
        began = time.monotonic()
        result = attempt(small_run, server, tmp_path / "r")
        assert time.monotonic() - began < 60
    assert result.code == 130 and "Run the same command again to resume." in result.stderr
    assert not list((tmp_path / "r").glob("*.parquet"))


def test_the_model_stays_out_of_memory(small_run: Run, tmp_path: Path) -> None:
    code = (
        "import sys; from dapo_stages.entrypoints import cli\n"
        "try: cli.main()\n"
        "except SystemExit as stop: assert not stop.code\n"
        "print([name for name in sys.modules if 'modeling_qwen' in name or name == 'dapo_stages.models.policy'])\n"
    )
    with FakeServer(small_run.policy(0)) as server:
        result = fresh(
            "rollout", "--config", "pipelines/smoke.yaml", *small_run.rollout_inputs(1), "--out", tmp_path / "r",
            "--set", "rollout.engine=server", "--set", f"engines.server.url={server.url}", code=code,
        )  # fmt: skip
    assert result.code == 0, result.stderr
    assert result.stdout.splitlines()[-1] == "[]"


def test_conversations_are_read_from_the_text_of_the_prompt() -> None:
    from support.prompts import image

    mark = "<|vision_start|><|image_pad|><|vision_end|>"
    text = (
        "<|im_start|>system\nBe brief.<|im_end|>\n"
        f"<|im_start|>user\nIs {mark} larger\nthan {mark}?<|im_end|>\n"
        "<|im_start|>assistant\nNo.<|im_end|>\n<|im_start|>user\nSure?<|im_end|>\n<|im_start|>assistant\n"
    )
    files = [encode(image(9, 9, seed)) for seed in (1, 2)]
    images = [{"bytes": one, "path": None} for one in files]
    urls = [f"data:image/png;base64,{base64.b64encode(one).decode()}" for one in files]
    assert messages_of({"prompt_text": text, "images": images}, FAMILIES["qwen2_5_vl"]) == [
        {"role": "system", "content": [{"type": "text", "text": "Be brief."}]},
        {
            "role": "user",
            "content": [
                {"type": "text", "text": "Is "},
                {"type": "image_url", "image_url": {"url": urls[0]}},
                {"type": "text", "text": " larger\nthan "},
                {"type": "image_url", "image_url": {"url": urls[1]}},
                {"type": "text", "text": "?"},
            ],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "No."}]},
        {"role": "user", "content": [{"type": "text", "text": "Sure?"}]},
    ]
