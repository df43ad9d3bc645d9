"""Images that text contains: data URIs, and base64 alone."""

from __future__ import annotations

import base64
import binascii
import re

from dapo_stages.data.images import BadImage

_URI = re.compile(r"data:(?P<kind>[\w.+-]+/[\w.+-]+)?(?:;[\w=.+-]+)*?(?P<encoded>;base64)?,", re.ASCII | re.IGNORECASE)
_ALPHABET = re.compile(r"[A-Za-z0-9+/\s]+={0,2}\s*", re.ASCII)
_SHORTEST, _LONGEST_PATH = 64, 4096  # characters; the smallest images need more than 48 bytes
SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff", ".jp2", ".avif", ".ppm")
_BEGINNINGS = (b"\x89PNG", b"\xff\xd8", b"GIF8", b"RIFF", b"BM", b"II*", b"MM\0*", b"\0\0\0", b"P4", b"P5", b"P6")


def is_image(beginning: bytes) -> bool:
    """Whether a file that begins so may be an image: not one of the containers that videos are in."""
    if beginning.startswith(b"\0\0\0"):  # a box: JPEG 2000 or AVIF, or else MP4
        return beginning[4:8] == b"jP  " or beginning[8:12] in (b"avif", b"avis")
    return beginning.startswith(_BEGINNINGS) and (beginning[:4] != b"RIFF" or beginning[8:12] == b"WEBP")


def decoded(text: str, where: str) -> bytes | None:
    """The bytes of a data URI or of bare base64; None for other text, such as a file name.

    Raises BadImage for a damaged one.
    """
    if text[:5].lower() == "data:":
        uri = _URI.match(text[:200])
        if uri is None or not uri["encoded"]:
            raise BadImage(where, f"expected a data URI in base64, got {text[:40]!r}")
        return _bytes(text[uri.end() :], where)
    if len(text) < _SHORTEST or not _ALPHABET.fullmatch(text):
        return None
    try:
        found = _bytes(text, where)
    except BadImage:
        if len(text) > _LONGEST_PATH:
            raise
        return None
    return found if found.startswith(_BEGINNINGS) else None


def _bytes(text: str, where: str) -> bytes:
    text = "".join(text.split())
    try:
        return base64.b64decode(text + "=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:
        raise BadImage(where, f"the base64 text is damaged ({error})") from None
