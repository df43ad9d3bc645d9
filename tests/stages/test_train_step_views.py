"""train-step with a perception term: its views, its metrics, what is refused; and nothing of it by default."""

from __future__ import annotations

import json
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path

import numpy as np
import pytest
from support.families import OTHER
from support.pipeline import Run, metrics, table
from support.updates import TINY

from dapo_stages.config import PerceptionSettings
from dapo_stages.errors import ModelError
from dapo_stages.handoff.manifests import Source
from dapo_stages.models.policy_loading import load_policy
from dapo_stages.training.views import changes_of


def test_the_views_are_those_that_score_attention_scores(small_run: Run, tmp_path: Path) -> None:
    """The same seed, group and setting: the same blackened squares. k3 of the first update, before which the policy has
    not moved, is that of the attention files over the completions in the loss."""
    first = small_run.at(1)
    blank = {"attention__blank_image": "true", "attention__blank": "patches", "attention__blank_share": 0.5}
    inputs = ["--policy", small_run.policy(0), "--rollouts", first / "rollout"]
    small_run.command("score-attention", *inputs, "--out", tmp_path / "attention", **blank)
    settings = {"train__perception": "{blank_share: 0.5}", "train__updates_per_iteration": 1}
    small_run.command("train-step", *small_run.train_inputs(1), "--out", tmp_path / "train", **settings)
    scored = table(tmp_path / "attention", "attention").set_index("completion_id")
    weights = table(first / "weights", "weights")
    counted = scored.loc[weights[weights.in_loss].completion_id]
    found = metrics(tmp_path / "train")
    k3, entropy = (np.concatenate(counted[name].to_list()) for name in ("k3", "blank_entropy"))
    assert found.perception_kl[0] == pytest.approx(k3.mean(), rel=1e-3)
    assert found.perception_entropy[0] == pytest.approx(entropy.mean(), rel=1e-3)
    assert found.seen_tokens[0] == len(k3) == found.tokens[0]
    assert {*found} - {*metrics(first / "train")} == {
        "perception_kl", "perception_entropy", "perception_clamped", "seen_tokens",
    }  # fmt: skip


def test_an_adapter_trains_with_dvrps_views_in_bfloat16(small_run: Run, tmp_path: Path) -> None:
    perception = "{term: dvrp, blank: exchanged, recompute: true, entropy_coefficient: 0.05}"
    settings = {"train__perception": perception, "train__lora": "{rank: 2}", "model__dtype": "bfloat16"}
    settings["train__updates_per_iteration"] = "1"
    small_run.command("train-step", *small_run.train_inputs(1), "--out", tmp_path / "train", **settings)
    found = metrics(tmp_path / "train")
    names = ["perception_kl", "robustness_kl", "perception_entropy", "robustness_entropy", "loss"]
    assert np.isfinite(found[names]).all(axis=None) and (found.skipped == 0).all()


def test_images_may_be_taken_out_of_the_prompts(small_run: Run, tmp_path: Path) -> None:
    settings = {"train__perception": "{blank: removed, recompute: true}", "train__updates_per_iteration": 1}
    small_run.command("train-step", *small_run.train_inputs(1), "--out", tmp_path / "train", **settings)
    assert metrics(tmp_path / "train").perception_kl[0] > 0


def test_without_the_section_nothing_of_it_is_recorded(small_run: Run, tmp_path: Path) -> None:
    args = [*small_run.train_inputs(1), "--out", tmp_path / "t", "--dry-run", "--json"]
    assert "perception" not in json.loads(small_run.command("train-step", *args).stdout)["config"]["train"]
    settings = {"train__perception": "{}", "schedules.train.perception.coefficient": "{start: 0.01, end: 0.03}"}
    found = json.loads(small_run.command("train-step", *args, **settings).stdout)["config"]["train"]["perception"]
    assert found["blank"] == "patches" and found["coefficient"] == 0.01


def test_a_penalty_without_a_gradient_is_refused(small_run: Run, tmp_path: Path) -> None:
    settings = {"train__perception": "{term: dvrp, entropy_coefficient: 0.05}"}
    result = small_run.attempt("train-step", *small_run.train_inputs(1), "--out", tmp_path / "t", **settings)
    assert result.code == 3
    assert "train.perception: entropy_coefficient needs recompute: true with term dvrp" in result.stderr


def test_images_stay_in_the_prompts_of_a_model_that_makes_them_itself(
    checkpoints: Callable[[str], Path], small_run: Run
) -> None:
    policy, rollouts = load_policy(checkpoints(OTHER), TINY), Source(small_run.at(1) / "rollout", "rollout")
    with ExitStack() as stack:
        with pytest.raises(ModelError, match="images cannot be removed from the prompts of this model"):
            changes_of(PerceptionSettings(blank="removed"), 42, rollouts, policy, stack)
        assert len(changes_of(PerceptionSettings(term="dvrp"), 42, rollouts, policy, stack)) == 2
        assert changes_of(None, 42, rollouts, policy, stack) == ()
