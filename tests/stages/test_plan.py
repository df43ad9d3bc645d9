"""plan: what it prints, what it refuses, and what it advises."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT, fresh, run

REFERENCE = ("--config", ROOT / "pipelines/reference-7b.yaml")


def plan(*arguments: object) -> dict[str, Any]:
    result = run("plan", *arguments, "--json")
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_the_reference_configuration_fits_on_four_gpus_of_80_gb() -> None:
    found = plan(*REFERENCE, "--gpus", 4, "--memory", 80)
    assert (found["parameters"], found["parallel"]) == (8_292_166_656, "zero2")
    assert found["fits"] == {"rollout": True, "score-attention": True, "train-step": True}
    assert found["bytes"]["train-step: state"] == 12 * 8_292_166_656
    assert found["bytes"]["train-step: policy"] == 2 * 8_292_166_656


def test_what_does_not_fit_is_told_what_helps() -> None:
    found = plan(*REFERENCE, "--gpus", 1, "--memory", 80)
    assert found["fits"]["train-step"] is False
    assert all(peak <= found["usable"] for peak in found["ways"]["train-step"].values())
    lora = plan(*REFERENCE, "--gpus", 1, "--memory", 80, "--set", "train.lora={rank: 16}")
    assert lora["fits"]["train-step"] is True
    shown = run("plan", *REFERENCE, "--gpus", 1, "--memory", 80).stdout
    assert "train-step does not fit: " in shown and "  train.lora={rank: 16}: " in shown


def test_72b_trains_on_nodes_and_is_too_large_for_a_rank_to_hold_whole() -> None:
    model = "Qwen/Qwen2.5-VL-72B-Instruct"
    found = plan(*REFERENCE, "--model", model, "--gpus", 8, "--nodes", 4, "--parallel", "zero3")
    assert found["fits"] == {"rollout": False, "score-attention": False, "train-step": True}
    shown = run("plan", *REFERENCE, "--model", model, "--gpus", 8, "--nodes", 4).stdout
    assert "a rank holds the whole model here: vLLM (engines.vllm.tensor_parallel_size) or a server" in shown


def test_engines_of_rollout_are_sized_by_what_they_hold() -> None:
    large = (*REFERENCE, "--model", "Qwen/Qwen2.5-VL-72B-Instruct", "--gpus", 8, "--parallel", "zero3")
    split = plan(*large, "--set", "rollout.engine=vllm", "--set", "engines.vllm.tensor_parallel_size=4")
    assert split["fits"]["rollout"] and split["room"] > 64
    assert plan(*large, "--set", "rollout.engine=vllm")["room"] < 0
    assert plan(*large, "--set", "rollout.engine=server")["fits"]["rollout"]


def test_longer_prompts_need_more_and_checkpointing_less() -> None:
    def peak(*arguments: object) -> int:
        return int(plan("--model", "embedded", "--device", "cpu", *arguments)["memory"]["train-step"]["total"])

    assert peak("--prompt", 512) < peak("--prompt", 2048)
    assert peak() < peak("--set", "train.gradient_checkpointing=false")


def test_groups_in_reserve_are_sampled_and_trained_on_only_where_they_are_kept() -> None:
    """64 groups on 2 ranks, 1.5 times of them asked for: 48 each instead of 32."""
    base = (*REFERENCE, "--gpus", 2, "--set", "rollout.prompts_per_iteration=64", "--set", "rollout.batch_groups=16")
    spare = (*base, "--set", "rollout.oversample=1.5")
    plain, discarding, keeping = plan(*base), plan(*spare), plan(*spare, "--set", "rollout.surplus=keep")

    def seconds(found: dict[str, Any]) -> list[float]:
        parts = found["seconds"]
        own = (("rollout", "generation"), ("score-attention", "forward"), ("train-step", "updates"))
        return [parts[stage][part] / plain["seconds"][stage][part] for stage, part in own]

    assert seconds(discarding) == pytest.approx([1.5, 1, 1])
    assert seconds(keeping) == pytest.approx([1.5, 1.5, 1.5])
    assert discarding["bytes"]["rollout"] == pytest.approx(1.5 * plain["bytes"]["rollout"])


def test_a_reference_that_moves_is_another_policy_on_disk() -> None:
    still = plan(*REFERENCE, "--set", "train.beta=0.01")
    moving = plan(*REFERENCE, "--set", "train.beta=0.01", "--set", "train.reference_update_every=4")
    policy = 2 * 8_292_166_656
    assert moving["bytes"]["train-step: reference"] == policy and "train-step: reference" not in still["bytes"]
    assert moving["kept"] - still["kept"] == policy
    more = moving["seconds"]["train-step"]["writing"] - still["seconds"]["train-step"]["writing"]
    assert more == pytest.approx(policy / 4 / 2e9)  # every fourth iteration, 2 GB/s


def test_a_folder_is_read(checkpoint: Path) -> None:
    assert plan("--model", checkpoint)["parameters"] == plan("--model", "embedded")["parameters"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--model", "nobody/nothing"), "nobody/nothing: found no config.json, neither in a folder nor on the hub ("),
        (
            ("--parallel", "single", "--gpus", 2),
            "--parallel single: found 2 GPUs; needed one. Name ddp or zero1 … zero3.",
        ),
        (
            ("--set", "train.lora={target_modules: [nose]}"),
            "train.lora.target_modules: found 'nose'; needed one of q_proj,",
        ),
    ],
)
def test_what_cannot_be_planned_is_refused(
    arguments: tuple[object, ...], message: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    result = run("plan", *arguments)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr.startswith(message)


def test_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava"}')
    result = run("plan", "--model", tmp_path)
    assert result.code == 3
    assert result.stderr == (
        f"{tmp_path}: found architecture `llava` in its configuration; needed a Qwen2.5-VL or Qwen2-VL. "
        "Name one with --model.\n"
    )


def test_it_needs_no_torch() -> None:
    hidden = "import sys; sys.modules |= {'torch': None, 'transformers': None}; from dapo_stages import cli; cli.main()"
    result = fresh("plan", *REFERENCE, "--gpus", 4, code=hidden)
    assert result.code == 0, result.stderr
    assert result.stdout.startswith("Qwen/Qwen2.5-VL-7B-Instruct: 8,292,166,656 parameters")
