"""Whether a run folder is as its manifests say: files, chain of inputs, and what does not belong there."""

from __future__ import annotations

import json
import time
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from dapo_stages.errors import DataError, ModelError
from dapo_stages.handoff.manifests import MANIFEST, Manifest, Source, read_manifest
from dapo_stages.handoff.referred import FILES, REFERENCE, differences, fetched, is_checked, refers
from dapo_stages.handoff.unfinished import LOCK, halted, is_swapping, is_temporary, is_unfinished, leftovers
from dapo_stages.runs.best import POINTER, find_best
from dapo_stages.runs.layout import held_locks, iteration_folder, iterations, locked, place_of
from dapo_stages.runs.pipeline import FOLDERS, SETUP, STAGES
from dapo_stages.runs.progress import CONFIG, command, setup_command, trouble
from dapo_stages.terminal.console import Advance

State = Literal["problem", "leftover", "note"]
PARTS = ("policy", "state", "reference")  # folders in train's that have a manifest of their own
# Groups -> their completions, in one output.
_TABLES = {"prompts": "completions", "replayed-prompts": "replayed-completions", "buffer": "buffer-completions"}


@dataclass(frozen=True)
class Finding:
    """Something that is not as it should be: a `problem`, a `leftover` that harms nothing, or a `note`."""

    state: State
    where: str  # below the run
    found: str
    needed: str
    do: str


@dataclass(frozen=True)
class Place:
    """An output folder of a run: which iteration's (None: before the first), and the stage that writes it."""

    folder: Path
    number: int | None
    stage: str | None

    def redo(self, run: Path) -> str:
        """The command that makes it again."""
        if self.number is not None and self.folder.name in FOLDERS:
            return f"Run {command(run, self.number, self.folder.name, again=True)}"
        if self.folder.name in SETUP:
            return f"Run {setup_command(run, self.folder.name, again=True)}"
        return "Run the stage that made it again"


def places(run: Path) -> list[Place]:
    """Every folder that stages write in a run, parts of outputs apart."""
    found = [Place(run / name, None, stage) for name, stage in SETUP.items() if (run / name).is_dir()]
    for number in iterations(run):
        inside = sorted(path for path in iteration_folder(run, number).iterdir() if path.is_dir())
        found += [Place(path, number, FOLDERS.get(path.name)) for path in inside if path.name in FOLDERS]
        found += [Place(path, number, None) for path in inside if path.name not in FOLDERS]
    return found


def size(run: Path) -> int:
    """How many files there are to compare with their checksums."""
    found = [manifest for place in places(run) if (manifest := _manifest(place)) is not None]
    referred = (files for manifest in found if isinstance(files := manifest.policy.get(FILES), list))
    return sum(len(manifest.shards) for manifest in found) + sum(map(len, referred))


def checkup(run: Path, advance: Advance) -> Iterator[Finding]:
    """All findings, in the order of the iterations; `advance` counts files."""
    if why := trouble(run):
        yield Finding("problem", CONFIG, why, "a configuration that can be read", "Mend it.")
    yield from _gaps(run)
    yield from _loose(run)
    outputs = places(run)
    if not outputs:
        do = "Name the folder of a run, such as training_logs/first."
        yield Finding("problem", ".", "no output of any stage", "a run", do)
    held, asked = held_locks(), time.monotonic()
    for place in outputs:
        if time.monotonic() - asked > 1.0:  # an answer may take milliseconds, all files minutes
            held, asked = held_locks(), time.monotonic()
        yield from _output(run, place, advance, held)
    yield from _best(run)


def _gaps(run: Path) -> Iterator[Finding]:
    there = [number for number in iterations(run) if number]
    for number in range(1, max(there, default=0)):
        if number not in there:
            yield Finding(
                "problem",
                iteration_folder(Path(), number).as_posix(),
                f"no such folder, but one of iteration {there[-1]}",
                "every iteration since the first",
                "Bring it back, or remove the later ones and run make iterate.",
            )


def _loose(run: Path) -> Iterator[Finding]:
    """Temporary files beside the outputs, and files in an iteration's folder that no stage puts there."""
    for folder in (run, *(iteration_folder(run, number) for number in iterations(run))):
        for path in sorted(folder.iterdir()):
            if path.is_file() and is_temporary(path):
                yield _temporary(run, path)
            elif path.is_file() and folder != run and not _is_ours(path):
                yield _orphan(run, path)


