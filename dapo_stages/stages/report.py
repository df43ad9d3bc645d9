"""report: the figures, samples and curves of a run, for people."""

from __future__ import annotations

from contextlib import nullcontext
from itertools import chain
from typing import TYPE_CHECKING, Annotated

import typer

from dapo_stages.terminal.options import ConfigFile, DryRun, Json, Of, Overrides, Overwrite, RunFolder

if TYPE_CHECKING:
    from dapo_stages.config import Config
    from dapo_stages.handoff.manifests import Manifest, Source
    from dapo_stages.handoff.outputs import Output
    from dapo_stages.handoff.plans import Plan
    from dapo_stages.runs.run_folder import Run

_SHOWN = 50  # iterations in the terminal's table; the documents have them all


def main(
    config_file: ConfigFile,
    folder: RunFolder,
    iteration: Annotated[
        int | None, typer.Option("--iteration", min=0, help="Only this iteration; default: all that lack a report.")
    ] = None,
    of: Of = None,
    backfill: Annotated[
        bool,
        typer.Option(
            "--backfill", help="Also send the trackers the tables and histograms of earlier iterations that they lack."
        ),
    ] = False,
    set_: Overrides = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    as_json: Json = False,
) -> None:
    """Write rollout_results.md, token_weights.md, eval_results.md and report.html from what a run has so far.

    Example: dapo-stages report --config run.yaml --run training_logs/demo
    """
    from dataclasses import asdict

    from dapo_stages.config import load_config
    from dapo_stages.handoff.manifests import remembered
    from dapo_stages.reporting.run_report import Reported
    from dapo_stages.reporting.trackers.feed import feed_of
    from dapo_stages.reporting.trackers.sending import track
    from dapo_stages.runs.pace import pace
    from dapo_stages.runs.progress import halts
    from dapo_stages.runs.run_folder import Run
    from dapo_stages.terminal.console import answer, painted, progress, say, tell
    from dapo_stages.terminal.printed_table import print_table

    config, run = load_config(config_file, set_), Run(folder)
    with remembered():
        plans = _plans(run, iteration, config, overwrite=overwrite)
    if dry_run and as_json:
        answer({"stage": "report", "run": str(folder), "iterations": {n: plan.state() for n, plan in plans.items()}})
        return
    with (
        progress("report: iterations", len(plans))
        if len(plans) > 1
        else nullcontext(lambda done, note: None) as advance
    ):
        for number, plan in plans.items():
            _report(run, number, plan, overwrite=overwrite, dry_run=dry_run)
            advance(1, "")
    if dry_run:
        return
    with remembered():
        reported = Reported(run)
        page, best = reported.write(), reported.best
        feed = feed_of(reported, config.report.project, config.model_dump(mode="json"), plans, backfill=backfill)
        track(feed, config.report.trackers)
    if as_json:
        found = {"report": str(page), "best": asdict(best) if best else None, "made": list(plans)}
        answer({"stage": "report", **found, "iterations": reported.figures})
        return
    print_table(reported.table(_SHOWN))
    if best:
        tell(f"best: {best} -> {folder / best.policy}")
    if reported.fallen:
        print(painted(reported.fallen, "yellow"))
    for why in halts(run):
        print(painted(why, "bold red"))
    tell(str(page))
    if plans and (speed := pace(run, of or config.planned_iterations)):
        say(str(speed))


def _plans(run: Run, only: int | None, config: Config, *, overwrite: bool) -> dict[int, Plan]:
    """The report to make for each iteration; without `only`, for those whose report is missing or stale.

    A report made with other settings stays as it is, like every finished output, unless `overwrite`. A report whose
    inputs have been pruned always stays: it cannot be made again.
    """
    from dapo_stages.errors import DataError
    from dapo_stages.handoff.manifests import manifest_of
    from dapo_stages.handoff.plans import Plan
    from dapo_stages.reporting.run_report import LAYOUT
    from dapo_stages.terminal.console import say

    plans: dict[int, Plan] = {}
    others: list[int] = []
    reported = False
    for number in run.iterations() if only is None else [only]:
        found = run.sources(number)
        out = run.folder(number) / "report"
        made = manifest_of(out, "report")
        reported = reported or made is not None
        pruned = run.manifests(number).keys() - found.keys()
        if made is not None and made.inputs.keys() & pruned:
            if only is not None:
                say(f"report: {out} stays as it is: its inputs have been pruned")
            continue
        if not found:
            continue
        recorded = config.sections("report.samples", "report.completions") | {"layout": LAYOUT}
        plan = Plan("report", out, recorded, config.seed, found, verify=config.verify)
        if only is not None or made is None or _is_of_others(made, found):
            plans[number] = plan
        elif plan.state() != "complete":
            others.append(number)
            if overwrite:
                plans[number] = plan
    if others and not overwrite:
        say(f"report: keeping {len(others)} made with other settings; pass --overwrite to make them again")
    if not plans and not reported:
        where = run.path if only is None else run.folder(only)
        raise DataError(where, "no finished output of any stage", "Run rollout or evaluate first.")
    return plans


def _is_of_others(made: Manifest, inputs: dict[str, Source]) -> bool:
    """Whether a report was made from other outputs than there are now, or by an older version."""
    from dapo_stages.reporting.run_report import LAYOUT

    now = {name: source.manifest.content_hash for name, source in inputs.items()}
    was = {name: source.content_hash for name, source in made.inputs.items()}
    return now != was or made.config.get("layout") != LAYOUT


def _report(run: Run, iteration: int, plan: Plan, *, overwrite: bool, dry_run: bool) -> None:
    from dapo_stages.handoff import carry_out
    from dapo_stages.handoff.shards import write_text
    from dapo_stages.reporting.documents.rollout_pages import pages
    from dapo_stages.reporting.run_report import circumstances, fragments

    def work(output: Output) -> None:
        samples, completions = plan.config["report.samples"], plan.config["report.completions"]
        figures, files = fragments(iteration, plan.inputs, samples, completions)
        more = pages(iteration, plan.inputs) if samples == "all" else ()
        with output.files() as folder:
            for name, text in chain(files.items(), more):
                write_text(folder / name, text)
        parts = ", ".join(plan.inputs)
        output.counts = {"iteration": figures["iteration"], "parts": parts, **circumstances(run, iteration)}

    carry_out.run(plan, work, overwrite=overwrite or _grown(plan), dry_run=dry_run, as_json=False, alone=True)


def _grown(plan: Plan) -> bool:
    """Whether the report only lacks newer outputs, which may replace lost ones, or was made by an older version.

    Replacing it loses nothing.
    """
    from dapo_stages.handoff.manifests import manifest_of

    made = manifest_of(plan.out, "report")
    if made is None:
        return True
    now = {name: source.manifest for name, source in plan.inputs.items()}
    same = all(name in now and now[name].is_or_replaces(source.content_hash) for name, source in made.inputs.items())
    return same and _is_of_others(made, plan.inputs)
