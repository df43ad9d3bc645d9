"""Models that cannot share prompts go through every stage, their attention scored in rows of their own."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from support.families import OTHER
from support.pipeline import BY_PLACE, PLACE, Run, metrics, table

from dapo_stages.reporting.iteration.search import find
from dapo_stages.runs.run_folder import Run as RunFolder

OFF = "attention.enabled=false"


@pytest.fixture(scope="module")
def other(checkpoints: Callable[[str], Path], tmp_path_factory: pytest.TempPathFactory) -> Run:
    """An iteration of a random model up to its weights. It knows no format, so places are rewarded."""
    folder = tmp_path_factory.mktemp("other")
    settings = (
        f"model.name={checkpoints(OTHER)}",
        "data.synthetic.train=16",
        "data.synthetic.held_out=4",
        "rollout.prompts_per_iteration=3",
        "rollout.num_generations=4",
        "rollout.max_completion_length=12",
        "rollout.sampler.temperature=1.2",
        *(f"{key.replace('__', '.')}={value}" for key, value in BY_PLACE.items()),
        "train.updates_per_iteration=2",
        "evaluate.num_generations=1",
        "report.trackers=[]",
    )
    (folder / "place.py").write_text(PLACE)
    run = Run(folder, settings)
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(folder)
        run.start()
        run.command("rollout", *run.rollout_inputs(1), "--out", run.at(1) / "rollout")
        run.command("score-attention", *scoring(run), "--out", run.at(1) / "attention")
        run.command("weight-tokens", *run.weights_inputs(1), "--out", run.at(1) / "weights")
    return run


def scoring(run: Run) -> list[object]:
    return ["--policy", run.policy(0), "--rollouts", run.at(1) / "rollout"]


def test_init_policy_takes_it_and_says_what_it_lacks(other: Run, tmp_path: Path) -> None:
    lines = other.command("init-policy", "--out", tmp_path / "policy").stderr.splitlines()
    assert lines[1] == (
        "init-policy: completions of this family do not share their prompt; one row for each (docs/models.md)"
    )


def test_rollout_says_that_it_is_slower(other: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(other.folder)
    said = other.command("rollout", *other.rollout_inputs(1), "--out", tmp_path / "rollout").stderr.splitlines()
    line = "rollout: this model cannot share a prompt among its completions; generating prompt by prompt"
    assert said.count(line) == 1


def test_its_tokens_are_weighed_by_their_attention(other: Run) -> None:
    """Weights of the VGR that was measured, and heat maps on its square of image tokens."""
    attention = table(other.at(1) / "attention", "attention")
    scored = attention[attention.status == "ok"]
    assert len(scored) and set(attention.status) <= {"ok", "not_kept"}
    weights = table(other.at(1) / "weights", "weights")
    assert any(len(set(row)) > 1 for row in weights.token_weights)
    row = scored[scored.patch_attention_all.notna()].iloc[0]
    looks = np.stack(row.patch_attention_all).astype(float)
    assert looks.shape == (len(row.vgr), 16)
    assert np.allclose(looks.sum(1), row.mass_vision, atol=1e-3)
    hit = find(RunFolder(other.folder), row.completion_id)
    look = hit.look()
    assert look is not None and [part.shape[:2] for part in look.shades] == [(4, 4)]


def test_without_attention_every_token_weighs_one(other: Run, tmp_path: Path) -> None:
    off = tmp_path / "attention"
    other.command("score-attention", *scoring(other), "--out", off, "--set", OFF)
    assert set(table(off, "attention").status) == {"off"}
    inputs = ["--rollouts", other.at(1) / "rollout", "--attention", off, "--iteration", 1]
    other.command("weight-tokens", *inputs, "--out", tmp_path / "weights")
    weights = table(tmp_path / "weights", "weights")
    assert weights.in_loss.any()
    assert {value for row in weights.token_weights for value in row} == {1.0}


def test_it_is_trained_in_rows_of_its_own(
    other: Run, checkpoints: Callable[[str], Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    result = other.command("train-step", *other.train_inputs(1), "--out", tmp_path / "train")
    line = "train-step: this model cannot share a prompt among its completions; one row for each, which is slower"
    assert result.stderr.splitlines().count(line) == 1
    found = metrics(tmp_path / "train")
    assert found.ratio_max[0] == pytest.approx(1, abs=1e-6)
    assert found.engine_diff_max[0] < 1e-4  # what was sampled from against what is trained
    before, after = (load_file(path / "model.safetensors") for path in (checkpoints(OTHER), tmp_path / "train/policy"))
    assert before.keys() == after.keys() and any(not before[name].equal(after[name]) for name in before)
    policy = tmp_path / "train/policy"
    monkeypatch.chdir(other.folder)
    other.command("evaluate", "--policy", policy, "--data", other.folder / "data", "--out", tmp_path / "eval")


def test_its_vision_tower_can_be_frozen_and_adapters_trained(other: Run, tmp_path: Path) -> None:
    other.command(
        "train-step", *other.train_inputs(1), "--out", tmp_path / "train", train__freeze_vision="true",
        train__lora="{rank: 4, target_modules: [q_proj, v_proj]}",
    )  # fmt: skip
    assert (tmp_path / "train/policy/adapter_model.safetensors").exists()
