"""manifest.json: the one file that says an output exists, what it holds, and what it was made from."""

from __future__ import annotations

import hashlib
import json
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from pydantic import BaseModel, ConfigDict

from dapo_stages.errors import DataError
from dapo_stages.handoff.hashes import sha256_kept
from dapo_stages.handoff.lookups import RowIndex, RowLookup
from dapo_stages.handoff.referred import FILES, verify_referred
from dapo_stages.handoff.shards import Row, Shard, ShardReader, write_text
from dapo_stages.processes.phases import phase
from dapo_stages.small_files import REPORT, is_inside, parsed, read_bytes, read_json

MANIFEST = "manifest.json"
STATE = "state"  # a folder inside the output of train-step that is an output of its own; an input of the next one
_CHECKSUM = "checksum"
_CANONICAL = json.JSONEncoder(sort_keys=True, separators=(",", ":"), allow_nan=False)


class Input(BaseModel):
    """An output of another stage that this one read."""

    model_config = ConfigDict(frozen=True, extra="forbid")
    path: str
    content_hash: str


class Manifest(BaseModel):
    """What is in a folder. Times, memory and paths are recorded but are not part of `content_hash`.

    The file also has a `checksum` of all its other fields.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    stage: str
    schema_version: int
    package_version: str
    config: dict[str, Any]
    seed: int
    inputs: dict[str, Input]
    shards: list[Shard]
    rewards: list[str] = []
    counts: dict[str, Any] = {}
    policy: dict[str, Any] = {}
    started: str
    ended: str
    seconds: float
    processor_seconds: float | None = None  # of all threads of the process, or of rank 0
    memory: int | None = None  # peak bytes of the process, or of rank 0
    spent: dict[str, float] = {}  # seconds of the process, or of rank 0, by phase (processes/phases.py)
    content_hash: str
    pruned: bool = False
    # Content hashes of what was here, lost its state, and was made again: what was made from that is not outdated.
    replaces: list[str] = []

    def still_has(self, name: str, now: Manifest) -> bool:
        """Whether an input as it is `now` is what this was made from, or replaces it. A state is told by its policy."""
        return name == STATE or now.is_or_replaces(self.inputs[name].content_hash)

    def is_or_replaces(self, content_hash: str) -> bool:
        """Whether an output that was made from this content was made from this one, or from one it replaces."""
        return content_hash == self.content_hash or content_hash in self.replaces

    @property
    def fingerprint(self) -> str:
        """What the output was made from: with the same fingerprint there is nothing to do."""
        hashes = {name: source.content_hash for name, source in self.inputs.items()}
        return fingerprint(self.stage, self.config, self.seed, hashes)


def fingerprint(stage: str, config: dict[str, Any], seed: int, input_hashes: dict[str, str]) -> str:
    """Hash of everything that determines a stage's result. A state is told by its policy: it may not be written."""
    from dapo_stages.handoff.schemas import SCHEMA_VERSION

    if STATE in input_hashes:
        input_hashes = input_hashes | {STATE: input_hashes.get("policy", "")}
    return _hash({"stage": stage, "version": SCHEMA_VERSION, "config": config, "seed": seed, "inputs": input_hashes})


def content_hash(
    stage: str, config: dict[str, Any], seed: int, shards: Sequence[Shard], policy: Mapping[str, Any] | None = None
) -> str:
    """Hash of a result: the same work gives the same hash, whenever and wherever it runs.

    The files of a checkpoint that a `policy` refers to count like its own files, if they are recorded.
    """
    from dapo_stages.handoff.schemas import SCHEMA_VERSION

    files = sorted((shard.name, shard.sha256) for shard in shards)
    result = {"stage": stage, "version": SCHEMA_VERSION, "config": config, "seed": seed, "shards": files}
    referred = (policy or {}).get(FILES)
    return _hash(result if referred is None else result | {FILES: referred})


def write_manifest(folder: Path, manifest: Manifest, times: tuple[int, int] | None = None) -> None:
    """Publish a manifest; call it last."""
    values = manifest.model_dump(mode="json", exclude={"replaces"} if not manifest.replaces else None)
    text = json.dumps(values | {_CHECKSUM: _hash(values)}, indent=1, allow_nan=False)
    write_text(folder / MANIFEST, text + "\n", times)


@contextmanager
def remembered() -> Iterator[None]:
    """A context in which unchanged manifests are read only once: for commands that look at a whole run."""
    global _known
    before = _known
    _known = {} if before is None else before
    try:
        yield
    finally:
        _known = before


# Path -> inode, size and times of the file, by which a change is noticed, and its content.
_known: dict[str, tuple[tuple[int, ...], Manifest]] | None = None


