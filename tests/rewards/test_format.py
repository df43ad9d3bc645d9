"""Cases decided by hand from the wording: both blocks, in order, once each, and nothing else."""

from __future__ import annotations

import pytest

from dapo_stages.rewards.format import format_reward


@pytest.mark.parametrize(
    "text",
    [
        "<think>red</think><answer>B</answer>",
        "\n <think>red</think>\n\n<answer>\nB\n</answer> \n",
        "<think>two\nlines</think><answer>two\nlines</answer>",
        "<think></think><answer>B</answer>",
        "<think>1 < 2 > 0</think><answer><b>B</b></answer>",
    ],
)
def test_well_formed(text: str) -> None:
    assert format_reward(text) == 1.0


@pytest.mark.parametrize(
    "text",
    [
        "",
        "B",
        "<answer>B</answer>",
        "<think>red</think>",
        "<answer>B</answer><think>red</think>",
        "<think>red</think><answer></answer>",
        "<think>red</think><answer> \n </answer>",
        "<think>red</think><answer>B",
        "<think>red<answer>B</answer>",
        "<think>red<answer>B</answer></think>",
        "<think><think>red</think></think><answer>B</answer>",
        "<think>red</think><think>red</think><answer>B</answer>",
        "<think>red</think><answer>B</answer><answer>B</answer>",
        "<think>red</think><answer><answer>B</answer></answer>",
        "<think>red</think><answer>B</answer></answer>",
        "<think>mind the <answer> tag</think><answer>B</answer>",
        "<answer><think>red</think>B</answer>",
        "Well: <think>red</think><answer>B</answer>",
        "<think>red</think> so <answer>B</answer>",
        "<think>red</think><answer>B</answer>.",
        "<THINK>red</THINK><ANSWER>B</ANSWER>",
        "<think>red</think ><answer>B</answer>",
    ],
)
def test_ill_formed(text: str) -> None:
    assert format_reward(text) == 0.0


def test_long_hostile_text_is_read_quickly() -> None:
    assert format_reward("<think>" + " " * 200_000 + "</think><answer>" + " " * 200_000 + "</answer>") == 0.0
