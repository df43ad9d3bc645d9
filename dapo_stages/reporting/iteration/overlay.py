"""Where a completion looked, drawn over its image such that the image stays visible.

A cell with at most the average attention is not painted at all; above it, color and opacity grow up to the cell that
got most, and to twice the average at least, so that a map without contrast stays pale. The page (look.js) and the
notebook draw by the same rule.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dapo_stages.reporting.iteration.heat import shapes_of

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Shades = NDArray[np.uint8]  # red, green, blue and opacity of each cell of an image [rows, columns, 4]

OPACITY = 0.6  # of the cell that got most
# From violet to yellow, as the upper part of inferno (matplotlib): lightness alone tells them apart.
COLORS = ((147, 38, 103), (221, 81, 58), (252, 165, 10), (250, 230, 20))


@dataclass(frozen=True)
class Look:
    """Where a completion looked on average: `shades` of each image, the brightest cell as a multiple of the average
    one, and the share of the attention that is on the images.
    """

    shades: list[Shades]
    times: float
    seen: float


def look_of(look_TV: NDArray[np.float32], grid_thw: Sequence[Sequence[int]]) -> Look | None:
    """The mean over tokens of their attention to each image token [T, V]; None if it does not fit the images or is not
    finite.
    """
    import numpy as np

    mean_V = look_TV.mean(axis=0)
    shapes = shapes_of(grid_thw, len(mean_V))
    if shapes is None or not np.isfinite(mean_V).all():
        return None
    painted = shades(mean_V)
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    parts = [part.reshape(*shape, 4) for part, shape in zip(np.split(painted, ends), shapes, strict=True)]
    average = float(mean_V.mean())
    return Look(parts, float(mean_V.max()) / average if average > 0 else 1.0, float(mean_V.sum()))


def shades(cells_V: NDArray[Any]) -> Shades:
    """Color and opacity of cells [V] -> [V, 4], by their attention relative to the average of all of them."""
    import numpy as np

    cells_V = np.asarray(cells_V, np.float64)
    average = cells_V.mean()
    above = max(cells_V.max(), 2 * average) - average
    share_V = np.clip((cells_V - average) / above, 0, 1) if above > 0 else np.zeros_like(cells_V)
    stops = np.linspace(0, 1, len(COLORS))
    channels = [np.interp(share_V, stops, [color[channel] for color in COLORS]) for channel in range(3)]
    shades_V4: Shades = np.rint(np.stack([*channels, 255 * OPACITY * share_V], axis=-1)).astype(np.uint8)
    return shades_V4


def over(image: Any, shades: Shades) -> Any:
    """An image (Pillow's) with a map over it, each cell as large as its part of the image."""
    from PIL import Image

    layer = Image.fromarray(shades, "RGBA").resize(image.size, Image.Resampling.NEAREST)
    return Image.alpha_composite(image.convert("RGBA"), layer).convert("RGB")
