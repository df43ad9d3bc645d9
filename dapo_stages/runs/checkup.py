"""Checks a run folder against its manifests: files, the chain of inputs, and what does not belong there."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff.hashes import reading_again
from dapo_stages.handoff.manifests import MANIFEST, STATE, Manifest, Source, manifest_of, read_manifest
from dapo_stages.handoff.referred import FILES, REFERENCE, differences, fetched, is_checked, refers
from dapo_stages.handoff.unfinished import LOCK, halted, is_swapping, is_temporary, is_unfinished, leftovers
from dapo_stages.runs.at_work import held_locks, locked
from dapo_stages.runs.best import POINTER, find_best
from dapo_stages.runs.commands import command, setup_command
from dapo_stages.runs.pipeline import BESIDE, FOLDERS, SETUP, STAGES, iteration_name
from dapo_stages.runs.run_folder import CONFIG, Run
from dapo_stages.terminal.console import Advance

State = Literal["problem", "leftover", "note"]
# Folders in train's that have a manifest of their own, and one in that of a starting policy that is an adapter.
PARTS = ("policy", "state", "reference", "base")
# Groups -> their completions, in one output.
_TABLES = {"prompts": "completions", "replayed-prompts": "replayed-completions", "buffer": "buffer-completions"}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a `problem`, a harmless `leftover`, or a `note`."""

    state: State
    where: str  # relative to the run
    problem: str
    advice: str


@dataclass(frozen=True)
class Place:
    """An output folder of a run, its iteration (None: before the first), and the stage that writes it."""

    run: Run
    folder: Path
    number: int | None
    stage: str | None

    @property
    def where(self) -> str:
        """Its folder, relative to the run."""
        return _relative(self.run, self.folder)

    @property
    def redo(self) -> str:
        """What to run to make it again: a command, if the stage is known."""
        if self.number is not None and self.folder.name in FOLDERS:
            return command(self.run, self.number, self.folder.name, again=True)
        if self.folder.name in SETUP:
            return setup_command(self.run, self.folder.name, again=True)
        return "the stage that made it again"


def places(run: Run) -> list[Place]:
    """Every folder that stages write in a run, except parts of outputs."""
    found = [Place(run, run.path / name, None, stage) for name, stage in SETUP.items() if (run.path / name).is_dir()]
    for number in run.iterations():
        inside = sorted(path for path in run.folder(number).iterdir() if path.is_dir())
        found += [Place(run, path, number, FOLDERS.get(path.name)) for path in inside if path.name in FOLDERS]
        found += [Place(run, path, number, None) for path in inside if path.name not in FOLDERS]
    return found


def size(run: Run) -> int:
    """How many files there are to compare with their checksums."""
    found = [manifest for place in places(run) if (manifest := _manifest(place)) is not None]
    referred = (files for manifest in found if isinstance(files := manifest.policy.get(FILES), list))
    beside = (source for place in places(run) if (made := _manifest(place)) and (source := _beside(place, made)))
    return sum(len(one.shards) for one in (*found, *(source.manifest for source in beside))) + sum(map(len, referred))


def checkup(run: Run, advance: Advance) -> Iterator[Finding]:
    """All findings, in the order of the iterations; `advance` counts files."""
    if why := run.trouble:
        problem, _, advice = why.replace(f"{run.config_file}: ", "").rpartition("\n")
        yield Finding("problem", CONFIG, problem or advice.rstrip("."), advice if problem else "Fix it.")
    yield from _gaps(run)
    yield from _loose(run)
    outputs = places(run)
    if not outputs:
        advice = "Name the folder of a run, such as training_logs/first."
        yield Finding("problem", ".", "not a run: it has no output of any stage", advice)
    held, asked = held_locks(), time.monotonic()
    for place in outputs:
        if time.monotonic() - asked > 1.0:  # asking takes milliseconds, checking all files may take minutes
            held, asked = held_locks(), time.monotonic()
        yield from _output(place, advance, held)
    yield from _best(run)


def _gaps(run: Run) -> Iterator[Finding]:
    there = [number for number in run.iterations() if number]
    for number in range(1, max(there, default=0)):
        if number not in there:
            yield Finding(
                "problem",
                iteration_name(number),
                f"no such folder, but iteration {there[-1]} exists",
                "Restore it, or remove the later iterations and run make iterate.",
            )


def _loose(run: Run) -> Iterator[Finding]:
    """Temporary files next to the outputs, and files in an iteration's folder that no stage writes there."""
    for folder in (run.path, *map(run.folder, run.iterations())):
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_temporary(path):
                yield _temporary(run, path)
            elif path.is_file() and folder != run.path and not _is_ours(path):
                yield _orphan(run, path)


