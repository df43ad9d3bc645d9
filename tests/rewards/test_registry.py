"""All rewards of a group together."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest

from dapo_stages.config import JudgeConfig, RewardsConfig
from dapo_stages.rewards.answers import Reading
from dapo_stages.rewards.registry import Rewards
from dapo_stages.rewards.scored import Group, Scored

TEXT = "<think>It is green.</think><answer>B</answer>"
B, C = Reading("B", "tags"), Reading("C", "tags")
ROW: dict[str, object] = {"solution": "B", "problem": "What color is it?"}


def one(rewards: Rewards, text: str, tokens: int, row: dict[str, object] = ROW) -> Scored:
    [[scored]] = rewards.score([Group(row, [text], [tokens])])
    return scored


def test_the_three_rewards_of_a_completion(tmp_path: Path) -> None:
    rewards = Rewards(RewardsConfig(), 384, tmp_path)
    assert one(rewards, TEXT, 20) == Scored(1.0, format=1.0, overlong=0.0, others={}, read=B)
    assert one(rewards, "<answer>C</answer>", 384) == Scored(0.0, format=0.0, overlong=-1.0, others={}, read=C)


@pytest.mark.parametrize(
    ("text", "accuracy", "format_", "place"),
    [
        ("It is green.\n</think>\n\n<answer>B</answer>", 1.0, 1.0, "tags"),
        ("<think>\nIt is green.\n</think>\n\n<answer>B</answer>", 1.0, 1.0, "tags"),
        ("It is green.\n<answer>B</answer>", 1.0, 0.0, "unclosed"),
        ("It is green. The answer is B", 1.0, 0.0, "unclosed"),
        ("It looks like B, but maybe not", 0.0, 0.0, "none"),
        ("绿色。\n</think>\n<answer>B</answer>", 1.0, 1.0, "tags"),
        ("绿色，答案是B", 1.0, 0.0, "unclosed"),
    ],
)
def test_a_chat_template_may_open_the_thought(
    text: str, accuracy: float, format_: float, place: str, tmp_path: Path
) -> None:
    """Qwen3-VL-Thinking's ends with `<think>`, so its completions do not begin with it."""
    row = ROW | {"prompt_text": "<|im_start|>user\nWhich?<|im_end|>\n<|im_start|>assistant\n<think>\n"}
    scored = one(Rewards(RewardsConfig(), 384, tmp_path), text, 20, row)
    assert (scored.accuracy, scored.format, scored.read.place) == (accuracy, format_, place)
    usual = one(Rewards(RewardsConfig(), 384, tmp_path), text, 20, ROW | {"prompt_text": "Think in <think>…</think>."})
    assert usual.format == (1.0 if text.startswith("<think>") else 0.0)


def test_overlong_falls_over_the_cache(tmp_path: Path) -> None:
    # 384 - 50 = 334 tokens are free; half of the cache costs half a point (equation 13 of DAPO).
    default = Rewards(RewardsConfig(), 384, tmp_path)
    assert [one(default, "", n).overlong for n in (334, 359, 384)] == [0.0, -0.5, -1.0]
    own = Rewards(RewardsConfig(overlong_max_length=100, overlong_cache=10), 384, tmp_path)
    assert [one(own, "", n).overlong for n in (90, 95, 101)] == [0.0, -0.5, -1.0]


def test_each_completion_gets_its_own(tmp_path: Path) -> None:
    (tmp_path / "mine.py").write_text("def f(completions, rows):\n    return [None, 0.5]\n")
    rewards = Rewards(RewardsConfig(plugins={"mine": "mine.py:f"}), 384, tmp_path)
    groups = [Group(ROW, [TEXT, "<answer>C</answer>"], [20, 384]), Group({"solution": "C"}, ["C", TEXT], [1, 20])]
    assert rewards.score(groups) == [
        [Scored(1.0, 1.0, 0.0, {"mine": None}, B), Scored(0.0, 0.0, -1.0, {"mine": 0.5}, C)],
        [Scored(1.0, 0.0, 0.0, {"mine": None}, Reading("C", "lone")), Scored(0.0, 1.0, 0.0, {"mine": 0.5}, B)],
    ]
    assert rewards.score(groups)[0][0].columns == {
        "reward_accuracy": 1.0,
        "reward_format": 1.0,
        "reward_overlong": 0.0,
        "reward_mine": None,
    }


def test_rewards_are_finite(tmp_path: Path) -> None:
    scored = one(Rewards(RewardsConfig(), 384, tmp_path), "", 10_000, {"solution": ""})
    assert all(math.isfinite(value) for value in (scored.accuracy, scored.format, scored.overlong))


def test_what_changes_no_reward_stays_out_of_the_manifest(tmp_path: Path) -> None:
    """Otherwise a longer timeout would discard finished shards."""
    path = tmp_path / "mine.py"
    path.write_text("def f(completions, rows):\n    return [0] * len(rows)\n")

    def section(**changes: Any) -> dict[str, object]:
        judge = JudgeConfig(model="m").model_copy(update=changes.pop("judge", {}))
        config = RewardsConfig(plugins={"mine": "mine.py:f"}, judge=judge).model_copy(update=changes)
        return Rewards(config, 384, tmp_path).section

    first = section()
    running = {"url": "http://there:1", "timeout": 1.0, "retries": 0, "backoff": 9.0, "concurrency": 1, "cache": "c"}
    assert section(plugin_timeout=900.0, plugin_environment=["X"], judge=running) == first
    assert section(judge={"model": "other"}) != first
    assert section(judge={"max_requests": 5}) != first
    assert section(symbolic=False) != first
    path.write_text("def f(completions, rows):\n    return [1] * len(rows)\n")
    assert section() != first


def test_a_stage_may_leave_the_judge_out(tmp_path: Path) -> None:
    config = RewardsConfig(judge=JudgeConfig(model="m"))
    assert Rewards(config, 384, tmp_path).names == ("judge",)
    rewards = Rewards(config, 384, tmp_path, judge=False)
    assert rewards.names == () and rewards.section["judge"] is None
    assert one(rewards, TEXT, 20).others == {}


def test_of_completions_that_were_cut_off_only_closed_answers_are_paid(tmp_path: Path) -> None:
    texts, reasons = ["The answer is B", TEXT, "The answer is B"], ["length", "length", "stop"]
    for setting, paid in (("closed", [0.0, 1.0, 1.0]), ("any", [1.0, 1.0, 1.0])):
        rewards = Rewards(RewardsConfig(truncated_answers=setting), 384, tmp_path)
        [scored] = rewards.score([Group(ROW, texts, [384, 384, 20], reasons)])
        assert [each.accuracy for each in scored] == paid
        assert scored[0].read == (Reading("B", "stated") if setting == "any" else Reading(None, "none"))
