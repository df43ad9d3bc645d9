"""Keeps text of a dataset from becoming control tokens of the prompt it is part of.

A tokenizer looks for its added tokens (`<|im_start|>`, `<|image_pad|>`, `<tool_call>`, …) in all of a prompt's text,
and cannot tell those of the chat template from those that a question quotes. So a mark is inserted into each of the
latter before the template sees it: then neither the template nor the processor takes it for a token. A copy of the
tokenizer (the plain twin) encodes such a prompt: it removes the marks after looking for added tokens, so that the
quoted tokens are tokenized like any other text.

The twin is not used for prompts without such quotes. The stored `prompt_text` keeps its marks, so that tokenizing it
again does not produce the control tokens either.
"""

from __future__ import annotations

import copy
import functools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from dapo_stages.rewards.format import TAGS

CONTROL_TOKENS = "control_tokens"  # number of prompts that quote any
MARK = "\ufdd1\ufdd0"  # noncharacters, which Unicode reserves for internal use by programs

_TAG = re.compile(r"<.+>|\[.+\]|\{.+\}", re.DOTALL)


class ControlTokens:
    """The control tokens of a processor or a tokenizer."""

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._tokenizer = _tokenizer_of(processor)
        template = str(getattr(processor, "chat_template", None) or "")
        added = getattr(self._tokenizer, "added_tokens_decoder", {})
        tokens = {index: token for index, token in added.items() if _is_control(token, template)}
        special = {*tokens, *getattr(self._tokenizer, "all_special_ids", ())}
        self._ids = special - {getattr(self._tokenizer, "unk_token_id", None)}  # which plain text produces too
        self._normalizes = any(token.normalized for token in tokens.values())
        names = {*(token.content for token in tokens.values()), *_of_processor(processor)}
        self._pattern = re.compile("|".join(map(re.escape, sorted(names, key=len, reverse=True))) or "(?!)")

    def found(self, texts: Iterable[str]) -> list[str]:
        """The control tokens in some texts, each once, in order."""
        hits = (match[0] for text in texts for form in self._forms(text) for match in self._pattern.finditer(form))
        return list(dict.fromkeys(hits))

    def marked(self, text: str) -> str:
        """The text with a mark inside each control token; unchanged if there is none."""
        while self._pattern.search(text):  # repeated because tokens may overlap
            text = self._pattern.sub(lambda match: match[0][:1] + MARK + match[0][1:], text)
        if self.found([text]):  # appears only after the tokenizer's normalizer
            text = MARK.join(text)
        return text

    def as_text(self, conversation: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
        """A conversation with all its texts marked."""

        def part_as_text(part: dict[str, Any]) -> dict[str, Any]:
            return part | {"text": self.marked(part["text"])} if part["type"] == "text" else part

        return [{**message, "content": [part_as_text(part) for part in message["content"]]} for message in conversation]

    def plain_tags(self, text: str) -> str:
        """The text with a mark inside each tag of the format that is an added token (data.tags: plain)."""
        for tag in TAGS:
            if self._pattern.fullmatch(tag):
                text = text.replace(tag, tag[:1] + MARK + tag[1:])
        return text

    def processor_of(self, text: str) -> Any:
        """The processor that encodes a prompt with marks, and removes them; None if that is impossible.

        It is impossible for tokenizers without a backend of the tokenizers library, and for those that make a control
        token out of plain text.
        """
        if not hasattr(self._tokenizer, "backend_tokenizer"):
            return None
        twin = plain_twin(self._processor)
        meant, made = (self._control(tokenizer, text) for tokenizer in (self._tokenizer, _tokenizer_of(twin)))
        return twin if made == meant else None

    def _control(self, tokenizer: Any, text: str) -> list[int]:
        return [token for token in tokenizer.encode(text, add_special_tokens=False) if token in self._ids]

    def _forms(self, text: str) -> list[str]:
        """The text, and its normalized form if the tokenizer looks for tokens in that."""
        normalizer = getattr(getattr(self._tokenizer, "backend_tokenizer", None), "normalizer", None)
        return [text, normalizer.normalize_str(text)] if self._normalizes and normalizer is not None else [text]


def texts_of(conversation: Iterable[Mapping[str, Any]]) -> list[str]:
    """Every text of a conversation."""
    return [part["text"] for message in conversation for part in message["content"] if part["type"] == "text"]


@functools.lru_cache(maxsize=2)
def plain_twin(processor: Any) -> Any:
    """A copy of a processor whose tokenizer removes marks after looking for added tokens."""
    from tokenizers import Tokenizer

    tokenizer = _tokenizer_of(processor)
    backend = json.loads(tokenizer.backend_tokenizer.to_str())
    for token in backend["added_tokens"]:
        token["normalized"] = False  # match before the normalizer, never after it
    unmark = {"type": "Replace", "pattern": {"String": MARK}, "content": ""}
    steps = [unmark] if backend["normalizer"] is None else [unmark, backend["normalizer"]]
    backend["normalizer"] = {"type": "Sequence", "normalizers": steps}
    twin = copy.copy(tokenizer)
    twin._tokenizer = Tokenizer.from_str(json.dumps(backend))
    if tokenizer is processor:
        return twin
    whole = copy.copy(processor)
    whole.tokenizer = twin
    return whole


def _tokenizer_of(processor: Any) -> Any:
    return getattr(processor, "tokenizer", processor)


def _of_processor(processor: Any) -> set[str]:
    """Tokens that the processor itself looks for in texts, such as its `image_token`."""
    values = (value for name, value in vars(processor).items() if name.endswith("_token"))
    return {value for value in values if isinstance(value, str) and len(value.strip()) > 1}


def _is_control(token: Any, template: str) -> bool:
    """Whether an added token is a control token: special, shaped like a tag, or used by the chat template.

    Other added tokens, such as runs of spaces or technical terms, are ordinary text.
    """
    content = token.content.replace("▁", " ").strip()
    if len(content) < 2:
        return False
    return bool(token.special or _TAG.fullmatch(content) or token.content in template)
