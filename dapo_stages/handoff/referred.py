"""A checkpoint that a policy only refers to: its files as they were then, and whether they still are that.

The manifest's `policy` then has, beside `reference` (a folder or a hub id), `files` (name, bytes, SHA-256 of each) and,
for a hub model, `revision` (the commit that is used from then on). Manifests of older versions have neither, and what
they refer to cannot be checked.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff.hashes import sha256_kept

REFERENCE, REVISION, FILES = "reference", "revision", "files"

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
# What a checkpoint consists of beside its weights: settings, chat template, tokenizer. Never code, never pickles.
# Known names only: what else lies in a folder of one's own is nobody's business, and `push` sends what is copied.
BESIDE = (
    INDEX, "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "*processor_config.json", "chat_template.*",
)  # fmt: skip
_AGAIN = (
    "Bring that file back as it was; or train on what is there now: run init-policy again with --overwrite, and what "
    "was made from the other model is made again."
)


def refers(about: Mapping[str, Any]) -> bool:
    """Whether a policy, by its manifest's `policy`, refers to a checkpoint instead of holding one."""
    return REFERENCE in about


def is_checked(about: Mapping[str, Any]) -> bool:
    """Whether it is known what the checkpoint was like."""
    return FILES in about


def fetched(about: Mapping[str, Any], *, download: bool = True) -> Path:
    """The checkpoint as a folder of this machine. One of the hub is in its cache; what is not yet, is downloaded.

    Without a revision the newest one is taken, where the hub can be reached. Raises ModelError; DataError for a folder
    that is gone.
    """
    from huggingface_hub import snapshot_download

    name, revision = str(about[REFERENCE]), about.get(REVISION)
    if revision is None and (Path(name).is_absolute() or Path(name).is_dir()):
        if not Path(name).is_dir():
            raise DataError(name, "no such folder", "the checkpoint that was referred to", _AGAIN)
        return Path(name)
    try:
        if revision is not None and (here := _in_cache(about)) is not None:
            return here
        if not download:
            raise FileNotFoundError("it is not in the hub's cache")
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, *BESIDE]))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are OSErrors
        at = f" at revision {str(revision)[:12]}" if revision else ""
        raise ModelError(
            f"{name}: found no way to fetch it{at} ({' '.join(str(error).split())[:200]}); needed a checkpoint folder, "
            "or a hub id that can be reached. Check the connection, or set model.name to a folder and run init-policy "
            "again."
        ) from None


def _in_cache(about: Mapping[str, Any]) -> Path | None:
    """The folder of a pinned hub model, if all its files are in the cache; the hub is not asked."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(about[REFERENCE]), revision=about[REVISION], local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if not is_checked(about) or all((folder / name).is_file() for name in _recorded(about)) else None


def place_of(name: str) -> dict[str, Any]:
    """Where a checkpoint is, by the name of a folder or of a hub model, whose newest revision is fetched."""
    if Path(name).is_dir():
        return {REFERENCE: str(Path(name).resolve())}
    return {REFERENCE: name, REVISION: fetched({REFERENCE: name}).name}


def refer_to(place: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest records of a checkpoint: where it is, and the files it consists of."""
    folder = fetched(place)
    files = [
        {"name": name, "bytes": (folder / name).stat().st_size, "sha256": sha256_kept(folder / name)}
        for name in names_in(folder)
    ]
    return {**place, FILES: files}


def names_in(folder: Path) -> list[str]:
    """Names of the files that a checkpoint consists of."""
    return sorted(
        path.name
        for path in folder.iterdir()
        if any(fnmatch(path.name, pattern) for pattern in (WEIGHTS, *BESIDE)) and path.is_file()
    )


def verify_referred(about: Mapping[str, Any], *, weights: bool = True) -> None:
    """Refuse a checkpoint that is no longer the one that was referred to; without `weights`, by its small files alone.

    Raises DataError with the first file that differs.
    """
    if refers(about) and is_checked(about):
        for difference in differences(about, fetched(about), weights=weights):
            raise difference


def differences(
    about: Mapping[str, Any],
    folder: Path,
    *,
    weights: bool = True,
    again: bool = False,
    advance: Callable[[str], None] = lambda name: None,
) -> Iterator[DataError]:
    """All files that differ, lack or are there in addition; `again` trusts no hash that is kept from earlier."""
    recorded = _recorded(about)
    there = set(names_in(folder))
    for name, (size, digest) in recorded.items():
        if not weights and fnmatch(name, WEIGHTS):
            continue
        advance(name)
        if name not in there:
            yield DataError(folder / name, "no such file", f"the one referred to (sha256 {digest[:12]})", _AGAIN)
            continue
        try:
            now = (folder / name).stat().st_size, sha256_kept(folder / name, again=again)
        except OSError as error:
            yield DataError(folder / name, f"a file that cannot be read ({error.strerror})", "one that can", _AGAIN)
            continue
        if now != (size, digest):
            found = f"another file ({now[0]} bytes, sha256 {now[1][:12]})"
            yield DataError(folder / name, found, f"the one referred to ({size} bytes, sha256 {digest[:12]})", _AGAIN)
    for name in sorted(there - recorded.keys()):
        if weights or not fnmatch(name, WEIGHTS):
            needed = f"only the {len(recorded)} files referred to"
            yield DataError(folder / name, "a file that came later", needed, _AGAIN)


def _recorded(about: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Name -> size and hash of each file. Raises DataError if a manifest has something else there."""
    try:
        files = {str(one["name"]): (int(one["bytes"]), str(one["sha256"])) for one in about[FILES]}
    except (KeyError, TypeError, ValueError):
        files = {}
    if not files or any(Path(name).name != name for name in files):
        raise DataError(
            f"the reference to {about[REFERENCE]}", "no list of its files", "name, bytes and sha256 of each", _AGAIN
        )
    return files
