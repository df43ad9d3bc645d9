"""Texts that are too long are not tokenized, and the bound never rejects one that would fit."""

from __future__ import annotations

import sys
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from dapo_stages.config import DataConfig
from dapo_stages.data.lengths import COMPOSED, bytes_per_token
from dapo_stages.data.prompts import Dropped, PromptMaker
from dapo_stages.data.raw_rows import RawRow, RawSource


def maker(processor: Any, longest: int) -> PromptMaker:
    data = DataConfig(max_prompt_length=longest)
    return PromptMaker(RawSource("cats", [], lambda _: iter(())), processor, data)


def row(problem: str) -> RawRow:
    return RawRow(3, {"problem": problem, "solution": "A"}, "cats row 3")


class Untouched:
    """A processor whose tokenizer must not be called."""

    def __init__(self, processor: Any) -> None:
        self.tokenizer = processor.tokenizer
        self.apply_chat_template = processor.apply_chat_template

    def __call__(self, **_: Any) -> Any:
        raise AssertionError("tokenized")


def test_a_long_text_is_dropped_without_being_tokenized(processor: Any) -> None:
    dropped = maker(Untouched(processor), 1024).make(row("word " * 200_000), "train-000003")
    assert isinstance(dropped, Dropped) and dropped.kind == "long"
    assert dropped.why == "cats row 3: 1,000,198 bytes of text, more than data.max_prompt_length tokens can hold"


@pytest.mark.long
def test_no_character_takes_more_bytes_before_composition_than_is_allowed_for() -> None:
    """For every character, the longest text that NFC composes to it: each part in its longest spelling."""
    characters = [c for c in map(chr, range(sys.maxunicode + 1)) if not 0xD800 <= ord(c) <= 0xDFFF]
    longest: dict[str, int] = {}
    for c in characters:
        whole = unicodedata.normalize("NFD", c)
        if len(whole) == 1:
            longest[whole] = max(longest.get(whole, 0), len(c.encode()), len(whole.encode()))
    for c in characters:
        spelled = sum(longest.get(part, len(part.encode())) for part in unicodedata.normalize("NFD", c))
        composed = unicodedata.normalize("NFC", c)
        assert max(spelled, len(c.encode())) <= COMPOSED * len(composed.encode()), ascii(c)


@given(st.text(max_size=300) | st.text("\u212aK\u1112\u1161\u11ab \u0301e", max_size=300))
def test_no_text_has_more_bytes_than_its_tokens_can_hold(processor: Any, text: str) -> None:
    each = bytes_per_token(processor.tokenizer)
    assert each is not None
    assert len(text.encode()) <= each * len(processor.tokenizer.encode(text))


def test_a_text_of_the_longest_tokens_is_kept(processor: Any) -> None:
    """The longest token, as often as the length allows."""
    tokenizer = processor.tokenizer
    longest = max(tokenizer.backend_tokenizer.get_vocab(with_added_tokens=False), key=len).replace("Ġ", " ")
    problem = longest * 40
    made = maker(processor, 10_000).make(row(problem), "train-000003")
    assert isinstance(made, dict)
    fits = maker(processor, len(made["prompt_ids"])).make(row(problem), "train-000003")
    assert isinstance(fits, dict) and fits["prompt_ids"] == made["prompt_ids"]


def test_where_tokens_may_hold_any_length_there_is_no_bound() -> None:
    from tokenizers import Tokenizer, models, normalizers, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    def bound(model: Any, normalizer: Any = None, cut: Any = None, **token: Any) -> int | None:
        backend = Tokenizer(model)
        if normalizer is not None:
            backend.normalizer = normalizer
        backend.pre_tokenizer = cut or pre_tokenizers.ByteLevel()
        from tokenizers import AddedToken

        backend.add_special_tokens([AddedToken("<|end|>", **token)])
        return bytes_per_token(PreTrainedTokenizerFast(tokenizer_object=backend))

    alphabet = {letter: index for index, letter in enumerate(sorted(pre_tokenizers.ByteLevel.alphabet()))}
    whole = models.BPE({**alphabet, "ab": 256}, [("a", "b")])
    assert bound(whole) == 7  # <|end|>
    assert bound(whole, normalizers.NFC()) == 7 * COMPOSED
    assert bound(whole, normalizers.NFKC()) is None
    assert bound(whole, normalizers.Strip()) is None
    assert bound(whole, rstrip=True) is None  # it consumes all spaces after it
    assert bound(models.BPE({"a": 0}, [])) is None  # drops unknown text
    assert bound(models.WordLevel({"[UNK]": 0}, "[UNK]")) is None
    removed = pre_tokenizers.Sequence([pre_tokenizers.Split(" ", "removed"), pre_tokenizers.ByteLevel()])
    assert bound(whole, cut=removed) is None
