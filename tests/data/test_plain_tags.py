"""Tags as plain text where the tokenizer has added tokens for them, and templates that open a thought."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from dapo_stages.config import Config, RewardsConfig
from dapo_stages.data.control import MARK, ControlTokens, plain_twin
from dapo_stages.data.prompts import PromptMaker
from dapo_stages.data.raw_rows import RawRow, RawSource
from dapo_stages.data.summary import Summary
from dapo_stages.data.survey import Survey
from dapo_stages.handoff.shards import Row
from dapo_stages.models.embedded.embedded_policy import build_processor
from dapo_stages.models.inputs import prompt_of
from dapo_stages.rewards.format import TAGS
from dapo_stages.rewards.registry import Rewards
from dapo_stages.rewards.scored import Group
from dapo_stages.rewards.tags import opens_thought, thought_to_continue

THOUGHT = "{% if add_generation_prompt %}<think>\n{% endif %}"
VALUES = {"problem": "Is <think> a tag?\nA. yes B. no", "image": None, "solution": "A"}


@pytest.fixture()
def thinking(processor: Any) -> Any:
    """A processor with an added token for each tag, whose template opens a thought."""
    made = build_processor(copy.deepcopy(processor.tokenizer))
    made.tokenizer.add_tokens(list(TAGS))
    made.chat_template += THOUGHT
    return made


def prompt(processor: Any, configure: Callable[..., Config], **data: Any) -> Row:
    source = RawSource("cats", list(VALUES), lambda _: iter(()))
    found = PromptMaker(source, processor, configure("cats", **data).data).make(RawRow(3, VALUES, "row 3"), "train-3")
    assert isinstance(found, dict), found
    return found


def test_plain_tags_are_the_tokens_of_a_tokenizer_without_them(
    processor: Any, thinking: Any, configure: Callable[..., Config]
) -> None:
    """In the system prompt, in the question, and where the template opens the thought."""
    plain = prompt(thinking, configure, tags="plain")
    text = plain["prompt_text"].replace(MARK, "")
    assert text.count("<think>") == 3 and text.endswith("<think>\n")
    assert plain["prompt_ids"] == processor.tokenizer(text)["input_ids"]
    assert prompt_of(plain, thinking).ids.tolist() == plain["prompt_ids"]
    added = prompt(thinking, configure)
    ids = [thinking.tokenizer.convert_tokens_to_ids(tag) for tag in TAGS]
    assert [added["prompt_ids"].count(one) for one in ids] == [2, 1, 1, 1]  # that of the question is quoted
    assert not set(ids) & set(plain["prompt_ids"])


def test_without_added_tokens_nothing_changes(processor: Any, configure: Callable[..., Config]) -> None:
    assert prompt(processor, configure, tags="plain") == prompt(processor, configure)


@pytest.mark.parametrize("tags", ["added", "plain"])
def test_a_completion_goes_on_inside_the_thought(
    tags: str, thinking: Any, configure: Callable[..., Config], tmp_path: Any
) -> None:
    row = prompt(thinking, configure, tags=tags)
    assert opens_thought(row["prompt_text"])
    texts = ["I see.</think><answer>A</answer>", "<think>I see.</think><answer>A</answer>", "<answer>A</answer>"]
    rewards = Rewards(RewardsConfig(), 100, tmp_path)
    [scored] = rewards.score([Group(row, texts, [9, 9, 9])])
    assert [one.format for one in scored] == [1.0, 1.0, 0.0]
    assert [one.accuracy for one in scored[:2]] == [1.0, 1.0]


def test_what_is_learned_does_not_open_it_again(thinking: Any, configure: Callable[..., Config]) -> None:
    text = prompt(thinking, configure)["prompt_text"]
    assert thought_to_continue(text, "<think>\n</think>\n<answer>A</answer>") == "\n</think>\n<answer>A</answer>"
    assert thought_to_continue("assistant\n", "<think></think>") == "<think></think>"


def test_prepare_data_says_so(thinking: Any, configure: Callable[..., Config]) -> None:
    summary = Summary(list(VALUES), configure("cats", tags="plain").data, Survey())
    summary.add(prompt(thinking, configure, tags="plain"))
    said = "\n".join(summary.lines())
    assert "the chat template opens <think> at the end of 1 of 1 prompts" in said
    assert "tags: plain text" in said and summary.counts()["opens_thought"] == 1


def test_what_is_learned_has_the_same_tokens(processor: Any, thinking: Any) -> None:
    text = "<think>\n</think>\n<answer>A</answer>"
    marked = ControlTokens(thinking).plain_tags(text)
    assert plain_twin(thinking).tokenizer(marked)["input_ids"] == processor.tokenizer(text)["input_ids"]
    assert len(thinking.tokenizer(text)["input_ids"]) < len(processor.tokenizer(text)["input_ids"])
