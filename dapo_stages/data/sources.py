"""Raw rows of a dataset, streamed from any source: embedded, hub, tables, image folder, save_to_disk."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_stages.config import Config, DataConfig
from dapo_stages.data.columns import check_columns, image_columns, wanted_columns
from dapo_stages.data.hub import is_saved, open_hub, open_saved
from dapo_stages.data.raw_rows import PARTS, Part, RawRow, RawSource
from dapo_stages.data.splits import by_part, totals
from dapo_stages.data.table_files import SUFFIXES, Table, all_tables, find_tables
from dapo_stages.data.templates import question_template
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import sha256_of


@dataclass(frozen=True)
class OpenedPart:
    """The rows of one dataset for one part, and how they are read."""

    part: Part
    name: str  # of the dataset in data.sources; empty for a single one
    data: DataConfig
    source: RawSource


def open_parts(config: Config) -> list[OpenedPart]:
    """All datasets, first for training, then held out. Raises DataError as `open_source` does."""
    opened: list[OpenedPart] = []
    for name, data in config.data.of_sources().items():
        if data.template is not None:
            question_template(data.template)
        held_out = data.of_held_out()
        own = data if held_out is None else data.model_copy(update={"held_out_fraction": 0.0})
        source = open_source(config.model_copy(update={"data": own}))
        opened.append(OpenedPart("train", name, own, source))
        if held_out is not None:
            source, own = open_source(config.model_copy(update={"data": held_out})), held_out
        opened.append(OpenedPart("held_out", name, own, source))
    return sorted(opened, key=lambda one: PARTS.index(one.part))


def open_source(config: Config) -> RawSource:
    """Open the dataset `data.source`. Raises DataError if it is missing or empty, or a column is missing."""
    data = config.data
    if data.source == "embedded":
        return _embedded(config)
    files, folder = _find(data)
    if files:
        source = _of_tables(data, files, folder)
    else:
        saved = is_saved(folder)
        opened = open_saved(folder, data) if saved else open_hub(data)
        rows = by_part(data, lambda: ((values, None) for values in opened.rows()))
        inside = folder if saved else None
        number = totals(data, opened.number)
        source = RawSource(data.source, opened.columns, rows, number, inside, image_roots(data), opened.fetch)
    if not source.columns:
        raise DataError(data.source, "the dataset has no rows", "Set data.source to another one.")
    check_columns(data.source, source.columns, data.columns)
    return source


def check_source(data: DataConfig) -> None:
    """Raise DataError if `data.source` or `data.image_root` is a path that does not exist. Reads no data."""
    for own in data.of_sources().values():
        for one in (own, own.of_held_out() or own):
            image_roots(one)
            if one.source != "embedded":
                _find(one)


def is_on_hub(data: DataConfig) -> bool:
    """Whether `data.source` is a hub id. Raises DataError for a path that does not exist."""
    if data.source == "embedded":
        return False
    files, folder = _find(data)
    return not files and not is_saved(folder)


def image_roots(data: DataConfig) -> tuple[Path, ...]:
    """The folders of data.image_root. Raises DataError if one does not exist."""
    names = (data.image_root,) if isinstance(data.image_root, str) else data.image_root or ()
    roots = tuple(Path(name).expanduser() for name in names)
    for root in roots:
        if not root.is_dir():
            raise DataError(root, "no such folder", "Set data.image_root to the folder that contains the images.")
    return roots


def source_files(data: DataConfig) -> dict[str, str]:
    """SHA-256 of the files of local sources, so that a changed file counts as a different input.

    Of images beside the tables, only names and sizes count, and of those below data.image_root nothing. Empty for
    `embedded` and for hub ids.
    """
    found: dict[str, str] = {}
    for name, own in data.of_sources().items():
        held_out = own.of_held_out()
        found |= {f"{name}:{file}" if name else file: digest for file, digest in _files(own).items()}
        if held_out is not None:
            found |= {f"{name}:held_out:{file}": digest for file, digest in _files(held_out).items()}
    return found


def _files(data: DataConfig) -> dict[str, str]:
    if data.source == "embedded":
        return {}
    files, folder = _find(data)
    if not files:
        files = sorted(folder.rglob("*.json")) if is_saved(folder) else []  # these contain the fingerprint of the rows
    hashes = {file.relative_to(folder).as_posix(): sha256_of(file) for file in files}
    if Path(data.source).expanduser().is_dir() and files:
        others = [path for path in sorted(folder.rglob("*")) if path.suffix.lower() not in SUFFIXES and path.is_file()]
        listing = "".join(f"{path.relative_to(folder).as_posix()} {path.stat().st_size}\n" for path in others)
        hashes["other files"] = hashlib.sha256(listing.encode(errors="surrogateescape")).hexdigest()
    return hashes


def _find(data: DataConfig) -> tuple[list[Path], Path]:
    """The table files of a local source, and the folder that its images must be in.

    There are no table files for a save_to_disk folder or a hub id.
    """
    path = Path(data.source).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        return ([], path) if is_saved(path) else (find_tables(path, data.split), path)
    if any(sign in data.source for sign in "*?["):
        base = Path(path.anchor) if path.is_absolute() else Path()
        files = sorted(file for file in base.glob(str(path.relative_to(path.anchor))) if file.is_file())
        if files:
            return files, next(folder for folder in files[0].parents if all(folder in f.parents for f in files))
    if _is_path(data.source):
        raise DataError(data.source, "no such file or folder", "Correct the path, or name another dataset.")
    return [], path


def _is_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a path: hub ids are `name` or `owner/name`."""
    if source.startswith((".", "/", "~")) or source.count("/") > 1:
        return True
    return source.lower().endswith(SUFFIXES) or any(sign in source for sign in "*?[\\")


