"""Token ids of a prompt's text, as the processor makes them, without processing images of known sizes again."""

from __future__ import annotations

import re
from collections import OrderedDict
from collections.abc import Sequence
from itertools import groupby
from math import prod
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

from dapo_stages.errors import ModelError

if TYPE_CHECKING:
    from PIL import Image

_MOST = 4096  # combinations of sizes that are remembered

Encoded = tuple[list[int], list[list[int]]]  # ids, and the patch grid (time, height, width) of each image


class _Known(NamedTuple):
    """What images of some sizes become."""

    grids: list[list[int]]
    counts: list[int]  # tokens of each image


class Sized(Protocol):
    """An image, decoded or not."""

    @property
    def size(self) -> tuple[int, int]: ...


class Encoder:
    """Encodes texts with images for one processor.

    How many tokens an image becomes depends on its size alone, so the processor sees each combination of sizes once.
    From then on, the placeholders are expanded here and the text is tokenized alone. That is only done for sizes for
    which it gave the processor's own ids.
    """

    def __init__(self, processor: Any) -> None:
        self._processor = processor
        self._token: str | None = getattr(processor, "image_token", None)
        self._id: int | None = getattr(processor, "image_token_id", None)
        self._known: OrderedDict[tuple[tuple[int, int], ...], _Known | None] = OrderedDict()

    def encode(self, text: str, images: Sequence[Image.Image]) -> Encoded:
        """Ids with expanded image placeholders, and grids. Raises ModelError, and what the processor does."""
        sizes = tuple(image.size for image in images)
        if (known := self._known.get(sizes)) is not None:
            return self._ids(text, known.counts), [list(grid) for grid in known.grids]
        ids, grids = processed(self._processor, text, images)
        if sizes not in self._known:
            counts = [len(list(run)) for token, run in groupby(ids) if token == self._id]
            same = len(counts) == len(images) and self._token is not None and self._ids(text, counts) == ids
            self._known[sizes] = _Known(grids, counts) if same else None
            if len(self._known) > _MOST:
                self._known.popitem(last=False)
        return ids, grids

    def encode_known(self, prompts: Sequence[tuple[str, Sequence[Sized]]]) -> list[Encoded | None]:
        """The same for several prompts, which are tokenized together; None where the sizes are not known yet."""
        known = [self._known.get(tuple(image.size for image in images)) for _, images in prompts]
        texts = [self._expanded(text, one.counts) for (text, _), one in zip(prompts, known, strict=True) if one]
        rest = iter(self._processor.tokenizer(texts)["input_ids"] if texts else ())
        return [None if one is None else (next(rest), [list(grid) for grid in one.grids]) for one in known]

    def _ids(self, text: str, counts: Sequence[int]) -> list[int]:
        ids: list[int] = self._processor.tokenizer(self._expanded(text, counts))["input_ids"]
        return ids

    def _expanded(self, text: str, counts: Sequence[int]) -> str:
        rest, token = iter(counts), str(self._token)
        return re.sub(re.escape(token), lambda _: token * next(rest), text) if counts else text


def processed(processor: Any, text: str, images: Sequence[Image.Image]) -> Encoded:
    """Ids and grids from the processor itself. Raises ModelError if these do not match."""
    encoded = processor(text=[text], images=list(images) or None, return_tensors="np")
    ids = [int(token) for token in encoded["input_ids"][0]]
    grids = [[int(size) for size in grid] for grid in encoded.get("image_grid_thw", [])]
    merge = getattr(getattr(processor, "image_processor", None), "merge_size", None)
    token = getattr(processor, "image_token_id", None)
    if grids and merge and token is not None:
        patches = sum(prod(grid) // merge**2 for grid in grids)
        if ids.count(token) != patches:
            raise ModelError(
                f"{type(processor).__name__}: expected {patches} image tokens, one per merged patch, got "
                f"{ids.count(token)}. Use a processor that matches its tokenizer."
            )
    return ids, grids
