"""score-attention: rows fit the rollouts, and its aggregates are those of the masses it writes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from support.pipeline import Run, table

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import Row
from dapo_stages.stages.score_attention import Scoring

MASSES = ["mass_vision", "mass_text", "mass_other", "mass_first", "mass_generated"]


def test_every_completion_has_a_row_and_kept_ones_are_scored(small_run: Run) -> None:
    rollout, attention = small_run.at(1) / "rollout", table(small_run.at(1) / "attention", "attention")
    completions = table(rollout, "completions")
    assert list(attention.completion_id) == list(completions.completion_id)
    kept = table(rollout, "prompts").set_index("group_id").kept
    scored = completions.group_id.map(kept).to_numpy()
    assert (attention.status[scored] == "ok").all() and (attention.status[~scored] == "not_kept").all()


def test_masses_are_as_long_as_the_completion_and_sum_to_one(small_run: Run) -> None:
    attention = table(small_run.at(1) / "attention", "attention")
    lengths = table(small_run.at(1) / "rollout", "completions").completion_ids.map(len)
    for length, row in zip(lengths, attention.itertuples(), strict=True):
        if row.status == "ok":
            masses = np.stack([getattr(row, name) for name in MASSES])
            assert masses.shape == (5, length)
            assert np.allclose(masses.sum(0), 1, atol=1e-5)


def test_vision_tokens_are_counted_from_the_grid(small_run: Run) -> None:
    attention = table(small_run.at(1) / "attention", "attention")
    prompts = table(small_run.at(1) / "rollout", "prompts")
    (grid,) = {tuple(grid[0]) for grid in prompts.image_grid_thw}
    scored = attention[attention.status == "ok"]
    assert set(scored.num_vision_tokens) == {int(np.prod(grid)) // 4}  # 2 × 2 patches make one token


def test_batching_changes_nothing(small_run: Run, tmp_path: Path) -> None:
    small_run.command(
        "score-attention", "--policy", small_run.policy(0), "--rollouts", small_run.at(1) / "rollout",
        "--out", tmp_path / "a", attention__batch_completions=4, attention__chunk_rows=7, attention__groups="all",
    )  # fmt: skip
    alone = table(tmp_path / "a", "attention").set_index("completion_id")
    assert (alone.status == "ok").all()
    together = table(small_run.at(1) / "attention", "attention").set_index("completion_id")
    for key in together.index[together.status == "ok"]:
        assert np.allclose(alone.vgr[key], together.vgr[key], rtol=1e-3)
        assert np.allclose(alone.mass_vision[key], together.mass_vision[key], atol=1e-5)


def test_batches_are_filled_with_what_is_scored(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Groups that are not kept cost nothing; the rows stay in the order of the completions."""
    rollouts, score, sizes = tmp_path / "r", Scoring._score, []
    five = {"rollout__prompts_per_iteration": 5, "rollout__oversample": 1.6}  # out of shards of 4: one is kept in part
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", rollouts, **five)

    def counted(self: Scoring, batch: list[Row], *more: Any) -> dict[str, Row]:
        sizes.append(len(batch))
        return score(self, batch, *more)

    monkeypatch.setattr(Scoring, "_score", counted)
    small_run.command(
        "score-attention", "--policy", small_run.policy(0), "--rollouts", rollouts, "--out", tmp_path / "a",
        attention__batch_completions=8,
    )  # fmt: skip
    shards, prompts = Source(rollouts).shards("prompts"), table(rollouts, "prompts")
    kept = np.split(prompts.kept.to_numpy(), np.cumsum([shard.rows for shard in shards])[:-1])
    assert any(0 < part.sum() < len(part) for part in kept)
    assert len(sizes) == sum(-(-part.sum() // 2) for part in kept)  # groups of 4
    made, sampled = table(tmp_path / "a", "attention"), table(rollouts, "completions")
    assert list(made.completion_id) == list(sampled.completion_id)
    assert list(made.status == "ok") == list(sampled.group_id.map(prompts.set_index("group_id").kept))


def test_images_get_attention_per_image_token(small_run: Run) -> None:
    attention = table(small_run.at(1) / "attention", "attention")
    with_patches = attention[attention.patch_attention_all.notna()]
    assert 0 < len(with_patches) <= 8 * 4
    row = with_patches.iloc[0]
    looks = np.stack(row.patch_attention_all).astype(float)
    assert looks.shape == (len(row.vgr), row.num_vision_tokens)
    assert np.allclose(looks.sum(1), row.mass_vision, atol=2e-3)  # float16


SCORES = ["logprobs", "entropy", "blank_logprobs", "visual_kl"]


def scored_again(run: Run, out: Path, *args: object, **settings: Any) -> Path:
    run.command(
        "score-attention", "--policy", run.policy(0), "--rollouts", run.at(1) / "rollout", "--out", out, *args,
        **settings,
    )  # fmt: skip
    return out


def test_logprobs_are_those_the_engine_sampled_with(small_run: Run, tmp_path: Path) -> None:
    """Of the same policy, at the rollout's temperature of 1.2; the rest of the row does not change."""
    folder = scored_again(small_run, tmp_path / "a", "--blank-image", attention__batch_completions=8)
    attention = table(folder, "attention").set_index("completion_id")
    before = table(small_run.at(1) / "attention", "attention").set_index("completion_id")
    sampled = table(small_run.at(1) / "rollout", "completions").set_index("completion_id").sampling_logprobs
    assert before[SCORES].isna().all(axis=None)
    assert list(attention.status) == list(before.status)
    assert attention[attention.status != "ok"][SCORES].isna().all(axis=None)
    for row in attention[attention.status == "ok"].itertuples():
        assert np.allclose(row.logprobs, sampled[row.Index], atol=1e-4)
        assert {len(getattr(row, name)) for name in SCORES} == {len(row.vgr)}
        assert (row.entropy >= 0).all() and (row.visual_kl >= 0).all()
        assert np.allclose(row.vgr, before.vgr[row.Index], rtol=1e-3)
    changed = np.concatenate((attention.logprobs - attention.blank_logprobs).dropna().to_list())
    assert np.abs(changed).max() > 1e-3


def test_logprobs_alone_need_no_blanked_image(small_run: Run, tmp_path: Path) -> None:
    folder = scored_again(small_run, tmp_path / "a", attention__logprobs="true")
    attention = table(folder, "attention")
    scored = attention[attention.status == "ok"]
    assert scored[["logprobs", "entropy"]].notna().all(axis=None)
    assert scored[["blank_logprobs", "visual_kl"]].isna().all(axis=None)


def test_further_columns_are_there_if_asked_for_and_do_not_depend_on_batches(small_run: Run, tmp_path: Path) -> None:
    further = ["vision_cosine", "rollout_mass", "vision_gradient"]
    asked = {f"attention__{name}": "true" for name in further}
    first = table(scored_again(small_run, tmp_path / "64", **asked), "attention")
    del asked["attention__vision_gradient"]  # it takes long; tests/models/test_vision_gradient.py has several groups
    second = table(scored_again(small_run, tmp_path / "4", **asked, attention__batch_completions=4), "attention")
    assert not {*further, "jsd"} & set(table(small_run.at(1) / "attention", "attention"))
    assert first[first.status != "ok"][further].isna().all(axis=None)
    for one, other in zip(
        first[first.status == "ok"].itertuples(), second[second.status == "ok"].itertuples(), strict=True
    ):
        assert {len(getattr(one, name)) for name in further} == {len(one.vgr)}
        for name in further[:2]:
            assert np.allclose(getattr(one, name), getattr(other, name), rtol=1e-3, atol=1e-5), name
        assert (one.rollout_mass > 0).all() and (one.rollout_mass < 1).all() and (one.vision_gradient > 0).all()
        assert (np.abs(one.vision_cosine) <= 1 + 1e-6).all()


def test_the_temperature_counts_only_where_it_is_used(small_run: Run, tmp_path: Path) -> None:
    key = "rollout.sampler.temperature"
    assert key not in Source(small_run.at(1) / "attention").manifest.config
    made = Source(scored_again(small_run, tmp_path / "a", "--blank-image")).manifest.config
    assert made[key] == 1.2 and made["attention"]["blank_image"]
