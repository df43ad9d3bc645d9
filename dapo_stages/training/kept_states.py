"""The optimizer state that a process keeps between train-steps, and when it is written.

Every keep.state_every-th is written behind (handoff/behind.py), then kept under its hash. Another one is kept under the
hash of its policy, and written only if this process ends, or does something else, before the next train-step takes it.
"""

from __future__ import annotations

from collections.abc import Collection
from contextlib import nullcontext
from pathlib import Path
from typing import Any, NamedTuple

from dapo_stages.errors import fixable
from dapo_stages.handoff import kept
from dapo_stages.handoff.manifests import MANIFEST, Manifest, manifest_of
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import writing
from dapo_stages.handoff.state_folders import StateFolder
from dapo_stages.handoff.unfinished import locked
from dapo_stages.processes.collectives import Meeting
from dapo_stages.processes.phases import phase
from dapo_stages.training.launching.rank_workers import Worker
from dapo_stages.training.state import check_fits, load_state, share_of, write_share
from dapo_stages.training.stored_state import OtherPartError, Stored


class Unwritten(NamedTuple):
    """What the manifest of a state says besides its files, and its folder, absolute."""

    plan: Plan
    policy: dict[str, Any]
    counts: dict[str, Any]

    @property
    def policy_hash(self) -> str:
        """The policy that it belongs to."""
        return str(self.policy["policy_hash"])


class Kept(NamedTuple):
    """A state in memory: what its files have, or will have."""

    optimizer: str
    tensors: dict[str, Stored]  # by weight: the part that this rank resumes from
    share: dict[str, Stored]  # by weight, whole: what this rank writes
    unwritten: Unwritten | None = None  # if it has no files


def state_of(worker: Worker) -> Kept:
    """The state after training; every rank calls it.

    Those of a launch hold it in host memory: another launch needs the GPUs next.
    """
    held = {name: worker.held(name) for name in worker.trained}
    if worker.ranks == 1:
        return Kept(worker.optimizer, held, held)
    held = {name: part.on_host() for name, part in held.items()}
    return Kept(worker.optimizer, held, share_of(worker, held))


def keep_unwritten(about: Unwritten, state: Kept) -> None:
    """Keep a state, once its train-step is published."""
    kept.give("state", about.policy_hash, state._replace(unwritten=about))


def write(about: Unwritten, state: Kept, meeting: Meeting) -> None:
    """Write a state as an output of its own, then keep it. Nobody may change it meanwhile. Every rank does it.

    Its manifest has the same fields, and so the same hash, as one that is written together with the train-step's.
    """
    try:
        content_hash = _written(about, state, meeting)
    except Exception as error:  # the others would wait for this rank
        meeting.give_up(fixable(error) or str(error))
        raise
    kept.give("state", content_hash, state._replace(share={}, unwritten=None))


def _written(about: Unwritten, state: Kept, meeting: Meeting) -> str:
    """The content hash of the output."""
    folder = about.plan.out
    folder.mkdir(parents=True, exist_ok=True)
    with locked(folder) if meeting.rank == 0 else nullcontext():
        output = Output(about.plan, folder, [], gather=meeting.gather)
        output.policy, output.counts = about.policy, about.counts
        try:
            with writing(folder):
                files = write_share(state.optimizer, list(state.tensors), state.share, folder, meeting)
                output.add_files(*files)
                output.share()
            published = output.publish().content_hash if meeting.rank == 0 else ""
            content_hash = str(meeting.gather(published)[0])
        finally:
            output.close()
        output.keep_hashes()
    return content_hash


def write_unwritten(but: Collection[str] = ()) -> None:
    """Write the kept state if it is not written yet, except that of one of these policies."""
    state: Kept | None = kept.present("state")
    if state is None or (about := state.unwritten) is None or about.policy_hash in but:
        return
    kept.drop("state")
    folder = about.plan.out
    step = manifest_of(folder.parent)  # another process may have made it again, or written the state
    if step is not None and step.policy.get("content_hash") == about.policy_hash and not (folder / MANIFEST).exists():
        write(about, state, Meeting())


def owner(train: Path) -> str | None:
    """The policy of a train-step's output, if this process keeps its state and has not written it."""
    state: Kept | None = kept.present("state")
    step: Manifest | None = manifest_of(train) if state is not None and state.unwritten is not None else None
    found = step and step.policy.get("content_hash")
    return found if found and kept.look("state", found) is not None else None


@phase("load")
def resume(worker: Worker, state: StateFolder) -> None:
    """Resume from a state, kept or from its files; every rank calls it.

    Raises ValueError if it is for another optimizer or other weights, or not what was written.
    """
    found: Kept | None = kept.take("state", state.manifest.content_hash)
    if found is None:
        kept.drop("state")
        load_state(worker, state.folder)
        return
    check_fits(worker, found.optimizer, found.tensors)
    try:
        for name in list(found.tensors):  # none is held twice
            worker.set_state(name, found.tensors.pop(name))
    except OtherPartError:
        load_state(worker, state.folder)
