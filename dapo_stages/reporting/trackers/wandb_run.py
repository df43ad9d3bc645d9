"""One W&B run for all iterations. The key is WANDB_API_KEY in the environment; without it, the run is offline."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dapo_stages.handoff.shards import write_text
from dapo_stages.reporting.iteration.thumbnails import decoded
from dapo_stages.reporting.trackers.feed import PER_UPDATE, Feed, News, Points, by_step, lacking, news
from dapo_stages.reporting.trackers.media import COLUMNS, STAGES, Media
from dapo_stages.reporting.trackers.wandb_folders import FOLDER, Folders
from dapo_stages.small_files import read_json
from dapo_stages.terminal.console import say

STATE = "dapo-stages.json"
_TABLES = ("completions", "stages")


@dataclass
class _Sent:
    """What the W&B run has; while `open`, it is being sent to the service, and how much has arrived is not known."""

    id: str = ""
    steps: int = 0  # records so far: what is sent next continues from here
    open: bool = False
    uploaded: bool = False  # the service may have some of it
    points: dict[int, str] = field(default_factory=dict)  # iteration -> key
    media: dict[int, str] = field(default_factory=dict)
    logged: Points = field(default_factory=dict)  # what older versions recorded instead
    notes: str = ""  # which run this one replaces


def mode() -> str:
    """`online` only with a key in the environment, regardless of what else is set up on this machine."""
    said = os.environ.get("WANDB_MODE", "")
    if said in {"offline", "disabled", "dryrun", "shared"}:
        return "offline" if said == "dryrun" else said
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def send(feed: Feed) -> list[int]:
    """Log what is missing; returns the iterations that need --backfill. Errors of the service do not stop the report.

    Offline, the run is written anew with everything (wandb_folders.py). Online, W&B only appends: if a point that the
    service may have has changed, or sending was interrupted, everything goes to a new W&B run, whose notes say which
    one it replaces.
    """
    path, folders, way = feed.run / FOLDER / STATE, Folders(feed.run), mode()
    sent = _read(path)
    found = _news(feed, sent)
    if way == "disabled":
        return []
    if not found.points and not found.media and not sent.open:
        return found.left
    waiting = [folder for folder in folders.offline(sent.id) if not folders.synced(folder)] if sent.id else []
    uploaded = sent.uploaded or (sent.steps > 0 and folders.uploaded(sent.id))
    unknown = bool(waiting) and way != "offline"  # whether the service has what an offline folder has
    if found.afresh or sent.open or unknown or way == "offline":
        feed = replace(feed, made={*feed.made, *sent.media})
        why = "an earlier report was interrupted" if sent.open else "figures have changed" if found.afresh else ""
        why = why or ("an offline part was not synced" if unknown else "")
        if why and uploaded:
            say(f"wandb: {why}, and W&B only appends: run {sent.id} stays as it is, and a new one is started")
            sent = _Sent(notes=f"replaces run {sent.id}: {why}")
        else:
            sent = _Sent(sent.id, uploaded=uploaded, notes=sent.notes)
        found = _news(feed, sent)
    if not sent.id:  # noted before anything is written under it
        sent.id = uuid.uuid4().hex[:8]
        _write(path, sent)
    first = not sent.steps
    import wandb

    place = folders.anew if way == "offline" else folders.continued
    try:
        with place(sent.id) as folder, _run(feed, folder, sent, found.points, first=first) as tracked:
            sent.points = feed.told()
            sent.media |= {iteration: feed.reports[iteration] for iteration in found.media}
            if way != "offline":
                sent.open = sent.uploaded = True
                _write(path, sent)
            for step, values in by_step(found.points, lambda name: name.startswith(PER_UPDATE)).items():
                sent.steps = _log(tracked, sent.steps, {"optimizer_step": step, **values})
            points = by_step(found.points, lambda name: not name.startswith(PER_UPDATE))
            for step in sorted(points.keys() | set(found.media)):
                shown = _media(feed.media(step)) if step in found.media else {}
                sent.steps = _log(tracked, sent.steps, {"iteration": step, **points.get(step, {}), **shown})
    except (wandb.Error, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        say(f"wandb: {reason}. Nothing is lost: fix WANDB_API_KEY or set WANDB_MODE=offline, and run report again.")
        return []
    sent.open = False
    _write(path, sent)
    return found.left


def _news(feed: Feed, sent: _Sent) -> News:
    if sent.logged:
        return news(feed, sent.logged, sent.media)
    only = lacking(feed, sent.points)
    found = news(feed, {}, sent.media, only)
    return found if only is not None else found._replace(afresh=True)


@contextmanager
def _run(feed: Feed, folder: Path, sent: _Sent, new: Points, *, first: bool) -> Iterator[Any]:
    import wandb

    settings = wandb.Settings(
        mode=mode(), silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True,
        disable_code=True,
    )  # fmt: skip
    with wandb.init(
        project=feed.project,
        name=feed.run.resolve().name,
        id=sent.id,
        notes=sent.notes or None,
        dir=str(folder),
        config=dict(feed.config),
        allow_val_change=True,
        resume=None if first else "allow",
        settings=settings,
    ) as tracked:
        tracked.define_metric("iteration")
        tracked.define_metric("optimizer_step")
        for part in {f"{name.split('/')[0]}/*" for name, _ in new} | {"histograms/*", *_TABLES}:
            of_updates = part.startswith(PER_UPDATE)
            tracked.define_metric(part, step_metric="optimizer_step" if of_updates else "iteration")
        yield tracked


def _log(tracked: Any, step: int, values: dict[str, Any]) -> int:
    tracked.log(values, step=step)
    return step + 1


def _media(media: Media) -> dict[str, Any]:
    import wandb

    found: dict[str, Any] = {
        f"histograms/{name}": wandb.Histogram(np_histogram=(one["counts"], one["edges"]))
        for name, one in media.histograms.items()
    }
    if rows := media.rows():
        table = wandb.Table(columns=list(COLUMNS))
        images = {encoded: _image(encoded) for encoded in {row["image"] for row in rows}}
        for row in rows:
            table.add_data(*({**row, "image": images[row["image"]]}[name] for name in COLUMNS))
        found["completions"] = table
    return found | {"stages": wandb.Table(columns=list(STAGES), data=[list(row) for row in media.stages])}


def _image(image: bytes | None) -> Any:
    import wandb

    image = decoded(image)
    return None if image is None else wandb.Image(image)


def _read(path: Path) -> _Sent:
    try:
        found = read_json(path)
        logged = {(str(name), int(step)): float(value) for name, step, value in found.get("logged", ())}
        points, media = (
            {int(iteration): str(key) for iteration, key in found.get(name, {}).items()} for name in ("points", "media")
        )
        steps = int(found.get("steps", len(logged)))
        open_, uploaded = bool(found.get("open")), bool(found.get("uploaded"))
        return _Sent(str(found["id"]), steps, open_, uploaded, points, media, logged, str(found.get("notes", "")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Sent()


def _write(path: Path, sent: _Sent) -> None:
    state: Mapping[str, Any] = {key: value for key, value in vars(sent).items() if key != "logged"}
    path.parent.mkdir(exist_ok=True)
    write_text(path, json.dumps(state))
