"""Images of every kind: those that can be read, with their pixels worked out here, and those that cannot."""

from __future__ import annotations

import io
import random
import struct
import zlib
from functools import cache
from typing import Any

import numpy as np
from PIL import Image, ImageCms

Pixels = np.ndarray  # [H, W, 3], uint8
WIDTH, HEIGHT = 24, 16
MAGIC = b"\x89PNG\r\n\x1a\n"


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(kind: bytes, body: bytes) -> bytes:
    """One chunk of a PNG."""
    return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))


def png(width: int, height: int, body: bytes = b"\0", *, bits: int = 8, colors: int = 2, more: bytes = b"") -> bytes:
    """A PNG whose header says what it likes."""
    header = struct.pack(">IIBBBBB", width, height, bits, colors, 0, 0, 0)
    return MAGIC + chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(body)) + chunk(b"IEND", b"")


def noise(seed: int = 0) -> Pixels:
    return np.random.default_rng(seed).integers(0, 256, (HEIGHT, WIDTH, 3), dtype=np.uint8)


def smooth() -> Pixels:
    """A ramp, which lossy formats keep well."""
    y, x = np.mgrid[0:HEIGHT, 0:WIDTH]
    return np.stack([x * 8, y * 12, 255 - x * 8], axis=-1).astype(np.uint8)


def theirs(data: bytes) -> Pixels:
    """Pillow's own reading of the first frame: what a lossy or converting decoder makes of it."""
    with Image.open(io.BytesIO(data)) as image:
        return np.asarray(image.convert("RGB"))


def gray(values: Pixels) -> Pixels:
    return np.repeat(values[..., None], 3, axis=2).astype(np.uint8)


@cache
def readable() -> dict[str, tuple[bytes, Pixels]]:
    """Name -> the file, and its pixels on white, upright, in 8 bits."""
    rgb, other = noise(), noise(1)
    image = Image.fromarray(rgb)
    found: dict[str, tuple[bytes, Pixels]] = {
        "RGB PNG": (saved(image), rgb),
        "BMP": (saved(image, "BMP"), rgb),
        "PPM": (saved(image, "PPM"), rgb),
        "TIFF, LZW": (saved(image, "TIFF", compression="tiff_lzw"), rgb),
        "TIFF, tiles of two pages": (saved(image, "TIFF", save_all=True, append_images=[Image.fromarray(other)]), rgb),
        "WebP without loss": (saved(image, "WEBP", lossless=True), rgb),
        "JPEG2000 without loss": (saved(image, "JPEG2000"), rgb),
        "1x1": (saved(Image.new("RGB", (1, 1), (1, 2, 3))), np.array([[[1, 2, 3]]], dtype=np.uint8)),
        "200x1": (saved(Image.new("RGB", (200, 1), (9, 8, 7))), np.full((1, 200, 3), (9, 8, 7), dtype=np.uint8)),
        "animated WebP": (
            saved(image, "WEBP", lossless=True, save_all=True, append_images=[Image.fromarray(other)]), rgb
        ),
        "animated PNG": (saved(image, save_all=True, append_images=[Image.fromarray(other)]), rgb),
        "with a comment of a megabyte": (png_with_text(rgb, 1 << 20), rgb),
        "with garbage after its end": (saved(image) + b"<?php echo 1 ?>" * 100, rgb),
        "with an ICC profile": (saved(image, icc_profile=profile()), rgb),
    }  # fmt: skip
    for name, kind, options in (
        ("JPEG", "JPEG", {}),
        ("progressive JPEG", "JPEG", {"progressive": True}),
        ("lossy WebP", "WEBP", {}),
        ("lossy JPEG2000", "JPEG2000", {"irreversible": True}),
    ):
        data = saved(Image.fromarray(smooth()), kind, **options)
        found[name] = data, theirs(data)
    return found | _modes() | _oriented()


