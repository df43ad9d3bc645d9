"""The same figures for TensorBoard and Weights & Biases: each point once, however often a report is made."""

from __future__ import annotations

import json
import os
import time
import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from dapo_stages.console import say
from dapo_stages.reporting.figures import Figures
from dapo_stages.shards import write_text

TENSORBOARD = "runs"
WANDB_STATE = "dapo-stages.json"

Points = dict[tuple[str, int], float]  # (name, step) -> value

PER_UPDATE = "update/"  # these count optimiser steps from the start of the run, all others iterations


def track(run: Path, trackers: Sequence[str], project: str, all_figures: Sequence[Figures]) -> None:
    """Send what is new to each tracker."""
    send = {"tensorboard": _to_tensorboard, "wandb": _to_wandb}
    for name in trackers:
        try:
            send[name](run, project, points(all_figures))
        except ModuleNotFoundError as error:
            say(
                f"report.trackers: {name} gets nothing, it is not installed (no module {error.name}). "
                "Run .venv/bin/pip install wandb tensorboard, then report again; nothing is lost."
            )


def points(all_figures: Sequence[Figures]) -> Points:
    """Every number of every iteration by name and step."""
    found: Points = {}
    step = 0
    for figures in all_figures:
        for name, value in _leaves(figures, ""):
            if name != "iteration":
                found[name, figures["iteration"]] = value
        for update in (figures.get("train") or {}).get("updates") or []:
            step += 1
            found |= {(f"{PER_UPDATE}{name}", step): value for name, value in update.items()}
    return found


def news(wanted: Points, logged: Points) -> tuple[bool, Points]:
    """Whether to start afresh (a point that is out there is no longer true), and the points to send."""
    near = 1e-6  # trackers keep float32
    wrong = [key for key, old in logged.items() if key not in wanted or abs(wanted[key] - old) > near * (1 + abs(old))]
    return (True, wanted) if wrong else (False, {key: wanted[key] for key in wanted.keys() - logged.keys()})


def _leaves(value: object, name: str) -> Iterator[tuple[str, float]]:
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from _leaves(inner, f"{name}/{key}" if name else str(key))
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, float(value)


def _by_step(wanted: Points, keep: Callable[[str], bool]) -> list[tuple[int, dict[str, float]]]:
    steps: dict[int, dict[str, float]] = {}
    for (name, step), value in sorted(wanted.items()):
        if keep(name):
            steps.setdefault(step, {})[name] = value
    return sorted(steps.items())


def _to_tensorboard(run: Path, _: str, wanted: Points) -> None:
    from tensorboard.compat.proto.event_pb2 import Event
    from tensorboard.compat.proto.summary_pb2 import Summary
    from tensorboard.summary.writer.event_file_writer import EventFileWriter

    folder = run / TENSORBOARD
    before = sorted(folder.glob("events.out.tfevents.*"))
    afresh, new = news(wanted, _read_tensorboard(before))
    if not new:
        return
    writer = EventFileWriter(str(folder))
    for step, values in _by_step(new, lambda _: True):
        summary = Summary(value=[Summary.Value(tag=name, simple_value=value) for name, value in values.items()])
        writer.add_event(Event(wall_time=time.time(), step=step, summary=summary))
    writer.close()
    for path in before if afresh else ():
        path.unlink()


def _read_tensorboard(paths: Sequence[Path]) -> Points:
    """The points of event files; one cut off in the middle counts up to there."""
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Points = {}
    for path in paths:
        for event in LegacyEventFileLoader(str(path)).Load():
            found |= {(value.tag, event.step): value.simple_value for value in event.summary.value}
    return found


def _to_wandb(run: Path, project: str, wanted: Points) -> None:
    """W&B only appends, so a point that changed starts a new W&B run. Trouble with the service stops nothing."""
    path = run / "wandb" / WANDB_STATE
    state = _read_state(path)
    logged = {(name, step): value for name, step, value in state["logged"]}
    afresh, new = news(wanted, logged)
    if not new:
        return
    identity = uuid.uuid4().hex[:8] if afresh or not state["id"] else state["id"]
    import wandb

    path.parent.mkdir(exist_ok=True)
    os.environ.setdefault("WANDB_SILENT", "true")
    settings = wandb.Settings(silent=True, console="off", x_disable_stats=True, disable_git=True, disable_code=True)
    try:
        with wandb.init(
            project=project, name=run.name, id=identity, dir=str(run), resume=_resume(state, afresh), settings=settings
        ) as tracked:
            tracked.define_metric("iteration")
            tracked.define_metric("optimiser_step")
            tracked.define_metric("*", step_metric="iteration")
            tracked.define_metric(f"{PER_UPDATE}*", step_metric="optimiser_step")
            for step, values in _by_step(new, lambda name: name.startswith(PER_UPDATE)):
                tracked.log({"optimiser_step": step, **values})
            for step, values in _by_step(new, lambda name: not name.startswith(PER_UPDATE)):
                tracked.log({"iteration": step, **values})
    except (wandb.Error, OSError) as error:
        reason = " ".join(str(error).split())[:200].rstrip(".")
        say(f"wandb: {reason}. The figures are in the report; set WANDB_MODE=offline or log in, and run report again.")
        return
    sent = (wanted if afresh else {**logged, **new}).items()
    rows = [[name, step, value] for (name, step), value in sorted(sent)]
    write_text(path, json.dumps({"id": identity, "logged": rows}, allow_nan=False))


def _resume(state: Mapping[str, Any], afresh: bool) -> Any:
    """Go on with a W&B run that is there; offline there is nothing to ask, the id alone joins the parts."""
    offline = os.environ.get("WANDB_MODE") in {"offline", "disabled", "dryrun"}
    return "allow" if state["id"] and not afresh and not offline else None


def _read_state(path: Path) -> dict[str, Any]:
    try:
        state = json.loads(path.read_text(encoding="utf-8"))
        return {"id": str(state["id"]), "logged": [(str(n), int(s), float(v)) for n, s, v in state["logged"]]}
    except (OSError, ValueError, KeyError, TypeError):
        return {"id": "", "logged": []}
