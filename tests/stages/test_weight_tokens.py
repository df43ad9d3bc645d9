"""weight-tokens on saved rollouts: rewards, advantages, weights, masking, replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reporting import tiny_run
from support.commands import run as command
from support.pipeline import Run, table

from dapo_stages.manifests import Source
from dapo_stages.maths.schemes import SCHEMES
from dapo_stages.outputs import Plan
from dapo_stages.schemas import TOKEN_SCORES


def again(run: Run, out: Path, number: int = 1, *args: object, **settings: object) -> Path:
    run.command("weight-tokens", *run.weights_inputs(number), *args, "--out", out, **settings)
    return out


def test_rewards_and_advantages_are_those_of_the_formula(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights")
    total = weights.reward_accuracy + 0.5 * weights.reward_format
    assert (weights.reward - total).abs().max() < 1e-6
    for _, group in weights.groupby("group_id"):
        want = (group.reward - group.reward.mean()) / (group.reward.std(ddof=1) + 1e-4)
        assert np.allclose(group.advantage, want, atol=1e-5)


def test_token_weights_keep_their_mean_and_their_bounds(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights")
    for values in weights.token_weights:
        assert np.mean(values) == pytest.approx(1, abs=1e-5)
        assert min(values) >= 0.2 - 1e-6 and max(values) <= 3 + 1e-6
    lengths = table(small_run.at(1) / "rollout", "completions").set_index("completion_id").completion_ids.map(len)
    assert (weights.token_weights.map(len).to_numpy() == lengths[weights.completion_id].to_numpy()).all()


def test_tokens_that_looked_at_the_picture_weigh_more(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights").set_index("completion_id")
    attention = table(small_run.at(1) / "attention", "attention").set_index("completion_id")
    for key in weights.index:
        order = np.argsort(attention.vgr[key])
        assert (np.diff(weights.token_weights[key][order]) <= 1e-6).all()


def test_truncated_completions_are_masked_but_count_in_their_group(small_run: Run, tmp_path: Path) -> None:
    completions = table(small_run.at(1) / "rollout", "completions").set_index("completion_id")
    weights = table(small_run.at(1) / "weights", "weights")
    cut = (completions.finish_reason[weights.completion_id] == "length").to_numpy()
    assert not weights.in_loss[cut].any() and (weights.why[cut] == "truncated").all()
    open_ = table(again(small_run, tmp_path / "w", weights__mask_truncated_completions="false"), "weights")
    assert open_.in_loss.all()
    assert np.allclose(open_.advantage, weights.advantage)


def test_other_options_on_the_same_rollouts(small_run: Run, tmp_path: Path) -> None:
    smooth = table(again(small_run, tmp_path / "s", weights__smooth_sigma=1.0), "weights")
    uniform = table(again(small_run, tmp_path / "u", weights__scheme="uniform"), "weights")
    assert all((values == 1).all() for values in uniform.token_weights)
    before = table(small_run.at(1) / "weights", "weights")
    rough = [np.abs(np.diff(v)).mean() for v in before.token_weights if len(v) > 4]
    less = [np.abs(np.diff(v)).mean() for v in smooth.token_weights if len(v) > 4]
    assert np.mean(less) < np.mean(rough)


def test_early_and_regular_weights(small_run: Run, tmp_path: Path) -> None:
    early = table(
        again(
            small_run, tmp_path / "e", weights__early_fraction=0.5,
            weights__early_reward_weights="{accuracy: 0, vgr: 0, format: 2, overlong: 0}",
        ),
        "weights",
    )  # fmt: skip
    assert (early.reward_phase == "early").all()
    assert (early.reward - 2 * early.reward_format).abs().max() < 1e-6


def test_scoring_switched_off_goes_on_unweighted_and_says_so(small_run: Run, tmp_path: Path) -> None:
    off = {"attention__enabled": "false"}
    small_run.command(
        "score-attention", "--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout",
        "--out", tmp_path / "a", **off,
    )  # fmt: skip
    assert set(table(tmp_path / "a", "attention").status) == {"off"}
    small_run.command(
        "weight-tokens", "--rollouts", small_run.at(1) / "rollout", "--attention", tmp_path / "a",
        "--iteration", 1, "--out", tmp_path / "w", weights__mask_truncated_completions="false", **off,
    )  # fmt: skip
    weights = table(tmp_path / "w", "weights")
    assert all((values == 1).all() for values in weights.token_weights)
    assert (weights.why == "no attention: every token weighs 1").all() and weights.in_loss.all()
    assert (weights.reward_vgr == 0).all()  # neutral under the mad mapping


def test_the_buffer_holds_whole_groups_with_their_pictures(small_run: Run) -> None:
    folder = small_run.at(1) / "weights"
    prompts = table(small_run.at(1) / "rollout", "prompts").set_index("group_id")
    buffer, members = table(folder, "buffer"), table(folder, "buffer-completions")
    assert len(buffer) == min(8, prompts.kept.sum())
    assert (members.groupby("group_id").size() == 4).all()
    for row in buffer.itertuples():
        assert row.images[0]["bytes"] == prompts.images[row.group_id][0]["bytes"]
        assert list(row.prompt_ids) == list(prompts.prompt_ids[row.group_id])
    rewards = table(folder, "weights").groupby("group_id")
    for row in buffer.itertuples():
        group = rewards.get_group(row.group_id)
        assert row.score == pytest.approx(group.advantage.abs().sum() * group.reward.std(ddof=1), rel=1e-4)


def test_groups_without_signal_are_replaced_by_whole_stored_ones(small_run: Run, tmp_path: Path) -> None:
    """A threshold that no group of iteration 2 passes: all are replaced, as far as the buffer goes."""
    folder = again(
        small_run, tmp_path / "w", 2, "--replay", small_run.at(1) / "weights", weights__replay__min_reward=99
    )
    weights = table(folder, "weights")
    stored = table(small_run.at(1) / "weights", "buffer").set_index("group_id")
    kept = int(table(small_run.at(2) / "rollout", "prompts").kept.sum())
    replayed = weights[weights.source == "replay"]
    assert replayed.group_id.nunique() == min(kept, len(stored))
    assert (replayed.source_iteration == 1).all()
    assert (weights.why == "replaced by a group from the buffer").sum() == 4 * replayed.group_id.nunique()
    prompts = table(folder, "replayed-prompts").set_index("group_id")
    completions = table(folder, "replayed-completions").set_index("completion_id")
    original = table(small_run.at(1) / "rollout", "completions").set_index("completion_id")
    for row in replayed.itertuples():
        assert list(completions.completion_ids[row.completion_id]) == list(original.completion_ids[row.completion_id])
        assert list(completions.sampling_logprobs[row.completion_id]) == list(
            original.sampling_logprobs[row.completion_id]
        )
        assert prompts.images[row.group_id][0]["bytes"] == stored.images[row.group_id][0]["bytes"]
    assert len(table(folder, "buffer")) == len(stored)  # nothing new entered


def test_replay_draws_the_same_groups_when_done_again(small_run: Run, tmp_path: Path) -> None:
    args = (2, "--replay", small_run.at(1) / "weights")
    one, two = (again(small_run, tmp_path / name, *args, weights__replay__min_reward=99) for name in "ab")
    assert Source(one).manifest.content_hash == Source(two).manifest.content_hash


def test_the_order_of_options_changes_nothing(small_run: Run, tmp_path: Path) -> None:
    """Redone in place, with --overwrite from another state, and with the options the other way round."""
    settings = {"weights__replay__min_reward": 99, "weights__replay__priority_beta": 1.0}
    folder = again(small_run, tmp_path / "w", 2, "--replay", small_run.at(1) / "weights", **settings)
    found = Source(folder).manifest.content_hash
    again(small_run, folder, 2, "--overwrite", weights__smooth_sigma=1.0)
    assert Source(folder).manifest.content_hash != found
    rollouts, attention, iteration = (small_run.weights_inputs(2)[i : i + 2] for i in (0, 2, 4))
    args = ["--replay", small_run.at(1) / "weights", *iteration, *attention, *rollouts]
    small_run.command("weight-tokens", *args, "--out", folder, "--overwrite", **settings)
    assert Source(folder).manifest.content_hash == found


def test_importance_takes_back_the_preference_of_the_draw(small_run: Run, tmp_path: Path) -> None:
    """Two of the stored groups are drawn: one of them has importance 1, the other less, and all are 1 without beta."""
    kept = int(table(small_run.at(2) / "rollout", "prompts").kept.sum())
    scores = table(small_run.at(1) / "weights", "buffer").set_index("group_id").score
    assert kept > 2 and len(scores) > 2
    # A mean reward that all but two groups of iteration 2 pass.
    means = table(again(small_run, tmp_path / "plain", 2), "weights").groupby("group_id").reward.mean()
    least = float(means.sort_values().iloc[1])
    short = 2 + 8 - kept + int((means.sort_values().iloc[2:] <= least).sum())
    found = {}
    for beta in (0.0, 1.0):
        settings = {"weights__replay__min_reward": least, "weights__replay__priority_beta": beta}
        folder = again(small_run, tmp_path / f"{beta}", 2, "--replay", small_run.at(1) / "weights", **settings)
        weights = table(folder, "weights")
        assert weights.importance[weights.source == "fresh"].isna().all()
        replayed = weights[weights.source == "replay"]
        assert (replayed.groupby("group_id").importance.nunique() == 1).all()
        found[beta] = replayed.groupby("group_id").importance.first()
        assert len(found[beta]) == min(short, len(scores))
    assert (found[0.0] == 1).all() and list(found[0.0].index) == list(found[1.0].index)
    order = scores[found[1.0].index].sort_values()
    assert found[1.0].max() == 1 and found[1.0].min() < 1
    assert found[1.0][order.index].is_monotonic_decreasing  # the likelier it was, the less it counts


def unfiltered(run: Run, folder: Path, **settings: object) -> list[object]:
    """Rollouts without dynamic sampling, 16 groups of iteration 2, scored: what weight-tokens is told of them."""
    settings |= {"rollout__dynamic_sampling": "false", "rollout__oversample": 2.0}
    rollouts, attention = folder / "r", folder / "a"
    run.command("rollout", *run.rollout_inputs(2), "--out", rollouts, **settings)
    run.command("score-attention", "--policy", run.policy(0), "--rollouts", rollouts, "--out", attention, **settings)
    return ["--rollouts", rollouts, "--attention", attention, "--iteration", 2]


def test_groups_whose_rewards_are_equal_are_left_out_or_not(small_run: Run, tmp_path: Path) -> None:
    inputs = unfiltered(small_run, tmp_path, rollout__surplus="keep")
    open_ = {"weights__mask_truncated_completions": "false", "weights__replay__size": 0}
    small_run.command("weight-tokens", *inputs, "--out", tmp_path / "f", **open_)
    filtered = table(tmp_path / "f", "weights")
    equal = filtered.groupby("group_id").reward.transform("nunique") == 1
    assert equal.any() and not equal.all()
    assert (filtered.in_loss == ~equal).all()
    assert (filtered.why[equal] == "all completions of the group have the same reward").all()
    small_run.command("weight-tokens", *inputs, "--out", tmp_path / "n", **open_, weights__filter="none")
    whole = table(tmp_path / "n", "weights")
    assert whole.in_loss.all() and (whole.advantage[equal] == 0).all() and (whole.advantage == filtered.advantage).all()


@pytest.mark.parametrize("surplus", ["keep", "discard"])
def test_a_filter_on_total_reward_takes_as_many_groups_as_were_asked_for(
    surplus: str, small_run: Run, tmp_path: Path
) -> None:
    """Oversampled without dynamic sampling: 16 groups for 8; iteration 1's buffer fills in where there are fewer."""
    inputs = unfiltered(small_run, tmp_path, rollout__surplus=surplus)
    settings = {"weights__mask_truncated_completions": "false", "weights__replay__min_reward": -99}
    replay = ["--replay", small_run.at(1) / "weights"]
    small_run.command("weight-tokens", *inputs, *replay, "--out", tmp_path / "w", **settings)
    weights = table(tmp_path / "w", "weights")
    fresh = weights[weights.source == "fresh"]
    assert fresh.group_id.nunique() == 16
    groups = fresh.groupby("group_id", sort=False)
    varied = list(groups.reward.nunique().index[groups.reward.nunique() > 1])
    in_loss = list(groups.in_loss.all().index[groups.in_loss.all()])
    assert in_loss == (varied if surplus == "keep" else varied[:8])
    assert weights[weights.source == "replay"].group_id.nunique() == max(0, 8 - len(varied))
    beyond = fresh[fresh.group_id.isin(varied[8:] if surplus == "discard" else [])]
    assert (beyond.why == "more groups than asked for").all() and (beyond.advantage == 0).all()


