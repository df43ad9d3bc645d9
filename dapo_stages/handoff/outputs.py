"""Where a stage writes: one run per folder, resumable shard by shard, published by its manifest alone.

Of several processes of one stage, the first locks, decides and publishes; each writes shards of its own and notes them
in a file of its own. How many they are leaves no trace in what is published.
"""

from __future__ import annotations

import json
import os
import shutil
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, replace
from datetime import UTC, datetime
from itertools import chain, islice
from pathlib import Path
from typing import Any

from dapo_stages import __version__, ranks
from dapo_stages.handoff.manifests import (
    MANIFEST,
    Input,
    Manifest,
    content_hash,
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


class Output:
    """An output folder while a stage fills it."""

    def __init__(self, plan: Plan, folder: Path, shards: list[Shard]) -> None:
        self.plan, self.folder = plan, folder
        self._shards = {shard.name: shard for shard in shards}
        self._unshared: list[Shard] = []
        self._started, self._clock = datetime.now(UTC), time.monotonic()
        self.counts: dict[str, Any] = {}
        self.policy: dict[str, Any] = {}
        self._note()  # from now on the folder is known to be ours

    @property
    def shards(self) -> list[Shard]:
        """Those that are finished, as far as this process knows."""
        return list(self._shards.values())

    def has(self, name: str) -> bool:
        """Whether a shard is there already: from before an interruption, or written and shared just now."""
        return name in self._shards

    def fill(self, kind: str, numbers: Iterable[int], rows: Callable[[int], Iterable[Row]]) -> Iterator[int]:
        """Write the shards of a kind that are missing, every process its part of them; none goes on before the rest.

        Gives the number of each shard as it is done: those of before an interruption, this process's, the others'.
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
        """Remove the shards that are not among these. Every process has shared what it wrote."""
        for name in self._shards.keys() - set(names):
            del self._shards[name]
            if ranks.rank() == 0:
                (self.folder / name).unlink(missing_ok=True)

    def share(self) -> None:
        """Wait for the other processes of the stage, and know their shards too."""
        for shards in collectives.gather([asdict(shard) for shard in self._unshared]):
            self._shards |= {shard["name"]: Shard(**shard) for shard in shards}
        self._unshared.clear()

    def restart(self) -> None:
        """Forget and remove what an interrupted run left, in all processes: the work is of one piece."""
        collectives.barrier()  # nobody is writing a note
        if ranks.rank() == 0:
            clear(self.folder, keep=set(), noted=set(self._shards))
        collectives.barrier()
        self._shards.clear()
        self._note()

    def write(self, kind: str, index: int | None, rows: Iterable[Row]) -> None:
        """Write one shard: `completions`, 3 -> completions-00003.parquet.

        Columns that came later are in it where the rows have them, so that what has none gives the files it always did.
        """
        from dapo_stages.handoff.schemas import of_file, schema_of

        path, rows = self.folder / shard_name(kind, index), iter(rows)
        first = list(islice(rows, 1))
        schema = of_file(schema_of(kind, self.plan.rewards, self.plan.stage), {name for row in first for name in row})
        self._add(write_shard(path, schema, chain(first, rows)))
        self._note()

    def reopen(self, kind: str, index: int | None, columns: Sequence[str] | None = None) -> Iterator[Row]:
        """Rows of a shard that this stage wrote, before an interruption or just now."""
        from dapo_stages.handoff.schemas import schema_of

        path = self.folder / shard_name(kind, index)
        schema = schema_of(kind, self.plan.rewards, self.plan.stage)
        with ShardReader(path, schema, self.plan.stage) as reader:
            yield from reader.rows(columns)

    def add_files(self, *names: str) -> None:
        """List finished files, or all files of sub-folders (a checkpoint), as part of the output."""
        for name in names:
            path = self.folder / name
            for file in [path] if path.is_file() else sorted(path.rglob("*")):
                if file.is_file() and file.name not in {MANIFEST, LOCK} and not is_note(file.name):
                    settle_file(file)
                    self._add(describe_file(self.folder, file))
        fsync_folder(self.folder)
        self._note()

    @contextmanager
    def files(self) -> Iterator[Path]:
        """A folder to write other files than shards into. They are noted and moved into the output at the end.

        So nothing is ever in the output that is not known to be of the stage.
        """
        waiting = self.folder / WRITING
        with writing(waiting):
            waiting.mkdir(exist_ok=True)
            yield waiting
            finished = sorted(path for path in waiting.iterdir() if path.is_file())
            for path in finished:
                settle_file(path)
                self._add(describe_file(waiting, path))
        self._note()
        for path in finished:
            os.replace(path, self.folder / path.name)
        fsync_folder(self.folder)
        shutil.rmtree(waiting)

    def publish_part(self, name: str, policy: dict[str, Any] | None = None) -> Manifest:
        """Give a sub-folder (`policy`, `state`) a manifest of its own, so that it can be handed on by itself.

        It lists the files that were added, and shared by other processes: on a network's folder not all may be seen.
        """
        shards = [
            replace(s, name=s.name[len(name) + 1 :]) for s in self._shards.values() if s.name.startswith(f"{name}/")
        ]
        manifest = self._manifest(name, sorted(shards, key=lambda shard: shard.name), policy or {})
        write_manifest(self.folder / name, manifest)
        return manifest

    def publish(self) -> Manifest:
        """Write the manifest, and with it the output. The other processes have shared their last shards."""
        manifest = self._manifest(self.plan.stage, sorted(self._shards.values(), key=lambda s: s.name), self.policy)
        write_manifest(self.folder, manifest)
        forget(self.folder)
        finish_replacement(self.plan.out)
        return manifest

    def halt(self, why: str, kind: str, rows: Iterable[Row]) -> None:
        """Leave the reason why there is no output, and a table to look into. Both go when the stage runs again."""
        from dapo_stages.handoff.schemas import schema_of

        path, schema = self.folder / shard_name(kind, None), schema_of(kind, self.plan.rewards, self.plan.stage)
        self._add(write_shard(path, schema, rows))  # and not noted: another configuration may go on
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
            memory=peak(),
            content_hash=content_hash(stage, plan.config, plan.seed, shards, policy),
        )

    def _add(self, shard: Shard) -> None:
        self._shards[shard.name] = shard
        self._unshared.append(shard)

    def _note(self) -> None:
        state = {"fingerprint": self.plan.fingerprint, "shards": [asdict(shard) for shard in self._shards.values()]}
        write_text(self.folder / note_name(ranks.rank()), json.dumps(state))


def shard_name(kind: str, index: int | None) -> str:
    """`completions`, 3 -> completions-00003.parquet; without a number for a kind that has one file."""
    return f"{kind}.parquet" if index is None else f"{kind}-{index:05d}.parquet"
