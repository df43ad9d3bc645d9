"""QLoRA: a base quantized by bitsandbytes, on this CPU."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from support.pipeline import CONFIG, Run, metrics, table
from support.prompts import prompt

from dapo_stages.config import ModelConfig, load_config
from dapo_stages.errors import ConfigError, ModelError
from dapo_stages.models.logprobs import GroupLogprobs
from dapo_stages.models.policy import Policy
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Group


def tiny(quantization: str | None) -> ModelConfig:
    return ModelConfig.model_validate(
        {"name": "embedded", "dtype": "float32", "device": "cpu", "quantization": quantization}
    )


def logprobs(policy: Policy) -> torch.Tensor:
    policy.attend("grouped")
    group = Group(prompt(policy, "What colour is the circle?", [(56, 56)]), [[30, 31, 32, 33], [40, 41]])
    with torch.no_grad():
        found: torch.Tensor = GroupLogprobs(policy, 1.0, 64)(policy.pack([group]))[0]
    return found


@pytest.mark.parametrize(("kind", "bytes_each"), [("nf4", 0.5), ("int8", 1.0)])
def test_the_language_model_is_held_in_few_bits_and_nearly_the_same(
    kind: str, bytes_each: float, checkpoint: Path
) -> None:
    whole, low = load_policy(checkpoint, tiny(None)), load_policy(checkpoint, tiny(kind))
    assert low.is_quantized and not whole.is_quantized
    for layer, exact in zip(low.base.model.language_model.layers, whole.base.model.language_model.layers, strict=True):
        stored = layer.mlp.up_proj.weight
        assert stored.numel() * stored.element_size() == bytes_each * exact.mlp.up_proj.weight.numel()
    for name in ("visual.blocks.0.attn.qkv", "visual.merger.mlp.0"):
        assert low.base.model.get_submodule(name).weight.dtype == torch.float32
    assert low.base.lm_head.weight.dtype == torch.float32
    difference = (logprobs(low) - logprobs(whole)).abs()
    assert 0 < difference.max() < 0.2


def test_generating_does_not_change_four_bit_weights(checkpoint: Path) -> None:
    """bitsandbytes would repack them for bfloat16 at the first forward outside of training."""
    policy = load_policy(checkpoint, tiny("nf4"))
    trained = logprobs(Policy(policy.model.train(), policy.processor, policy.device, policy.dtype))
    used = logprobs(Policy(policy.model.eval(), policy.processor, policy.device, policy.dtype))
    assert torch.equal(trained, used)


@pytest.mark.parametrize(("kind", "mismatch", "iterations"), [("nf4", 1e-4, 2), ("int8", 0.05, 1)])
def test_an_adapter_trains_on_a_quantized_base(
    kind: str, mismatch: float, iterations: int, small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The policy that samples is the one that is trained, with a quantized base and an unmerged adapter in both."""
    monkeypatch.chdir(tmp_path)
    Path("number.py").write_text("def odd(completions, rows):\n    return [i % 2 for i in range(len(completions))]\n")
    settings = {
        "rewards__plugins": "{odd: number.py:odd}",
        "weights__early_fraction": 0,
        "weights__reward_weights": "{accuracy: 0, format: 0, overlong: 0}",
        "weights__mask_truncated_completions": "false",
        "model__quantization": kind,
        "train__lora": "{rank: 4, alpha: 8, target_modules: [q_proj, v_proj]}",
        "train__learning_rate": 0.003,
        "rollout__prompts_per_iteration": 4,
        "evaluate__max_questions": 4,
    }
    policy = small_run.policy(0)
    state: list[object] = []
    for number in range(1, iterations + 1):
        here = tmp_path / str(number)
        small_run.command(
            "rollout", "--policy", policy, "--data", small_run.folder / "data", "--iteration", number,
            "--out", here / "rollout", **settings, rollout__dynamic_sampling="false",
        )  # fmt: skip
        small_run.command(
            "score-attention", "--policy", policy, "--rollouts", here / "rollout", "--out", here / "attention",
            **settings,
        )  # fmt: skip
        small_run.command(
            "weight-tokens", "--rollouts", here / "rollout", "--attention", here / "attention", "--iteration", number,
            "--out", here / "weights", **settings,
        )  # fmt: skip
        rewards = table(here / "weights", "weights").groupby("group_id").reward
        assert (rewards.max() > rewards.min()).all(), "every group has a signal, whatever was sampled"
        small_run.command(
            "train-step", "--policy", policy, "--rollouts", here / "rollout", "--weights", here / "weights", *state,
            "--out", here / "train", **settings,
        )  # fmt: skip
        policy, state = here / "train/policy", ["--state", here / "train/state"]
        found = metrics(here / "train")
        assert found.engine_diff_max[0] < mismatch
        assert (found.skipped == 0).all() and (found.grad_norm > 0).all()
    assert (policy / "adapter_model.safetensors").exists() and not (policy / "model.safetensors").exists()
    small_run.command(
        "evaluate", "--policy", policy, "--data", small_run.folder / "data", "--out", tmp_path / "eval", **settings
    )


def test_quantization_without_an_adapter_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"nf4 needs an adapter to train .*, but train.lora is null"):
        load_config(CONFIG, ["model.quantization=nf4"])


def test_a_missing_bitsandbytes_is_named(checkpoint: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dapo_stages.models import requirements

    monkeypatch.setattr(requirements, "find_spec", lambda name: None)
    with pytest.raises(
        ModelError, match=r"model.quantization: nf4 needs bitsandbytes, which is not installed\. Install it"
    ):
        load_policy(checkpoint, tiny("nf4"))
