"""Datasets made by strangers, and prepare-data of them without a model."""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
from support.commands import Result, run

Cell = bytes | str | None  # an image's bytes, its path, or nothing


def write_rows(path: Path, images: Sequence[Cell]) -> Path:
    """A Parquet file with a question for each image, as `datasets` writes them."""
    cells = [{"bytes": p, "path": None} if isinstance(p, bytes) else {"bytes": None, "path": p} for p in images]
    kind = pa.struct([("bytes", pa.binary()), ("path", pa.string())])
    schema = pa.schema([("image", kind), ("problem", pa.string()), ("solution", pa.string())])
    rows = [{"image": cell, "problem": "A or B?", "solution": "A"} for cell in cells]
    pq.write_table(pa.Table.from_pylist(rows, schema=schema), path)
    return path


def prepare(source: object, folder: Path, *args: object) -> Result:
    """prepare-data of a source into `folder`/data."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {"data": {"source": str(source)}, "model": {"name": "embedded"}}
    (folder / "run.yaml").write_text(json.dumps(config))
    return run("prepare-data", "--config", folder / "run.yaml", "--out", folder / "data", *args)
