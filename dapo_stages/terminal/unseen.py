"""Text of others on a terminal or a page: what would steer the one or reorder the other becomes a symbol."""

from __future__ import annotations

import re

# Controls but line break and tab; marks, embeddings, overrides and isolates of direction, which reorder text; lines
# that end unseen; halves of characters. A zero-width joiner stays: it is part of some scripts and emoji.
STEERING = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # those of them that JSON leaves as they are
_UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f{STEERING}\ud800-\udfff]")


def visible(text: str) -> str:
    """Control and direction characters as symbols, so that text can neither steer a terminal nor reorder a line."""
    return _UNSEEN.sub(lambda found: _visible(found[0]), text)


def one_line(text: str) -> str:
    """Text on one line: line breaks are shown as a symbol."""
    return visible(text.replace("\r\n", "\n")).replace("\n", "⏎").replace("\t", " ")


def _visible(character: str) -> str:
    code = ord(character)
    if code < 0x20:
        return chr(0x2400 + code)
    if code == 0x7F:
        return "␡"
    return "�" if 0xD800 <= code <= 0xDFFF else f"⟨U+{code:04X}⟩"
