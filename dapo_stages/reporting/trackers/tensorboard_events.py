"""TensorBoard's event files. A note next to them records what they have; if it does not match them, they are read."""

from __future__ import annotations

import json
import os
import re
import socket
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

from dapo_stages.handoff.shards import publish_file, write_text, writing
from dapo_stages.reporting.iteration.histograms import Histogram
from dapo_stages.reporting.iteration.samples import Sample
from dapo_stages.reporting.trackers.feed import PER_UPDATE, Feed, Points, by_step, lacking, news
from dapo_stages.reporting.trackers.media import STAGES, Media, image_of
from dapo_stages.small_files import read_json
from dapo_stages.terminal.safe_text import markdown_block, markdown_inline, markdown_table

FOLDER, NOTE = "runs", "dapo-stages.json"
_CONFIG, _STAGES = "configuration", "stages"  # tags of texts
_REPORT = re.compile(r"report ([0-9a-f]{64})")


@dataclass
class _Has:
    """What event files have: points (iteration -> key), tables and histograms (iteration -> report), configuration."""

    files: int
    bytes: int
    points: dict[int, str] = field(default_factory=dict)
    media: dict[int, str] = field(default_factory=dict)
    config: str = ""


def send(feed: Feed) -> list[int]:
    """Append what is missing, or replace all files if a point changed; returns iterations that need --backfill."""
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary

    folder = feed.run / FOLDER
    before = _files(folder)
    noted = _noted(folder, before)
    only = lacking(feed, noted.points) if noted else None
    if noted is None or only is None:
        logged, reports, config = _read(list(before))
    else:
        logged, reports, config = {}, noted.media, noted.config
    afresh, new, media, left = news(feed, logged, reports, only)
    if not new and not media:
        if only is None and before:
            _note(folder, feed, reports, config)
        return left
    updates = by_step(new, lambda name: name.startswith(PER_UPDATE))
    events = [(step, _scalars(values)) for step, values in updates.items()]
    steps = by_step(new, lambda name: not name.startswith(PER_UPDATE))
    for step in sorted(steps.keys() | set(media)):
        # All of an iteration is in one record, so that it is written completely or not at all.
        events.append((step, _scalars(steps.get(step, {})) + (_values(feed.media(step)) if step in media else [])))
    text = _config(feed)
    if text and (afresh or text != config):
        events.append((max(feed.reports, default=0), [_text(_CONFIG, text)]))
    name = f"events.out.tfevents.{time.time():010.0f}.{socket.gethostname()}.{os.getpid()}.{len(before)}"
    first = Event(wall_time=time.time(), file_version="brain.Event:2")
    folder.mkdir(exist_ok=True)
    _write(
        folder / name,
        [first, *(Event(wall_time=time.time(), step=step, summary=Summary(value=values)) for step, values in events)],
    )
    for path in before if afresh else ():
        path.unlink()
    sent = {iteration: feed.reports[iteration] for iteration in media}
    _note(folder, feed, sent if afresh else {**reports, **sent}, text or config)
    return left


def _files(folder: Path) -> dict[Path, int]:
    """The event files, with their sizes."""
    return {path: path.stat().st_size for path in sorted(folder.glob("events.out.tfevents.*"))}


def _note(folder: Path, feed: Feed, media: Mapping[int, str], config: str) -> None:
    """Written after the files: a note that is older than they are does not match them."""
    files = _files(folder)
    has = _Has(len(files), sum(files.values()), feed.told(), dict(media), config)
    write_text(folder / NOTE, json.dumps(asdict(has), ensure_ascii=False) + "\n")


def _noted(folder: Path, files: Mapping[Path, int]) -> _Has | None:
    """The note; None if there is none that matches these files."""
    try:
        found = read_json(folder / NOTE)
        points, media = (
            {int(iteration): str(key) for iteration, key in found[name].items()} for name in ("points", "media")
        )
        noted = _Has(int(found["files"]), int(found["bytes"]), points, media, str(found["config"]))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return noted if (noted.files, noted.bytes) == (len(files), sum(files.values())) else None