def _output(run: Path, place: Place, advance: Advance, held: Collection[str]) -> Iterator[Finding]:
    where = _relative(run, place.folder)
    if locked(place.folder, held):
        yield Finding("note", where, "a process that is writing here", "nothing", "Wait for it.")
        return
    if is_swapping(place.folder):
        found, needed = "a finished replacement that is not moved in", "one output"
        yield Finding("problem", where, found, needed, f"{place.redo(run)}: it carries on.")
    left = leftovers(place.folder)
    yield from _unfinished(run, place, left)
    if not (place.folder / MANIFEST).exists():
        return
    try:
        source = Source(place.folder, place.stage)
    except DataError as error:
        yield _of(run, error, f"{place.redo(run)}.")
        return
    yield from _files(run, place, source, advance)
    yield from _referred(run, place, source.manifest, advance)
    yield from _inputs(run, place, source.manifest)
    yield from _parts(run, place, source.manifest)
    yield from _orphans(run, place, source.manifest, left)


def _unfinished(run: Path, place: Place, left: Sequence[Path]) -> Iterator[Finding]:
    """What an interrupted run left: the whole of an unfinished output, else each thing by itself."""
    where = _relative(run, place.folder)
    for path in left:
        if is_temporary(path):
            yield _temporary(run, path)
    parts = [path for path in left if not is_temporary(path) and path.parent == place.folder]
    if why := halted(place.folder):
        yield Finding("problem", where, "a halted stage", "a finished one", f"It said: {why}")
    elif is_unfinished(place.folder):
        do = "Run the same command to carry on, or remove it with --repair."
        yield Finding("leftover", where, "an unfinished output", "a finished one", do)
    elif _has_no_manifest(place.folder):
        do = "Bring the manifest back, or move this folder elsewhere."
        yield Finding("problem", where, "files without a manifest", "the manifest of a finished stage", do)
    else:
        for path in parts:
            found = "a part that was never published"
            yield Finding("leftover", _relative(run, path), found, "published ones", "Remove it with --repair.")


def _files(run: Path, place: Place, source: Source, advance: Advance) -> Iterator[Finding]:
    whole = True
    try:
        unpruned = {shard.name for shard in source.unpruned()}
    except DataError:  # the manifest of a part, which is a finding of its own
        return
    for shard in source.manifest.shards:
        advance(1, _relative(run, place.folder))
        try:
            if shard.name in unpruned:
                source.verified(shard)
        except DataError as error:
            whole = False
            yield _of(run, error, f"{place.redo(run)}.")
    if whole and not source.manifest.pruned:
        yield from _tables(run, place, source)


def _referred(run: Path, place: Place, manifest: Manifest, advance: Advance) -> Iterator[Finding]:
    """Whether the checkpoint that a policy refers to is the one it was; every file is read again."""
    about, where = manifest.policy, _relative(run, place.folder)
    if not refers(about):
        return
    if not is_checked(about):
        found, needed = f"no hashes of {about[REFERENCE]}, which it refers to", "them, to know whether it has changed"
        yield Finding("note", where, found, needed, "Nothing: older versions recorded none, and the run goes on.")
        return
    try:
        folder = fetched(about, download=False)
        for error in differences(about, folder, again=True, advance=lambda name: advance(1, f"{where}: {name}")):
            yield _of(run, error, error.do)
    except ModelError:
        found, needed = f"{about[REFERENCE]}, which it refers to, nowhere on this machine", "it, to be compared"
        yield Finding("note", where, found, needed, "Nothing: it is fetched when it is needed.")
    except DataError as error:
        yield _of(run, error, f"{place.redo(run)}.")


def _tables(run: Path, place: Place, source: Source) -> Iterator[Finding]:
    """Whether completions belong to prompts that are there, also those of the replay buffer."""
    for groups, completions in _TABLES.items():
        if not source.shards(groups):
            continue
        try:
            there = {row["group_id"] for row in source.rows(groups, ["group_id"])}
            members = {row["group_id"] for row in source.rows(completions, ["group_id"])}
        except DataError as error:
            yield _of(run, error, f"{place.redo(run)}.")
            continue
        for one in sorted(there ^ members)[:1]:
            found = f"group {one} in only one of {groups} and {completions}"
            yield Finding("problem", _relative(run, place.folder), found, "it in both", f"{place.redo(run)}.")


