"""Where a stage writes: one run per folder, resumable shard by shard, published by its manifest alone.

If several processes run a stage, rank 0 locks, decides and publishes; each writes its own shards and notes them in its
own file. What is published does not depend on their number.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from functools import cached_property
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dapo_stages import __version__, ranks
from dapo_stages.handoff.hashes import keep_written
from dapo_stages.handoff.manifests import (
    MANIFEST,
    Input,
    Manifest,
    content_hash,
    manifest_of,
    read_manifest,
    write_manifest,
)
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.replacing import finish_replacement
from dapo_stages.handoff.shards import (
    Row,
    Shard,
    ShardReader,
    describe_file,
    fsync_folder,
    settle_file,
    write_shard,
    write_text,
    writing,
)
from dapo_stages.handoff.unfinished import (
    HALTED,
    LOCK,
    WRITING,
    clear,
    forget,
    is_note,
    note_name,
)
from dapo_stages.processes import collectives
from dapo_stages.processes.memory import peak
from dapo_stages.processes.phases import phase, spent

_HASHERS = 4  # threads that sync and hash finished files


class Output:
    """An output folder while a stage writes it."""

    def __init__(
        self,
        plan: Plan,
        folder: Path,
        shards: list[Shard],
        *,
        again: bool = False,
        gather: Callable[[Any], list[Any]] = collectives.gather,
    ) -> None:
        """`again`: made only because an output beside it is missing; `gather`: how processes exchange their shards."""
        self.plan, self.folder, self._again, self._gather = plan, folder, again, gather
        self.behind: Callable[[], None] | None = None  # what is left to do once it is published
        self._shards = {shard.name: shard for shard in shards}
        self._unshared: list[Shard] = []
        self._hashing: list[tuple[Path, Future[Shard]]] = []
        self._hashed: dict[str, tuple[os.stat_result, str]] = {}  # files of this process, as they were hashed
        self._started, self._clock, self._processor = datetime.now(UTC), time.monotonic(), time.process_time()
        self.counts: dict[str, Any] = {}
        self.policy: dict[str, Any] = {}
        self._note()  # marks the folder as ours

    @property
    def shards(self) -> list[Shard]:
        """The finished shards that this process knows of."""
        return list(self._shards.values())

    def has(self, name: str) -> bool:
        """Whether a shard exists: from before an interruption, or written and shared since."""
        return name in self._shards

    def fill(self, kind: str, numbers: Iterable[int], rows: Callable[[int], Iterable[Row]]) -> Iterator[int]:
        """Write the missing shards of a kind, each process its part; none continues before all are written.

        Yields the number of each finished shard: those from before an interruption, this process's, the others'.
        """
        numbers = list(numbers)
        missing = [number for number in numbers if not self.has(shard_name(kind, number))]
        mine = ranks.part(missing)
        yield from sorted(set(numbers) - set(missing))
        for number in mine:
            self.write(kind, number, rows(number))
            yield number
        self.share()
        yield from sorted(set(missing) - set(mine))

    def keep(self, names: Iterable[str]) -> None:
        """Remove all other shards. Every process must have shared what it wrote."""
        for name in self._shards.keys() - set(names):
            del self._shards[name]
            if ranks.rank() == 0:
                (self.folder / name).unlink(missing_ok=True)

    def share(self) -> None:
        """Wait for the other processes of the stage, and exchange the lists of new shards."""
        self._wait_for_hashes()
        for shards in self._gather([asdict(shard) for shard in self._unshared]):
            self._shards |= {shard["name"]: Shard(**shard) for shard in shards}
        self._unshared.clear()

    def restart(self) -> None:
        """Remove what an interrupted run left, in all processes: for work that cannot be resumed part by part."""
        collectives.barrier()  # nobody is writing a note
        if ranks.rank() == 0:
            clear(self.folder, keep=set(), noted=set(self._shards))
        collectives.barrier()
        self._shards.clear()
        self._note()

    def write(self, kind: str, index: int | None, rows: Iterable[Row]) -> None:
        """Write one shard: `completions`, 3 -> completions-00003.parquet.

        Columns added in later versions are written only if the rows have them, so that other files stay the same.
        """
        from dapo_stages.handoff.schemas import of_file, schema_of

        path, rows = self.folder / shard_name(kind, index), iter(rows)
        first = list(islice(rows, 1))
        schema = of_file(schema_of(kind, self.plan.rewards, self.plan.stage), {name for row in first for name in row})
        with phase("save"):
            self._add(write_shard(path, schema, _worked(chain(first, rows))), path)
            self._note()

    def reopen(self, kind: str, index: int | None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Rows of a shard that this stage wrote, before an interruption or since."""
        from dapo_stages.handoff.schemas import schema_of

        path = self.folder / shard_name(kind, index)
        schema = schema_of(kind, self.plan.rewards, self.plan.stage)
        with ShardReader(path, schema, self.plan.stage) as reader:
            yield from reader.rows(columns)

    def add_files(self, *names: str) -> None:
        """List finished files, or all files of subfolders (a checkpoint), as part of the output.

        They are synced and hashed in threads, while this one goes on; `share` and the publishing methods wait for them.
        """
        for name in names:
            path = self.folder / name
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file() and file.name not in {MANIFEST, LOCK} and not is_note(file.name):
                    self._hashing.append((file, self._pool.submit(self._settled, file)))

    def _settled(self, file: Path) -> Shard:
        settle_file(file)
        return describe_file(self.folder, file)

    @cached_property
    def _pool(self) -> ThreadPoolExecutor:
        return ThreadPoolExecutor(min(_HASHERS, os.cpu_count() or 1))

    def close(self) -> None:
        """Give up what is still to be hashed."""
        if self._hashing:
            self._pool.shutdown(wait=False, cancel_futures=True)

    @phase("hash")
    def _wait_for_hashes(self) -> None:
        if not self._hashing:
            return
        for file, shard in self._hashing:
            self._add(shard.result(), file)
        self._hashing.clear()
        fsync_folder(self.folder)
        self._note()

    @contextmanager
    def files(self) -> Iterator[Path]:
        """A folder for files other than shards. At the end they are noted and then moved into the output.

        So the output never has a file that is not known to be the stage's.
        """
        waiting = self.folder / WRITING
        with writing(waiting):
            waiting.mkdir(exist_ok=True)
            yield waiting
            finished = sorted(path for path in waiting.iterdir() if path.is_file())
            for path in finished:
                settle_file(path)
                self._add(describe_file(waiting, path), path)
        self._note()
        for path in finished:
            os.replace(path, self.folder / path.name)
        fsync_folder(self.folder)
        shutil.rmtree(waiting)

    def add_copies(self, files: Mapping[str, bytes]) -> None:
        """Keep the user's own files that the output is made with, by the settings that name them:
        `weights.scheme.py`."""
        if files:
            with self.files() as folder:
                for setting, content in files.items():
                    (folder / f"{setting}.py").write_bytes(content)

    def publish_part(self, name: str, policy: dict[str, Any] | None = None) -> Manifest:
        """Give a subfolder (`policy`, `state`) a manifest of its own, so that it can be used by itself.

        It lists the files that were added here or shared by other processes: on a network file system some may not be
        visible yet. A subfolder that is an output of its own (Plan.beside) is no longer a part of this one.
        """
        self._wait_for_hashes()
        listed = {key: shard for key, shard in self._shards.items() if key.startswith(f"{name}/")}
        shards = [replace(shard, name=key[len(name) + 1 :]) for key, shard in listed.items()]
        manifest = self._manifest(name, sorted(shards, key=lambda shard: shard.name), policy or {})
        if self._again:
            manifest = _replacing(self.plan.out / name, manifest)
        write_manifest(self.folder / name, manifest)
        if name in self.plan.beside:
            for key in listed:
                del self._shards[key]
        return manifest

    def publish(self) -> Manifest:
        """Write the manifest, which publishes the output. The other processes must have shared their last shards."""
        self._wait_for_hashes()
        manifest = self._manifest(self.plan.stage, sorted(self._shards.values(), key=lambda s: s.name), self.policy)
        if self._again:
            manifest = _replacing(self.plan.out, manifest)
        write_manifest(self.folder, manifest, self._times_of_same(manifest) if self._again else None)
        forget(self.folder)
        finish_replacement(self.plan.out)
        return manifest

    def _times_of_same(self, manifest: Manifest) -> tuple[int, int] | None:
        """The times of the output that this one replaces, if it is the same: what was made from it is not outdated."""
        if read_manifest(self.plan.out).content_hash != manifest.content_hash:
            return None
        before = (self.plan.out / MANIFEST).stat()
        return before.st_atime_ns, before.st_mtime_ns

    def keep_hashes(self) -> None:
        """Cache the hashes of this process's files, once they are published."""
        keep_written({self.plan.out / name: found for name, found in self._hashed.items()})

    def halt(self, why: str, kind: str, rows: Iterable[Row]) -> None:
        """Record why there is no output, with a table for inspection. The next run of the stage removes both."""
        from dapo_stages.handoff.schemas import schema_of

        path, schema = self.folder / shard_name(kind, None), schema_of(kind, self.plan.rewards, self.plan.stage)
        self._add(write_shard(path, schema, rows), path)  # not noted: a run with other settings must not be refused
        write_text(self.folder / HALTED, json.dumps({"why": why}))

    def _manifest(self, stage: str, shards: list[Shard], policy: dict[str, Any]) -> Manifest:
        from dapo_stages.handoff.schemas import SCHEMA_VERSION

        plan = self.plan
        return Manifest(
            stage=stage,
            schema_version=SCHEMA_VERSION,
            package_version=__version__,
            config=plan.config,
            seed=plan.seed,
            inputs={
                name: Input(path=str(source.folder), content_hash=source.manifest.content_hash)
                for name, source in plan.inputs.items()
            },
            shards=shards,
            rewards=list(plan.rewards),
            counts=self.counts,
            policy=policy,
            started=self._started.isoformat(timespec="seconds"),
            ended=datetime.now(UTC).isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - self._clock, 3),
            processor_seconds=round(time.process_time() - self._processor, 3),
            memory=peak(),
            spent=spent() if stage == plan.stage else {},
            content_hash=content_hash(stage, plan.config, plan.seed, shards, policy),
        )

    def _add(self, shard: Shard, path: Path) -> None:
        self._shards[shard.name] = shard
        self._unshared.append(shard)
        self._hashed[shard.name] = path.stat(), shard.sha256

    def _note(self) -> None:
        state = {"fingerprint": self.plan.fingerprint, "shards": [asdict(shard) for shard in self._shards.values()]}
        write_text(self.folder / note_name(ranks.rank()), json.dumps(state))


def _replacing(folder: Path, manifest: Manifest) -> Manifest:
    """A manifest that says which content it replaces, if that was another one: on GPUs the same work may differ."""
    before = manifest_of(folder)
    if before is None:
        return manifest
    hashes = dict.fromkeys([*before.replaces, before.content_hash])
    return manifest.model_copy(update={"replaces": [one for one in hashes if one != manifest.content_hash]})


def _worked(rows: Iterator[Row]) -> Iterator[Row]:
    """Rows whose making counts as work, not as writing."""
    while True:
        with phase("work"):
            row = next(rows, None)
        if row is None:
            return
        yield row


def shard_name(kind: str, index: int | None) -> str:
    """`completions`, 3 -> completions-00003.parquet; without a number for a kind that has a single file."""
    return f"{kind}.parquet" if index is None else f"{kind}-{index:05d}.parquet"
