"""What a process that runs several commands keeps in memory between them. Files are the truth, this is a cache of them.

A thing is kept under the hash of the files that it equals (and of the settings it was loaded with), so a command that
finds it computes what it would compute from the files. Whoever changes a thing takes it out first, and gives it back
under the hash of what was published. A process that runs a single command keeps nothing.
"""

from __future__ import annotations

from typing import Any, Literal

# At most one of each: several policies would not fit.
Kind = Literal["policy", "reference", "state", "engine"]

_kept: dict[Kind, tuple[str, Any]] | None = None


def begin() -> None:
    """Keep things from here on: this process runs several commands."""
    global _kept
    _kept = {}


def end() -> None:
    """Keep nothing any more."""
    global _kept
    _kept = None


def keeps() -> bool:
    """Whether this process keeps things."""
    return _kept is not None


def present(kind: Kind) -> Any | None:
    """What is kept of a kind, under whatever key."""
    found = (_kept or {}).get(kind)
    return found and found[1]


def look(kind: Kind, key: str) -> Any | None:
    """What is kept under this very key; None if something else is, or nothing."""
    found = (_kept or {}).get(kind)
    return found[1] if found is not None and found[0] == key else None


def take(kind: Kind, key: str) -> Any | None:
    """The same, and it is kept no longer."""
    found = look(kind, key)
    if found is not None:
        drop(kind)
    return found


def give(kind: Kind, key: str, thing: Any) -> None:
    """Keep a thing instead of what was kept of its kind."""
    if _kept is not None:
        _kept[kind] = key, thing


def drop(kind: Kind) -> None:
    """Forget what is kept of a kind, so that its memory is free."""
    if _kept is not None:
        _kept.pop(kind, None)
