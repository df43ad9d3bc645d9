"""Images of every kind, good and bad."""

from __future__ import annotations

import io
import struct
import zlib
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageCms, ImageFile

from dapo_stages.data.images import BadImage, Limits, decode, encode, fitted_size, prepare, prepared

LIMITS: dict[str, Any] = {"max_size": 1024, "max_pixels": 50_000_000}


def saved(image: Image.Image, kind: str = "PNG", **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def png_header(width: int, height: int) -> bytes:
    """A PNG that claims a size without having the pixels."""

    def chunk(name: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))

    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    pixels = zlib.compress(b"\0" * 100)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", pixels) + chunk(b"IEND", b"")


def noise(width: int, height: int) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8))


def transparent_palette() -> bytes:
    image = Image.new("P", (2, 1))
    image.putpalette([255, 0, 0, 0, 0, 255])
    image.putpixel((1, 0), 1)
    return saved(image, transparency=0)


def gray16(values: list[int]) -> bytes:
    return saved(Image.fromarray(np.array([values], dtype=np.uint16)))


def pixels(image: Image.Image) -> list[Any]:
    assert image.mode == "RGB"
    return [image.getpixel((x, y)) for y in range(image.height) for x in range(image.width)]


GREEN_CARD = saved(Image.new("RGB", (1, 1), (0, 255, 0)))


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        pytest.param(GREEN_CARD, [(0, 255, 0)], id="1x1"),
        pytest.param(saved(Image.new("CMYK", (1, 1), (255, 0, 0, 0)), "TIFF"), [(0, 255, 255)], id="CMYK"),
        pytest.param(transparent_palette(), [(255, 255, 255), (0, 0, 255)], id="palette with a transparent color"),
        pytest.param(saved(Image.new("RGBA", (1, 1), (255, 0, 0, 128))), [(255, 127, 127)], id="half transparent"),
        pytest.param(saved(Image.new("LA", (1, 1), (0, 0))), [(255, 255, 255)], id="transparent gray"),
        pytest.param(
            saved(Image.new("RGB", (1, 1), (9, 9, 9)), transparency=(9, 9, 9)), [(255, 255, 255)], id="color key"
        ),
        pytest.param(gray16([0, 100 * 257, 65535]), [(0,) * 3, (100,) * 3, (255,) * 3], id="16 bit gray"),
        pytest.param(
            saved(Image.fromarray(np.array([[0, 257, 65535]], dtype=np.int32)), "TIFF"),
            [(0,) * 3, (1,) * 3, (255,) * 3],
            id="32 bit integers",
        ),
        pytest.param(saved(Image.new("1", (1, 1), 1)), [(255, 255, 255)], id="1 bit"),
        pytest.param(saved(Image.new("L", (1, 1), 7), "GIF"), [(7, 7, 7)], id="GIF"),
    ],
)
def test_every_mode_becomes_rgb_on_white(data: bytes, expected: list[Any]) -> None:
    assert pixels(prepare(data, "row 0", **LIMITS)) == expected


def test_a_photo_that_was_held_sideways_is_turned_upright() -> None:
    stored = Image.new("RGB", (2, 1), "red")
    stored.putpixel((1, 0), (0, 0, 255))
    exif = Image.Exif()
    exif[0x0112] = 6  # "rotate 90 degrees clockwise to show": the stored left end is the top
    upright = prepare(saved(stored, exif=exif), "row 0", **LIMITS)
    assert upright.size == (1, 2)
    assert pixels(upright) == [(255, 0, 0), (0, 0, 255)]


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((2048, 1024), (1024, 512)),
        ((1000, 4000), (256, 1024)),
        ((1024, 1024), (1024, 1024)),
        ((300, 20), (300, 20)),
        ((1, 1), (1, 1)),
        ((10000, 50), (1024, 6)),  # 5.12 rows would be 5, and 1024:5 is beyond 200:1
        ((1025, 1025), (1024, 1024)),
    ],
)
def test_images_are_fitted_and_not_enlarged(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, 1024) == fitted
    assert prepare(Image.new("L", size), "row 0", **LIMITS).size == fitted


@pytest.mark.parametrize(
    ("size", "fitted"),
    [
        ((14, 28), (56, 112)),
        ((56, 20), (157, 56)),
        ((56, 56), (56, 56)),
        ((100, 2), (1024, 20)),  # 56 rows would need 2800 columns
        ((2048, 1024), (1024, 512)),
    ],
)
def test_small_images_are_enlarged_where_that_is_asked_for(size: tuple[int, int], fitted: tuple[int, int]) -> None:
    assert fitted_size(*size, 1024, 56) == fitted
    assert prepare(Image.new("L", size), "row 0", **LIMITS, min_size=56).size == fitted


@pytest.mark.parametrize(
    ("data", "reason"),
    [
        pytest.param(
            saved(noise(200, 200), "JPEG")[:9000], "the image is damaged (image file is truncated", id="half JPEG"
        ),
        pytest.param(saved(noise(50, 50))[:4000], "the image is damaged (", id="half PNG"),
        pytest.param(b"", "the image is empty (0 bytes)", id="empty"),
        pytest.param(b"<html>not found</html>", "not an image (22 bytes)", id="a web page"),
        pytest.param(saved(Image.new("L", (9, 9)), "EPS"), ": not an image (", id="EPS runs other programs"),
        pytest.param(
            saved(Image.new("L", (10000, 1))), "the image has 10000x1 pixels, an aspect ratio above 200:1", id="10000x1"
        ),
        pytest.param(saved(Image.new("F", (2, 2)), "TIFF"), "the image has floating-point pixels", id="float"),
        pytest.param(
            saved(Image.new("1", (8000, 8000))),
            "the image has 8000x8000 pixels, more than data.max_image_pixels=50000000",
            id="64 MP",
        ),
    ],
)
def test_bad_images_are_refused_with_row_and_reason(data: bytes, reason: str) -> None:
    with pytest.raises(BadImage) as caught:
        prepare(data, "set.jsonl row 7", **LIMITS)
    assert str(caught.value).startswith("set.jsonl row 7: ")
    assert reason in str(caught.value)
    assert "data.on_bad_image=skip" in str(caught.value)


