"""rollout: groups, rewards, dynamic sampling, and carrying on after an interruption."""

from __future__ import annotations

import os
import re
import signal
from pathlib import Path

import pytest
from support.pipeline import Run, metrics, table

from dapo_stages.engines import transformers_engine
from dapo_stages.manifests import Source

WELL_FORMED = r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>\s*([A-D])\s*</answer>\s*"


def test_every_group_has_its_completions_and_ids_are_kept(small_run: Run) -> None:
    folder = small_run.at(1) / "rollout"
    prompts, completions = table(folder, "prompts"), table(folder, "completions")
    assert completions.completion_id.is_unique and prompts.group_id.is_unique
    assert (completions.groupby("group_id").size() == 4).all()
    assert set(completions.group_id) == set(prompts.group_id)
    lengths = completions.completion_ids.map(len)
    assert (lengths == completions.sampling_logprobs.map(len)).all()
    assert (lengths == completions.token_texts.map(len)).all()
    assert lengths.max() <= 32
    assert (completions.sampling_logprobs.map(max) <= 0).all()


def test_rewards_are_what_the_texts_say(small_run: Run) -> None:
    """Read again by a regular expression of our own; all solutions of the embedded task are letters."""
    folder = small_run.at(1) / "rollout"
    prompts = table(folder, "prompts").set_index("group_id")
    for row in table(folder, "completions").itertuples():
        whole = re.fullmatch(
            r"\s*<think>(?:(?!</?think>|</?answer>).)*</think>\s*<answer>\s*([A-D])\s*</answer>\s*", row.text, re.S
        )
        if whole:
            assert row.reward_format == 1
            assert row.reward_accuracy == float(whole[1] == prompts.solution[row.group_id])


def test_the_end_token_is_kept_and_truncation_is_named(small_run: Run) -> None:
    completions = table(small_run.at(1) / "rollout", "completions")
    ended = completions.token_texts.map(lambda texts: texts[-1] == "<|im_end|>")
    assert (ended == (completions.finish_reason == "stop")).all()
    assert (completions.completion_ids[~ended].map(len) == 32).all()


def test_kept_groups_are_the_informative_ones_and_curves_see_all(small_run: Run) -> None:
    folder = small_run.at(1) / "rollout"
    prompts = table(folder, "prompts")
    correct = table(folder, "completions").groupby("group_id").reward_accuracy.sum()
    assert (prompts.num_correct == prompts.group_id.map(correct)).all()
    informative = prompts.num_correct.between(1, 3)
    assert not (prompts.kept & ~informative).any()
    assert prompts.kept.sum() <= 8
    if prompts.kept.sum() < 8:
        assert prompts["round"].max() == 3 and (prompts.kept == informative).all()
    counts = Source(folder).manifest.counts
    assert counts["groups"] == len(prompts) and counts["kept"] == prompts.kept.sum()
    assert counts["accuracy"] == pytest.approx(table(folder, "completions").reward_accuracy.mean())


def test_without_dynamic_sampling_one_round_is_kept_whole(small_run: Run, tmp_path: Path) -> None:
    small_run.command(
        "rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r", rollout__dynamic_sampling="false"
    )
    prompts = table(tmp_path / "r", "prompts")
    assert len(prompts) == 8 and prompts.kept.all() and (prompts["round"] == 0).all()


def test_completions_stay_with_their_prompts(small_run: Run) -> None:
    """Batches are ordered by length; read again by the trainer, each completion's log-probs fit its own prompt only."""
    found = metrics(small_run.at(1) / "train")
    lengths = table(small_run.at(1) / "rollout", "prompts").prompt_ids.map(len)
    assert lengths.nunique() > 1
    assert found.engine_diff_max.max() < 1e-4


def test_the_same_command_gives_the_same_hash_and_another_seed_another(small_run: Run, tmp_path: Path) -> None:
    for name, seed in (("again", 42), ("other", 43)):
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / name, seed=seed)
    found = {name: Source(tmp_path / name).manifest.content_hash for name in ("again", "other")}
    assert found["again"] == Source(small_run.at(1) / "rollout").manifest.content_hash
    assert found["other"] != found["again"]


def test_an_interrupted_rollout_goes_on_where_it_stopped(
    small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    generate, calls = transformers_engine.generate, []

    def second_time_unlucky(*args: object, **kwargs: object) -> object:
        calls.append(1)
        if len(calls) == 2:
            os.kill(os.getpid(), signal.SIGINT)
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    monkeypatch.setattr(transformers_engine, "generate", second_time_unlucky)
    result = small_run.attempt("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    assert result.code == 130 and "carry on" in result.stderr
    assert (tmp_path / "r/completions-00000.parquet").exists() and not (tmp_path / "r/manifest.json").exists()
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", tmp_path / "r")
    batches = len(Source(small_run.at(1) / "rollout").shards("prompts"))
    assert len(calls) == batches + 1
    assert Source(tmp_path / "r").manifest.content_hash == Source(small_run.at(1) / "rollout").manifest.content_hash


def test_a_plugin_reward_becomes_a_column(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text("def brevity(completions, rows):\n    return [-len(text) for text in completions]\n")
    plugin = "{brevity: mine.py:brevity}"
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", "r", rewards__plugins=plugin)
    completions = table(tmp_path / "r", "completions")
    assert (completions.reward_brevity == -completions.text.map(len)).all()
    small_run.command("score-attention", "--policy", small_run.policy(0), "--rollouts", "r", "--out", "a")
    small_run.command(
        "weight-tokens", "--rollouts", "r", "--attention", "a", "--iteration", 1, "--out", "w",
        rewards__plugins=plugin,
        weights__reward_weights="{accuracy: 1, format: 0, vgr: 0, overlong: 0, plugins: {brevity: 0.5}}",
    )  # fmt: skip
    weights = table(tmp_path / "w", "weights")
    assert (weights.reward - (weights.reward_accuracy + 0.5 * weights.reward_brevity)).abs().max() < 1e-5
