"""Rewards on their way through the stages: plug-ins that fail or have no opinion, and a judge."""

from __future__ import annotations

import json
from pathlib import Path

import pandas as pd
import pytest
from support import machine
from support.answers import right_as_read
from support.judge import JudgeServer
from support.pipeline import Run, table
from support.processes import together
from support.server import fails

from dapo_stages.engines import transformers_engine
from dapo_stages.handoff.manifests import Source
from dapo_stages.models.tokens import Tokens
from dapo_stages.reporting.iteration.figures import collect

# Three shards of four groups; `mood` says what happens at the second one.
SHARDS = {
    "rollout__prompts_per_iteration": 12,
    "rollout__groups_per_shard": 4,
    "rollout__dynamic_sampling": "false",
    "rewards__plugins": "{mine: mine.py:f}",
}
MINE = """
import time
from pathlib import Path

def f(completions, rows):
    mood = Path("mood").read_text() if rows[0]["group_id"] == "i0001-g000005" else ""
    if mood == "hang":
        time.sleep(60)
    if mood == "raise":
        raise RuntimeError("not today")
    return {"nan": [float("nan")] * 4, "short": [1.0]}.get(mood, [None, *(len(text) for text in completions[1:])])
"""


@pytest.fixture()
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(MINE)
    Path("mood").write_text("")
    return tmp_path


