"""What can be tested of the vLLM engine without vLLM; tests/with_vllm generates with it (make test-vllm)."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
from support.pipeline import CONFIG, Run
from support.processes import together

from dapo_stages.config import load_config
from dapo_stages.engines.vllm_engine import at_once, collapsed


def test_an_image_has_one_placeholder_before_vllm_expands_it() -> None:
    image = 9
    assert collapsed([1, 2, 9, 9, 9, 3, 2, 9, 3, 4, 4], image) == [1, 2, 9, 3, 2, 9, 3, 4, 4]
    assert collapsed([9, 9, 5], image) == [9, 5]
    assert collapsed([1, 1], None) == [1, 1]


def test_without_vllm_the_error_says_which_environment_has_it(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "vllm", None)  # importing it fails, installed or not
    result = small_run.attempt("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r", rollout__engine="vllm")
    assert result.code == 3
    assert result.stderr.splitlines()[-1] == (
        "rollout.engine: cannot import vllm in this Python environment (import of vllm halted; None in sys.modules). "
        "Run make venv-vllm, and rollout with ROLLOUT_PYTHON=.venv-vllm/bin/python."
    )
    assert not list((tmp_path / "r").glob("*.parquet"))


def test_vllm_makes_room_for_the_completions_of_a_shard() -> None:
    """64 × 4 of rollout, 16 × (8 + 1) of evaluate, shared by the copies of the model, and at most 1024."""

    def room(*settings: str) -> int:
        sizes = ("rollout.num_generations=4", "rollout.groups_per_shard=64", "evaluate.num_generations=8")
        return at_once(load_config(CONFIG, [*sizes, "evaluate.questions_per_shard=16", *settings]))

    assert room("rollout.engine=vllm") == 256
    assert room("evaluate.engine=vllm") == 144
    assert room("rollout.engine=vllm", "evaluate.engine=vllm", "engines.vllm.data_parallel_size=3") == 86
    assert room("rollout.engine=vllm", "rollout.groups_per_shard=512") == 1024


def test_several_processes_are_refused_with_the_keys_to_set_instead(small_run: Run, tmp_path: Path) -> None:
    settings = small_run.options(rollout__engine="vllm")
    results = together(2, "rollout", *settings, *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert [result.code for result in results] == [3, 3]
    assert (
        "rollout.engine: vllm must run in one process, not 2, as it starts its own. Start rollout without a launcher "
        "(make: ROLLOUT_LAUNCH=1), and set engines.vllm.tensor_parallel_size to the number of GPUs that share a model, "
        "or engines.vllm.data_parallel_size to the number of its copies."
    ) in "".join(result.stderr for result in results)
    assert not list((tmp_path / "r").glob("*.parquet"))
