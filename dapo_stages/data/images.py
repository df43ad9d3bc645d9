"""Images from anywhere, made safe and uniform: upright, RGB, fitted into a square, PNG."""

from __future__ import annotations

import io
import math
import struct
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from dapo_stages.errors import DataError

if TYPE_CHECKING:
    from PIL import Image

MAX_ASPECT = 200  # longer side : shorter side; Qwen's image processors refuse more
# Formats that Pillow decodes itself. EPS and the like would start other programs; an ICO may contain images of other
# sizes than its header says.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "JPEG2000", "AVIF", "PPM")
_PNG = b"\x89PNG\r\n\x1a\n"
_RGB = bytes((8, 2, 0, 0, 0))  # 8 bits, three channels, deflate, the five standard filters, not interlaced
MOST_PIXELS = 178_956_970  # of an image in our own shards; Pillow also calls more than this a decompression bomb


class BadImage(DataError):
    """An image that cannot be used: where it is, and why."""

    def __init__(self, where: object, problem: str) -> None:
        super().__init__(where, problem, "Fix the row, or set data.on_bad_image=skip to leave such rows out.")


class Limits(NamedTuple):
    """Sides and pixels of images: data.max_image_size, data.max_image_pixels, data.min_image_size."""

    max_size: int
    max_pixels: int
    min_size: int = 1


class Prepared(NamedTuple):
    """An image as prompts contain it."""

    png: bytes
    size: tuple[int, int]  # width, height


def prepared(image: bytes | Path | Image.Image, where: object, limits: Limits) -> Prepared:
    """See `prepare` and `encode`. A PNG that needs neither is kept as it is: most of the time goes into compression."""
    if isinstance(image, Path):
        image = _read(image, _most_bytes(1, limits.max_pixels))  # what is kept are the bytes that were decoded
    found = prepare(image, where, max_size=limits.max_size, max_pixels=limits.max_pixels, min_size=limits.min_size)
    if isinstance(image, bytes) and is_plain_png(image, found.size):
        return Prepared(image, found.size)
    return Prepared(encode(found), found.size)


def prepare(
    image: bytes | Path | Image.Image, where: object, *, max_size: int, max_pixels: int, min_size: int = 1
) -> Image.Image:
    """The image upright, in RGB on white, with sides of at most `max_size` and, unless that forbids it, `min_size`.

    Nothing is decoded unless the header says that there are at most `max_pixels` pixels.
    Raises BadImage for anything that cannot be decoded completely.
    """
    from PIL import Image, ImageOps

    if isinstance(image, Image.Image):
        return _prepared(image, where, (min_size, max_size), max_pixels)
    try:
        with open_header(image) as opened:
            _check_size(opened, where, max_pixels)
            opened.load()
            ImageOps.exif_transpose(opened, in_place=True)
            return _prepared(opened, where, (min_size, max_size), max_pixels)
    except BadImage:
        raise
    except Exception as error:  # Pillow's decoders raise all kinds for damaged files
        raise BadImage(where, _problem(image, error)) from None


def encode(image: Image.Image) -> bytes:
    """PNG without metadata, so that equal pixels give equal bytes."""
    buffer = io.BytesIO()
    image.save(buffer, "PNG", compress_level=4, icc_profile=None)
    return buffer.getvalue()


def _read(path: Path, most: int) -> bytes | Path:
    """The bytes of a file; its path if it has more than `most`, or cannot be read, which `prepare` explains."""
    try:
        return path.read_bytes() if path.stat().st_size <= most else path
    except OSError:
        return path


def is_plain_png(data: bytes, size: tuple[int, int]) -> bool:
    """Whether this is a PNG of this size with RGB pixels of 8 bits and nothing else, each chunk with its checksum."""
    if not data.startswith(_PNG) or len(data) > _most_bytes(*size):
        return False
    names, start = [], len(_PNG)
    while start + 12 <= len(data):
        end = start + 12 + int.from_bytes(data[start : start + 4], "big")
        if end > len(data) or zlib.crc32(data[start + 4 : end - 4]) != int.from_bytes(data[end - 4 : end], "big"):
            return False
        names.append(data[start + 4 : start + 8])
        start = end
    header = data[len(_PNG) + 8 :][:13]
    in_order = names == [b"IHDR", *[b"IDAT"] * max(1, len(names) - 2), b"IEND"]
    return start == len(data) and in_order and header == struct.pack(">II", *size) + _RGB


