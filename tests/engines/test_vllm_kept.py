"""When vLLM is reloaded, proven, and loaded anew, with a stand-in for it; tests/with_vllm has the real one."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from dapo_stages.config import ModelConfig
from dapo_stages.engines import vllm_kept
from dapo_stages.engines.vllm_kept import PolicyInVllm
from dapo_stages.errors import EngineError
from dapo_stages.handoff import kept

events: list[str] = []


class StandIn:
    """Notes what is asked of it; a policy named `broken` cannot be reloaded."""

    def __init__(self, checkpoint: str, settings: dict[str, Any]) -> None:
        events.append(f"load {checkpoint}")

    def reload(self, checkpoint: str) -> None:
        events.append(f"reload {Path(checkpoint).name}")
        if Path(checkpoint).name == "broken":
            raise KeyError("a tensor is missing")

    def generate(self, prompts: list[str], sampling: list[int]) -> list[str]:
        return prompts

    def sleep(self) -> None:
        events.append("sleep")

    def end(self) -> None:
        events.append("end")


@pytest.fixture(autouse=True)
def stand_in(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    events.clear()
    monkeypatch.setattr(vllm_kept, "Model", StandIn)
    monkeypatch.setattr(vllm_kept, "merged_checkpoint", lambda policy, settings: nullcontext(policy.folder))
    kept.begin()
    yield
    kept.end()


def opened(name: str, **settings: object) -> PolicyInVllm:
    policy: Any = SimpleNamespace(folder=Path(name), content=name)
    return PolicyInVllm(policy, ModelConfig(name="embedded"), dict(settings), 1)


def passes() -> None:
    events.append("canary")


def fails() -> None:
    events.append("canary")
    raise EngineError("vllm", "its logprobs differ", "Restart it.")


def test_a_policy_that_was_loaded_needs_no_proof_and_is_there_for_the_next_command() -> None:
    assert opened("one").is_proven and opened("one").is_proven
    assert events == ["load one"]


def test_the_next_policy_is_reloaded_and_does_not_count_before_the_canary() -> None:
    opened("one")
    two = opened("two")
    assert not two.is_proven and not opened("two").is_proven  # of a command that was killed before the canary
    two.prove(passes)
    assert two.is_proven and opened("two").is_proven
    assert events == ["load one", "reload two", "reload two", "sleep", "canary"]


def test_what_the_canary_refuses_is_loaded_anew() -> None:
    opened("one")
    two = opened("two")
    two.prove(fails)
    assert two.is_proven and opened("two").is_proven
    assert events == ["load one", "reload two", "sleep", "canary", "end", "load two"]


def test_a_reload_that_fails_is_followed_by_loading(capsys: pytest.CaptureFixture[str]) -> None:
    opened("one")
    assert opened("broken").is_proven
    assert events == ["load one", "reload broken", "end", "load broken"]
    assert (
        "vllm: could not go on with policy broken ('a tensor is missing'); loading it anew" in capsys.readouterr().err
    )


def test_other_settings_need_another_vllm() -> None:
    opened("one", dtype="float32")
    opened("one", dtype="bfloat16")
    assert events == ["load one", "end", "load one"]


def test_it_sleeps_between_commands() -> None:
    opened("one")
    engine = kept.present("engine")
    assert engine is not None
    engine.rest()
    assert events == ["load one", "sleep"]
