"""Untrusted text on a terminal or a page: control and direction characters become visible symbols."""

from __future__ import annotations

import re

# Control characters except newline and tab; direction marks, embeddings, overrides and isolates, which reorder text;
# invisible line separators; lone surrogates. Zero-width joiners stay: some scripts and emoji need them.
STEERING = "\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069"  # those that JSON does not escape
_UNSEEN = re.compile(f"[\x00-\x08\x0b-\x1f{STEERING}\ud800-\udfff]")


def visible(text: str) -> str:
    """Control and direction characters as symbols, so that text can neither control a terminal nor reorder a line."""
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
