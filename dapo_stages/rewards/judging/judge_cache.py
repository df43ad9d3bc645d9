"""A judge's answers in one SQLite file, by the hash of the whole request, for several processes at a time."""

from __future__ import annotations

import hashlib
import json
import sqlite3
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from dapo_stages.errors import DataError

_BUSY = 60.0  # seconds to wait for another process that is writing


class Answer(NamedTuple):
    """A judge's answer, and whether it is complete (not cut off)."""

    text: str
    whole: bool


class JudgeCache:
    """Opened on first use; every answer is written to disk at once."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._opened: sqlite3.Connection | None = None

    def get(self, key: str) -> Answer | None:
        """The stored answer to a request, if any."""
        rows = self._do("SELECT text, whole FROM answers WHERE request = ?", (key,))
        return Answer(str(rows[0][0]), bool(rows[0][1])) if rows else None

    def put(self, key: str, answer: Answer) -> Answer:
        """Store an answer and return the stored one: if another process was faster, its answer is kept."""
        self._do("INSERT OR IGNORE INTO answers VALUES (?, ?, ?)", (key, answer.text, answer.whole))
        return self.get(key) or answer

    def close(self) -> None:
        """Close the file."""
        if self._opened is not None:
            self._opened.close()
            self._opened = None

    def _do(self, statement: str, values: tuple[object, ...]) -> list[Any]:
        try:
            with self._connection() as connection:
                return connection.execute(statement, values).fetchall()
        except sqlite3.Error as error:
            raise DataError(
                self._path,
                f"cannot read or write the judge's answers ({type(error).__name__}: {error})",
                "Move the file away, or set rewards.judge.cache, and run the command again.",
            ) from None

    def _connection(self) -> sqlite3.Connection:
        if self._opened is None:
            self._path.parent.mkdir(parents=True, exist_ok=True)
            self._opened = sqlite3.connect(self._path, timeout=_BUSY)
            self._opened.execute(
                "CREATE TABLE IF NOT EXISTS answers (request TEXT PRIMARY KEY, text TEXT NOT NULL, whole INT NOT NULL)"
            )
        return self._opened


def key_of(request: Mapping[str, Any]) -> str:
    """SHA-256 of a request: another model, rubric, image or temperature gives another key."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()
