"""prepare-data: any dataset in, training and held-out prompts with their images and tokens out."""

from __future__ import annotations

import os
import re
from collections import deque
from collections.abc import Collection, Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain, islice
from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.config import Config, load_config
from dapo_stages.data.cells import has_column
from dapo_stages.data.control import CONTROL_TOKENS, MARK
from dapo_stages.data.image_workers import image_workers
from dapo_stages.data.images import BadImage, pixels_of
from dapo_stages.data.prompts import Dropped, PromptMaker
from dapo_stages.data.raw_rows import PARTS, Part, RawRow
from dapo_stages.data.sources import OpenedPart, open_parts, source_files
from dapo_stages.data.summary import READ, Summary
from dapo_stages.data.survey import Survey, survey
from dapo_stages.data.visuals import VIDEOS
from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.outputs import Output, shard_name
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PROMPTING, PolicyFolder
from dapo_stages.handoff.referred import verify_referred
from dapo_stages.handoff.shards import Row
from dapo_stages.models.chat_templates import chat_template
from dapo_stages.processes.phases import phase
from dapo_stages.terminal.console import Advance, progress, say
from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Out, Overrides, Overwrite

ROWS_PER_SHARD = 512
_THREADS = 8  # which wait for the workers that prepare images
_ROWS_AT_ONCE, _PIXELS_AT_ONCE = 64, 1 << 20  # of a batch
_NAMED = 5  # dropped rows that the manifest names
_DROPPED = tuple(f"dropped_{kind}" for kind in ("long", "images", "control", "other"))

# What to do if all rows of a part are dropped, by the reason; the first that fits.
_ADVICE = {
    r"video file does not exist|the video is a path|expected a video": "Set data.image_root to the folder of the "
    "videos, or data.columns.videos to another column.",
    r"max_video_frames": "Raise data.max_video_frames.",
    r"the video|frames of": "Fix the videos.",
    r"image file does not exist|has no folder": "Set data.image_root to the folder of the images, or "
    "data.columns.image to another column.",
    r"outside the dataset's folder": "Set data.image_root to the folder of the images.",
    r"expected an image|is a URL": "Set data.columns.image to a column with images.",
    r"no answer|: no \w": "Set data.columns.solution or data.columns.problem to a column with values, or data.split.",
    r"option": "Set data.columns.options to another column, or fix the rows.",
    r"turn|messages|question from the user": "Set data.columns.messages or data.columns.problem to another column.",
    r"max_prompt_length": "Raise data.max_prompt_length.",
    r"max_image_pixels": "Raise data.max_image_pixels.",
    r"": "Fix the rows.",
}

Batch = list[tuple[RawRow, str]]  # rows and their prompt ids

PolicyOrNone = Annotated[
    Path | None,
    typer.Option("--policy", help="Policy folder whose tokenizer to use; default: model.name.", metavar="DIR"),
]


