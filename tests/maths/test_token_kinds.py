"""Kinds of tokens, told by eye."""

from __future__ import annotations

import pytest

from dapo_stages.maths.token_kinds import KINDS, token_kinds

W, F, P, N, A, T = KINDS


@pytest.mark.parametrize(
    "texts, kinds",
    [
        (
            ["<think>", "This", " circle", " is", " red", ".", "</think>", "<answer>", "B", "</answer>", "<|im_end|>"],
            [T, F, W, F, W, P, T, T, A, T, T],
        ),
        # Tags in pieces, as real tokenizers have them; a token with a mark and the start of a tag is a tag.
        (["<", "think", ">", "The", ".</", "think", ">", "\n"], [T, T, T, F, T, T, T, P]),
        # A piece of a word is what its word is: "there" is a function word, "therein" and "isle" are not.
        (["the", "re", " the", "rein", " is", "le", " it", "'s"], [F, F, W, W, W, W, F, F]),
        ([" 12", "°", " x", "2", " two", "½"], [N, P, W, N, W, P]),
        # What an <answer> encloses is the answer, white space is not, and one that is never closed runs to the end.
        (["<answer>", " ", "the", " 3", "</answer>", " so", "<answer>", "C"], [T, P, A, A, T, F, T, A]),
        (["图", "中", "的", "圆", "是", "红色", "。", "\ufffd"], [W, F, F, W, F, W, P, W]),
        ([], []),
    ],
)
def test_kinds_of_tokens(texts: list[str], kinds: list[str]) -> None:
    assert token_kinds(texts) == kinds
