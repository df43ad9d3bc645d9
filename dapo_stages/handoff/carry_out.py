"""The frame around a stage's work: dry run, lock, resume, publish, and the summary at the end.

Where several processes run a stage, each writes its part of the output, and rank 0 publishes it.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Sequence
from importlib import import_module
from typing import Any

from dapo_stages import ranks
from dapo_stages.errors import ConfigError
from dapo_stages.handoff import behind, hashes
from dapo_stages.handoff.manifests import Manifest, read_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.resuming import open_output
from dapo_stages.processes import collectives, phases
from dapo_stages.terminal.console import answer, say


def run(
    plan: Plan,
    work: Callable[[Output], None],
    *,
    overwrite: bool,
    dry_run: bool,
    as_json: bool,
    alone: bool = False,
    needs: Sequence[str] = (),
) -> None:
    """Carry out a plan: `work` fills the output, which is then published.

    A complete output is left alone; a partial one is resumed. `alone` is for work that several processes cannot
    share; `needs` are modules of the work that take long to import. Raises ConfigError if several were launched for it,
    or fewer than configured.
    """
    _check_launch()
    if alone and ranks.count() > 1:
        raise ConfigError(
            f"{plan.stage}: runs in a single process, but {ranks.count()} were launched. Start it without a launcher."
        )
    if dry_run:
        _describe(plan, as_json)
        return
    started = time.monotonic()
    with hashes.reading_again(plan.verify == "always"), open_output(plan, overwrite=overwrite) as output:
        if output is not None:
            for name in needs:
                import_module(name)
            phases.begin_work()
            try:
                work(output)
                with phases.phase("save"):
                    _publish(output)
            finally:
                output.close()
        if ranks.rank() == 0:
            manifest, status = read_manifest(plan.out), "unchanged" if output is None else "done"
    if output is not None and output.behind is not None:
        behind.begin(output.behind)
    if ranks.rank() > 0:
        return
    seconds = time.monotonic() - started
    if as_json:
        answer(_result(plan, manifest, status, seconds))
    else:
        what = ", ".join(f"{key} {_short(value)}" for key, value in manifest.counts.items() if _is_scalar(value))
        say(f"{plan.stage}: {status} in {seconds:.1f} s -> {plan.out}" + (f" ({what})" if what else ""))


def _check_launch() -> None:
    """Refuse a launch of fewer processes than configured: accelerate falls back silently."""
    launched = ranks.count()
    configured = int(os.environ.get("DAPO_STAGES_PROCESSES", launched))
    if configured != launched:
        raise ConfigError(
            f"accelerate launch: expected {configured} process(es), as configured, got {launched}. For several on "
            "CPUs, set distributed_type to MULTI_GPU or DEEPSPEED and use_cpu to false. See "
            "pipelines/accelerate/ddp-cpu.yaml."
        )


def _publish(output: Output) -> None:
    """Publish what all processes wrote; none returns before that is done."""
    output.share()
    if ranks.rank() == 0:
        output.publish()
    collectives.barrier()
    output.keep_hashes()


def _describe(plan: Plan, as_json: bool) -> None:
    actions = {
        "new": "would write",
        "partial": "would resume",
        "complete": "has nothing to do in",
        "stale": "would replace (with --overwrite)",
        "incomplete": "would make again, as an output beside it is missing,",
    }
    state = plan.state()
    if as_json:
        inputs = {name: str(source.folder) for name, source in plan.inputs.items()}
        answer({"stage": plan.stage, "out": str(plan.out), "state": state, "inputs": inputs, "config": plan.config})
        return
    say(f"{plan.stage} {actions[state]} {plan.out}")
    for name, source in plan.inputs.items():
        say(f"  from {name} {source.folder} ({source.manifest.content_hash[:12]})")


def _result(plan: Plan, manifest: Manifest, status: str, seconds: float) -> dict[str, Any]:
    return {
        "stage": plan.stage,
        "status": status,
        "out": str(plan.out),
        "content_hash": manifest.content_hash,
        "counts": manifest.counts,
        "seconds": round(seconds, 3),
    }


def _is_scalar(value: object) -> bool:
    return isinstance(value, int | float | str)


def _short(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