def _write(path: Path, events: Sequence[Any]) -> None:
    """Write a complete file or none: TensorBoard's own writer does not report a full disk."""
    from tensorboard.summary.writer.record_writer import RecordWriter

    temporary = path.with_name(f".{os.getpid()}.tmp")  # a name that TensorBoard does not read
    try:
        with writing(path):
            with temporary.open("wb") as file:
                records = RecordWriter(file)
                for event in events:
                    records.write(event.SerializeToString())
            publish_file(temporary, path)
    finally:
        temporary.unlink(missing_ok=True)


def _read(paths: Sequence[Path]) -> tuple[Points, dict[int, str], str]:
    """Points, the reports whose media are there, and the newest configuration; of a truncated file, what it has."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Points = {}
    reports: dict[int, str] = {}
    config = ""
    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():
            for value in event.summary.value:
                if value.WhichOneof("value") == "simple_value":
                    found[value.tag, event.step] = value.simple_value
                elif value.tag == _STAGES and (match := _REPORT.search(_string(value))):
                    reports[event.step] = match[1]
                elif value.tag == _CONFIG:
                    config = _string(value)
    return found, reports, config


def _scalars(values: dict[str, float]) -> list[Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    return [Summary.Value(tag=name, simple_value=value) for name, value in values.items()]


def _values(media: Media) -> list[Any]:
    from tensorboard.compat.proto.summary_pb2 import Summary

    found = [Summary.Value(tag=f"histograms/{name}", histo=_histogram(one)) for name, one in media.histograms.items()]
    for number, sample in enumerate(media.samples, 1):
        if (image := image_of(sample)) is not None:
            found.append(Summary.Value(tag=f"samples/{number}/image", image=_image(image)))
        found.append(_text(f"samples/{number}/completions", _completions(sample, media)))
    table = markdown_table(STAGES, media.stages)
    return [*found, _text(_STAGES, f"{table}\nreport {media.report}")]


def _histogram(one: Histogram) -> Any:
    """The sums, which TensorBoard does not show, are computed from the centers of the bins."""
    from tensorboard.compat.proto.histogram_pb2 import HistogramProto

    edges, counts = one["edges"], one["counts"]
    middles = [(low + high) / 2 for low, high in pairwise(edges)]
    return HistogramProto(
        min=edges[0],
        max=edges[-1],
        num=sum(counts),
        sum=sum(n * x for n, x in zip(counts, middles, strict=True)),
        sum_squares=sum(n * x * x for n, x in zip(counts, middles, strict=True)),
        bucket_limit=edges[1:],
        bucket=counts,
    )


def _image(image: bytes) -> Any:
    from tensorboard.compat.proto.summary_pb2 import Summary

    from dapo_stages.reporting.iteration.thumbnails import size_of

    width, height = size_of(image) or (0, 0)
    return Summary.Image(width=width, height=height, colorspace=3, encoded_image_string=image)


def _completions(sample: Sample, media: Media) -> str:
    """A group as Markdown, the format of TensorBoard's texts; text of models is fenced."""
    rows = [row for row in media.rows() if row["group"] == sample["group_id"]]
    parts = [f"**{markdown_inline(sample['group_id'])}**\n", markdown_block(sample["problem"])]
    for row in rows:
        facts = ", ".join(f"{name} {row[name]:.3f}" for name in ("reward", "advantage", "VGR") if row[name] is not None)
        parts += [f"{markdown_inline(row['completion'])}: {facts}\n", markdown_block(row["text"])]
        parts += [markdown_block(row["tokens (weight)"])] if row["tokens (weight)"] else []
    return "\n".join(parts)


def _config(feed: Feed) -> str:
    import yaml

    if not feed.config:
        return ""
    return markdown_block(yaml.safe_dump(dict(feed.config), sort_keys=False, allow_unicode=True))


def _text(tag: str, text: str) -> Any:
    from tensorboard.plugins.text.summary_v2 import text_pb

    return text_pb(tag, text).value[0]


def _string(value: Any) -> str:
    return value.tensor.string_val[0].decode("utf-8") if value.tensor.string_val else ""