def _output(place: Place, advance: Advance, held: Collection[str]) -> Iterator[Finding]:
    where = place.where
    if locked(place.folder, held):
        yield Finding("note", where, "a process is writing here, so it was not checked", "Wait for it.")
        return
    if is_swapping(place.folder):
        advice = f"Run {place.redo}. This completes the move."
        yield Finding("problem", where, "a finished replacement is not moved in yet", advice)
    left = leftovers(place.folder)
    yield from _unfinished(place, left)
    if not (place.folder / MANIFEST).exists():
        return
    try:
        source = Source(place.folder, place.stage)
    except DataError as error:
        yield _of(place.run, error, f"Run {place.redo}.")
        return
    yield from _files(place, source, advance)
    beside = _beside(place, source.manifest)
    if beside is not None:
        yield from _files(place, beside, advance)
    elif place.stage in BESIDE and not source.manifest.pruned:
        yield from _without_state(place, held)
    yield from _referred(place, source.manifest, advance)
    yield from _inputs(place, source.manifest)
    yield from _lost(place, source.manifest)
    yield from _parts(place, source.manifest)
    yield from _orphans(place, source.manifest, left)


def _beside(place: Place, manifest: Manifest) -> Source | None:
    """The output beside another one, if it is there and intact; older versions listed its files in both manifests."""
    name = BESIDE.get(manifest.stage)
    if name is None or any(shard.name.startswith(f"{name}/") for shard in manifest.shards):
        return None
    try:
        return Source(place.folder / name)
    except DataError:
        return None


def _without_state(place: Place, held: Collection[str]) -> Iterator[Finding]:
    name = BESIDE[place.stage or ""]
    if not place.run.lacks_state(place.folder):  # or damaged, which _parts reports, or of an older version
        return
    if locked(place.folder / name, held):
        yield Finding("note", f"{place.where}/{name}", "a process is writing here", "Wait for it.")
    else:
        problem = "the optimizer state was not written; the next train-step needs it"
        yield Finding("problem", f"{place.where}/{name}", problem, f"Run {place.redo}.")


def _unfinished(place: Place, left: Sequence[Path]) -> Iterator[Finding]:
    """What an interrupted run left: one finding for a partial output, else one for each leftover."""
    where = place.where
    for path in left:
        if is_temporary(path):
            yield _temporary(place.run, path)
    parts = [path for path in left if not is_temporary(path) and path.parent == place.folder]
    if why := halted(place.folder):
        yield Finding("problem", where, "the stage was halted", f"See the reason: {why}")
    elif is_unfinished(place.folder):
        advice = "Run the same command to resume, or remove it with --repair."
        yield Finding("leftover", where, "the output is partial: its stage was interrupted", advice)
    elif _has_no_manifest(place.folder):
        advice = "Restore the manifest, or move this folder elsewhere."
        yield Finding("problem", where, "has files, but not the manifest of a finished stage", advice)
    else:
        for path in parts:
            problem = "left by an interrupted run, never published"
            yield Finding("leftover", _relative(place.run, path), problem, "Remove it with --repair.")


def _files(place: Place, source: Source, advance: Advance) -> Iterator[Finding]:
    intact = True
    try:
        unpruned = {shard.name for shard in source.unpruned()}
    except DataError:  # the manifest of a part: _parts reports it
        return
    for shard in source.manifest.shards:
        advance(1, place.where)
        try:
            if shard.name in unpruned:
                with reading_again(True):
                    source.verified(shard)
        except DataError as error:
            intact = False
            yield _of(place.run, error, f"Run {place.redo}.")
    if intact and not source.manifest.pruned:
        yield from _tables(place, source)


def _referred(place: Place, manifest: Manifest, advance: Advance) -> Iterator[Finding]:
    """Whether the checkpoint that a policy refers to is unchanged; every file is read again."""
    about, where = manifest.policy, place.where
    if not refers(about):
        return
    if not is_checked(about):
        problem = f"cannot check {about[REFERENCE]}, which it refers to: no hashes are recorded"
        yield Finding("note", where, problem, "Nothing to do: older versions recorded none, and the run can continue.")
        return
    try:
        folder = fetched(about, download=False)
        for error in differences(about, folder, again=True, advance=lambda name: advance(1, f"{where}: {name}")):
            yield _of(place.run, error, error.advice)
    except ModelError:
        problem = f"cannot check {about[REFERENCE]}, which it refers to: it is not on this machine"
        yield Finding("note", where, problem, "Nothing to do: it is downloaded when it is needed.")
    except DataError as error:
        yield _of(place.run, error, f"Run {place.redo}.")


def _tables(place: Place, source: Source) -> Iterator[Finding]:
    """Whether completions and prompts belong together, also those of the replay buffer."""
    for groups, completions in _TABLES.items():
        if not source.shards(groups):
            continue
        try:
            there = {row["group_id"] for row in source.rows(groups, ["group_id"])}
            members = {row["group_id"] for row in source.rows(completions, ["group_id"])}
        except DataError as error:
            yield _of(place.run, error, f"Run {place.redo}.")
            continue
        for one in sorted(there ^ members)[:1]:
            problem = f"group {one} is in only one of {groups} and {completions}"
            yield Finding("problem", place.where, problem, f"Run {place.redo}.")


