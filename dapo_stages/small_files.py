"""Small text files, read within a bound: a file of gigabytes, or a device without an end, is no manifest."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, TextIO

SMALL = 16 << 20  # bytes; JSON of the worst kind takes 20 times as much in memory
REPORT = 256 << 20  # of a report's own files, which hold small pictures


def read_text(path: Path, most: int = SMALL, errors: str = "strict") -> str:
    """A whole file in UTF-8. Raises ValueError if it has more than `most` bytes, or is no UTF-8; OSError.

    `errors` is what becomes of the bytes that are not, as for bytes.decode.
    """
    return read_bytes(path, most).decode("utf-8", errors)


def read_bytes(path: Path, most: int = SMALL) -> bytes:
    """A whole file. Raises ValueError if it has more than `most` bytes; OSError."""
    with path.open("rb") as file:
        size = os.fstat(file.fileno()).st_size  # 0 for what is no regular file
        content = b"" if size > most else file.read((size or most) + 1)
    if max(size, len(content)) > most:
        raise ValueError(f"more than {shown(most)}")
    return content


def read_json(path: Path, most: int = SMALL) -> Any:
    """A whole file of JSON. Raises ValueError as above, and if it is no JSON or nested too deeply; OSError."""
    return parsed(read_text(path, most))


def parsed(text: str) -> Any:
    """A text of JSON. Raises ValueError if it is none, or nested too deeply."""
    try:
        return json.loads(text)
    except RecursionError:
        raise ValueError("brackets nested too deeply") from None


def lines(file: TextIO, most: int) -> Iterator[str]:
    """The lines of a file; ValueError at one of more than `most` characters, before the rest of it is read."""
    number = 0
    while line := file.readline(most + 1):
        number += 1
        if len(line) > most:
            raise ValueError(f"line {number} has more than {most >> 20} million characters")
        yield line


def is_inside(name: str) -> bool:
    """Whether a name that somebody else wrote stays in the folder it is relative to, by its letters alone."""
    return bool(name) and "\0" not in name and not name.startswith("/") and ".." not in name.split("/")


def shown(size: int) -> str:
    """Bytes for a message: `16 MiB`, `1.5 GiB`."""
    return f"{size / 2**30:.3g} GiB" if size >= 2**30 else f"{size >> 20} MiB"