def read_manifest(folder: Path, stage: str | None = None) -> Manifest:
    """Read a folder's manifest and check that it is intact, of this version, and of the expected stage.

    Raises DataError if it is not.
    """
    path = folder / MANIFEST
    manifest = _recall(path) or _read(folder, path, stage)
    if stage is not None and manifest.stage != stage:
        problem = f"expected the output of {stage}, got the output of {manifest.stage}"
        raise DataError(path, problem, "Name the right folder.")
    return manifest


def manifest_of(folder: Path, stage: str | None = None) -> Manifest | None:
    """The manifest of an output, pruned or not; None if there is none yet."""
    return read_manifest(folder, stage) if os.path.exists(f"{folder}/{MANIFEST}") else None


def _recall(path: Path) -> Manifest | None:
    if _known is None or (known := _known.get(str(path))) is None:
        return None
    return known[1] if known[0] == _identity(path) else None


def _identity(path: Path) -> tuple[int, ...]:
    try:
        found = os.stat(path)
    except OSError:
        return ()
    return found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns


def _read(folder: Path, path: Path, stage: str | None) -> Manifest:
    from dapo_stages.handoff.schemas import SCHEMA_VERSION

    redo = _command(stage) if stage else "the stage that makes this folder"
    identity = _identity(path) if _known is not None else ()
    try:
        values = read_json(path)
        version = values.get("schema_version", SCHEMA_VERSION)
        if version != SCHEMA_VERSION:
            raise DataError(
                path,
                f"schema version {version} is not supported (expected {SCHEMA_VERSION})",
                f"Run {redo} again, or use the version of dapo-stages that wrote it.",
            )
        checksum = values.pop(_CHECKSUM, None)  # manifests of older versions have none
        edited = checksum not in (None, _hash(values))
        manifest = Manifest.model_validate(values)
        edited |= manifest.content_hash != content_hash(
            manifest.stage, manifest.config, manifest.seed, manifest.shards, manifest.policy
        )
    except FileNotFoundError:
        output = f"output of {stage}" if stage else "output"
        if folder.is_dir() and any(folder.iterdir()):
            problem, advice = f"no such file: the {output} is unfinished", f"Run {redo} again to finish it."
        else:
            problem, advice = f"no such file: there is no {output}", f"Run {redo} first."
        raise DataError(path, problem, advice) from None
    except (OSError, ValueError, AttributeError, RecursionError) as error:
        reason = " ".join(str(error).split())[:160]
        raise DataError(path, f"not a valid manifest ({reason})", f"Run {redo} again.") from None
    if edited:
        problem = "the manifest was edited: its content does not match its hash"
        raise DataError(path, problem, f"Run {redo} again.")
    outside = next((shard.name for shard in manifest.shards if not is_inside(shard.name)), None)
    if outside is not None:
        raise DataError(path, f"lists the file {outside!r}, which is not inside {folder}", f"Run {redo} again.")
    if _known is not None:
        _known[str(path)] = identity, manifest
    return manifest


def mark_pruned(folder: Path) -> None:
    """Record that the files were removed on purpose; the time stamp stays, so that make redoes nothing."""
    before = (folder / MANIFEST).stat()
    pruned = read_manifest(folder).model_copy(update={"pruned": True})
    write_manifest(folder, pruned, (before.st_atime_ns, before.st_mtime_ns))


