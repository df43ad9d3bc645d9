"""Raw rows of a data set, streamed from wherever they lie: embedded, hub, tables, image folder, save_to_disk."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from itertools import islice
from pathlib import Path
from typing import Any, Literal

from dapo_stages.config import Config, DataConfig
from dapo_stages.data.columns import check_columns, wanted_columns
from dapo_stages.data.images import BadImage
from dapo_stages.data.tables import Table, find_tables
from dapo_stages.errors import DataError

Part = Literal["train", "held_out"]
PARTS: tuple[Part, ...] = ("train", "held_out")


@dataclass(frozen=True)
class RawRow:
    """One row as the source has it."""

    index: int  # row number in the source
    values: dict[str, Any]
    where: str  # source and row number, for messages
    folder: Path | None = None  # pictures named by a path are looked up here first


@dataclass(frozen=True)
class RawSource:
    """A data set that can be read as often as needed."""

    name: str
    columns: list[str]
    rows: Callable[[Part], Iterator[RawRow]]
    totals: dict[Part, int] = field(default_factory=dict)  # rows of each part, where that is known beforehand
    folder: Path | None = None  # pictures named by a path must lie in here
    fetch: Callable[[str, str], bytes] | None = None  # reads a picture that the hub's own loader named by a path

    def picture(self, row: RawRow, value: Any) -> Any:
        """What a cell says about a picture as bytes, as a path inside the source's folder, or as a PIL image."""
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
            return self._inside(row, value)
        raise BadImage(row.where, f"{type(value).__name__} {str(value)[:60]!r} where a picture should be")

    def _inside(self, row: RawRow, name: str) -> Path:
        where = f"{row.where}: {name[:200]}"
        if "://" in name:
            raise BadImage(where, "a URL; pictures are never downloaded one by one")
        if self.folder is None:
            raise BadImage(where, "a path in a data set that has no folder")
        path = Path(name)
        if path.is_absolute() or ".." in path.parts or "\0" in name:
            raise BadImage(where, "a path that leaves the data set's folder")
        root = self.folder.resolve()
        for folder in (row.folder, self.folder):
            found = ((folder or root) / path).resolve()
            if not found.is_relative_to(root):
                raise BadImage(where, "a link that leaves the data set's folder")
            if found.is_file():
                return found
        raise BadImage(where, "no such file")


def open_source(config: Config) -> RawSource:
    """Open the data set that `data.source` names; raises DataError where it is missing, empty or lacks a column."""
    data = config.data
    if data.source == "embedded":
        return _embedded(config)
    files, folder = source_files(data)
    if files:
        source = _tables(data, files, folder)
    elif _is_saved(folder):
        source = _saved(data, folder)
    else:
        source = _hub(data)
    if not source.columns:
        raise DataError(data.source, "no rows", "at least one row", "Name another data.source.")
    check_columns(data.source, source.columns, data.columns)
    return source


def source_files(data: DataConfig) -> tuple[list[Path], Path]:
    """The table files of a local source, and the folder that its pictures must lie in.

    No files for `embedded`, for a hub id and for a save_to_disk folder.
    """
    path = Path(data.source).expanduser()
    if path.is_file():
        return [path], path.parent
    if path.is_dir():
        return ([], path) if _is_saved(path) else (find_tables(path, data.split), path)
    if any(sign in data.source for sign in "*?["):
        base = Path(path.anchor) if path.is_absolute() else Path()
        if files := sorted(p for p in base.glob(str(path.relative_to(path.anchor))) if p.is_file()):
            return files, Path(min(str(file.parent) for file in files))
    if data.source != "embedded" and _is_path(data.source):
        raise DataError(data.source, "no such file or folder", "a data set", "Set data.source to where it lies.")
    return [], path


def part_of(index: int, data: DataConfig) -> Part:
    """Which part a row belongs to: a seeded hash of its number, so that no other row matters.

    Row 0 always trains and row 1 is always held out; two rows are enough for both parts.
    """
    if index < 2:
        return PARTS[index]
    digest = hashlib.sha256(f"{data.split_seed}:{index}".encode()).digest()
    return "held_out" if int.from_bytes(digest[:8], "big") < data.held_out_fraction * 2**64 else "train"


def _is_path(source: str) -> bool:
    """Whether a source that does not exist was meant as a path: the hub's ids are `name` or `owner/name`."""
    known = (".parquet", ".jsonl", ".json", ".csv")
    return source.startswith((".", "/", "~")) or source.count("/") > 1 or source.lower().endswith(known) or "*" in source


def _is_saved(folder: Path) -> bool:
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def _embedded(config: Config) -> RawSource:
    """Training and held-out questions are streams of their own, so that neither size changes the other's rows."""
    from dapo_stages.data.synthetic import question

    sizes: dict[Part, int] = {"train": config.data.synthetic.train, "held_out": config.data.synthetic.held_out}
    totals = {part: min(size, config.data.max_rows or size) for part, size in sizes.items()}
    names = config.data.columns

    def rows(part: Part) -> Iterator[RawRow]:
        for index in range(totals[part]):
            drawn = question(2 * config.seed + PARTS.index(part), index)
            values = {names.image: drawn.image, names.problem: drawn.problem, names.solution: drawn.solution}
            yield RawRow(index, {**values, names.slice or "slice": drawn.slice}, f"embedded row {index}")

    return RawSource("embedded", [names.image, names.problem, names.solution, names.slice or "slice"], rows, totals)


