"""Opens an output: locked, resumed, replaced, or found complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path

from dapo_stages import ranks
from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import (
    MANIFEST,
    Source,
    read_manifest,
)
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.replacing import finish_replacement
from dapo_stages.handoff.shards import (
    Shard,
    sha256_of,
)
from dapo_stages.handoff.unfinished import (
    HALTED,
    NEXT,
    clear,
    forget,
    is_ours,
    leave_no_trace,
    locked,
    note_name,
    notes,
    read_note,
    strange,
)
from dapo_stages.processes import collectives


@contextmanager
def open_output(plan: Plan, *, overwrite: bool = False) -> Iterator[Output | None]:
    """Lock the output folder and hand it over for writing; None if it already holds exactly this.

    An output made from something else is replaced only with `overwrite`, and stays whole until the new one is.
    The caller publishes. Raises LockedError while another run writes there, DataError if it would replace or delete.
    Of several processes, the first decides, and each gets an Output on the same folder.
    """
    collectives.join()  # the first may verify for long what is there
    if ranks.rank() > 0:
        yield _join(plan)
        return
    with locked(plan.out):
        output = _open(plan, overwrite)
        shards = output and [asdict(shard) for shard in output.shards]
        collectives.broadcast(output and {"folder": str(output.folder), "shards": shards})
        try:
            yield output
        except Exception:
            if output is not None and not output.shards and ranks.count() == 1:
                leave_no_trace(output.folder, plan.out)
            raise


def _join(plan: Plan) -> Output | None:
    """What the first process has opened."""
    told = collectives.broadcast(None)
    if told is None:
        return None
    try:
        return Output(plan, Path(told["folder"]), [Shard(**shard) for shard in told["shards"]])
    except FileNotFoundError:
        found = f"no such folder on the machine of rank {ranks.rank()}"
        needed, do = "a file system that all machines share", "Name an --out on one."
        raise DataError(told["folder"], found, needed, do) from None


def _open(plan: Plan, overwrite: bool) -> Output | None:
    finish_replacement(plan.out)
    state = plan.state()
    if state == "complete" and _whole(plan.out, overwrite):
        forget(plan.out)
        (plan.out / NEXT / HALTED).unlink(missing_ok=True)
        os.utime(plan.out / MANIFEST)
        return None
    if state == "complete":
        state = "stale"
    elif state != "partial":
        _refuse_others(plan, overwrite)
    folder = plan.out / NEXT if state == "stale" else plan.out
    folder.mkdir(exist_ok=True)
    output = Output(plan, folder, _resume(plan, folder, overwrite))
    forget(folder, but=note_name(0))  # it holds what the others knew
    return output


def _whole(out: Path, overwrite: bool) -> bool:
    """Whether all files of a finished output are as they were published; damage without `overwrite` is an error."""
    try:
        Source(out).verify_all()
    except DataError as damage:
        if overwrite:
            return False
        raise DataError(damage.where, damage.found, damage.needed, "Pass --overwrite to make it again.") from None
    return True


def _refuse_others(plan: Plan, overwrite: bool) -> None:
    """Refuse a folder that holds another output, or files that no stage wrote; the latter even with `overwrite`."""
    out, needed, do = plan.out, "an empty folder", "Pass --overwrite to replace it, or name another --out."
    if not (out / MANIFEST).exists():
        strangers = sorted(path.name for path in out.iterdir() if not is_ours(path.name))
        if strangers:
            raise strange(out, strangers, needed, "Name another --out, or empty this folder yourself.")
        return
    try:
        made = read_manifest(out)
    except DataError as damage:
        if overwrite:
            return
        raise DataError(damage.where, damage.found, damage.needed, do) from None
    if made.stage != plan.stage:
        raise DataError(
            out, f"an output of {made.stage}", f"one of {plan.stage}, or an empty folder", "Name another --out."
        )
    if not overwrite:
        raise DataError(out, f"an output of {made.stage} made from other inputs or configuration", needed, do)


def _resume(plan: Plan, folder: Path, overwrite: bool) -> list[Shard]:
    """The shards of an interrupted run that are still right; anything else that it wrote is removed."""
    shards: dict[str, Shard] = {}
    noted: set[str] = set()
    for note in notes(folder):
        made_from, listed = read_note(note)
        noted |= {shard.name for shard in listed}
        if made_from == plan.fingerprint:
            shards |= {s.name: s for s in listed if s.name not in shards and _intact(folder, s)}
        elif listed and not overwrite and folder == plan.out:
            raise DataError(
                folder,
                "an unfinished output made from other inputs or configuration",
                "the same command that was interrupted",
                "Run that one again, pass --overwrite to start afresh, or name another --out.",
            )
    clear(folder, set(shards), noted)
    return list(shards.values())


def _intact(folder: Path, shard: Shard) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