@pytest.mark.filterwarnings("ignore::PIL.Image.DecompressionBombWarning")
@pytest.mark.parametrize("side", [8_000, 10_000, 30_000])  # below, above and far above Pillow's own two limits
def test_a_bomb_is_refused_before_it_is_decoded(side: int, monkeypatch: pytest.MonkeyPatch) -> None:
    def load(*_: object) -> None:
        raise AssertionError("decoded")

    monkeypatch.setattr(ImageFile.ImageFile, "load", load)
    with pytest.raises(BadImage, match=r"pixels") as caught:
        prepare(png_header(side, side), "row 0", **LIMITS)
    assert "decoded" not in str(caught.value)


def test_a_missing_file_is_a_bad_image(tmp_path: Path) -> None:
    with pytest.raises(BadImage, match=r"row 3: the image file does not exist\. Fix the row"):
        prepare(tmp_path / "gone.png", "row 3", **LIMITS)


def test_images_in_memory_obey_the_same_limits() -> None:
    with pytest.raises(BadImage, match=r"more than data\.max_image_pixels=100"):
        prepare(Image.new("RGB", (11, 10)), "row 0", max_size=1024, max_pixels=100)


def test_equal_pixels_give_equal_bytes_without_metadata() -> None:
    profile = ImageCms.ImageCmsProfile(ImageCms.createProfile("sRGB")).tobytes()
    plain, dressed = noise(20, 30), saved(noise(20, 30), icc_profile=profile, dpi=(300, 300))
    encoded = encode(prepare(dressed, "row 0", **LIMITS))
    assert encoded == encode(prepare(plain, "row 0", **LIMITS))
    assert all(name not in encoded for name in (b"iCCP", b"pHYs", b"eXIf", b"tEXt"))


SMALL = Limits(64, 4096)
PLAIN = saved(noise(20, 30), compress_level=9)


def chunks(png: bytes) -> list[bytes]:
    """The chunks of a PNG, after its signature."""
    found, start = [], 8
    while start < len(png):
        end = start + 12 + int.from_bytes(png[start : start + 4], "big")
        found.append(png[start:end])
        start = end
    return found


def in_two(png: bytes) -> bytes:
    """The same with its pixels in two chunks."""
    header, pixels, end = chunks(png)
    parts = [b"IDAT" + pixels[8:-4][:100], b"IDAT" + pixels[8:-4][100:]]
    written = [struct.pack(">I", len(part) - 4) + part + struct.pack(">I", zlib.crc32(part)) for part in parts]
    return png[:8] + header + b"".join(written) + end


@pytest.mark.parametrize("data", [PLAIN, in_two(PLAIN), saved(noise(64, 64)), saved(Image.new("RGB", (1, 1)))])
def test_a_png_that_needs_nothing_is_kept(data: bytes, tmp_path: Path) -> None:
    (tmp_path / "a.png").write_bytes(data)
    for image in (data, tmp_path / "a.png"):
        assert prepared(image, "row 0", SMALL).png == data
    assert pixels(decode({"bytes": data})) == pixels(Image.open(io.BytesIO(data)))


@pytest.mark.parametrize(
    "data",
    [
        saved(noise(20, 30), dpi=(300, 300)),
        PLAIN + b"more",
        PLAIN + bytes(20_000),
        PLAIN[:-12] + chunks(saved(noise(20, 30), dpi=(300, 300)))[1] + PLAIN[-12:],
        PLAIN[:-16] + b"\0\0\0\0" + PLAIN[-12:],
        saved(noise(20, 30).convert("RGBA")),
        saved(noise(20, 30).convert("L")),
        saved(noise(20, 30).convert("P")),
        saved(noise(20, 30), transparency=(1, 2, 3)),
        saved(noise(65, 30)),
        saved(noise(20, 30), "BMP"),
    ],
    ids=[
        "dpi",
        "text_after_it",
        "zeros_after_it",
        "chunk_after_pixels",
        "checksum",
        "alpha",
        "gray",
        "palette",
        "transparent_color",
        "large",
        "BMP",
    ],
)
def test_any_other_image_is_encoded_again(data: bytes) -> None:
    found = prepared(data, "row 0", SMALL)
    assert found.png != data
    assert found.png == encode(prepare(data, "row 0", max_size=64, max_pixels=4096))
    assert found.size == Image.open(io.BytesIO(found.png)).size and max(found.size) <= 64


def test_what_was_encoded_is_decoded_to_the_same_pixels() -> None:
    image = noise(30, 20)
    assert decode({"bytes": encode(image), "path": None}).tobytes() == image.tobytes()


@pytest.mark.parametrize(
    ("data", "problem"),
    [
        (None, "the image has no bytes"),
        (b"", "the image has no bytes"),
        (saved(noise(50, 50))[:4000], "the image is dam"),
    ],
)
def test_decoding_names_the_image_that_is_damaged(data: bytes | None, problem: str) -> None:
    with pytest.raises(BadImage, match=rf"^a\.png: {problem}"):
        decode({"bytes": data, "path": "a.png"})