class Source:
    """A published folder, opened for reading. Shards are verified when they are first opened."""

    def __init__(self, folder: Path, stage: str | None = None) -> None:
        self.folder = folder
        self.manifest = read_manifest(folder, stage)
        self._verified: set[str] = set()

    @property
    def _stage(self) -> str:
        """The command that writes it."""
        return _command(self.manifest.stage)

    def shards(self, kind: str) -> list[Shard]:
        """The shards of a kind, in order: `completions` -> completions-00000.parquet, …"""
        return [shard for shard in self.manifest.shards if kind_of(shard.name) == kind]

    def reader(self, kind: str, shard: Shard) -> ShardReader:
        """Open one shard, after checking its size, SHA-256, columns and number of rows."""
        from dapo_stages.handoff.schemas import schema_of

        schema = schema_of(kind, tuple(self.manifest.rewards), self.manifest.stage)
        reader = ShardReader(self.verified(shard), schema, self.manifest.stage)
        if (rows := sum(reader.row_group_sizes)) != shard.rows:
            reader.close()
            problem = f"has {rows} rows, but its manifest says {shard.rows}"
            raise DataError(reader.path, problem, f"Run {self._stage} again.")
        return reader

    def rows(self, kind: str, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """All rows of a kind, one row group in memory at a time."""
        for shard in self.shards(kind):
            with self.reader(kind, shard) as reader:
                yield from reader.rows(columns)

    @contextmanager
    def index(self, kind: str) -> Iterator[RowIndex]:
        """Rows by number, for a table that may be large."""
        index = RowIndex([(shard.rows or 0, partial(self.reader, kind, shard)) for shard in self.shards(kind)])
        try:
            yield index
        finally:
            index.close()

    @contextmanager
    def lookup(self, kind: str, key: str, columns: Sequence[str] | None = None) -> Iterator[RowLookup]:
        """Rows by key, in any order; only these columns, if they are given."""
        with ExitStack() as stack:
            readers = [stack.enter_context(self.reader(kind, shard)) for shard in self.shards(kind)]
            yield RowLookup(readers, key, columns, where=self.folder / f"{kind}-*.parquet")

    @phase("verify")
    def verified(self, shard: Shard) -> Path:
        """The path of a shard or file, after checking that it is the one that was published."""
        path = self.folder / shard.name
        if shard.name in self._verified:
            return path
        redo = f"Run {self._stage} again."
        if self.manifest.pruned:
            raise DataError(
                self.folder,
                "the files of this output were pruned",
                f"Run {self._stage} with another --out to make them again, and raise the keep settings.",
            )
        if not path.is_file():
            raise DataError(path, "no such file, but the manifest lists it", redo)
        if (size := path.stat().st_size) != shard.bytes:
            raise DataError(path, f"has {size} bytes, expected {shard.bytes} (it was truncated or replaced)", redo)
        if sha256_kept(path) != shard.sha256:
            raise DataError(path, "has changed: it does not match its checksum in the manifest", redo)
        self._verified.add(shard.name)
        return path

    @phase("verify")
    def text(self, shard: Shard) -> str:
        """The content of a small file, after checking that it is the one that was published."""
        path = self.folder / shard.name
        if self.manifest.pruned or _size(str(path)) != shard.bytes:
            self.verified(shard)  # raises the right error
        try:
            content = read_bytes(path, REPORT)
            if hashlib.sha256(content).hexdigest() != shard.sha256:
                self.verified(shard)
            return content.decode("utf-8")
        except ValueError as error:
            raise self._unreadable(path, error) from None

    def json(self, shard: Shard) -> Any:
        """The same for a JSON file."""
        text = self.text(shard)
        try:
            return parsed(text)
        except ValueError as error:
            raise self._unreadable(self.folder / shard.name, error) from None

    def _unreadable(self, path: Path, error: ValueError) -> DataError:
        return DataError(path, f"the file is damaged ({error})", f"Run {self._stage} again.")

    def verify_all(self) -> None:
        """Check every file of the folder, except in pruned parts, and of the checkpoint that a policy refers to."""
        for shard in self.unpruned():
            self.verified(shard)
        verify_referred(self.manifest.policy)

    def misses(self) -> list[str]:
        """Names of files that are missing or have another size, without reading any: a quick check of an output."""
        folder = str(self.folder)
        return [shard.name for shard in self.unpruned() if _size(f"{folder}/{shard.name}") != shard.bytes]

    def unpruned(self) -> list[Shard]:
        """The files that should exist."""
        if self.manifest.pruned:
            return []
        parts = {shard.name.split("/")[0] for shard in self.manifest.shards if "/" in shard.name}
        pruned = {p for p in parts if (self.folder / p / MANIFEST).exists() and read_manifest(self.folder / p).pruned}
        return [shard for shard in self.manifest.shards if shard.name.split("/")[0] not in pruned]

    def require_input(self, name: str, other: Source) -> None:
        """Raise DataError if this was made from another version of an input than the one given now."""
        made_from = self.manifest.inputs.get(name)
        if made_from is None or made_from.content_hash != other.manifest.content_hash:
            if made_from is None:
                problem = f"was made without {name}, expected {other.folder}"
            else:
                problem = f"was made from other {name} ({made_from.path}), not from {other.folder} as it is now"
            raise DataError(
                self.folder / MANIFEST,
                problem,
                f"Run {self._stage} on {other.folder}, or name the folder that belongs to it.",
            )


def _command(stage: str) -> str:
    """The command that makes an output: train-step makes a policy, a state and a reference with its own."""
    return "train-step" if stage in ("policy", "state", "reference") else stage


def kind_of(name: str) -> str:
    """`completions-00003.parquet` -> `completions`; `metrics.parquet` -> `metrics`."""
    stem = name.removesuffix(".parquet")
    head, _, number = stem.rpartition("-")
    return head if number.isdigit() else stem


def _size(path: str) -> int | None:
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_size if stat.S_ISREG(found.st_mode) else None


def _hash(value: object) -> str:
    return hashlib.sha256(_CANONICAL.encode(value).encode()).hexdigest()
