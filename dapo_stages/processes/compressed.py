"""Decompresses responses of servers with a size limit: a few kilobytes can expand to gigabytes."""

from __future__ import annotations

import zlib

ASKED = "gzip, deflate"  # what we tell servers that we accept
_EITHER = 32 + zlib.MAX_WBITS  # zlib then detects which of the two it is


class TooLarge(ValueError):
    """Larger than the limit."""


def unpacked(said: bytes, encoding: str, most: int) -> bytes:
    """A body of this Content-Encoding, decompressed. Raises TooLarge beyond `most` bytes, ValueError if it is damaged.

    Only one layer of gzip or deflate: nobody compresses a response twice except to exhaust memory.
    """
    layers = [layer.strip().lower() for layer in encoding.split(",") if layer.strip().lower() not in ("", "identity")]
    if not layers:
        return said
    if len(layers) > 1 or layers[0] not in ("gzip", "x-gzip", "deflate"):
        raise ValueError(f"response compressed as {encoding[:60]!r}, not as {ASKED}")
    unpacker = zlib.decompressobj(_EITHER)
    try:
        found = unpacker.decompress(said, most + 1)
    except zlib.error:
        raise ValueError("damaged compressed response") from None
    if len(found) > most:
        raise TooLarge
    if not unpacker.eof:
        raise ValueError("truncated compressed response")
    return found
