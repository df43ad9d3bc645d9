"""Families of other kinds than Qwen's, from init-policy to the weights of tokens, through the command line."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from support.eager_rows import eager_masses
from support.pipeline import BY_PLACE, PLACE, Run, table

from dapo_stages.config import ModelConfig
from dapo_stages.handoff.manifests import Source
from dapo_stages.maths.grounding import KINDS
from dapo_stages.models.inputs import prompt_of
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.models.shared_prefix.packing import Group
from dapo_stages.reporting.iteration.search import find
from dapo_stages.runs.run_folder import Run as RunFolder

NO_MAP = "score-attention: the tokens of this model's images lie on no grid that is known; no heat maps"


@pytest.mark.parametrize(("family", "cells"), [("llava_onevision", None), ("qwen3_5", (2, 2))])
def test_its_tokens_are_weighed_by_its_attention(
    family: str,
    cells: tuple[int, int] | None,
    checkpoints: Callable[[str], Path],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The masses in the file are those of an eager forward pass on its tokens; heat maps where there is a grid."""
    settings = (
        f"model.name={checkpoints(family)}",
        "data.synthetic.train=8",
        "data.synthetic.held_out=2",
        "rollout.prompts_per_iteration=1",
        "rollout.num_generations=3",
        "rollout.max_completion_length=8",
        *(f"{key.replace('__', '.')}={value}" for key, value in BY_PLACE.items()),
        "attention.groups=all",
        "attention.blank_image=true",
        "report.trackers=[]",
    )
    (tmp_path / "place.py").write_text(PLACE)
    monkeypatch.chdir(tmp_path)
    run, here = Run(tmp_path, settings), tmp_path / "iter-0001"
    run.start()
    run.command("rollout", *run.rollout_inputs(1), "--out", here / "rollout")
    inputs = ["--policy", run.policy(0), "--rollouts", here / "rollout", "--out", here / "attention"]
    said = run.command("score-attention", *inputs).stderr.splitlines()
    run.command("weight-tokens", *run.weights_inputs(1), "--out", here / "weights")
    weights = table(here / "weights", "weights")
    assert any(len(set(row)) > 1 for row in weights.token_weights)

    policy = load_policy(checkpoints(family), ModelConfig(name="embedded", dtype="float32", device="cpu"))
    (prompt,) = Source(here / "rollout", "rollout").rows("prompts")
    ids = table(here / "rollout", "completions").completion_ids
    attention = table(here / "attention", "attention")
    for completion, row in zip(ids, attention.itertuples(), strict=True):
        group = Group(prompt_of(prompt, policy.processor), [completion.tolist()])
        want = eager_masses(policy, group, completion.tolist(), "predicting").mean(0)
        got = torch.tensor([list(getattr(row, f"mass_{kind}")) for kind in KINDS]).T
        assert (got - want).abs().max().item() < 1e-5
        assert min(row.visual_kl) >= 0
    look = find(RunFolder(tmp_path), attention.completion_id[0]).look()
    assert (look and look.shades[0].shape[:2]) == cells
    assert said.count(NO_MAP) == int(cells is None)