def _embedded(config: Config) -> RawSource:
    """Training and held-out questions are separate streams, so the size of one does not change the other's rows."""
    from dapo_stages.data.embedded.tasks import task

    sizes: dict[Part, int] = {"train": config.data.synthetic.train, "held_out": config.data.synthetic.held_out}
    totals = {part: min(size, config.data.max_rows or size) for part, size in sizes.items()}
    names, synthetic = config.data.columns, config.data.synthetic
    is_video = synthetic.task == "motion"
    image = names.videos if is_video else image_columns(names)[0]
    draw = task(synthetic.task).question

    def rows(part: Part) -> Iterator[RawRow]:
        for index in range(totals[part]):
            drawn = draw(2 * config.seed + PARTS.index(part), index, shuffled=synthetic.shuffled)
            asked = {
                image: [list(drawn.frames)] if is_video else drawn.image,
                names.problem: drawn.problem,
                names.solution: drawn.solution,
            }
            yield RawRow(index, {**drawn.columns, **asked}, f"embedded row {index}", slice=drawn.slice)

    return RawSource("embedded", [image, names.problem, names.solution], rows, totals)


def _of_tables(data: DataConfig, files: list[Path], folder: Path) -> RawSource:
    tables = [Table(file, wanted_columns(data.columns)) for file in files]

    def everything() -> Iterator[tuple[dict[str, Any], Path]]:
        for table in tables:
            for values in table.rows():
                yield values, table.path.parent

    counts = [table.count() for table in tables]
    number = None if None in counts else sum(count for count in counts if count is not None)
    columns = next((names for table in tables if (names := table.columns())), [])
    rows = by_part(data, everything)
    kinds = {file.suffix.lower() for file in files}
    beside = all_tables(folder) if Path(data.source).expanduser().is_dir() else []
    unread = tuple(file.name for file in beside if file.suffix.lower() not in {*kinds, ".json"})
    return RawSource(data.source, columns, rows, totals(data, number), folder, image_roots(data), unread=unread)