def _inputs(run: Path, place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether each input is where it is expected, and still the one that was read."""
    where = _relative(run, place.folder)
    for name, source in manifest.inputs.items():
        folder = place_of(run, source.path)
        expected = _expected(run, place, name)
        if expected is not None and not expected.exists() and folder.name == expected.name:
            folder = expected  # of a run that was moved
        if expected is not None and folder.resolve() != expected.resolve():
            needed = f"that of {_relative(run, expected)}"
            yield Finding("problem", where, f"the {name} of {source.path}", needed, f"{place.redo(run)}.")
            continue
        try:
            now = read_manifest(folder) if (folder / MANIFEST).exists() else None
        except DataError:  # a finding of its own
            continue
        if now is None and run.resolve() in folder.resolve().parents:
            found = f"{name} that is no longer at {_relative(run, folder)}"
            yield Finding("problem", where, found, "the one it was made from", f"Bring it back, or: {place.redo(run)}.")
        elif now is not None and now.content_hash != source.content_hash:
            found = f"other {name} ({now.content_hash[:12]}) at {_relative(run, folder)}"
            yield Finding("problem", where, found, f"those read ({source.content_hash[:12]})", f"{place.redo(run)}.")


def _expected(run: Path, place: Place, name: str) -> Path | None:
    """Where an input is expected; None of one that may come from elsewhere, as the policy of a rollout under a lag."""
    if place.number is None or place.folder.name not in FOLDERS:
        return None
    found = next((one for one in STAGES[place.folder.name].inputs if one.name == name and one.of != "sampler"), None)
    expected = found.place(place.number) if found is not None and found.when == "always" else None
    return run / expected if expected is not None else None


def _parts(run: Path, place: Place, manifest: Manifest) -> Iterator[Finding]:
    """Whether policy and state in a train-step's output are those of that step."""
    found: dict[str, Manifest] = {}
    for name in PARTS:
        if (place.folder / name / MANIFEST).exists():
            try:
                found[name] = read_manifest(place.folder / name)
            except DataError as error:
                yield _of(run, error, f"{place.redo(run)}.")
    recorded = {"policy": manifest.policy.get("content_hash")}
    recorded["state"] = found["state"].policy.get("policy_hash") if "state" in found else None
    own = found["policy"].content_hash if "policy" in found else None
    for name, wanted in recorded.items():
        if own is not None and wanted is not None and own != wanted:
            what = "another policy than the step published" if name == "policy" else "a state of another policy"
            where = _relative(run, place.folder / name)
            yield Finding("problem", where, f"{what} ({own[:12]})", f"one of {wanted[:12]}", f"{place.redo(run)}.")


def _orphans(run: Path, place: Place, manifest: Manifest, left: Sequence[Path]) -> Iterator[Finding]:
    listed = {shard.name for shard in manifest.shards} | {MANIFEST} | {f"{part}/{MANIFEST}" for part in PARTS}
    known = set(left)
    for path in sorted(place.folder.rglob("*")) if not is_swapping(place.folder) else ():
        name = path.relative_to(place.folder).as_posix()
        if path.is_file() and path not in known and name not in listed and not _is_ours(path):
            yield _orphan(run, path)


def _best(run: Path) -> Iterator[Finding]:
    if not (run / POINTER).exists():
        return
    do = f"Run dapo-stages report --config {run / CONFIG} --run {run}."
    best = find_best(run)
    try:
        named = json.loads((run / POINTER).read_text(encoding="utf-8"))
        found = f"{named['policy']} ({named['policy_hash'][:12]})"
        right = best is not None and (named["policy"], named["policy_hash"]) == (best.policy, best.policy_hash)
    except (OSError, ValueError, KeyError, TypeError):
        found, right = "no pointer that can be read", False
    if not right:
        needed = f"{best.policy} ({best.policy_hash[:12]})" if best else "none: no policy that is there is evaluated"
        yield Finding("problem", POINTER, found, needed, do)


def _manifest(place: Place) -> Manifest | None:
    try:
        return read_manifest(place.folder)
    except DataError:
        return None


def _has_no_manifest(folder: Path) -> bool:
    files = any(path.name != LOCK and not is_temporary(path) for path in folder.iterdir())
    return files and not (folder / MANIFEST).exists() and not is_swapping(folder)


def _is_ours(path: Path) -> bool:
    """A lock, or what a process that lives is writing."""
    return path.name == LOCK or (path.name.startswith(".") and path.name.endswith(".tmp"))


def _orphan(run: Path, path: Path) -> Finding:
    return Finding("problem", _relative(run, path), "a file that no manifest lists", "none", "Move it elsewhere.")


def _temporary(run: Path, path: Path) -> Finding:
    return Finding("leftover", _relative(run, path), "a temporary file", "none", "Remove it with --repair.")


def _of(run: Path, error: DataError, do: str) -> Finding:
    return Finding("problem", _relative(run, Path(error.where)), error.found, error.needed, do)


def _relative(run: Path, path: Path) -> str:
    return path.relative_to(run).as_posix() if path.is_relative_to(run) else str(path)
