"""Opens an output: locks it, and resumes it, replaces it, or finds it complete."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
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
    shortened,
)
from dapo_stages.processes import collectives


@contextmanager
def open_output(plan: Plan, *, overwrite: bool = False) -> Iterator[Output | None]:
    """Lock the output folder and yield it for writing; None if it already holds this very output.

    A stale output is replaced only with `overwrite`, and stays complete until the new one is. The caller publishes.
    Raises LockedError while another run writes there, DataError if something would be replaced or deleted. If there are
    several processes, rank 0 decides, and each gets an Output for the same folder.
    """
    collectives.join()  # rank 0 may take long to verify what is there
    if ranks.rank() > 0:
        yield _join(plan)
        return
    with locked(plan.out), ExitStack() as stack:
        for name in plan.beside if plan.state() == "incomplete" else ():  # it may be written just now
            stack.enter_context(locked(plan.out / name))
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
    """The output that rank 0 has opened."""
    told = collectives.broadcast(None)
    if told is None:
        return None
    try:
        return Output(plan, Path(told["folder"]), [Shard(**shard) for shard in told["shards"]])
    except FileNotFoundError:
        problem = f"no such folder on the machine of rank {ranks.rank()}, but all machines must share it"
        raise DataError(told["folder"], problem, "Name an --out on a file system that all machines share.") from None


def _open(plan: Plan, overwrite: bool) -> Output | None:
    finish_replacement(plan.out)
    state = plan.state()
    if state == "complete" and _is_intact(plan, overwrite):
        forget(plan.out)
        (plan.out / NEXT / HALTED).unlink(missing_ok=True)
        os.utime(plan.out / MANIFEST)
        return None
    again = state == "incomplete"
    if state in ("complete", "incomplete"):
        state = "stale"
    elif state != "partial":
        _refuse_others(plan, overwrite)
    folder = plan.out / NEXT if state == "stale" else plan.out
    folder.mkdir(exist_ok=True)
    output = Output(plan, folder, _resume(plan, folder, overwrite), again=again)
    forget(folder, but=note_name(0))  # it now lists the shards of the other notes, too
    return output


def _is_intact(plan: Plan, overwrite: bool) -> bool:
    """Whether all files of a complete output are as they were published; without `overwrite`, damage is an error."""
    try:
        for folder in (plan.out, *(plan.out / name for name in plan.beside)):
            Source(folder).verify_all()
    except DataError as damage:
        if overwrite:
            return False
        raise DataError(damage.where, damage.problem, "Pass --overwrite to make it again.") from None
    return True


def _refuse_others(plan: Plan, overwrite: bool) -> None:
    """Refuse a folder that holds another output, or files that no stage wrote; the latter even with `overwrite`."""
    out, advice = plan.out, "Pass --overwrite to replace it, or name another --out."
    if not (out / MANIFEST).exists():
        strangers = sorted(path.name for path in out.iterdir() if not is_ours(path.name))
        if strangers:
            problem = f"must be empty, but has files of no stage ({shortened(strangers)})"
            raise DataError(out, problem, "Name another --out, or empty this folder yourself.")
        return
    try:
        made = read_manifest(out)
    except DataError as damage:
        if overwrite:
            return
        raise DataError(damage.where, damage.problem, advice) from None
    if made.stage != plan.stage:
        problem = f"expected an output of {plan.stage} or an empty folder, got an output of {made.stage}"
        raise DataError(out, problem, "Name another --out.")
    if not overwrite:
        problem = f"the output of {made.stage} here is stale (made from other inputs or configuration)"
        raise DataError(out, problem, advice)


def _resume(plan: Plan, folder: Path, overwrite: bool) -> list[Shard]:
    """The usable shards of an interrupted run; anything else that it wrote is removed.

    Without `overwrite`, also those made from what the inputs replace (a policy that was lost), like finished outputs.
    """
    shards: dict[str, Shard] = {}
    noted: set[str] = set()
    for note in notes(folder):
        made_from, listed = read_note(note)
        noted |= {shard.name for shard in listed}
        if made_from == plan.fingerprint or (not overwrite and plan.could_be(made_from)):
            shards |= {s.name: s for s in listed if s.name not in shards and _matches(folder, s)}
        elif listed and not overwrite and not plan.starts_over and folder == plan.out:
            raise DataError(
                folder,
                "the partial output here was made from other inputs or configuration",
                "Run the interrupted command again, pass --overwrite to start over, or name another --out.",
            )
    clear(folder, set(shards), noted)
    return list(shards.values())


def _matches(folder: Path, shard: Shard) -> bool:
    path = folder / shard.name
    return path.is_file() and path.stat().st_size == shard.bytes and sha256_of(path) == shard.sha256