def main(
    config_file: ConfigFile,
    out: Out,
    policy: PolicyOrNone = None,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Make training and held-out prompts from a dataset.

    Example: dapo-stages prepare-data --config run.yaml --policy policy --set data.source=questions.jsonl --out data
    """
    config = load_config(config_file, set_)
    opened = PolicyFolder(policy) if policy is not None else None
    sections = config.sections("data", *(["model.name"] if policy is None else []))
    plan = Plan(
        stage="prepare-data",
        out=out,
        config=sections | {"data.files": source_files(config.data)},
        seed=config.seed,
        inputs={} if opened is None else {"policy": opened},
        verify=config.verify,
    )
    carry_out.run(
        plan,
        lambda output: _work(output, config, opened),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=as_json,
        alone=True,
    )


def _work(output: Output, config: Config, policy: PolicyFolder | None) -> None:
    opened = open_parts(config)
    surveys: dict[int, Survey] = {}
    for one in opened:
        if id(one.source) not in surveys:  # both parts may have the same source
            surveys[id(one.source)] = survey(one.source, one.data)
    processor = _processor(config, policy)
    summaries: dict[str, Summary] = {}
    for one in opened:
        summaries.setdefault(
            one.name, Summary(one.source.columns, one.data, surveys[id(one.source)], one.source.unread)
        )
    output.counts = {"train": 0, "held_out": 0, "dropped_long": 0, "dropped_images": 0, "dropped_other": 0}
    output.counts["dropped_rows"] = []
    with chat_template(processor) as render, image_workers() as workers:
        makers: dict[Part, list[PromptMaker]] = {part: [] for part in PARTS}
        for one in opened:
            maker = PromptMaker(one.source, processor, one.data, surveys[id(one.source)], one.name, render, workers)
            makers[one.part].append(maker)
        for part in PARTS:
            totals = [maker.source.totals.get(part) for maker in makers[part]]
            total = None if None in totals else sum(number or 0 for number in totals)
            with progress(f"prepare-data {part}", total) as advance:
                _write_part(output, makers[part], part, summaries, advance)
    _check_parts(opened, output.counts)
    counts = {name: summary.counts() for name, summary in summaries.items()}
    output.counts["understood"] = counts if config.data.sources else counts[""]
    output.counts[PROMPTING] = [summary.prompting(name) for name, summary in summaries.items()]
    for name, summary in summaries.items():
        for line in [*([f"dataset {name}:"] if name else []), *summary.lines()]:
            say(line)


@phase("load")
def _processor(config: Config, policy: PolicyFolder | None) -> Any:
    from dapo_stages.models.processor import load_processor
    from dapo_stages.models.soundness import check_numbers
    from dapo_stages.models.trial import prompt_with_an_image

    if policy is not None:
        for shard in policy.manifest.shards:
            if not shard.name.endswith(".safetensors"):
                policy.verified(shard)
        verify_referred(policy.manifest.policy, weights=False)
        place = str(policy.checkpoint())
    elif config.model.name == "embedded":
        from dapo_stages.models.embedded.embedded_policy import build_processor
        from dapo_stages.models.embedded.embedded_tokenizer import build_tokenizer

        return build_processor(build_tokenizer(config.data.synthetic.task))
    else:
        place = config.model.name
    if Path(place).is_dir():
        check_numbers(Path(place))
    try:
        processor = load_processor(place)
    except Exception as error:  # tokenizers raises nothing else
        reason = " ".join(str(error).split())[:300]
        raise ModelError(
            f"{place}: cannot load the tokenizer and image processor ({reason}). Set model.name to a checkpoint folder "
            "or a hub id that can be reached, or pass --policy."
        ) from None
    prompt_with_an_image(place, processor)
    return processor


def _write_part(
    output: Output, makers: list[PromptMaker], part: Part, summaries: Mapping[str, Summary], advance: Advance
) -> None:
    """Write all shards of a part with a few rows in memory at a time; keep those of an interrupted run."""
    done: dict[str, None] = {}
    number = 0
    while output.has(shard_name(part, number)):
        for row in output.reopen(part, number, (*READ, "frame_seconds")):
            summaries[row["source"] if row["source"] in summaries else ""].add(row)
            done[row["prompt_id"]] = None
            _count(row, output.counts)
        number += 1
    prompts: Iterator[Row] = chain.from_iterable(
        _prompts(maker, part, done, output.counts, summaries[maker.name], advance) for maker in makers
    )
    if any(has_column(maker.source.columns, maker.data.columns.videos) for maker in makers):
        prompts = ({"frame_seconds": None} | row for row in prompts)
    while (first := next(prompts, None)) is not None:
        output.write(part, number, chain([first], islice(prompts, ROWS_PER_SHARD - 1)))
        number += 1


def _prompts(
    maker: PromptMaker,
    part: Part,
    kept: Collection[str],
    counts: dict[str, Any],
    summary: Summary,
    advance: Advance,
) -> Iterator[Row]:
    """The prompts of a part that are not done yet. Rows that an interrupted run dropped are counted again."""
    for raw, row in _ahead(maker, part, kept):
        dropped = sum(number for key, number in counts.items() if key in _DROPPED)
        advance(1, f"{dropped} dropped" if dropped else "")
        if row is None:
            counts[part] += 1
        elif isinstance(row, Dropped):
            key = f"dropped_{row.kind}"
            counts[key] = counts.get(key, 0) + 1
            summary.drop(row.why, raw.where)
            if len(counts["dropped_rows"]) < _NAMED:
                counts["dropped_rows"].append(row.why)
        elif counts[part] < len(kept):
            problem = "this row was dropped before the interruption but is usable now: the dataset has changed"
            raise DataError(raw.where, problem, "Pass --overwrite to start over.")
        else:
            counts[part] += 1
            _count(row, counts)
            summary.add(row)
            if part == "train":
                del row["labels"]  # only evaluate needs them
            yield row


def _count(row: Row, counts: dict[str, Any]) -> None:
    """Count a prompt that quotes control tokens, or has videos; if there is none, the count is left out."""
    for name, has in ((CONTROL_TOKENS, MARK in row["prompt_text"]), (VIDEOS, row.get("frame_seconds") is not None)):
        if has:
            counts[name] = counts.get(name, 0) + 1


def _ahead(maker: PromptMaker, part: Part, kept: Collection[str]) -> Iterator[tuple[RawRow, Row | Dropped | None]]:
    """Rows in order with their prompts, several of which are made in parallel; None for those kept already.

    Rows are given to the threads in batches: of many rows if their images are small, of one if they are large.
    """
    threads = min(_THREADS, os.cpu_count() or 1)
    waiting: deque[tuple[Batch, Future[list[Row | Dropped | BadImage]]]] = deque()
    pool = ThreadPoolExecutor(threads)
    size = 1
    try:
        rows = maker.source.rows(part)
        while batch := [(raw, _prompt_id(maker, part, raw)) for raw in islice(rows, size)]:
            new = [one for one in batch if one[1] not in kept]
            waiting.append((batch, pool.submit(maker.make_all, new)))
            if len(waiting) > threads + 1:
                size = yield from _made(maker, *waiting.popleft(), kept)
        while waiting:
            yield from _made(maker, *waiting.popleft(), kept)
    finally:
        pool.shutdown(wait=False, cancel_futures=True)  # one may wait for a chat template, which is stopped next


def _made(
    maker: PromptMaker, batch: Batch, future: Future[list[Row | Dropped | BadImage]], kept: Collection[str]
) -> Generator[tuple[RawRow, Row | Dropped | None], None, int]:
    """The rows of a batch with what became of them; returns how many rows the next batch should have."""
    made, pixels = iter(future.result()), 0
    for raw, prompt_id in batch:
        row = None if prompt_id in kept else next(made)
        if isinstance(row, BadImage):
            if maker.data.on_bad_image == "error":
                raise row
            row = Dropped("images", f"{row.where}: {row.problem}")
        if isinstance(row, dict):
            pixels += sum(pixels_of(image["bytes"]) for image in row["images"])
        yield raw, row
    return max(1, min(_ROWS_AT_ONCE, _PIXELS_AT_ONCE * len(batch) // max(pixels, 1)))


def _prompt_id(maker: PromptMaker, part: Part, raw: RawRow) -> str:
    return "-".join([part, *([maker.name] if maker.name else []), f"{raw.index:06d}"])


def _check_parts(opened: list[OpenedPart], counts: dict[str, Any]) -> None:
    """Raise DataError unless each part that is asked for has a prompt; a single row needs no held-out one."""
    rows = sum(number for key, number in counts.items() if key in (*PARTS, *_DROPPED))
    name = ", ".join(dict.fromkeys(one.source.name for one in opened))
    why = "; ".join(counts["dropped_rows"][:2])
    advice = _ADVICE[next(pattern for pattern in _ADVICE if re.search(pattern, why))]
    if not rows:
        raise DataError(name, "the dataset has no rows", "Name another data.source.")
    for part, nothing in (("train", 1.0), ("held_out", 0.0)):
        asked = any(one.part == part and one.data.held_out_fraction != nothing for one in opened)
        if asked and not counts[part] and (part == "train" or rows > 1):
            raise DataError(name, f"none of {rows} rows is usable for {part} ({why})", advice)
