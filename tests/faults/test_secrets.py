"""Secrets of the environment are never written: by no stage, whether it succeeds or fails, and by no tracker."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import close_session
from PIL import Image
from reporting import tiny_run
from support.commands import Result, fresh, run
from support.judge import JudgeServer
from support.pipeline import Run
from support.server import FakeServer, Fault, fails
from support.words import WordProcessor

from dapo_stages.config import JudgeConfig
from dapo_stages.errors import ConfigError, EngineError
from dapo_stages.rewards.judging.judge import Judge
from dapo_stages.rewards.scored import Group
from faults import data_sets, forged
from faults.images import noise, saved
from faults.leaks import CANARIES, ENVIRONMENT, PROXY_PASSWORD, SECRETS, found_in, leaks
from faults.table import record

ROW = 14
IMAGE = saved(Image.fromarray(noise()))


@pytest.fixture(autouse=True)
def _canaries(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    """Every test runs with secrets in its environment, in a folder of its own, and leaves none of them there."""
    for name, value in ENVIRONMENT.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.chdir(tmp_path)
    close_session()  # the hub's client keeps the proxies it was made with
    yield
    close_session()
    assert leaks(tmp_path) == {}


def clean(result: Result, codes: set[int] = {0}) -> Result:  # noqa: B006
    """It ended as expected, and printed no secret."""
    assert result.code in codes, result.stderr
    assert found_in((result.stdout + result.stderr).encode()) == set()
    record(ROW, 1)
    return result


# ---- the search finds what is there


@pytest.mark.parametrize("name", SECRETS)
def test_a_secret_is_found_wherever_it_hides(name: str, tmp_path_factory: pytest.TempPathFactory) -> None:
    import base64
    import gzip

    import pyarrow as pa
    import pyarrow.parquet as pq

    folder, value = tmp_path_factory.mktemp("hidden"), SECRETS[name]
    pq.write_table(pa.table({"x": ["y" * 1000, value + "y" * 1000] * 20}), folder / "a.parquet", compression="zstd")
    (folder / "b.gz").write_bytes(gzip.compress(value.encode() * 3))
    (folder / "c.html").write_bytes(base64.b64encode(b"so it is: " + value.encode() + b" and more than that, as usual"))
    (folder / "d.log").write_text(f"Authorization: Bearer {value}")
    assert leaks(folder) == {file: {name} for file in ("a.parquet", "b.gz", "c.html", "d.log")}


@pytest.mark.faults
def test_a_secret_is_found_in_a_wandb_file(tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("hidden")
    tiny = tiny_run.build(folder / "tiny")
    config = tiny / "config.yaml"
    config.write_text(config.read_text() + f"data: {{system_prompt: {CANARIES['HF_TOKEN']}}}\n")
    options = ["--set", "report.trackers=[wandb,tensorboard]"]
    assert run("report", "--config", config, "--run", tiny, *options).code == 0
    files = leaks(folder)
    assert any(name.endswith(".wandb") for name in files) and any("tfevents" in name for name in files)


# ---- stages without a model


@pytest.mark.parametrize(
    "trackers",
    [
        "[]",
        "[wandb,tensorboard]",
        *(pytest.param(f"[{t}]", marks=pytest.mark.faults) for t in ("wandb", "tensorboard")),
    ],
)
def test_a_report_and_its_trackers(trackers: str, tiny: Path) -> None:
    options = ["--config", tiny / "config.yaml", "--run", tiny, "--set", f"report.trackers={trackers}"]
    clean(run("report", *options))


@pytest.mark.faults
def test_a_tracker_that_cannot_be_reached(tiny: Path) -> None:
    """W&B with a key, and a server that refuses it."""
    from support.server import Serving, reply

    class Refusing(Serving):
        def __enter__(self) -> Refusing:
            class Handler(BaseHTTPRequestHandler):
                def do_POST(self) -> None:
                    reply(self, {"errors": [{"message": "not you"}]}, 401)

                do_GET = do_POST

                def log_message(self, *args: object) -> None: ...

            self.serve(Handler)
            return self

    options = ["--config", tiny / "config.yaml", "--run", tiny, "--set", "report.trackers=[wandb]"]
    with Refusing() as server:
        environment = {**ENVIRONMENT, "WANDB_MODE": "online", "WANDB_BASE_URL": server.url, "WANDB_INIT_TIMEOUT": "20"}
        clean(fresh("report", *options, HTTP_PROXY="", HTTPS_PROXY="", **{
            name: value for name, value in environment.items() if "PROXY" not in name
        }))  # fmt: skip


COMMANDS: dict[str, Callable[[Path], list[object]]] = {
    "config": lambda tiny: ["config", "--config", tiny / "config.yaml", "--out", "resolved.yaml"],
    "config to stdout": lambda tiny: ["config", "--config", tiny / "config.yaml"],
    "status": lambda tiny: ["status", "--run", tiny, "--json"],
    "inspect": lambda tiny: ["inspect", "--run", tiny, "it1-p0-s0", "--json"],
    "plan": lambda tiny: ["plan", "--config", tiny / "config.yaml"],
    "compare-evals": lambda tiny: ["compare-evals", tiny / "iter-0000/eval", tiny / "iter-0001/eval"],
    "weight-tokens": lambda tiny: [
        "weight-tokens", "--config", tiny / "config.yaml", "--rollouts", tiny / "iter-0001/rollout",
        "--attention", tiny / "iter-0001/attention", "--iteration", 1, "--out", "weights",
    ],
}  # fmt: skip


@pytest.mark.parametrize("name", COMMANDS)
def test_a_stage_that_needs_no_model(name: str, tiny: Path) -> None:
    clean(run(*COMMANDS[name](tiny)))


def test_doctor_says_only_whether_they_are_set(tiny: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.processes.machine_check.probe", lambda: {"error": "not asked"})
    result = clean(run("doctor", "--json"), {0, 3})
    found = {check["name"]: check["found"] for check in json.loads(result.stdout)["checks"]}
    assert (found["HF_TOKEN"], found["WANDB_API_KEY"]) == ("set", "set")


def test_preparing_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())
    table = data_sets.write_rows(tmp_path / "rows.parquet", [IMAGE, IMAGE, b"no", "/proc/self/environ"])
    clean(data_sets.prepare(table, tmp_path))
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", True)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    clean(data_sets.prepare("cats/colours-that-nobody-has", tmp_path / "hub"), {3})


# ---- failures


def test_a_traceback(tiny: Path) -> None:
    """An error that nobody foresaw, in a process of its own, where Python prints all it knows."""
    code = (
        "import sys; from unittest import mock; from dapo_stages.entrypoints import cli\n"
        "sys.argv = ['dapo-stages', 'status', '--run', sys.argv[1]]\n"
        "with mock.patch('dapo_stages.runs.progress.survey', side_effect=RuntimeError('nobody foresaw this')):\n"
        "    cli.main()\n"
    )
    result = clean(fresh(tiny, code=code), {1})
    assert "Traceback" in result.stderr and "nobody foresaw this" in result.stderr


@pytest.mark.parametrize(
    "body",
    [
        "raise RuntimeError(str(dict(os.environ)))",
        "print(dict(os.environ)); return [0.0] * len(completions)",
        "open('environment.txt', 'w').write(str(dict(os.environ))); return [None] * len(completions)",
        "return [str(dict(os.environ))] * len(completions)",
    ],
)
def test_a_plug_in_that_tells_its_environment(body: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from dapo_stages.config import RewardsConfig
    from dapo_stages.errors import DataError
    from dapo_stages.rewards.isolated.plugins import Plugins

    (tmp_path / "mine.py").write_text(f"import os\ndef f(completions, rows):\n    {body}\n")
    plugins = Plugins(RewardsConfig(plugins={"mine": "mine.py:f"}), tmp_path)
    said = ""
    try:
        plugins.score(["x"], [1], {"prompt_id": "p"})
    except DataError as error:
        said = str(error)
    plugins.close()
    captured = capfd.readouterr()
    assert found_in((said + captured.out + captured.err).encode()) == set()
    record(ROW, 1)


def echo(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    """Quotes the key it was sent."""
    from support.server import reply

    reply(handler, {"error": f"unknown key {handler.headers['Authorization']}"}, 401)
    content.clear()


def echo_in_the_answer(handler: BaseHTTPRequestHandler, content: dict[str, Any]) -> None:
    content["choices"][0]["message"]["content"] = f'{handler.headers["Authorization"]} {{"score": 5}}'


@pytest.mark.parametrize("fault", [None, fails(500), fails(403), echo, echo_in_the_answer])
def test_a_judge(fault: Fault | None, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """Its key is sent, and stands nowhere afterwards: neither in what is said nor in the cache."""
    group = Group({"problem": "?", "solution": "A", "images": []}, ["two"], [1])
    said = ""
    with JudgeServer(lambda *_: '{"score": 5}', faults=[fault] * 3) as server:
        config = JudgeConfig(model="m", url=server.url, retries=1, backoff=0, timeout=5, cache="cache.sqlite")
        try:
            Judge(config, tmp_path).score([group])
        except EngineError as error:
            said = str(error)
        assert {headers["Authorization"] for headers in server.headers} == {
            f"Bearer {CANARIES['DAPO_STAGES_JUDGE_API_KEY']}"
        }
    captured = capfd.readouterr()
    assert found_in((said + captured.out + captured.err).encode()) == set()
    record(ROW, 1)


@pytest.mark.parametrize("wrong", ["{}\n", " {}", "{}\r\nX-Other: 1", "{}\0", "{}é", "a{}\nb"])
def test_a_key_that_no_header_can_hold(
    wrong: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    """Libraries quote the whole header where it has a line break, as files of secrets bring along."""
    key = wrong.replace("\0", "").format(CANARIES["DAPO_STAGES_JUDGE_API_KEY"])
    monkeypatch.setenv("DAPO_STAGES_JUDGE_API_KEY", key)
    group, said = Group({"problem": "?", "solution": "A", "images": []}, ["two"], [1]), ""
    with JudgeServer(lambda *_: '{"score": 5}') as server:
        config = JudgeConfig(model="m", url=server.url, retries=0, timeout=5, cache="cache.sqlite")
        try:
            assert Judge(config, tmp_path).score([group]) == [[0.5]]
        except ConfigError as error:
            said = str(error)
    assert (said == "") == (key.strip() == CANARIES["DAPO_STAGES_JUDGE_API_KEY"])
    captured = capfd.readouterr()
    assert found_in((said + captured.out + captured.err).encode()) == set()
    record(ROW, 1)


@pytest.mark.parametrize("proxy", ["http://someone:{}@127.0.0.1:9", "ftp://someone:{}@host:1", "http://someone:{}@:x"])
def test_a_proxy_that_cannot_be_used(
    proxy: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    for name in ("HTTPS_PROXY", "HTTP_PROXY", "ALL_PROXY"):
        monkeypatch.setenv(name, proxy.format(PROXY_PASSWORD))
    group = Group({"problem": "?", "solution": "A", "images": []}, ["two"], [1])
    config = JudgeConfig(model="m", url="https://judge.invalid", retries=0, timeout=5, cache="cache.sqlite")
    with pytest.raises((EngineError, ConfigError)) as caught:
        Judge(config, tmp_path).score([group])
    captured = capfd.readouterr()
    assert found_in((str(caught.value) + captured.out + captured.err).encode()) == set()
    record(ROW, 1)


@pytest.mark.parametrize("token", ["{}", "{}\n", "{}\nX: 1"])
def test_a_push_that_fails(token: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", token.format(CANARIES["HF_TOKEN"]))
    monkeypatch.setenv("HF_HUB_DISABLE_PROGRESS_BARS", "1")
    (tmp_path / "policy").mkdir()
    (tmp_path / "policy/config.json").write_text("{}")
    forged.publish(tmp_path / "policy", "init-policy", policy={"version": 0, "model": "embedded"})
    options = ["--policy", tmp_path / "policy", "--repo", "user/name"]
    clean(run("push", *options, "--dry-run"))
    clean(run("push", *options), {3})


# ---- every stage


@pytest.mark.faults
@pytest.mark.parametrize("engine", ["transformers", "server"])
def test_a_whole_run(engine: str, tmp_path: Path) -> None:
    """Two iterations of every stage, with trackers, and the report over them."""
    small = Run(tmp_path / "run")
    small.start()
    if engine == "server":
        with FakeServer(small.policy(0)) as server:
            setting = {"rollout__engine": "server", "engines__server__url": server.url}
            small.command("rollout", *small.rollout_inputs(1), "--out", small.at(1) / "rollout", **setting)
            assert {headers["Authorization"] for headers in server.headers} == {
                f"Bearer {CANARIES['DAPO_STAGES_API_KEY']}"
            }
        record(ROW, 1)
        return
    small.iteration(1)
    small.iteration(2)
    small.command("config", "--out", small.folder / "config.yaml")
    small.command("report", "--run", small.folder, report__trackers="[wandb,tensorboard]")
    record(ROW, 9)  # stages