def _inputs(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether each input is where it is expected, and unchanged since it was read."""
    run, where = place.run, place.where
    for name, source in manifest.inputs.items():
        folder = run.place(source.path)
        expected = _expected(place, name)
        if expected is not None and not expected.exists() and folder.name == expected.name:
            folder = expected  # of a run that was moved
        if expected is not None and folder.resolve() != expected.resolve():
            problem = f"its input {name} is {source.path}, expected {_relative(run, expected)}"
            yield Finding("problem", where, problem, f"Run {place.redo}.")
            continue
        try:
            now = manifest_of(folder)
        except DataError:  # reported for that output
            continue
        if now is None and name != STATE and run.path.resolve() in folder.resolve().parents:
            problem = f"its input {name} no longer exists at {_relative(run, folder)}"
            yield Finding("problem", where, problem, f"Restore it, or run {place.redo}.")
        elif now is not None and not manifest.still_has(name, now):
            hashes = f"expected {source.content_hash[:12]}, got {now.content_hash[:12]}"
            problem = f"its input {name} at {_relative(run, folder)} has changed ({hashes})"
            yield Finding("problem", where, problem, f"Run {place.redo}.")


def _lost(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether an input was lost and made again with another result: what was made from it counts nevertheless."""
    for problem in place.run.lost_inputs(manifest):
        advice = "Nothing to do: importance weights correct for it. make iterate STRICT=1 makes what followed again."
        yield Finding("note", place.where, problem, advice)


def _expected(place: Place, name: str) -> Path | None:
    """Where an input is expected; None if it may come from elsewhere, such as the policy of a rollout with a lag."""
    if place.number is None or place.folder.name not in FOLDERS:
        return None
    found = next((one for one in STAGES[place.folder.name].inputs if one.name == name and one.of != "sampler"), None)
    expected = found.place(place.number) if found is not None and found.when == "always" else None
    return place.run.path / expected if expected is not None else None


def _parts(place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether policy and state in a train-step's output are those of that step."""
    found: dict[str, Manifest] = {}
    for name in PARTS:
        if (place.folder / name / MANIFEST).exists():
            try:
                found[name] = read_manifest(place.folder / name)
            except DataError as error:
                yield _of(place.run, error, f"Run {place.redo}.")
    if "policy" not in found:
        return
    own, published = found["policy"].content_hash, manifest.policy.get("content_hash")
    if published is not None and own != published:
        problem = f"not the policy that this step published (expected {published[:12]}, got {own[:12]})"
        yield Finding("problem", f"{place.where}/policy", problem, f"Run {place.redo}.")
    owner = found["state"].policy.get("policy_hash") if "state" in found else None
    if owner is not None and own != owner:
        problem = f"the state of another policy (expected {own[:12]}, got {owner[:12]})"
        yield Finding("problem", f"{place.where}/state", problem, f"Run {place.redo}.")


def _orphans(place: Place, manifest: Manifest, left: Sequence[Path]) -> Iterator[Finding]:
    listed = {shard.name for shard in manifest.shards} | {MANIFEST} | {f"{part}/{MANIFEST}" for part in PARTS}
    if (beside := _beside(place, manifest)) is not None:
        listed |= {f"{beside.folder.name}/{shard.name}" for shard in beside.manifest.shards}
    known = set(left)
    for path in sorted(place.folder.rglob("*")) if not is_swapping(place.folder) else ():
        name = path.relative_to(place.folder).as_posix()
        if path.is_file() and path not in known and name not in listed and not _is_ours(path):
            yield _orphan(place.run, path)


def _best(run: Run) -> Iterator[Finding]:
    if not (run.path / POINTER).exists():
        return
    best = find_best(run)
    expected = f"{best.policy} ({best.policy_hash[:12]})" if best else "no such file, since no policy is evaluated"
    try:
        named = json.loads((run.path / POINTER).read_text(encoding="utf-8"))
        problem = f"names {named['policy']} ({named['policy_hash'][:12]}), expected {expected}"
        right = best is not None and (named["policy"], named["policy_hash"]) == (best.policy, best.policy_hash)
    except (OSError, ValueError, KeyError, TypeError):
        problem, right = f"names no policy, expected {expected}", False
    if not right:
        advice = f"Run dapo-stages report --config {run.config_file} --run {run.path}."
        yield Finding("problem", POINTER, problem, advice)


def _manifest(place: Place) -> Manifest | None:
    try:
        return read_manifest(place.folder)
    except DataError:
        return None


def _has_no_manifest(folder: Path) -> bool:
    files = any(path.name != LOCK and not is_temporary(path) for path in folder.iterdir())
    return files and not (folder / MANIFEST).exists() and not is_swapping(folder)


def _is_ours(path: Path) -> bool:
    """Whether this is a lock, or what a running process is writing."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


def _orphan(run: Run, path: Path) -> Finding:
    return Finding("problem", _relative(run, path), "no manifest lists this file", "Move it elsewhere.")


def _temporary(run: Run, path: Path) -> Finding:
    return Finding("leftover", _relative(run, path), "temporary file of an ended process", "Remove it with --repair.")


def _of(run: Run, error: DataError, advice: str) -> Finding:
    return Finding("problem", _relative(run, Path(error.where)), error.problem, advice)


def _relative(run: Run, path: Path) -> str:
    return path.relative_to(run.path).as_posix() if path.is_relative_to(run.path) else str(path)