def _most_bytes(width: int, height: int) -> int:
    """More than a PNG of RGB pixels has if it contains nothing else: incompressible ones, in many chunks."""
    return 4096 + height * (4 * width + 1)


def pixels_of(png: bytes) -> int:
    """Number of pixels of a PNG, from its header."""
    return int.from_bytes(png[16:20], "big") * int.from_bytes(png[20:24], "big")


def decode(image: Mapping[str, Any]) -> Image.Image:
    """An image of one of our own shards ({"bytes", "path"}), as RGB."""
    data = image.get("bytes")
    if not data:
        raise BadImage(image.get("path") or "a shard", "the image has no bytes")
    try:
        with open_header(data) as opened:
            if opened.width * opened.height > MOST_PIXELS:
                raise ValueError(f"{opened.width}x{opened.height} pixels")
            return opened.convert("RGB")
    except Exception as error:  # as above
        raise BadImage(image.get("path") or "a shard", _problem(data, error)) from None


def open_header(image: bytes | Path) -> Image.Image:
    """Read only the header of an image in one of FORMATS. Raises what Pillow does."""
    from PIL import Image

    Image.init()
    Image.MAX_IMAGE_PIXELS = None  # Pillow's own guard; _check_size enforces max_image_pixels instead
    formats = [name for name in FORMATS if name in Image.OPEN]  # not every build has AVIF
    return Image.open(io.BytesIO(image) if isinstance(image, bytes) else image, formats=formats)


def fitted_size(width: int, height: int, max_size: int, min_size: int = 1) -> tuple[int, int]:
    """Width and height scaled into a square of `max_size`, at least 1 pixel and within MAX_ASPECT.

    Smaller ones are scaled up to `min_size`, as far as they stay within the square.
    """
    longer, shorter = max(width, height), min(width, height)
    if longer <= max_size:
        scale = min(min_size / shorter, max_size / longer)
        return (width, height) if scale <= 1 else (round(width * scale), round(height * scale))
    least = math.ceil(max_size / MAX_ASPECT)
    scale = max_size / longer
    return max(least, round(width * scale)), max(least, round(height * scale))


def _check_size(image: Image.Image, where: object, max_pixels: int) -> None:
    width, height = image.size
    if width * height > max_pixels:
        raise BadImage(where, f"the image has {width}x{height} pixels, more than data.max_image_pixels={max_pixels}")
    if min(width, height) < 1:
        raise BadImage(where, f"the image is empty ({width}x{height} pixels)")
    if max(width, height) > MAX_ASPECT * min(width, height):
        raise BadImage(where, f"the image has {width}x{height} pixels, an aspect ratio above {MAX_ASPECT}:1")


def _prepared(image: Image.Image, where: object, sizes: tuple[int, int], max_pixels: int) -> Image.Image:
    from PIL import Image

    _check_size(image, where, max_pixels)
    rgb = _to_rgb(image, where)
    min_size, max_size = sizes
    size = fitted_size(*rgb.size, max_size, min_size)
    if size != rgb.size:
        rgb = rgb.resize(size, Image.Resampling.BICUBIC)
    return rgb


def _to_rgb(image: Image.Image, where: object) -> Image.Image:
    from PIL import Image

    if image.mode == "F":
        raise BadImage(where, "the image has floating-point pixels, whose range is unknown")
    if image.mode.startswith("I"):
        image = _eight_bits(image)
    if image.has_transparency_data:
        rgba = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")
    return image.convert("RGB")


def _eight_bits(image: Image.Image) -> Image.Image:
    """16-bit gray scaled to 8 bits (Pillow's own conversion would clip everything above 255 to white)."""
    import numpy as np
    from PIL import Image

    gray = np.asarray(image).astype(np.int64)
    if image.mode != "I" or gray.max() > 255:
        gray = (gray + 128) // 257
    return Image.fromarray(np.clip(gray, 0, 255).astype(np.uint8))


def _problem(image: bytes | Path, error: Exception) -> str:
    from PIL import UnidentifiedImageError

    if isinstance(error, FileNotFoundError):
        return "the image file does not exist"
    if isinstance(error, UnidentifiedImageError):
        size = len(image) if isinstance(image, bytes) else image.stat().st_size
        return f"not an image ({size} bytes)" if size else "the image is empty (0 bytes)"
    return f"the image is damaged ({' '.join(str(error).split())[:160] or type(error).__name__})"