def _tables(data: DataConfig, files: list[Path], folder: Path) -> RawSource:
    tables = [Table(file, wanted_columns(data.columns)) for file in files]

    def everything() -> Iterator[tuple[dict[str, Any], Path]]:
        for table in tables:
            for values in table.rows():
                yield values, table.path.parent

    counts = [table.count() for table in tables]
    known = None if None in counts else sum(count for count in counts if count is not None)
    columns = next((names for table in tables if (names := table.columns())), [])
    return RawSource(data.source, columns, _by_part(data, everything), _totals(data, known), folder)


def _saved(data: DataConfig, folder: Path) -> RawSource:
    import datasets

    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except (OSError, ValueError, KeyError) as error:
        raise DataError(
            folder, f"a save_to_disk folder that cannot be read ({_short(error)})", "a whole one", "Save it again."
        ) from None
    if isinstance(loaded, datasets.DatasetDict):
        if data.split not in loaded:
            raise DataError(folder, f"splits {', '.join(loaded)}", data.split, "Set data.split=… to one of these.")
        loaded = loaded[data.split]
    return _of_dataset(data, loaded, folder=folder)


def _hub(data: DataConfig) -> RawSource:
    """A data set of the hub: downloaded once and memory-mapped, or streamed where only its first rows are wanted."""
    import datasets

    try:
        loaded = datasets.load_dataset(data.source, split=data.split, streaming=data.max_rows is not None)
    except datasets.exceptions.DatasetNotFoundError as error:
        raise DataError(
            data.source, f"no such data set ({_short(error)})", "a hub id, or a file or folder here", _LOCAL_COPY
        ) from None
    except ValueError as error:  # an unknown split, or a configuration that must be chosen
        raise DataError(data.source, _short(error), f"a split {data.split!r}", "Set data.split=….") from None
    except Exception as error:  # whatever its transports raise
        raise DataError(data.source, f"a hub that cannot be reached ({_short(error)})", "the data set", _LOCAL_COPY) from None
    return _of_dataset(data, loaded, fetch=_fetch(data.source))


_LOCAL_COPY = (
    "Check the connection and the name, or copy the data set here (`hf download --repo-type dataset NAME --local-dir "
    "DIR` where there is a connection) and set data.source=DIR."
)


def _of_dataset(
    data: DataConfig, loaded: Any, *, folder: Path | None = None, fetch: Callable[[str, str], bytes] | None = None
) -> RawSource:
    import datasets

    columns = list(loaded.features or next(iter(loaded), {}))
    if loaded.features is not None:
        loaded = loaded.select_columns([name for name in columns if name in wanted_columns(data.columns)])
        for name, feature in loaded.features.items():
            undecoded = _undecoded(feature)
            if undecoded is not None:
                loaded = loaded.cast_column(name, undecoded)

    def everything() -> Iterator[tuple[dict[str, Any], Path | None]]:
        try:
            for values in loaded:
                yield values, None
        except Exception as error:  # a connection lost half-way, a damaged file
            raise DataError(data.source, f"rows that cannot be read ({_short(error)})", "every row", _LOCAL_COPY) from error

    known = len(loaded) if isinstance(loaded, datasets.Dataset) else None
    return RawSource(
        data.source, columns if known != 0 else [], _by_part(data, everything), _totals(data, known), folder, fetch
    )


def _undecoded(feature: Any) -> Any:
    """The same feature with its pictures left as bytes (they are decoded behind a pixel limit), None if it has none."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return datasets.List(datasets.Image(decode=False)) if isinstance(inner, datasets.Image) else None


def _fetch(source: str) -> Callable[[str, str], bytes]:
    """Read pictures that a hub data set keeps as files: only its own, or what datasets has put into its cache."""

    def fetch(path: str, where: str) -> bytes:
        import datasets
        from datasets.utils.file_utils import xopen

        caches = [Path(str(place)).resolve() for place in (datasets.config.HF_CACHE_HOME, datasets.config.HF_DATASETS_CACHE)]
        ours = path.split("::")[-1].startswith(f"hf://datasets/{source}@") or (
            "://" not in path and any(Path(path).resolve().is_relative_to(cache) for cache in caches)
        )
        if not ours:
            raise BadImage(f"{where}: {path[:200]}", "a path outside the data set")
        try:
            with xopen(path, "rb") as file:
                return bytes(file.read())
        except Exception as error:  # whatever its transports raise
            raise BadImage(f"{where}: {path[:200]}", f"a file that cannot be read ({_short(error)})") from None

    return fetch


def _by_part(
    data: DataConfig, everything: Callable[[], Iterator[tuple[dict[str, Any], Path | None]]]
) -> Callable[[Part], Iterator[RawRow]]:
    def rows(part: Part) -> Iterator[RawRow]:
        for index, (values, folder) in enumerate(islice(everything(), data.max_rows)):
            if part_of(index, data) == part:
                yield RawRow(index, values, f"{data.source} row {index}", folder)

    return rows


def _totals(data: DataConfig, known: int | None) -> dict[Part, int]:
    if known is None:
        return {}
    number = min(known, data.max_rows or known)
    held_out = sum(part_of(index, data) == "held_out" for index in range(number))
    return {"train": number - held_out, "held_out": held_out}


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
