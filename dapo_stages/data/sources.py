"""Raw rows of a dataset, streamed from any source: embedded, hub, tables, image folder, save_to_disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dapo_stages.config import Config, DataConfig
from dapo_stages.data.columns import check_columns, image_columns, wanted_columns
from dapo_stages.data.encoded_images import decoded
from dapo_stages.data.hub import Fetch, is_saved, open_hub, open_saved
from dapo_stages.data.images import BadImage
from dapo_stages.data.table_files import SUFFIXES, Table, find_tables
from dapo_stages.errors import DataError
from dapo_stages.handoff.shards import sha256_of

Part = Literal["train", "held_out"]
PARTS: tuple[Part, ...] = ("train", "held_out")


@dataclass(frozen=True)
class RawRow:
    """One row as it is in the source."""

    index: int  # row number in the source
    values: dict[str, Any]
    where: str  # source and row number, for messages
    folder: Path | None = None  # images given as a path are looked up here first
    slice: str = ""  # if the source itself defines one


@dataclass(frozen=True)
class RawSource:
    """A dataset that can be read repeatedly."""

    name: str
    columns: list[str]
    rows: Callable[[Part], Iterator[RawRow]]
    totals: dict[Part, int] = field(default_factory=dict)  # rows of each part, if known in advance
    folder: Path | None = None  # images given as a relative path are looked up here
    roots: tuple[Path, ...] = ()  # data.image_root: further folders for images
    fetch: Fetch | None = None

    def image(self, row: RawRow, value: Any) -> Any:
        """The image of a cell, as bytes, as a path inside the source's folder or a root, or as a PIL image."""
        from PIL import Image

        if isinstance(value, dict):
            value = value.get("path") if value.get("bytes") is None else value["bytes"]
            if self.fetch is not None and isinstance(value, str):
                return self.fetch(value, row.where)
        if isinstance(value, bytes | bytearray | memoryview):
            return bytes(value)
        if isinstance(value, Image.Image):
            return value
        if isinstance(value, str) and value:
            encoded = decoded(value, row.where)
            return self._inside(row, value.removeprefix("file://")) if encoded is None else encoded
        raise BadImage(row.where, f"expected an image, got {type(value).__name__} {str(value)[:60]!r}")

    def _inside(self, row: RawRow, name: str) -> Path:
        where = f"{row.where}: {name[:200]}"
        if "://" in name:
            raise BadImage(where, "the image is a URL, and single images are not downloaded")
        folders = [folder for folder in (row.folder, self.folder, *self.roots) if folder is not None]
        if not folders:
            raise BadImage(where, "the image is a path, but the dataset has no folder (data.image_root names one)")
        path = Path(name)
        if ".." in path.parts or "\0" in name:
            raise BadImage(where, "the path is outside the dataset's folder")
        if path.is_absolute() and not any(path.is_relative_to(root.absolute()) for root in self.roots):
            raise BadImage(where, "the path is outside the dataset's folder (data.image_root allows another)")
        allowed = [root.resolve() for root in (self.folder, *self.roots) if root is not None]
        try:
            for folder in folders:
                file = (folder / path).resolve()
                if not any(file.is_relative_to(root) for root in allowed):
                    problem = "the symbolic link leads outside the dataset's folder (data.image_root allows another)"
                    raise BadImage(where, problem)
                if file.is_file():
                    return file
        except (OSError, RuntimeError) as error:  # a name longer than the file system allows, circular links
            raise BadImage(where, f"not a usable file name ({type(error).__name__})") from None
        raise BadImage(where, "the image file does not exist")


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
        rows = _by_part(data, lambda: ((values, None) for values in opened.rows()))
        totals = _totals(data, opened.number)
        folder_or_none = folder if saved else None
        source = RawSource(data.source, opened.columns, rows, totals, folder_or_none, image_roots(data), opened.fetch)
    if not source.columns:
        raise DataError(data.source, "the dataset has no rows", "Set data.source to another one.")
    check_columns(data.source, source.columns, data.columns)
    return source


def check_source(data: DataConfig) -> None:
    """Raise DataError if `data.source` or `data.image_root` is a path that does not exist. Reads no data."""
    image_roots(data)
    if data.source != "embedded":
        _find(data)


def image_roots(data: DataConfig) -> tuple[Path, ...]:
    """The folders of data.image_root. Raises DataError if one does not exist."""
    names = (data.image_root,) if isinstance(data.image_root, str) else data.image_root or ()
    roots = tuple(Path(name).expanduser() for name in names)
    for root in roots:
        if not root.is_dir():
            raise DataError(root, "no such folder", "Set data.image_root to the folder that contains the images.")
    return roots


def source_files(data: DataConfig) -> dict[str, str]:
    """SHA-256 of the files of a local source, so that a changed file counts as a different input.

    Of images beside the tables, only names and sizes count. Empty for `embedded` and for hub ids.
    """
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


def part_of(index: int, data: DataConfig) -> Part:
    """Which part a row belongs to, by a seeded hash of its number, independent of the other rows.

    Row 0 is always for training and row 1 always held out, so that two rows are enough for both parts.
    """
    if index < 2:
        return PARTS[index]
    digest = hashlib.sha256(f"{data.split_seed}:{index}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < data.held_out_fraction * 2**64 else "train"


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
        raise DataError(data.source, "no such file or folder", "Set data.source to the path of the dataset.")
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
    image = image_columns(names)[0]
    draw = task(synthetic.task).question

    def rows(part: Part) -> Iterator[RawRow]:
        for index in range(totals[part]):
            drawn = draw(2 * config.seed + PARTS.index(part), index, shuffled=synthetic.shuffled)
            asked = {image: drawn.image, names.problem: drawn.problem, names.solution: drawn.solution}
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
    rows = _by_part(data, everything)
    return RawSource(data.source, columns, rows, _totals(data, number), folder, image_roots(data))


def _by_part(
    data: DataConfig, everything: Callable[[], Iterator[tuple[dict[str, Any], Path | None]]]
) -> Callable[[Part], Iterator[RawRow]]:
    def rows(part: Part) -> Iterator[RawRow]:
        for index, (values, folder) in enumerate(islice(everything(), data.max_rows)):
            if part_of(index, data) == part:
                yield RawRow(index, values, f"{data.source} row {index}", folder)

    return rows


def _totals(data: DataConfig, number: int | None) -> dict[Part, int]:
    if number is None:
        return {}
    number = min(number, data.max_rows or number)
    held_out = sum(part_of(index, data) == "held_out" for index in range(number))
    return {"train": number - held_out, "held_out": held_out}
