"""One W&B run for all iterations. The key is WANDB_API_KEY in the environment; without it, the run is offline."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from dapo_stages.handoff.shards import write_text
from dapo_stages.reporting.iteration.thumbnails import decoded
from dapo_stages.reporting.trackers.feed import PER_UPDATE, Feed, News, Points, by_step, lacking, news
from dapo_stages.reporting.trackers.media import COLUMNS, STAGES, Media
from dapo_stages.small_files import read_json
from dapo_stages.terminal.console import say

FOLDER, STATE = "wandb", "dapo-stages.json"
_TABLES = ("completions", "stages")


@dataclass
class _Sent:
    """What the W&B run has; while `open`, it is being sent, and how much has arrived is not known."""

    id: str = ""
    steps: int = 0  # records so far: the next part of the run continues from here
    open: bool = False
    points: dict[int, str] = field(default_factory=dict)  # iteration -> key
    media: dict[int, str] = field(default_factory=dict)
    logged: Points = field(default_factory=dict)  # what older versions recorded instead


def mode() -> str:
    """`online` only with a key in the environment, regardless of what else is set up on this machine."""
    said = os.environ.get("WANDB_MODE", "")
    if said in {"offline", "disabled", "dryrun", "shared"}:
        return "offline" if said == "dryrun" else said
    return "online" if os.environ.get("WANDB_API_KEY") else "offline"


def send(feed: Feed) -> list[int]:
    """Log what is missing; returns the iterations that need --backfill. Errors of the service do not stop the report.

    W&B only appends. If a point has changed, or sending was interrupted, everything goes to a new W&B run.
    """
    path = feed.run / FOLDER / STATE
    sent = _read(path)
    changed, new, media, left = _news(feed, sent)
    if mode() == "disabled":
        return []
    if not new and not media and not sent.open:
        return left
    if changed or sent.open:
        why = "an earlier report was interrupted" if sent.open else "figures have changed"
        say(f"wandb: {why}, and W&B only appends: run {sent.id} stays as it is, and a new one is started")
        feed, sent = replace(feed, made={*feed.made, *sent.media}), _Sent()
        _, new, media, left = _news(feed, sent)
    first, sent.id = not sent.id, sent.id or uuid.uuid4().hex[:8]
    import wandb

    try:
        with _place(feed.run), _run(feed, sent.id, new, first=first) as tracked:
            sent.open = True
            sent.points = feed.told()
            sent.media |= {iteration: feed.reports[iteration] for iteration in media}
            _write(path, sent)
            for step, values in by_step(new, lambda name: name.startswith(PER_UPDATE)).items():
                sent.steps = _log(tracked, sent.steps, {"optimizer_step": step, **values})
            points = by_step(new, lambda name: not name.startswith(PER_UPDATE))
            for step in sorted(points.keys() | set(media)):
                shown = _media(feed.media(step)) if step in media else {}
                sent.steps = _log(tracked, sent.steps, {"iteration": step, **points.get(step, {}), **shown})
    except (wandb.Error, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        say(f"wandb: {reason}. Nothing is lost: fix WANDB_API_KEY or set WANDB_MODE=offline, and run report again.")
        return []
    sent.open = False
    _write(path, sent)
    return left


def _news(feed: Feed, sent: _Sent) -> News:
    if sent.logged:
        return news(feed, sent.logged, sent.media)
    only = lacking(feed, sent.points)
    found = news(feed, {}, sent.media, only)
    return found if only is not None else found._replace(afresh=True)


@contextmanager
def _run(feed: Feed, identity: str, new: Points, *, first: bool) -> Iterator[Any]:
    import wandb

    settings = wandb.Settings(
        mode=mode(), silent=True, console="off", x_disable_stats=True, x_disable_meta=True, disable_git=True,
        disable_code=True,
    )  # fmt: skip
    with wandb.init(
        project=feed.project,
        name=feed.run.resolve().name,
        id=identity,
        dir=str(feed.run),
        config=dict(feed.config),
        allow_val_change=True,
        # Offline, the id alone joins the parts.
        resume="allow" if not first and mode() == "online" else None,
        settings=settings,
    ) as tracked:
        tracked.define_metric("iteration")
        tracked.define_metric("optimizer_step")
        for part in {f"{name.split('/')[0]}/*" for name, _ in new} | {"histograms/*", *_TABLES}:
            of_updates = part.startswith(PER_UPDATE)
            tracked.define_metric(part, step_metric="optimizer_step" if of_updates else "iteration")
        yield tracked


@contextmanager
def _place(run: Path) -> Iterator[None]:
    """What W&B stages for uploading is kept in the run's folder, so that `wandb sync` finds it later."""
    folder = run.resolve() / FOLDER
    folder.mkdir(exist_ok=True)
    before = os.environ.get("WANDB_DATA_DIR")
    os.environ["WANDB_DATA_DIR"] = before or str(folder / "staged")
    try:
        yield
    finally:
        if before is None:
            del os.environ["WANDB_DATA_DIR"]


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
        for row in rows:
            table.add_data(*({**row, "image": _image(row["image"])}[name] for name in COLUMNS))
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
        return _Sent(str(found["id"]), steps, bool(found.get("open")), points, media, logged)
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return _Sent()


def _write(path: Path, sent: _Sent) -> None:
    state = {"id": sent.id, "steps": sent.steps, "open": sent.open, "points": sent.points, "media": sent.media}
    write_text(path, json.dumps(state))
