"""Published folders of every kind of file, and what may happen to them on their way."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from reporting import tiny_run
from safetensors.numpy import save_file
from support.rows import Row, rows

from dapo_stages.handoff.manifests import Source, content_hash, write_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import schema_of
from dapo_stages.handoff.shards import Shard, sha256_of

# Kind of shard -> the stage that writes it.
STAGES = {
    "train": "prepare-data",
    "held_out": "prepare-data",
    "prompts": "rollout",
    "completions": "rollout",
    "attention": "score-attention",
    "weights": "weight-tokens",
    "replayed-prompts": "weight-tokens",
    "replayed-completions": "weight-tokens",
    "buffer": "weight-tokens",
    "buffer-completions": "weight-tokens",
    "metrics": "train-step",
    "evaluation": "evaluate",
}
# Folders of other files: the stage, and the names.
OTHERS = {
    "policy": ("init-policy", ("config.json", "model.safetensors", "tokenizer.json")),
    "state": ("state", ("optimizer-00000-00000.safetensors", "state.json")),
    "eval": ("evaluate", ("metrics.json",)),
    "report": ("report", ("completions.json", "figures.json", "rollout_results.md")),
}
KINDS = tuple(STAGES)
EVERYTHING = (*KINDS, *OTHERS)


def schema(kind: str) -> pa.Schema:
    """Of a kind of shard, under its name here."""
    return schema_of("completions", stage="evaluate") if kind == "evaluation" else schema_of(kind)


def name_of(kind: str) -> str:
    """What the files of a kind are called."""
    return "completions" if kind == "evaluation" else kind


def publish(folder: Path, kind: str, first: int = 0) -> Source:
    """A folder of one kind: two shards of 20 and 9 rows, or files. `first` makes it that of another run."""

    def fill(output: Output) -> None:
        if kind in STAGES:
            made = list(rows(schema(kind), first + 29))[first:]
            for number, part in enumerate((made[:20], made[20:])):
                output.write(name_of(kind), number, part)
            return
        for number, name in enumerate(OTHERS[kind][1]):
            path = output.folder / name
            if path.suffix == ".safetensors":
                values = np.arange(600, dtype=np.float32) + first + number
                save_file({"a": values, "b": values[::-1].copy().reshape(20, 30)}, path)
            else:
                path.write_text(f'{{"values": {list(range(first, first + 200 + number))}}}\n')
        output.add_files(*OTHERS[kind][1])

    stage = STAGES[kind] if kind in STAGES else OTHERS[kind][0]
    tiny_run.publish(Plan(stage, folder, {"a": 1}, 1), fill)
    return Source(folder)


def files_of(source: Source) -> list[str]:
    """Names of its files but the manifest."""
    return [shard.name for shard in source.manifest.shards]


def read(folder: Path, kind: str) -> list[Row]:
    """Everything a folder holds, through what every stage reads with."""
    source = Source(folder)
    source.verify_all()
    return list(source.rows(name_of(kind))) if kind in STAGES else []


def republish(folder: Path) -> Source:
    """A manifest that agrees with the files as they are now, as if a stage had written them so."""
    old = Source(folder).manifest
    shards = [_described(folder, shard) for shard in old.shards]
    hashed = content_hash(old.stage, old.config, old.seed, shards)
    write_manifest(folder, old.model_copy(update={"shards": shards, "content_hash": hashed}))
    return Source(folder)


def _described(folder: Path, shard: Shard) -> Shard:
    path = folder / shard.name
    return replace(shard, bytes=path.stat().st_size, sha256=sha256_of(path))


def rewrite(path: Path, made: list[Row], as_: pa.Schema) -> None:
    """Rows as another program would write them: in this schema, and with nothing checked."""
    columns = [pa.array([row[field.name] for row in made], field.type) for field in as_]
    pq.write_table(pa.Table.from_arrays(columns, schema=as_), path, write_page_checksum=True)


def flips(content: bytes, count: int, seed: str, start: int = 0, end: int | None = None) -> Iterator[tuple[int, bytes]]:
    """The content with one bit flipped, `count` times at places drawn from a fixed seed."""
    generator = random.Random(seed)
    for _ in range(count):
        place = generator.randrange(start, len(content) if end is None else end)
        bit = 1 << generator.randrange(8)
        yield place, content[:place] + bytes([content[place] ^ bit]) + content[place + 1 :]
