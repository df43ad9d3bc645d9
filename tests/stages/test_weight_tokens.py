"""weight-tokens on saved rollouts: rewards, advantages, weights, masking, replay."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from reporting import tiny_run
from support import groups
from support.commands import run as command
from support.pipeline import Run, table

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import TOKEN_SCORES
from dapo_stages.maths.schemes import SCHEMES

LOW = {"weights__replay__min_reward": 0.1}  # of rewards 0 and 1: every group that varies enters


def again(run: Run, out: Path, number: int = 1, /, *args: object, **settings: object) -> Path:
    run.command("weight-tokens", *run.weights_inputs(number), *args, "--out", out, **settings)
    return out


def test_rewards_and_advantages_are_those_of_the_formula(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights")
    total = weights.reward_accuracy + 0.5 * weights.reward_format
    assert (weights.reward - total).abs().max() < 1e-6
    for _, group in weights.groupby("group_id"):
        want = (group.reward - group.reward.mean()) / (group.reward.std(ddof=1) + 1e-4)
        assert np.allclose(group.advantage, want, atol=1e-5)


def test_other_advantages_of_fresh_and_of_stored_groups(tmp_path: Path) -> None:
    """Rewards 1, 1, 0, 0 and 1, 0, 0, 0: the others' mean is 1/3 or 2/3, and 0 or 1/3."""
    options = LOW | {"weights__advantage": "rloo"}
    first = groups.weigh(tmp_path / "w1", groups.sampled(tmp_path, 1, [[1, 1, 0, 0], [1, 0, 0, 0]]), **options)
    found = table(first, "weights").advantage
    np.testing.assert_allclose(found, [2 / 3, 2 / 3, -2 / 3, -2 / 3, 1, -1 / 3, -1 / 3, -1 / 3], rtol=1e-6)
    inputs, options = groups.sampled(tmp_path, 2, [[1, 1, 1, 1]] * 2), LOW | {"weights__advantage": "opo"}
    second = groups.weigh(tmp_path / "w2", inputs, first, **options)
    weights = table(second, "weights")
    replayed = weights[weights.source == "replay"]
    assert len(replayed) == 8
    lengths = table(second, "replayed-completions").set_index("completion_id").completion_ids.map(len)
    assert lengths.nunique() > 1
    for _, group in replayed.groupby("group_id"):
        baseline = np.average(group.reward, weights=lengths[group.completion_id])
        np.testing.assert_allclose(group.advantage, group.reward - baseline, atol=1e-6)


