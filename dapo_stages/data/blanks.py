"""Images changed or taken out of a prompt, to see what a policy says without them.

What a prompt's images become depends only on the row, the seed, the group and the number of the draw (and, where they
are exchanged, on all images of the rollout): never on what else is in a forward pass, nor on the number of processes.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, NamedTuple, Protocol

from dapo_stages.config.attention import BlankKind
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row

if TYPE_CHECKING:
    import numpy as np
    from PIL import Image

GRAY = (127, 127, 127)
_NOISED = 2**32  # in place of the number of a draw, which is smaller


class Blank(NamedTuple):
    """What becomes of the images: `attention.blank`, with the share and the side of the squares of `patches`."""

    kind: BlankKind = "gray"
    share: float = 0.6
    patch: int = 14


class ImageMarks(NamedTuple):
    """Token ids around an image in a prompt: <|vision_start|>, the image's own (repeated), <|vision_end|>."""

    start: int
    image: int
    end: int
    video: int | None = None  # in place of the image's, around a video


class Rows(Protocol):
    """Prompt rows by number: a list, or handoff.lookups.RowIndex."""

    def __len__(self) -> int: ...
    def __getitem__(self, index: int) -> Row: ...


def blanked(row: Row) -> Row:
    """A prompt row with its images replaced by gray ones of the same size."""
    from PIL import Image

    return _redrawn(row, lambda image, _: Image.new("RGB", image.size, GRAY))


class Blanks:
    """Changes the images of prompt rows of one rollout.

    `patches` blackens each square of `patch` pixels with probability `share`, from the top left, as PAPO (arXiv
    2507.06448: 14 pixels, 0.6) and VPPO (2510.09285: 0.5) do; `noise` draws each channel of each pixel uniformly;
    `removed` leaves the prompt that its text would make without images; `exchanged` takes images of other prompts.
    All but `removed` keep the sizes of the images, and so their tokens.
    """

    def __init__(
        self, blank: Blank, seed: int, marks: ImageMarks | None = None, others: OtherImages | None = None
    ) -> None:
        """`marks` is needed for `removed`, `others` for `exchanged`."""
        self._blank, self._seed, self._marks, self._others = blank, seed, marks, others

    def __call__(self, row: Row, draw: int = 0) -> Row:
        """The row for one draw; one without images stays as it is."""
        kind, seed = self._blank.kind, self._seed
        if not row["images"]:
            return row
        from dapo_stages.maths.group_draws import BLANKS, generator

        if kind == "gray":
            return blanked(row)
        if kind == "removed":
            assert self._marks is not None
            ids = without_images(row["prompt_ids"], self._marks)
            none = {"images": [], "image_grid_thw": [], "prompt_ids": ids}
            return row | none | ({"frame_seconds": []} if row.get("frame_seconds") is not None else {})
        if kind == "exchanged":
            assert self._others is not None
            chosen = self._others.chosen(row, seed, draw)
            return _redrawn(row, lambda image, number: _fitted(chosen[number], image.size))
        rng = generator(BLANKS, seed, row["group_id"], draw)
        if kind == "noise":
            return _redrawn(row, lambda image, _: _noise(image.size, rng))
        return _redrawn(row, lambda image, _: _blackened(image, self._blank, rng))


