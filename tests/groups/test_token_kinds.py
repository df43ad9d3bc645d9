"""Kinds of tokens, told by eye."""

from __future__ import annotations

import pytest

from dapo_stages.groups.token_kinds import KINDS, token_kinds

W, F, N, P, A, T = KINDS


@pytest.mark.parametrize(
    "texts, kinds",
    [
        (
            ["<think>", "This", " circle", " is", " red", ".", "</think>", "<answer>", "B", "</answer>", "<|im_end|>"],
            [T, F, W, F, W, P, T, T, A, T, T],
        ),
        # Tags in pieces, as real tokenizers have them; a token with a mark and the start of a tag is a tag, one with
        # the end of a tag and the answer is the answer.
        (["<", "think", ">", "The", ".</", "think", ">", "\n", "<", "answer", ">C", "</", "answer", ">"],
         [T, T, T, F, T, T, T, P, T, T, A, T, T, T]),
        # A piece of a word is what its word is: "there" is a function word, "therein" is not.
        (["the", "re", " the", "rein", " it", "'s"], [F, F, W, W, F, F]),
        ([" 12", "°", " x", "2", " two", " and", " three", "三", "ten", "ant"], [N, P, W, N, N, F, N, N, N, W]),
        (["图", "中", "的", "圆", "是", "红色", "。"], [W, W, F, W, F, W, P]),
        ([], []),
    ],
)  # fmt: skip
def test_kinds_of_tokens(texts: list[str], kinds: list[str]) -> None:
    assert token_kinds("".join(texts).removesuffix("<|im_end|>"), texts) == kinds
