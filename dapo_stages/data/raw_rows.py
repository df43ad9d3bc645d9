"""Raw rows of a dataset, and the images that their cells name."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cached_property, lru_cache
from pathlib import Path
from typing import Any, Literal

from dapo_stages.data.encoded_images import decoded
from dapo_stages.data.images import BadImage

Fetch = Callable[[str, str], bytes]  # (path, where) -> the file's bytes
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
    unread: tuple[str, ...] = ()  # table files of another kind than those that are read

    def image(self, row: RawRow, value: Any) -> Any:
        """The image of a cell, as bytes, as a path inside the source's folder or a root, or as a PIL image.

        A video's file likewise.
        """
        from PIL import Image

        if isinstance(value, dict):
            value = (value.get("path") or value.get("url")) if value.get("bytes") is None else value["bytes"]
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

    @cached_property
    def _folder(self) -> Callable[[Path], Path]:
        return lru_cache(1024)(Path.resolve)

    def _resolve(self, file: Path) -> Path:
        """The path without symbolic links; a folder is resolved once, not for each of its files."""
        return file.resolve() if file.is_symlink() else self._folder(file.parent) / file.name

    @cached_property
    def _allowed(self) -> list[Path]:
        return [root.resolve() for root in (self.folder, *self.roots) if root is not None]

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
        try:
            for folder in dict.fromkeys(folders):
                file = self._resolve(folder / path)
                if not any(file.is_relative_to(root) for root in self._allowed):
                    problem = "the symbolic link leads outside the dataset's folder (data.image_root allows another)"
                    raise BadImage(where, problem)
                if file.is_file():
                    return file
        except (OSError, RuntimeError) as error:  # a name longer than the file system allows, circular links
            raise BadImage(where, f"not a usable file name ({type(error).__name__})") from None
        raise BadImage(where, "the image file does not exist")