class OtherImages:
    """The different images of a rollout, for prompts to get those of others.

    Keeps one digest per image in memory; images themselves are read again when they are chosen.
    """

    def __init__(self, prompts: Rows, where: object, setting: str = "attention.blank") -> None:
        """Reads all rows once; `setting` is named in messages.

        Raises DataError if some prompt has every image there is: nothing can be exchanged.
        """
        self._prompts, self._where, self._setting = prompts, where, setting
        self._places: dict[bytes, tuple[int, int]] = {}
        own: set[frozenset[bytes]] = set()
        for number in range(len(prompts)):
            digests = _digests(prompts[number])
            for place, digest in enumerate(digests):
                self._places.setdefault(digest, (number, place))
            own.add(frozenset(digests))
        self._digests = sorted(self._places)  # whatever the order of the rows
        if any(len(images) == len(self._digests) > 0 for images in own):
            raise self._too_few()

    def chosen(self, row: Row, seed: int, draw: int) -> list[Image.Image]:
        """An image for each of the row's, all of other prompts; draws differ until every one was used.

        The order is drawn from seed and group; an image that another prompt shares with this one is left out.
        """
        from dapo_stages.data.images import decode
        from dapo_stages.maths.group_draws import BLANKS, generator

        own = set(_digests(row))
        order = generator(BLANKS, seed, row["group_id"]).permutation(len(self._digests))
        others = [self._digests[number] for number in order if self._digests[number] not in own]
        if not others:  # a replayed prompt may have images that the rollout lacks
            raise self._too_few()
        count, found = len(row["images"]), []
        for place in range(draw * count, (draw + 1) * count):
            number, image = self._places[others[place % len(others)]]
            found.append(decode(self._prompts[number]["images"][image]))
        return found

    def _too_few(self) -> DataError:
        count = len(self._digests)
        what = {0: "the rollout has no images", 1: "a prompt has the only image of the rollout"}
        return DataError(
            self._where,
            f"{self._setting}=exchanged needs images of other prompts, but "
            + what.get(count, f"a prompt has all {count} images of the rollout"),
            f"Set {self._setting} to gray, patches, removed or noise, or sample more prompts with images.",
        )


def noised(row: Row, share: float, seed: int) -> Row:
    """A prompt row whose images are mixed with normal noise, drawn from seed and group.

    On pixels from -1 to 1 this is sqrt(1 - share²) · pixel + share · noise, a step of a variance-preserving diffusion,
    as DVRP (arXiv 2601.06801) draws it.
    """
    import numpy as np
    from PIL import Image

    from dapo_stages.maths.group_draws import BLANKS, generator

    rng = generator(BLANKS, seed, row["group_id"], _NOISED)

    def mixed(image: Image.Image, _: int) -> Image.Image:
        pixels = np.asarray(image) / 127.5 - 1.0
        pixels = np.sqrt(1.0 - share**2) * pixels + share * rng.standard_normal(pixels.shape)
        return Image.fromarray(np.clip(np.round((pixels + 1.0) * 127.5), 0, 255).astype(np.uint8))

    return _redrawn(row, mixed)


def without_images(ids: Sequence[int], marks: ImageMarks) -> list[int]:
    """Prompt ids without the tokens of images and videos and the marks directly around them."""
    kept, seen = [], {marks.image, marks.video} - {None}
    for place, token in enumerate(ids):
        opens = token == marks.start and place + 1 < len(ids) and ids[place + 1] in seen
        closes = token == marks.end and place > 0 and ids[place - 1] in seen
        if not (token in seen or opens or closes):
            kept.append(token)
    return kept


def _digests(row: Row) -> list[bytes]:
    return [hashlib.sha256(image["bytes"] or b"").digest() for image in row["images"] or ()]


def _redrawn(row: Row, draw: Callable[[Image.Image, int], Image.Image]) -> Row:
    """The row with each image replaced by what `draw` makes of it and its number."""
    from dapo_stages.data.images import decode, encode

    images = [draw(decode(image), number) for number, image in enumerate(row["images"] or ())]
    return row | {"images": [{"bytes": encode(image), "path": None} for image in images]}


def _fitted(image: Image.Image, size: tuple[int, int]) -> Image.Image:
    from PIL import Image

    return image if image.size == size else image.resize(size, Image.Resampling.BICUBIC)


def _noise(size: tuple[int, int], rng: np.random.Generator) -> Image.Image:
    import numpy as np
    from PIL import Image

    width, height = size
    return Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))


def _blackened(image: Image.Image, blank: Blank, rng: np.random.Generator) -> Image.Image:
    import numpy as np
    from PIL import Image

    pixels, side = np.array(image), blank.patch
    rows, columns = (-(-length // side) for length in pixels.shape[:2])
    black = rng.random((rows, columns)) < blank.share
    pixels[black.repeat(side, 0).repeat(side, 1)[: pixels.shape[0], : pixels.shape[1]]] = 0
    return Image.fromarray(pixels)
