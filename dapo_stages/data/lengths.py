"""The longest text that can fit into a number of tokens, so that longer ones are never tokenized.

Tokenizing takes hundreds of bytes of memory per byte of text. There is a bound only where it is certain: where every
token stands for a known number of bytes, and no text is discarded.
"""

from __future__ import annotations

import json
from typing import Any

# NFC composition shrinks text by less than this factor: by at most 3.5, when U+1FBE U+0308 U+0301 becomes U+0390.
COMPOSED = 4


def bytes_per_token(tokenizer: Any) -> int | None:
    """The most bytes of UTF-8 text that become one token; None if unknown.

    It is known for byte-level BPE tokenizers, such as Qwen's, with or without NFC normalization.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    content = json.loads(backend.to_str())
    added = content["added_tokens"]
    if content["model"]["type"] != "BPE" or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    steps = _steps(content["normalizer"], "normalizers")
    cuts = _steps(content["pre_tokenizer"], "pretokenizers")
    if any(step["type"] != "NFC" for step in steps) or not all(map(_keeps_all, cuts)):
        return None
    vocabulary = content["model"]["vocab"]
    if not cuts or cuts[-1]["type"] != "ByteLevel" or not _bytes() <= vocabulary.keys():
        return None
    longest = max(max(map(len, vocabulary)), *(len(token["content"].encode()) for token in added), 1)
    return longest * (COMPOSED if steps else 1)


def _steps(part: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normalizer or pre-tokenizer, with sequences flattened."""
    if part is None:
        return []
    return [step for one in part[inside] for step in _steps(one, inside)] if part["type"] == "Sequence" else [part]


def _keeps_all(cut: dict[str, Any]) -> bool:
    return cut["type"] in ("ByteLevel", "Digits") or (cut["type"] == "Split" and cut["behavior"] != "Removed")


def _bytes() -> set[str]:
    """The 256 characters by which byte-level tokenizers represent bytes."""
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
