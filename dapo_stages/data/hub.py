"""Datasets opened by the `datasets` library: hub ids and save_to_disk folders."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dapo_stages.config import DataConfig
from dapo_stages.data.cells import named_labels
from dapo_stages.data.columns import wanted_columns
from dapo_stages.data.images import BadImage
from dapo_stages.data.raw_rows import Fetch
from dapo_stages.errors import DataError
from dapo_stages.small_files import is_inside, read_json

_ARCHIVED = re.compile(r"(zip|tar|gzip|bz2|xz|zstd|lz4)://")

_LOCAL_COPY = (
    "Check the name and the connection, or download the dataset elsewhere (`hf download --repo-type dataset NAME "
    "--local-dir DIR`), copy it here and set data.source=DIR."
)


@dataclass(frozen=True)
class Opened:
    """A dataset whose images are still bytes: they are decoded later, with a pixel limit."""

    columns: list[str]  # empty for a dataset without rows
    rows: Callable[[], Iterator[dict[str, Any]]]
    number: int | None  # of rows, if known in advance
    fetch: Fetch | None = None  # reads an image that the loader gives as a path


def is_saved(folder: Path) -> bool:
    """Whether `save_to_disk` wrote this folder."""
    return (folder / "dataset_dict.json").is_file() or (folder / "state.json").is_file()


def open_saved(folder: Path, data: DataConfig) -> Opened:
    """A folder that `save_to_disk` wrote, with one split or several."""
    import datasets

    _check_names(folder)
    try:
        loaded: Any = datasets.load_from_disk(str(folder))
    except IndexError:  # how datasets fails if it saved no rows
        return Opened([], lambda: iter(()), 0)
    except (OSError, ValueError, KeyError) as error:
        problem = f"cannot read the save_to_disk folder ({_short(error)})"
        raise DataError(folder, problem, "Save the dataset again.") from None
    if isinstance(loaded, datasets.DatasetDict):
        if data.split not in loaded:
            problem = f"no split {data.split} (the splits are {', '.join(loaded)})"
            raise DataError(
                folder, problem, "Set data.split=… to one of these; data.held_out_split is for held-out rows."
            )
        loaded = loaded[data.split]
    return _opened(loaded, data, None)


def _check_names(folder: Path) -> None:
    """Refuse a save_to_disk folder that refers to files outside it. Raises DataError."""
    names: list[object] = []
    try:
        if (folder / "dataset_dict.json").is_file():
            splits = list(read_json(folder / "dataset_dict.json")["splits"])
            names += splits
            folders = [folder / split for split in splits if is_inside(str(split))]
        else:
            folders = [folder]
        for part in folders:
            if (part / "state.json").is_file():
                names += [file["filename"] for file in read_json(part / "state.json")["_data_files"]]
    except (OSError, ValueError, KeyError, TypeError) as error:
        problem = f"cannot read the save_to_disk folder ({_short(error)})"
        raise DataError(folder, problem, "Save the dataset again.") from None
    outside = next((name for name in names if not is_inside(str(name))), None)
    if outside is not None:
        raise DataError(folder, f"the file {outside!r} is outside this folder", "Save the dataset again.")


def open_hub(data: DataConfig) -> Opened:
    """A dataset on the hub: downloaded once and memory-mapped, or streamed if only its first rows are used."""
    import datasets
    from datasets.exceptions import DatasetNotFoundError

    try:
        loaded = datasets.load_dataset(data.source, split=data.split, streaming=data.max_rows is not None)
    except DatasetNotFoundError as error:
        problem = f"no such dataset on the hub, nor a file or folder here ({_short(error)})"
        raise DataError(data.source, problem, _LOCAL_COPY) from None
    except ValueError as error:  # an unknown split, or a configuration that must be chosen
        problem = f"cannot load the split `{data.split}` ({_short(error)})"
        raise DataError(data.source, problem, "Set data.split=… to a split that it has.") from None
    except Exception as error:  # its transports raise all kinds
        raise DataError(data.source, f"cannot reach the hub ({_short(error)})", _LOCAL_COPY) from None
    return _opened(loaded, data, _fetch(data.source))


def _opened(loaded: Any, data: DataConfig, fetch: Fetch | None) -> Opened:
    import datasets

    wanted, labels = wanted_columns(data.columns), dict[str, list[str]]()

    def rows() -> Iterator[dict[str, Any]]:
        number = 0
        try:
            for row in loaded:
                yield named_labels(row, labels)
                number += 1
        except Exception as error:  # a lost connection, a damaged file
            raise DataError(
                f"{data.source} row {number}", f"cannot read the row ({_short(error)})", _LOCAL_COPY
            ) from None

    number = len(loaded) if hasattr(loaded, "__len__") else None
    columns = [] if number == 0 else list(loaded.features or next(rows(), {}))
    if loaded.features is not None:
        features = loaded.features
        loaded = loaded.select_columns([name for name in columns if name in wanted or not _is_heavy(features[name])])
        for name, feature in loaded.features.items():
            if isinstance(feature, datasets.ClassLabel):
                labels[name] = feature.names
            if (undecoded := _undecoded(feature)) is not None:
                loaded = loaded.cast_column(name, undecoded)
    return Opened(columns, rows, number, fetch)


def _is_heavy(feature: Any) -> bool:
    """Whether a feature is images, sounds, videos or other bytes, or contains any."""
    import datasets

    if isinstance(feature, datasets.Image | datasets.Audio | datasets.Video):
        return True
    if isinstance(feature, datasets.Value):
        return "binary" in feature.dtype
    inner = feature.values() if isinstance(feature, dict) else [getattr(feature, "feature", None)]
    return any(one is not None and _is_heavy(one) for one in inner)


def _undecoded(feature: Any) -> Any:
    """The same feature with images left as bytes; None if it has no images."""
    import datasets

    if isinstance(feature, datasets.Image):
        return datasets.Image(decode=False)
    inner = getattr(feature, "feature", None)
    return datasets.List(datasets.Image(decode=False)) if isinstance(inner, datasets.Image) else None


def _fetch(source: str) -> Fetch:
    """Reads images that a hub dataset stores as files: only from the dataset itself, or from the datasets cache."""

    def fetch(path: str, where: str) -> bytes:
        import datasets
        from datasets.utils.file_utils import xopen

        caches = {Path(str(datasets.config.HF_CACHE_HOME)), Path(str(datasets.config.HF_DATASETS_CACHE))}
        *inner, outer = path.split("::")  # member of an archive, …, the archive
        ours = (outer.startswith(f"hf://datasets/{source}@") and all(map(_ARCHIVED.match, inner))) or (
            "://" not in path
            and not inner
            and any(Path(path).resolve().is_relative_to(cache.resolve()) for cache in caches)
        )
        if not ours:
            raise BadImage(f"{where}: {path[:200]}", "the path is outside the dataset")
        try:
            with xopen(path, "rb") as file:
                return bytes(file.read())
        except Exception as error:  # its transports raise all kinds
            raise BadImage(f"{where}: {path[:200]}", f"cannot read the file ({_short(error)})") from None

    return fetch


def _short(error: Exception) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