def test_token_weights_keep_their_mean_and_their_bounds(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights")
    for values in weights.token_weights:
        assert np.mean(values) == pytest.approx(1, abs=1e-5)
        assert min(values) >= 0.2 - 1e-6 and max(values) <= 3 + 1e-6
    lengths = table(small_run.at(1) / "rollout", "completions").set_index("completion_id").completion_ids.map(len)
    assert (weights.token_weights.map(len).to_numpy() == lengths[weights.completion_id].to_numpy()).all()


def test_tokens_that_looked_at_the_image_weigh_more(small_run: Run) -> None:
    weights = table(small_run.at(1) / "weights", "weights").set_index("completion_id")
    attention = table(small_run.at(1) / "attention", "attention").set_index("completion_id")
    for key in weights.index:
        order = np.argsort(attention.vgr[key])
        assert (np.diff(weights.token_weights[key][order]) <= 1e-6).all()


def test_truncated_completions_are_masked_but_count_in_their_group(small_run: Run, tmp_path: Path) -> None:
    completions = table(small_run.at(1) / "rollout", "completions").set_index("completion_id")
    open_ = table(small_run.at(1) / "weights", "weights")
    assert open_.in_loss.all()
    masked = table(again(small_run, tmp_path / "w", weights__mask_truncated_completions="true"), "weights")
    cut = (completions.finish_reason[masked.completion_id] == "length").to_numpy()
    assert not masked.in_loss[cut].any() and (masked.why[cut] == "truncated").all()
    assert masked.in_loss[~cut].all() and np.allclose(masked.advantage, open_.advantage)


def test_other_options_on_the_same_rollouts(small_run: Run, tmp_path: Path) -> None:
    uniform = table(again(small_run, tmp_path / "u", weights__scheme="uniform"), "weights")
    assert all((values == 1).all() for values in uniform.token_weights)


def test_smoothing_brings_neighbors_together(tmp_path: Path) -> None:
    """VGR 1, 2, 1, 2, … weighs every second token twice as much; a Gaussian of deviation 1 takes nearly all of it."""
    inputs = groups.sampled(tmp_path, 1, [[1, 0, 0, 0]], vgr=(1, 2))
    for sigma, ratio in ((0.0, 2.0), (1.0, 1.0)):
        folder = groups.weigh(tmp_path / f"{sigma}", inputs, weights__scheme="vgr", weights__smooth_sigma=sigma)
        for weights in table(folder, "weights").token_weights:
            assert weights[2] / weights[3] == pytest.approx(ratio, abs=0.15)


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


def test_the_buffer_holds_whole_groups_with_their_images(small_run: Run) -> None:
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


def test_groups_without_signal_are_replaced_by_whole_stored_ones(tmp_path: Path) -> None:
    first = groups.weigh(tmp_path / "w1", groups.sampled(tmp_path, 1, [[1, 1, 0, 0], [1, 1, 1, 0]]), **LOW)
    folder = groups.weigh(tmp_path / "w2", groups.sampled(tmp_path, 2, [[1, 1, 1, 1]] * 3), first, **LOW)
    weights = table(folder, "weights")
    replayed = weights[weights.source == "replay"]
    assert set(replayed.group_id) == {"it1-p0", "it1-p1"} and len(replayed) == 8
    assert (replayed.source_iteration == 1).all()
    assert (weights.why == "replaced by a group from the buffer").sum() == 8
    prompts = table(folder, "replayed-prompts").set_index("group_id")
    completions = table(folder, "replayed-completions").set_index("completion_id")
    sampled = {kind: table(tmp_path / "iter-0001/rollout", kind) for kind in ("prompts", "completions")}
    for row in sampled["completions"].itertuples():
        assert list(completions.completion_ids[row.completion_id]) == list(row.completion_ids)
        assert list(completions.sampling_logprobs[row.completion_id]) == list(row.sampling_logprobs)
    for row in sampled["prompts"].itertuples():
        assert prompts.images[row.group_id][0]["bytes"] == row.images[0]["bytes"]
    assert len(table(folder, "buffer")) == 0  # nothing new entered, and each came back once


def test_the_order_of_options_changes_nothing(small_run: Run, tmp_path: Path) -> None:
    """Redone in place, with --overwrite from another state, and with the options the other way round."""
    settings = {"weights__replay__min_reward": 99, "weights__replay__rule": "replace_all"}
    settings["weights__replay__priority_beta"] = 1.0
    folder = again(small_run, tmp_path / "w", 2, "--replay", small_run.at(1) / "weights", **settings)
    found = Source(folder).manifest.content_hash
    again(small_run, folder, 2, "--overwrite", weights__smooth_sigma=1.0)
    assert Source(folder).manifest.content_hash != found
    rollouts, attention, iteration = (small_run.weights_inputs(2)[i : i + 2] for i in (0, 2, 4))
    args = ["--replay", small_run.at(1) / "weights", *iteration, *attention, *rollouts]
    small_run.command("weight-tokens", *args, "--out", folder, "--overwrite", **settings)
    assert Source(folder).manifest.content_hash == found


@pytest.mark.parametrize("how", ["reward", "none"])
def test_groups_whose_rewards_are_equal_are_left_out_or_not(how: str, tmp_path: Path) -> None:
    inputs = groups.sampled(tmp_path, 1, [[1, 1, 0, 0], [1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]])
    folder = groups.weigh(tmp_path / "w", inputs, weights__filter=how, weights__replay__size=0)
    weights = table(folder, "weights")
    equal = weights.group_id.isin(["it1-p1", "it1-p3"])
    assert (weights.in_loss == (~equal if how == "reward" else True)).all()
    assert (weights.advantage[equal] == 0).all() and (weights.advantage[~equal] != 0).all()
    said = "all completions of the group have the same reward"
    assert (weights.why[equal] == said).all() == (how == "reward")


@pytest.mark.parametrize(
    ("surplus", "in_loss"), [("keep", [0, 2, 4, 5]), ("discard", [0, 2, 4])], ids=["keep", "discard"]
)
def test_a_filter_on_total_reward_takes_as_many_groups_as_were_asked_for(
    surplus: str, in_loss: list[int], tmp_path: Path
) -> None:
    """Oversampled without dynamic sampling: six groups for three, four of them varied; nothing needs filling in."""
    first = groups.weigh(tmp_path / "w1", groups.sampled(tmp_path, 1, [[1, 1, 0, 0]]), **LOW)
    varied, equal = [1, 0, 0, 0], [1, 1, 1, 1]
    made = [varied, equal, varied, equal, varied, varied]
    inputs = groups.sampled(tmp_path, 2, made, prompts_per_iteration=3, surplus=surplus)
    folder = groups.weigh(tmp_path / "w2", inputs, first, **LOW)
    assert groups.trained_on(folder) == [f"it2-p{number}" for number in in_loss]
    beyond = table(folder, "weights").set_index("group_id").loc[["it2-p5"] if surplus == "discard" else []]
    assert (beyond.why == "more groups than asked for").all() and (beyond.advantage == 0).all()


def test_where_fewer_vary_than_were_asked_for_the_buffer_fills_in(tmp_path: Path) -> None:
    first = groups.weigh(tmp_path / "w1", groups.sampled(tmp_path, 1, [[1, 1, 0, 0]] * 3), **LOW)
    inputs = groups.sampled(tmp_path, 2, [[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]], prompts_per_iteration=2)
    folder = groups.weigh(tmp_path / "w2", inputs, first, **LOW)
    assert (table(folder, "weights").source == "replay").sum() == 4
    assert "it2-p1" in groups.trained_on(folder) and len(groups.trained_on(folder)) == 2


def test_a_scheduled_reward_weight_is_that_of_the_iteration(small_run: Run, tmp_path: Path) -> None:
    schedule = {"schedules__weights__reward_weights__accuracy": "{start: 1.0, end: 5.0}"}  # planned_iterations: 2
    folder = again(small_run, tmp_path / "w", 2, **schedule)
    weights = table(folder, "weights")
    assert (weights.reward - (3 * weights.reward_accuracy + 0.5 * weights.reward_format)).abs().max() < 1e-6
    assert Source(folder).manifest.config["weights"]["reward_weights"]["accuracy"] == 3
    plain = Source(again(small_run, tmp_path / "one", 1, **schedule)).manifest.content_hash
    assert plain == Source(small_run.at(1) / "weights").manifest.content_hash  # it starts where the constant is


def test_a_buffer_of_the_same_iteration_brings_nothing_in_twice(tmp_path: Path) -> None:
    first = groups.weigh(tmp_path / "w1", groups.sampled(tmp_path, 1, [[1, 1, 0, 0], [1, 1, 1, 1]]), **LOW)
    assert len(table(first, "buffer")) == 1
    inputs = groups.sampled(tmp_path / "again", 1, [[1, 1, 0, 0], [1, 1, 1, 1]])
    weights = table(groups.weigh(tmp_path / "w", inputs, first, **LOW), "weights")
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
def test_without_an_image_every_token_weighs_one_and_it_is_said(tmp_path: Path, scheme: str) -> None:
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
    assert (weights.why[weights.in_loss] == "no image: every token weighs 1").all() and weights.in_loss.any()
