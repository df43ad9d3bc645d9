"""Copies of a model in processes of their own, with a stand-in for vLLM; tests/with_vllm has the real one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.proc import parent_of

from dapo_stages.engines.vllm_copies import Copies, shares
from dapo_stages.errors import ConfigError, EngineError

# It returns its arguments, its GPUs and its process id; some prompts make it fail.
VLLM = """
import os, sys, types
envs = types.SimpleNamespace(VLLM_CACHE_ROOT="cache")

class LLM:
    def __init__(self, model, **settings):
        if model == "broken":
            raise ValueError("no such model")

    def generate(self, prompts, sampling=None, *, use_tqdm=True):
        assert prompts and not use_tqdm
        if "ends" in prompts:
            os._exit(1)
        if "fails" in prompts:
            raise ValueError("no such prompt")
        return [(p, s, os.environ["CUDA_VISIBLE_DEVICES"], os.getpid()) for p, s in zip(prompts, sampling)]
"""
PLATFORMS = """
import types
current_platform = types.SimpleNamespace(is_cpu=lambda: False)
"""
SETTINGS = {"tensor_parallel_size": 2, "enforce_eager": True}


@pytest.fixture(autouse=True)
def vllm(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    package = tmp_path / "vllm"
    package.mkdir()
    (package / "__init__.py").write_text(VLLM)
    (package / "platforms.py").write_text(PLATFORMS)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5,6,7")
    return tmp_path


def test_copies_share_the_prompts_and_answer_in_their_order() -> None:
    copies = Copies(2, "policy", SETTINGS)
    for _ in range(2):
        answers = copies.generate(list("abcde"), list(range(5)))
        assert [answer[:3] for answer in answers] == [
            ("a", 0, "3,5"), ("b", 1, "6,7"), ("c", 2, "3,5"), ("d", 3, "6,7"), ("e", 4, "3,5"),
        ]  # fmt: skip
    assert [answer[2] for answer in copies.generate(["a"], [0])] == ["3,5"]  # the second is not asked


def test_what_vllm_raises_in_a_copy_is_raised_here_and_it_goes_on() -> None:
    with pytest.raises(RuntimeError, match=r"^ValueError: no such model$"):
        Copies(2, "broken", SETTINGS)
    copies = Copies(2, "policy", SETTINGS)
    with pytest.raises(RuntimeError, match=r"^ValueError: no such prompt$"):
        copies.generate(["fails", "a"], [0, 1])
    assert copies.generate(["b", "c"], [0, 1])[1][0] == "c"
    with pytest.raises(EngineError, match="a copy of the model has ended"):
        copies.generate(["a", "ends"], [0, 1])


def test_the_gpus_of_a_copy_are_the_next_of_those_that_may_be_used() -> None:
    assert shares(3, 1, None) == ["0", "1", "2"]
    assert shares(2, 2, "GPU-a,GPU-b,GPU-c,GPU-d,GPU-e") == ["GPU-a,GPU-b", "GPU-c,GPU-d"]
    with pytest.raises(ConfigError) as refused:
        shares(2, 2, "0,1,2")
    assert str(refused.value) == (
        "engines.vllm: data_parallel_size=2 and tensor_parallel_size=2 need 4 GPUs, but only 3 can be used "
        "(CUDA_VISIBLE_DEVICES=0,1,2). Reduce one of them."
    )


@pytest.mark.parametrize("end", ["exit", "kill"])
def test_copies_end_with_the_process_that_started_them(vllm: Path, end: str) -> None:
    code = (
        "from dapo_stages.engines.vllm_copies import Copies\n"
        "if __name__ == '__main__':\n"
        f"    copies = Copies(2, 'policy', {SETTINGS})\n"
        "    print(*[answer[3] for answer in copies.generate(['a', 'b'], [0, 1])], flush=True)\n"
        "    input()\n"
    )
    (vllm / "parent.py").write_text(code)
    environment = {**os.environ, "PYTHONPATH": str(vllm)}
    with subprocess.Popen(
        [sys.executable, vllm / "parent.py"], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment, text=True
    ) as process:
        assert process.stdin and process.stdout
        numbers = [int(number) for number in process.stdout.readline().split()]
        assert len(set(numbers)) == 2 and all(map(parent_of, numbers))
        if end == "kill":
            process.send_signal(signal.SIGKILL)
        else:
            process.stdin.close()
        process.wait(30)
    until = time.monotonic() + 30
    while any(map(parent_of, numbers)):
        assert time.monotonic() < until
        time.sleep(0.05)