def test_a_scheduled_reward_weight_is_that_of_the_iteration(small_run: Run, tmp_path: Path) -> None:
    schedule = {"schedules__weights__reward_weights__accuracy": "{start: 1.0, end: 5.0}"}  # planned_iterations: 2
    folder = again(small_run, tmp_path / "w", 2, **schedule)
    weights = table(folder, "weights")
    assert (weights.reward - (3 * weights.reward_accuracy + 0.5 * weights.reward_format)).abs().max() < 1e-6
    assert Source(folder).manifest.config["weights"]["reward_weights"]["accuracy"] == 3
    plain = Source(again(small_run, tmp_path / "one", 1, **schedule)).manifest.content_hash
    assert plain == Source(small_run.at(1) / "weights").manifest.content_hash  # it starts where the constant is


def test_a_buffer_of_the_same_iteration_brings_nothing_in_twice(small_run: Run, tmp_path: Path) -> None:
    folder = again(
        small_run, tmp_path / "w", 1, "--replay", small_run.at(1) / "weights", weights__replay__min_reward=99
    )
    weights = table(folder, "weights")
    assert (weights.source == "fresh").all() and weights.completion_id.is_unique


def test_attention_of_other_rollouts_is_refused(small_run: Run, tmp_path: Path) -> None:
    result = small_run.attempt(
        "weight-tokens", "--rollouts", small_run.at(2) / "rollout", "--attention", small_run.at(1) / "attention",
        "--iteration", 2, "--out", tmp_path / "w",
    )  # fmt: skip
    assert result.code == 3
    assert "made from other rollouts" in result.stderr and "Run score-attention on" in result.stderr
    assert not (tmp_path / "w").exists()


@pytest.mark.parametrize("scheme", SCHEMES)
def test_without_a_picture_every_token_weighs_one_and_it_is_said(tmp_path: Path, scheme: str) -> None:
    run = tiny_run.build(tmp_path / "run", last="attention")
    rollout, scored = (Source(run / "iter-0001" / name) for name in ("rollout", "attention"))
    blind = {"status": "no_image", "num_vision_tokens": 0}
    rows = [
        {**row, **blind, **{name: [0.5] * len(row["vgr"]) for name in TOKEN_SCORES}} for row in scored.rows("attention")
    ]
    attention = tmp_path / "attention"
    plan = Plan("score-attention", attention, {}, 1, {"rollouts": rollout})
    tiny_run.publish(plan, lambda output: output.write("attention", 0, rows))
    result = command(
        "weight-tokens", "--config", run / "config.yaml", "--set", f"weights.scheme={scheme}", "--rollouts",
        rollout.folder, "--attention", attention, "--iteration", 1, "--out", tmp_path / "w",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    weights = table(tmp_path / "w", "weights")
    assert all((values == 1).all() for values in weights.token_weights)
    assert (weights.why[weights.in_loss] == "no picture: every token weighs 1").all() and weights.in_loss.any()
