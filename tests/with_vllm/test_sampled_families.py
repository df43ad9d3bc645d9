"""vLLM samples from other families, and the trainer gives the same logprobs in rows of their own."""

from __future__ import annotations

from pathlib import Path

import pytest
from support.families import save_tiny
from support.pipeline import Run
from support.vllm import by_prompt, there


@pytest.mark.parametrize("family", ["qwen2_5_vl", "qwen2_vl"])
def test_the_trainer_agrees(family: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_tiny(family, tmp_path / "checkpoint")
    monkeypatch.chdir(tmp_path)
    settings = (
        f"model.name={tmp_path / 'checkpoint'}",
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
    differences = [values.max().item() for _, values in by_prompt(tmp_path / "rollout", tmp_path / "checkpoint", 1.0)]
    assert len(differences) == 2 and max(differences) < 1e-3