def _modes() -> dict[str, tuple[bytes, Pixels]]:
    values = noise()[..., 0]
    ink = np.random.default_rng(2).integers(0, 256, (HEIGHT, WIDTH, 4), dtype=np.uint8)
    deep = np.random.default_rng(3).integers(0, 65536, (HEIGHT, WIDTH), dtype=np.uint16)
    eight = gray(np.rint(deep / 257))  # 65535 / 255 = 257
    palette = Image.fromarray(values % 4).convert("P")
    palette.putpalette([10, 20, 30, 200, 0, 0, 0, 200, 0, 0, 0, 200])
    looked_up = np.array([[10, 20, 30], [200, 0, 0], [0, 200, 0], [0, 0, 200]], dtype=np.uint8)[values % 4]
    clear = np.where((values % 4 == 1)[..., None], 255, looked_up).astype(np.uint8)
    alpha = np.where(values > 127, 255, 0).astype(np.uint8)
    seen = np.where(alpha[..., None] == 255, noise(), 255).astype(np.uint8)
    cmyk = Image.fromarray(ink, "CMYK")
    # Each ink takes its share of the light, and black of what is left: Pillow's own rounding of (1 - c)(1 - k).
    printed = np.asarray(cmyk.convert("RGB"))
    light = (255.0 - ink[..., :3]) * (255.0 - ink[..., 3:]) / 255
    assert np.abs(printed - light).max() <= 1
    cmyk_jpeg = saved(Image.fromarray(np.dstack([smooth(), smooth()[..., 0] // 4]), "CMYK"), "JPEG", quality=95)
    bits = values > 127
    key = saved(Image.fromarray(np.where(bits[..., None], noise(), 7).astype(np.uint8)), transparency=(7, 7, 7))
    still, moving = Image.fromarray(values % 4 * 60), Image.fromarray(values % 3 * 60)
    return {
        "gray": (saved(Image.fromarray(values)), gray(values)),
        "gray JPEG2000": (saved(Image.fromarray(values), "JPEG2000"), gray(values)),
        "1 bit": (saved(Image.fromarray(bits)), gray(bits * 255)),
        "1 bit TIFF, fax": (saved(Image.fromarray(bits), "TIFF", compression="group4"), gray(bits * 255)),
        "palette": (saved(palette), looked_up),
        "palette with a transparent color": (saved(palette, transparency=1), clear),
        "GIF": (saved(palette, "GIF"), looked_up),
        "animated GIF": (saved(still, "GIF", save_all=True, append_images=[moving]), gray(values % 4 * 60)),
        "transparent": (saved(Image.fromarray(np.dstack([noise(), alpha]), "RGBA")), seen),
        "transparent WebP": (
            saved(Image.fromarray(np.dstack([noise(), alpha]), "RGBA"), "WEBP", lossless=True), seen
        ),
        "transparent gray": (
            saved(Image.fromarray(np.dstack([values, alpha]), "LA")),
            gray(np.where(alpha == 255, values, 255)),
        ),
        "color key": (key, np.where(bits[..., None], noise(), 255).astype(np.uint8)),
        "16 bit gray PNG": (saved(Image.fromarray(deep)), eight),
        "16 bit gray TIFF": (saved(Image.fromarray(deep), "TIFF"), eight),
        "16 bit color PNG": (png16(noise()), noise()),
        "CMYK TIFF": (saved(cmyk, "TIFF"), printed),
        "CMYK JPEG": (cmyk_jpeg, theirs(cmyk_jpeg)),
        "YCbCr TIFF": (ycbcr := saved(Image.fromarray(smooth()).convert("YCbCr"), "TIFF"), theirs(ycbcr)),
    }  # fmt: skip


def _oriented() -> dict[str, tuple[bytes, Pixels]]:
    """EXIF 2.32, tag 274: what has to be done to the stored rows to see them upright."""
    rgb = noise()
    upright = {
        2: rgb[:, ::-1], 3: rgb[::-1, ::-1], 4: rgb[::-1], 5: rgb.transpose(1, 0, 2),
        6: np.rot90(rgb, -1), 7: rgb[::-1, ::-1].transpose(1, 0, 2), 8: np.rot90(rgb),
    }  # fmt: skip
    found = {}
    for orientation, pixels in upright.items():
        exif = Image.Exif()
        exif[274] = orientation
        found[f"EXIF orientation {orientation}"] = saved(Image.fromarray(rgb), exif=exif), pixels
    exif = Image.Exif()
    exif[37510] = b"x" * 8_000_000  # a user's comment
    found["EXIF of 8 MB"] = saved(Image.fromarray(rgb), exif=exif), rgb
    found["EXIF of an unknown orientation"] = saved(Image.fromarray(rgb), exif=_exif_of(99)), rgb
    return found


def _exif_of(orientation: int) -> Image.Exif:
    exif = Image.Exif()
    exif[274] = orientation
    return exif


def png16(rgb: Pixels) -> bytes:
    """16 bits a channel: each value v as 257 v, which is the same share of the whole."""
    rows = b"".join(b"\0" + (row.astype(np.uint16) * 257).astype(">u2").tobytes() for row in rgb)
    return png(rgb.shape[1], rgb.shape[0], rows, bits=16)


def png_with_text(rgb: Pixels, length: int, *, packed: bool = True) -> bytes:
    rows = b"".join(b"\0" + row.tobytes() for row in rgb)
    text = chunk(b"zTXt", b"Comment\0\0" + zlib.compress(b"x" * length)) if packed else b""
    return png(rgb.shape[1], rgb.shape[0], rows, more=text)


def profile() -> bytes:
    return ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()


def ico_with(inner: bytes) -> bytes:
    """An icon whose directory says 16 × 16, whatever the PNG in it is."""
    return struct.pack("<HHH", 0, 1, 1) + struct.pack("<BBBBHHII", 16, 16, 0, 0, 1, 32, len(inner), 22) + inner


@cache
def bomb(side: int = 30_000) -> bytes:
    """A whole PNG of one bit a pixel: a hundred kilobytes that are 2.7 GB as RGB."""
    packer = zlib.compressobj(9)
    row = b"\0" * (1 + (side + 7) // 8)
    body = b"".join(packer.compress(row * 1000) for _ in range(side // 1000)) + packer.flush()
    header = struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0)
    return MAGIC + chunk(b"IHDR", header) + chunk(b"IDAT", body) + chunk(b"IEND", b"")


def _noisy(kind: str, **options: Any) -> bytes:
    image = Image.frombytes("RGB", (64, 64), random.Random(0).randbytes(64 * 64 * 3))
    return saved(image, kind, **options)


def _half(kind: str, **options: Any) -> bytes:
    data = _noisy(kind, **options)
    return data[: len(data) // 2]


DAMAGED, NONE = r"the image is damaged \(.+\)", r"not an image \(\d+ bytes\)"


@cache
def unreadable() -> dict[str, tuple[bytes, str]]:
    """Name -> the file, and a pattern of the reason that is said."""
    svg = b'<svg xmlns="http://www.w3.org/2000/svg" width="9" height="9"><script>1</script></svg>'
    png_ = _noisy("PNG")
    flipped = bytearray(png_)
    flipped[len(png_) // 2] ^= 255
    shape = "an aspect ratio above 200:1"
    return {
        "zero bytes": (b"", r"the image is empty \(0 bytes\)"),
        "HTML": (b"<!doctype html><html><body>404</body></html>", NONE),
        "SVG": (svg, NONE),
        "noise": (random.Random(1).randbytes(5000), NONE),
        "the first bytes of a PNG": (png_[:8], rf"({DAMAGED}|{NONE})"),
        "half a PNG": (_half("PNG"), DAMAGED),
        "half a JPEG": (_half("JPEG"), DAMAGED),
        "half a WebP": (_half("WEBP"), rf"({DAMAGED}|{NONE})"),
        "half a TIFF": (_half("TIFF"), DAMAGED),
        "half a JPEG2000": (_half("JPEG2000"), DAMAGED),
        "a PNG with a flipped bit": (bytes(flipped), DAMAGED),
        "a PNG without pixels": (png(9, 9, b""), DAMAGED),
        "a PNG of no width": (png(0, 9), rf"({DAMAGED}|the image is empty \(0x9 pixels\)|{NONE})"),
        "a PNG that says 30000x30000": (
            png(30_000, 30_000),
            "the image has 30000x30000 pixels, more than data.max_image_pixels=.*",
        ),
        "a whole PNG of 30000x30000": (bomb(), "the image has 30000x30000 pixels, more than .*"),
        "an icon with a bomb in it": (ico_with(png(30_000, 30_000)), NONE),
        "a comment of 100 MB in 100 KB": (png_with_text(noise(), 100 << 20), DAMAGED),
        "10000x1": (saved(Image.new("L", (10_000, 1))), f"the image has 10000x1 pixels, {shape}"),
        "1x10000": (saved(Image.new("L", (1, 10_000))), f"the image has 1x10000 pixels, {shape}"),
        "201x1": (saved(Image.new("L", (201, 1))), f"the image has 201x1 pixels, {shape}"),
        "floating point": (
            saved(Image.new("F", (9, 9)), "TIFF"),
            "the image has floating-point pixels, whose range is unknown",
        ),
        "PostScript": (saved(Image.new("L", (9, 9)), "EPS"), NONE),
        "PDF": (saved(Image.new("L", (9, 9)), "PDF"), NONE),
        "a ZIP": (b"PK\x03\x04" + b"\0" * 100, NONE),
    }
