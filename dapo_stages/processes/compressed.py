"""Answers of servers, unpacked within a bound: a few kilobytes can be packed so that they become gigabytes."""

from __future__ import annotations

import zlib

ASKED = "gzip, deflate"  # what servers are told that we take
_EITHER = 32 + zlib.MAX_WBITS  # zlib then finds out which of both it is


class TooLarge(ValueError):
    """More than the bound allows."""


def unpacked(said: bytes, encoding: str, most: int) -> bytes:
    """What a body in a Content-Encoding holds. Raises TooLarge beyond `most` bytes, ValueError if it is damaged.

    One layer, of gzip or deflate: nobody packs an answer twice but to fill memory.
    """
    layers = [layer.strip().lower() for layer in encoding.split(",") if layer.strip().lower() not in ("", "identity")]
    if not layers:
        return said
    if len(layers) > 1 or layers[0] not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"an answer packed as {encoding[:60]!r}, not as {ASKED}")
    unpacker = zlib.decompressobj(_EITHER)
    try:
        found = unpacker.decompress(said, most + 1)
    except zlib.error:
        raise ValueError("a packed answer that is damaged") from None
    if len(found) > most:
        raise TooLarge
    if not unpacker.eof:
        raise ValueError("a packed answer that was cut")
    return found
