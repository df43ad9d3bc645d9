"""What supervised steps learn from: prompts of training rows, each with the completion that its solution makes."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass, field
from tempfile import SpooledTemporaryFile
from typing import Any

import numpy as np

from dapo_stages.config import Config, DataConfig
from dapo_stages.data.image_workers import ImageWorkers
from dapo_stages.data.images import BadImage
from dapo_stages.data.prompts import Dropped, PromptMaker, Render
from dapo_stages.data.raw_rows import Part, RawRow
from dapo_stages.data.sources import OpenedPart, open_parts
from dapo_stages.data.survey import survey
from dapo_stages.data.templates import question_template
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import Row
from dapo_stages.rewards.offered_options import offered_options
from dapo_stages.rewards.tags import thought_to_continue
from dapo_stages.terminal.console import progress

_IN_MEMORY = 1 << 30  # bytes of images, before they are kept in a temporary file
_AT_ONCE = 16  # rows


@dataclass(frozen=True)
class Example:
    """A prompt row without its images, where these are kept, and the completion to learn."""

    prompt: Row
    completion: str
    places: tuple[tuple[int, int], ...] = ()  # start and length of each image


@dataclass
class Examples:
    """Examples, with images on demand."""

    found: list[Example] = field(default_factory=list)
    counts: dict[str, int] = field(default_factory=dict)
    first_dropped: str = ""
    _images: Any = field(default_factory=lambda: SpooledTemporaryFile(max_size=_IN_MEMORY), repr=False)  # noqa: SIM115

    def add(self, row: Row, completion: str) -> None:
        """Keep a prompt row, and what to write."""
        places = []
        for image in row["images"]:
            places.append((self._images.seek(0, 2), len(image["bytes"])))
            self._images.write(image["bytes"])
        self.found.append(Example(row | {"images": []}, completion, tuple(places)))

    def drop(self, kind: str, why: str) -> None:
        """Count a row that nothing is learned from."""
        self.counts[f"dropped_{kind}"] = self.counts.get(f"dropped_{kind}", 0) + 1
        self.first_dropped = self.first_dropped or why

    def prompt_row(self, example: Example) -> Row:
        """The prompt row with its images."""
        images = []
        for start, length in example.places:
            self._images.seek(start)
            images.append({"bytes": self._images.read(length), "path": None})
        return example.prompt | {"images": images}


def is_own(config: Config) -> bool:
    """Whether the supervised steps learn from the training rows of the run's own dataset."""
    sources = {one.source for one in config.data.of_sources().values()}
    return config.sft is None or config.sft.source is None or config.sft.source in sources


def learned_from(config: Config) -> DataConfig:
    """The section `data` as it describes the dataset of the supervised steps.

    That of the run keeps its split. Of another one, all rows may be learned from.
    """
    if is_own(config):
        return config.data
    assert config.sft is not None
    changes = {"sources": {}, "held_out_fraction": 0.0, "held_out_source": None, "held_out_split": None}
    return config.data.model_copy(update={"source": config.sft.source, "max_rows": None, **changes})


def training_examples(
    config: Config, processor: Any, render: Render | None, workers: ImageWorkers, count: int
) -> Examples:
    """Up to `count` examples of the dataset that `sft` names, of rows in random order.

    The split of the run is decided first, by row numbers (or images) as prepare-data decides it, and held-out rows are
    not read here. Rows of another dataset are left out if one of their images is a held-out one. Raises DataError if
    nothing is left, and ConfigError for a template that fails.
    """
    assert config.sft is not None
    data = learned_from(config)
    parts = [one for one in open_parts(config.model_copy(update={"data": data})) if one.part == "train"]
    makers = [_maker(one, processor, render, workers) for one in parts]
    held_out = set() if is_own(config) else _held_out_images(config, processor, render, workers)
    write = question_template(config.sft.completion, "sft.completion")
    totals = [maker.source.totals.get("train") for maker in makers]
    total = None if None in totals else sum(number or 0 for number in totals)
    chosen = None
    if total is not None and total > count:
        chosen = set(np.random.default_rng([config.seed, total]).permutation(total)[:count].tolist())
    examples, number = Examples(), 0
    with progress("init-policy: examples", total if chosen is None else count) as advance:
        for maker in makers:
            for raw, row in _made(maker, "train", chosen, number):
                advance(1, "")
                if isinstance(row, Dropped | BadImage):
                    kind = row.kind if isinstance(row, Dropped) else "images"
                    examples.drop(kind, row.why if isinstance(row, Dropped) else str(row))
                elif held_out & {_digest(image) for image in row["images"]}:
                    examples.drop("held_out", f"{raw.where}: it has an image of a held-out question")
                else:
                    values = {**raw.values, "solution": row["solution"]}
                    completion = write(values, row["problem"], list(offered_options(row["problem"])))
                    examples.add(row, thought_to_continue(row["prompt_text"], completion))
            number += maker.source.totals.get("train", 0)
    if not examples.found:
        name = ", ".join(one.source.name for one in parts)
        problem = f"no row to learn from ({examples.first_dropped or 'all rows are held out'})"
        raise DataError(name, problem, "Set sft.source to a dataset with usable training rows, or sft to null.")
    return examples


def _maker(one: OpenedPart, processor: Any, render: Render | None, workers: ImageWorkers) -> PromptMaker:
    return PromptMaker(one.source, processor, one.data, survey(one.source, one.data), one.name, render, workers)


def _made(
    maker: PromptMaker, part: Part, chosen: set[int] | None = None, first: int = 0
) -> Iterator[tuple[RawRow, Row | Dropped | BadImage]]:
    """Rows of a part with their prompts: all, or those at the chosen places, of which `first` is that of its first."""
    waiting: list[RawRow] = []
    for place, raw in enumerate(maker.source.rows(part), start=first):
        if chosen is None or place in chosen:
            waiting.append(raw)
        if len(waiting) == _AT_ONCE:
            yield from zip(waiting, _prompts(maker, part, waiting), strict=True)
            waiting = []
    yield from zip(waiting, _prompts(maker, part, waiting), strict=True)


def _prompts(maker: PromptMaker, part: Part, rows: list[RawRow]) -> list[Row | Dropped | BadImage]:
    made = maker.make_all([(raw, f"{part}-{raw.index:06d}") for raw in rows])
    for one in made:
        if isinstance(one, BadImage) and maker.data.on_bad_image == "error":
            raise one
    return made


def _held_out_images(config: Config, processor: Any, render: Render | None, workers: ImageWorkers) -> set[str]:
    """Hashes of the run's held-out images, as they are prepared."""
    found: set[str] = set()
    for one in open_parts(config):
        if one.part == "held_out":
            for _, row in _made(_maker(one, processor, render, workers), "held_out"):
                if isinstance(row, dict):
                    found |= {_digest(image) for image in row["images"]}
    return found


def _digest(image: dict[str, Any]) -> str:
    return hashlib.sha256(image["bytes"]).hexdigest()
