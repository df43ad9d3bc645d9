"""Reading small text files, up to a size limit: gigabytes, or an endless device, are not a manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

SMALL = 16 << 20  # bytes; in memory, the worst JSON takes 20 times as many
REPORT = 256 << 20  # bytes of a report's own files, which contain small images


def read_text(path: Path, most: int = SMALL, errors: str = "strict") -> str:
    """A whole file in UTF-8. Raises ValueError if it has more than `most` bytes or is not UTF-8; OSError.

    `errors` says how to handle bytes that are not UTF-8, as in bytes.decode.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def read_bytes(path: Path, most: int = SMALL) -> bytes:
    """A whole file. Raises ValueError if it has more than `most` bytes; OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # 0 if it is not a regular file
        content = b"" if size > most else file.read((size or most) + 1)
    if max(size, len(content)) > most:
        raise ValueError(f"more than {shown(most)}")
    return content


def read_json(path: Path, most: int = SMALL) -> Any:
    """A whole JSON file. Raises ValueError as above, and if it is not JSON or is nested too deeply; OSError."""
    return parsed(read_text(path, most))


def parsed(text: str) -> Any:
    """Parse JSON. Raises ValueError if the text is not JSON or is nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def lines(file: TextIO, most: int) -> Iterator[str]:
    """The lines of a file. Raises ValueError at one of more than `most` characters, without reading all of it."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise ValueError(f"line {number} has more than {most >> 20} million characters")
        yield line


def is_inside(name: str) -> bool:
    """Whether an untrusted relative path stays inside its folder, judged by its characters alone."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def shown(size: int) -> str:
    """A size in bytes for a message: `16 MiB`, `1.5 GiB`."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size >> 20} MiB"


def bytes_below(folder: Path) -> int:
    """Bytes of its files; one with several names counts once, what is linked to elsewhere does not."""
    seen: dict[tuple[int, int], int] = {}
    for place, _, names in os.walk(folder):
        for name in names:
            try:
                about = os.lstat(os.path.join(place, name))
            except OSError:  # removed meanwhile
                continue
            seen[about.st_dev, about.st_ino] = about.st_size
    return sum(seen.values())
