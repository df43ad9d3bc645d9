"""How long a text may be at most that a number of tokens can hold, so that a longer one is never tokenised.

Tokenising takes hundreds of bytes of memory for each byte of text. A bound is given only where none could be too low:
where every token stands for a known number of bytes and nothing of a text is thrown away.
"""

from __future__ import annotations

import json
from typing import Any

# Bytes that Unicode's composition (NFC) makes one byte of are fewer: 3.5 at most, U+1FBE U+0308 U+0301 becoming U+0390.
COMPOSED = 4


def bytes_per_token(tokenizer: Any) -> int | None:
    """The most bytes of text in UTF-8 that become one token; None where that is not known.

    Known are byte-level BPE tokenizers, as those of Qwen, with or without NFC before.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        return None
    found = json.loads(backend.to_str())
    added = found["added_tokens"]
    if found["model"]["type"] != "BPE" or any(token["lstrip"] or token["rstrip"] for token in added):
        return None
    steps = _steps(found["normalizer"], "normalizers")
    cuts = _steps(found["pre_tokenizer"], "pretokenizers")
    if any(step["type"] != "NFC" for step in steps) or not all(map(_keeps_all, cuts)):
        return None
    vocabulary = found["model"]["vocab"]
    if not cuts or cuts[-1]["type"] != "ByteLevel" or not _bytes() <= vocabulary.keys():
        return None
    longest = max(max(map(len, vocabulary)), *(len(token["content"].encode()) for token in added), 1)
    return longest * (COMPOSED if steps else 1)


def _steps(found: dict[str, Any] | None, inside: str) -> list[dict[str, Any]]:
    """The steps of a normaliser or pre-tokenizer, those of sequences one by one."""
    if found is None:
        return []
    return [step for one in found[inside] for step in _steps(one, inside)] if found["type"] == "Sequence" else [found]


def _keeps_all(cut: dict[str, Any]) -> bool:
    return cut["type"] in ("ByteLevel", "Digits") or (cut["type"] == "Split" and cut["behavior"] != "Removed")


def _bytes() -> set[str]:
    """The characters that byte-level tokenizers write for the 256 bytes, one for each."""
    from tokenizers.pre_tokenizers import ByteLevel

    return set(ByteLevel.alphabet())
