"""Colored shapes on a gray, noisy background."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
from PIL import Image, ImageDraw

COLOURS: dict[str, tuple[int, int, int]] = {
    "red": (215, 45, 45),
    "green": (40, 165, 65),
    "blue": (45, 80, 215),
    "yellow": (230, 205, 40),
}
Box = tuple[float, float, float]  # center x, center y, half the width, in pixels


def ground(rng: np.random.Generator, size: int) -> Image.Image:
    """A gray square with sides of `size` pixels."""
    return Image.new("RGB", (size, size), (int(rng.integers(60, 226)),) * 3)


def paint(rng: np.random.Generator, image: Image.Image, shape: str, colour: str, box: Box) -> None:
    """Draw a shape, in a shade of its color, into the image."""
    shade = tuple(int(c) for c in np.clip(np.array(COLOURS[colour]) + rng.integers(-25, 26, size=3), 0, 255))
    SHAPES[shape](ImageDraw.Draw(image), box, shade)


def with_noise(rng: np.random.Generator, image: Image.Image) -> Image.Image:
    """The image plus Gaussian noise (standard deviation 6 of 255) on every channel."""
    noisy = np.asarray(image, dtype=np.float32) + rng.normal(0, 6, size=(image.height, image.width, 3))
    return Image.fromarray(np.clip(noisy, 0, 255).astype(np.uint8))


def _polygon(*corners: tuple[float, float]) -> Callable[[ImageDraw.ImageDraw, Box, tuple[int, ...]], None]:
    def draw_polygon(draw: ImageDraw.ImageDraw, box: Box, fill: tuple[int, ...]) -> None:
        x, y, half = box
        draw.polygon([(x + dx * half, y + dy * half) for dx, dy in corners], fill=fill)

    return draw_polygon


def _ellipse(draw: ImageDraw.ImageDraw, box: Box, fill: tuple[int, ...]) -> None:
    x, y, half = box
    draw.ellipse((x - half, y - half, x + half, y + half), fill=fill)


SHAPES: dict[str, Callable[[ImageDraw.ImageDraw, Box, tuple[int, ...]], None]] = {
    "circle": _ellipse,
    "square": _polygon((-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)),
    "triangle": _polygon((0, -1), (1, 0.9), (-1, 0.9)),
    "diamond": _polygon((0, -1), (1, 0), (0, 1), (-1, 0)),
}
