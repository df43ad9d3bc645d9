"""A checkpoint that a policy only refers to: its recorded files, and whether they have changed since.

Besides `reference` (a folder or a hub id), the manifest's `policy` then has `files` (name, bytes, SHA-256 of each) and,
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
from dapo_stages.processes.phases import phase

REFERENCE, REVISION, FILES = "reference", "revision", "files"

WEIGHTS = "*.safetensors"
INDEX = "model.safetensors.index.json"
# The files of a checkpoint besides its weights: settings, chat template, tokenizer. Never code, never pickles.
# Known names only: `push` uploads what is copied, and other files in a user's folder must stay private.
BESIDE = (
    INDEX, "config.json", "generation_config.json", "tokenizer*.json", "tokenizer.model", "vocab.json", "vocab.txt",
    "merges.txt", "special_tokens_map.json", "added_tokens.json", "*processor_config.json", "chat_template.*",
)  # fmt: skip
_AGAIN = (
    "Restore the checkpoint as it was, or run init-policy again with --overwrite to train on what is there now. What "
    "was made from the old model is then made again."
)


def refers(about: Mapping[str, Any]) -> bool:
    """Whether a policy, by its manifest's `policy`, refers to a checkpoint instead of holding one."""
    return REFERENCE in about


def is_checked(about: Mapping[str, Any]) -> bool:
    """Whether the files of the checkpoint are recorded, so that changes are noticed."""
    return FILES in about


def fetched(about: Mapping[str, Any], *, download: bool = True) -> Path:
    """The checkpoint as a local folder; files of a hub model that are not in the hub's cache are downloaded.

    Without a revision the newest one is used, if the hub can be reached. Raises ModelError; DataError for a folder that
    does not exist.
    """
    from huggingface_hub import snapshot_download

    name, revision = str(about[REFERENCE]), about.get(REVISION)
    if revision is None and (Path(name).is_absolute() or Path(name).is_dir()):
        if not Path(name).is_dir():
            raise DataError(name, "no such folder, but the policy refers to a checkpoint in it", _AGAIN)
        return Path(name)
    try:
        if revision is not None and (here := _in_cache(about)) is not None:
            return here
        if not download:
            raise FileNotFoundError("not in the hub's cache")
        return Path(snapshot_download(name, revision=revision, allow_patterns=[WEIGHTS, *BESIDE]))
    except (OSError, ValueError) as error:  # huggingface_hub's errors are OSErrors
        at = f" at revision {str(revision)[:12]}" if revision else ""
        raise ModelError(
            f"{name}: not a checkpoint folder, and cannot be downloaded from the hub{at} "
            f"({' '.join(str(error).split())[:200]}). Check the connection, or set model.name to a folder and run "
            "init-policy again."
        ) from None


def _in_cache(about: Mapping[str, Any]) -> Path | None:
    """The cached folder of a pinned hub model, if all its files are there; without a request to the hub."""
    from huggingface_hub import snapshot_download

    try:
        folder = Path(snapshot_download(str(about[REFERENCE]), revision=about[REVISION], local_files_only=True))
    except (OSError, ValueError):
        return None
    return folder if not is_checked(about) or all((folder / name).is_file() for name in _recorded(about)) else None


def place_of(name: str) -> dict[str, Any]:
    """Where a checkpoint is, for a folder or a hub id; the newest revision of a hub model is downloaded."""
    if Path(name).is_dir():
        return {REFERENCE: str(Path(name).resolve())}
    return {REFERENCE: name, REVISION: fetched({REFERENCE: name}).name}


def refer_to(place: Mapping[str, Any]) -> dict[str, Any]:
    """What a manifest records of a checkpoint: where it is, and its files."""
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


@phase("verify")
def verify_referred(about: Mapping[str, Any], *, weights: bool = True) -> None:
    """Raise DataError for the first file of a checkpoint that differs from what was recorded.

    Without `weights`, only its small files are compared.
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
    """An error for each file that differs, is missing or was added; `again` ignores cached hashes."""
    recorded = _recorded(about)
    there = set(names_in(folder))
    for name, (size, digest) in recorded.items():
        if not weights and fnmatch(name, WEIGHTS):
            continue
        advance(name)
        if name not in there:
            problem = f"no such file, but the policy refers to it (sha256 {digest[:12]})"
            yield DataError(folder / name, problem, _AGAIN)
            continue
        try:
            now = (folder / name).stat().st_size, sha256_kept(folder / name, again=again)
        except OSError as error:
            yield DataError(folder / name, f"cannot read the file: {error.strerror}", _AGAIN)
            continue
        if now != (size, digest):
            actual = f"{now[0]} bytes, sha256 {now[1][:12]}"
            problem = f"has changed: expected {size} bytes, sha256 {digest[:12]}, got {actual}"
            yield DataError(folder / name, problem, _AGAIN)
    for name in sorted(there - recorded.keys()):
        if weights or not fnmatch(name, WEIGHTS):
            problem = f"was added later: the policy refers to only {len(recorded)} other files"
            yield DataError(folder / name, problem, _AGAIN)


def _recorded(about: Mapping[str, Any]) -> dict[str, tuple[int, str]]:
    """Name -> size and hash of each file. Raises DataError if the manifest has no valid list."""
    try:
        files = {str(one["name"]): (int(one["bytes"]), str(one["sha256"])) for one in about[FILES]}
    except (KeyError, TypeError, ValueError):
        files = {}
    if not files or any(Path(name).name != name for name in files):
        problem = "no valid list of its files (expected name, bytes and sha256 of each)"
        raise DataError(f"the reference to {about[REFERENCE]}", problem, _AGAIN)
    return files
