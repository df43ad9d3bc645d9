"""Where completions looked: attention to each image token, by token and layers, small enough for a page."""

from __future__ import annotations

import base64
import math
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.schemas import SEGMENTS
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    import numpy as np
    import pyarrow as pa
    from numpy.typing import NDArray

    Patches = Mapping[str, NDArray[np.float32]]  # layers -> attention of each token to each image token [T, V]

LIMIT = 256 * 1024  # bytes of a completion's maps: beyond that, blocks of image tokens share their mean


def with_patches(source: Source) -> set[str]:
    """The completions whose attention is kept per image token."""
    found = set()
    for shard in source.shards("attention"):
        with source.reader("attention", shard) as reader:
            for group in range(len(reader.row_group_sizes)):
                table = reader.table(group, ["completion_id", "patch_attention_all"])
                kept = table["patch_attention_all"].is_valid().to_pylist()
                found |= {key for key, there in zip(table["completion_id"].to_pylist(), kept, strict=True) if there}
    return found


def patch_attention(source: Source, wanted: set[str]) -> Iterator[tuple[str, Patches]]:
    """Attention to each image token of some completions, by layers.

    Read as arrays, a row group at a time: as Python numbers a single row group could fill the memory.
    """
    columns = {segment: f"patch_attention_{segment}" for segment in SEGMENTS}
    for shard in source.shards("attention"):
        with source.reader("attention", shard) as reader:
            for group in range(len(reader.row_group_sizes)):
                keys = reader.table(group, ["completion_id"])["completion_id"].to_pylist()
                if wanted.isdisjoint(keys):
                    continue
                table = reader.table(group, list(columns.values()))
                for index, key in enumerate(keys):
                    if key in wanted:
                        cells = {segment: table[name][index] for segment, name in columns.items()}
                        found = {
                            segment: array for segment, cell in cells.items() if (array := _array(cell)) is not None
                        }
                        if found:
                            yield key, found


def maps(patches: Patches, grid_thw: Sequence[Sequence[int]]) -> dict[str, Any] | None:
    """What the page needs to draw where each token looked; None if the values do not fit the images, or
    are not finite.

    `data` is one byte per cell, [layers, tokens + 1, cells]: a row's brightest cell is 255, the last row is the mean
    over tokens. `seen` [layers, tokens + 1] is the share of the attention that is on the images. A cell is the mean of
    `block` × `block` image tokens.
    """
    import numpy as np

    looks_STV = np.stack([np.concatenate([look, look.mean(axis=0, keepdims=True)]) for look in patches.values()])
    shapes = shapes_of(grid_thw, looks_STV.shape[2])
    if shapes is None or looks_STV.shape[1] < 2 or not np.isfinite(looks_STV).all():
        return None
    block, per_cell = 1, looks_STV.shape[0] * looks_STV.shape[1]
    while per_cell * sum(_cells(shape, block) for shape in shapes) > LIMIT and block < max(max(s) for s in shapes):
        block += 1
    ends = np.cumsum([rows * columns for rows, columns in shapes])[:-1]
    parts = np.split(looks_STV, ends, axis=2)
    cells = np.concatenate([_pooled(part, shape, block) for part, shape in zip(parts, shapes, strict=True)], axis=2)
    brightest = cells.max(axis=2, keepdims=True)
    bytes_ = np.rint(255 * np.divide(cells, brightest, out=np.zeros_like(cells), where=brightest > 0)).astype(np.uint8)
    return {
        "layers": list(patches),
        "shapes": [list(shape) for shape in shapes],
        "block": block,
        "cells": cells.shape[2],
        "seen": [[round(float(share), 3) for share in row] for row in looks_STV.sum(axis=2)],
        "data": base64.b64encode(bytes_.tobytes()).decode(),
    }


def grid_of(prompt: Row, tokens: int) -> list[list[int]]:
    """The patch grid (time, height, width) of each image of a prompt row with this many image tokens.

    Without grids all images are squares (models/families.py); score-attention keeps no attention to other images.
    """
    images = len(prompt["images"] or ())
    side = math.isqrt(tokens // images) if images else 0
    return prompt["image_grid_thw"] or [[1, side, side]] * images


def shapes_of(grid_thw: Sequence[Sequence[int]], tokens: int) -> list[tuple[int, int]] | None:
    """Rows and columns of image tokens of each image, or temporal step of a video; None if they do not add up to
    `tokens`.

    `grid_thw` counts patches; an image token covers merge × merge of them (2 × 2 in Qwen2.5-VL), in raster order.
    """
    merge = math.isqrt(sum(t * h * w for t, h, w in grid_thw) // tokens) if tokens else 0
    if not merge or any(t < 1 or h % merge or w % merge for t, h, w in grid_thw):
        return None
    shapes = [(h // merge, w // merge) for t, h, w in grid_thw for _ in range(t)]
    return shapes if sum(rows * columns for rows, columns in shapes) == tokens else None


def _cells(shape: tuple[int, int], block: int) -> int:
    return math.ceil(shape[0] / block) * math.ceil(shape[1] / block)


def _pooled(look_STV: NDArray[np.float32], shape: tuple[int, int], block: int) -> NDArray[np.float32]:
    """Means over blocks of rows and columns; those at the far edges may be smaller."""
    import numpy as np

    rows, columns = (np.arange(0, size, block) for size in shape)
    grid = look_STV.reshape(*look_STV.shape[:2], *shape)
    sums = np.add.reduceat(np.add.reduceat(grid, rows, axis=2), columns, axis=3)
    sizes = np.outer(*(np.diff(np.append(starts, size)) for starts, size in zip((rows, columns), shape, strict=True)))
    means: NDArray[np.float32] = (sums / sizes).reshape(*look_STV.shape[:2], -1).astype(np.float32)
    return means


def _array(cell: pa.Scalar) -> NDArray[np.float32] | None:
    import numpy as np

    if not cell.is_valid or not len(flat := cell.values.flatten()):
        return None
    # to_numpy() would import pandas
    numbers = np.frombuffer(flat.buffers()[1], np.float16, len(flat), 2 * flat.offset)
    return numbers.reshape(len(cell.values), -1).astype(np.float32)