def test_a_plug_in_alone_decides_which_groups_are_informative(
    small_run: Run, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It sees the columns of the source, and differs in every group. No completion says anything, so none is right."""
    monkeypatch.setattr(Tokens, "text", lambda self, ids: "")
    Path("mine.py").write_text(
        "def f(completions, rows):\n    return [row['sample'] + len(row['row']) for row in rows]\n"
    )
    rollout = ["rollout", *small_run.rollout_inputs(1), "--out"]
    dynamic = SHARDS | {"rollout__dynamic_sampling": "true", "rollout__max_resample_rounds": 1}
    with right_as_read():
        usual = small_run.command(*rollout, "usual", **dynamic)
        small_run.command(*rollout, "mine", **dynamic, rollout__informative="{reward: mine}")
    assert (table(Path("usual"), "prompts").kept.sum(), table(Path("mine"), "prompts").kept.sum()) == (0, 12)
    assert "informative" not in table(Path("usual"), "prompts") and table(Path("mine"), "prompts").informative.all()
    shares = {name: collect(1, {"rollout": Source(Path(name))})["rollout"]["informative"] for name in ("usual", "mine")}
    assert shares == {"usual": 0, "mine": 1}
    assert "The completions of 12 of 12 groups differ in reward_mine: set rollout.informative.reward to" in usual.stderr
    source = table(small_run.folder / "data", "train").row.map(json.loads)
    rewards = table(Path("mine"), "completions")
    assert set(rewards.reward_mine - rewards["sample"]) == set(source.map(len)) != {0}


def calls_of_generate(patched: pytest.MonkeyPatch) -> list[int]:
    """Grows by one with each batch that is sampled."""
    generate, calls = transformers_engine.generate, []

    def counted(*args: object, **kwargs: object) -> object:
        calls.append(1)
        return generate(*args, **kwargs)  # type: ignore[arg-type]

    patched.setattr(transformers_engine, "generate", counted)
    return calls


@pytest.fixture(scope="module")
def undisturbed(small_run: Run, tmp_path_factory: pytest.TempPathFactory) -> tuple[str, int]:
    """What comes of a rollout when nothing happens: its content hash and how many batches were sampled."""
    with pytest.MonkeyPatch.context() as patched:
        patched.chdir(tmp_path_factory.mktemp("undisturbed"))
        calls = calls_of_generate(patched)
        Path("mine.py").write_text(MINE)
        Path("mood").write_text("")
        small_run.command("rollout", *small_run.rollout_inputs(1), "--out", "r", **SHARDS)
        return Source(Path("r")).manifest.content_hash, len(calls)


@pytest.mark.parametrize(
    ("mood", "said"),
    [
        ("raise", "for each of 4 completions, got RuntimeError: not today (line 10) for the 4 completions of prompt "),
        (
            "nan",
            "mine.py:f: reward mine must be a finite number or None for each of 4 completions, got the value nan for ",
        ),
        ("short", "for each of 4 completions, got 1 values for the 4 completions of prompt "),
        ("hang", "Raise rewards.plugin_timeout and run the command again (finished shards stay)"),
    ],
)
def test_a_failure_is_an_error_and_the_same_command_carries_on(
    small_run: Run, undisturbed: tuple[str, int], folder: Path, monkeypatch: pytest.MonkeyPatch, mood: str, said: str
) -> None:
    content_hash, batches = undisturbed
    calls = calls_of_generate(monkeypatch)
    rollout = ["rollout", *small_run.rollout_inputs(1), "--out"]
    Path("mood").write_text(mood)
    result = small_run.attempt(*rollout, "r", **SHARDS, rewards__plugin_timeout=1.5)
    assert result.code == 3 and said in result.stderr and "Traceback" not in result.stderr
    assert Path("r/completions-00000.parquet").exists() and not Path("r/manifest.json").exists()
    Path("mood").write_text("")
    before = len(calls)
    small_run.command(*rollout, "r", **SHARDS, rewards__plugin_timeout=30)
    assert len(calls) - before == batches * 2 // 3  # the first of three shards stayed
    assert Source(Path("r")).manifest.content_hash == content_hash


def test_no_opinion_is_null_and_adds_nothing(small_run: Run, folder: Path) -> None:
    small_run.command("rollout", *small_run.rollout_inputs(1), "--out", "r", **SHARDS)
    completions = table(folder / "r", "completions")
    assert completions.reward_mine.isna().equals(completions["sample"] == 0)
    assert Source(folder / "r").manifest.counts["no_reward_mine"] == 12
    policy = ["--policy", small_run.policy(0)]
    small_run.command("score-attention", *policy, "--rollouts", "r", "--out", "a")
    weights = "{accuracy: 2, format: 0, vgr: 0, overlong: 0, plugins: {mine: 0.5}}"
    settings = {"rewards__plugins": "{mine: mine.py:f}", "weights__replay": "{size: 8, min_reward: -1}"}
    settings |= {"weights__reward_weights": weights}
    inputs = ["--rollouts", "r", "--attention", "a", "--iteration", 1]
    small_run.command("weight-tokens", *inputs, "--out", "w", **settings)
    weighed = table(folder / "w", "weights").merge(completions[["completion_id", "sample", "text"]])
    assert weighed.reward_mine.isna().equals(weighed["sample"] == 0)
    by_hand = 2 * weighed.reward_accuracy + 0.5 * weighed.text.map(len).where(weighed["sample"] > 0, 0)
    assert (weighed.reward - by_hand).abs().max() < 1e-4
    assert weighed.advantage.notna().all() and weighed.groupby("group_id").advantage.sum().abs().max() < 1e-4
    stored = table(folder / "w", "buffer-completions")
    assert len(stored) and stored.reward_mine.isna().equals(stored["sample"] == 0)
    small_run.command("train-step", *policy, "--rollouts", "r", "--weights", "w", "--out", "t")


def test_a_judge_is_asked_once_and_weighed_like_a_plugin(small_run: Run, folder: Path) -> None:
    with JudgeServer(lambda text: f'{{"score": {len(text) % 11}}}') as server:
        judge = f"{{url: '{server.url}', model: m, backoff: 0}}"
        rollout = ["rollout", *small_run.rollout_inputs(1), "--out", "r"]
        small_run.command(*rollout, rewards__judge=judge)
        completions = table(folder / "r", "completions")
        asked = len(server.requests)
        pairs = completions.merge(table(folder / "r", "prompts")[["group_id", "prompt_id"]])
        assert 0 < asked == len(pairs[["prompt_id", "text"]].drop_duplicates())
        made = Source(folder / "r").manifest.content_hash
        small_run.command(*rollout, "--overwrite", rewards__judge=judge, rewards__symbolic_timeout=7)
        assert len(server.requests) == asked
        evaluate = ["--policy", small_run.policy(0), "--data", small_run.folder / "data", "--out", "e"]
        small_run.command("evaluate", *evaluate, rewards__judge=judge)
        assert len(server.requests) == asked and "reward_judge" not in table(folder / "e", "completions")
    sent = completions.text.str.replace("<|", "< |", regex=False).str.replace("|>", "| >", regex=False)
    assert (completions.reward_judge - sent.map(len) % 11 / 10).abs().max() < 1e-6
    again = table(folder / "r", "completions")
    pd.testing.assert_frame_equal(again, completions)
    assert Source(folder / "r").manifest.content_hash != made  # the time for an expression is part of it
    small_run.command("score-attention", "--policy", small_run.policy(0), "--rollouts", "r", "--out", "a")
    small_run.command(
        "weight-tokens", "--rollouts", "r", "--attention", "a", "--iteration", 1, "--out", "w",
        rewards__judge=judge,
        weights__reward_weights="{accuracy: 0, format: 0, vgr: 0, overlong: 0, plugins: {judge: 3}}",
    )  # fmt: skip
    weighed = table(folder / "w", "weights")
    assert (weighed.reward - 3 * weighed.reward_judge).abs().max() < 1e-5


def test_a_budget_gives_the_same_rewards_after_an_interruption_and_in_two_processes(
    small_run: Run, folder: Path
) -> None:
    settings = SHARDS | {"rewards__plugins": "{}"}
    rollout = ["rollout", *small_run.rollout_inputs(1), "--out"]
    with JudgeServer(lambda text: f'{{"score": {len(text) % 11}}}') as server, machine.one_thread():

        def judge(cache: str) -> str:
            # 4 requests per group: the first five of twelve groups
            return f"{{url: '{server.url}', model: m, retries: 0, concurrency: 1, max_requests: 23, cache: {cache}}}"

        small_run.command(*rollout, "undisturbed", **settings, rewards__judge=judge("one"))
        asked = len(server.requests)
        server.faults = [*[None] * 7, fails(500)]
        failed = small_run.attempt(*rollout, "r", **settings, rewards__judge=judge("two"))
        assert failed.code == 3 and "500" in failed.stderr
        small_run.command(*rollout, "r", **settings, rewards__judge=judge("two"))
        assert len(server.requests) == 2 * asked + 1
        options = small_run.options(**settings, rewards__judge=judge("three"))
        results = together(2, "rollout", *options, *small_run.rollout_inputs(1), "--out", "both")
        assert [result.code for result in results] == [0, 0]
    completions = table(folder / "r", "completions")
    assert completions.groupby("group_id").reward_judge.count().tolist() == [4] * 5 + [0] * 7
    hashes = {Source(folder / name).manifest.content_hash for name in ("undisturbed", "r", "both")}
    assert len(hashes) == 1
