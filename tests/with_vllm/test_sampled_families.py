"""vLLM samples from other families, and the trainer gives the same logprobs."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.families import save_tiny
from support.pipeline import Run
from support.vllm import by_prompt, there

FLOAT32 = (
    "qwen2_5_vl", "qwen2_vl", "qwen3_vl", "internvl", "llava_onevision", "llava", "idefics3", "smolvlm",
)  # fmt: skip
BFLOAT16 = ("qwen3_5",)  # without a GPU, vLLM has linear layers in this precision only
APART = {"float32": 1e-3, "bfloat16": 5e-3}  # largest |Δ logprob|, nats; with a blank image it is 0.02


def rollout(family: str, tmp_path: Path, dtype: str = "float32") -> None:
    save_tiny(family, tmp_path / "checkpoint")
    settings = (
        f"model.name={tmp_path / 'checkpoint'}",
        f"model.dtype={dtype}",
        "data.synthetic.train=8",
        "data.synthetic.held_out=2",
        "rollout.prompts_per_iteration=2",
        "rollout.num_generations=2",
        "rollout.max_completion_length=8",
        "rollout.dynamic_sampling=false",
        "report.trackers=[]",
    )
    run = Run(tmp_path, settings)
    run.start()
    given: dict[str, object] = {"policy": run.policy(0), "data": tmp_path / "data", "iteration": 1}
    there("rollout", (*settings, "rollout.engine=vllm"), given | {"out": tmp_path / "rollout"})


@pytest.mark.parametrize("family", [*FLOAT32, *BFLOAT16])
def test_the_trainer_agrees(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    dtype = "bfloat16" if family in BFLOAT16 else "float32"
    rollout(family, tmp_path, dtype)
    differences = [values.max().item() for _, values in by_prompt(tmp_path / "rollout", tmp_path / "checkpoint", 1.0)]
    assert len(differences) == 2 and max(differences) < APART[dtype]


def test_images_whose_tokens_see_each_other_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a GPU, vLLM would sample from Gemma 3 as if images were text: logprobs then differ by 0.005."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(AssertionError, match="the tokens of an image see each other, which vLLM leaves out without"):
        rollout("gemma3", tmp_path)
