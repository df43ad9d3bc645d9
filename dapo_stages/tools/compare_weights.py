"""compare-weights: several weightings of the same rollouts in, how they differ out; or which scores tell dependence."""

from __future__ import annotations

import json as json_module
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.errors import DataError
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.manifests import MANIFEST, Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.shards import write_text
from dapo_stages.terminal.console import answer, tell
from dapo_stages.terminal.options import DryRun, Json, Out, Overwrite
from dapo_stages.training.token_dependence import DEPENDENCE, TOKENS, dependence_plan, token_dependence
from dapo_stages.training.weights_comparison import CONTEXT, SHOWN, Comparison

RESULT, TEXT = "comparison.json", "comparison.md"
DEPENDENCE_TEXT = "dependence.md"
_GROUPS = 8  # for the gradients, unless --groups says otherwise


def main(
    out: Out,
    folders: Annotated[
        list[Path] | None,
        typer.Argument(help="Folders written by weight-tokens for the same rollouts.", metavar="DIR DIR..."),
    ] = None,
    rollouts: Annotated[
        Path | None,
        typer.Option(
            "--rollouts", help="Their rollout folder, if it has moved; with --dependence, any.", metavar="DIR"
        ),
    ] = None,
    policy: Annotated[
        Path | None,
        typer.Option(
            "--policy", help="Policy to compute gradients or dependence of; else no model is loaded.", metavar="DIR"
        ),
    ] = None,
    groups: Annotated[
        int | None, typer.Option("--groups", min=1, help="Groups of completions for the gradients (default: 8).")
    ] = None,
    dependence: Annotated[
        bool,
        typer.Option(
            "--dependence",
            help="Instead of weights, compare scores of attention with how much tokens depend on the image.",
        ),
    ] = False,
    tokens: Annotated[
        int | None,
        typer.Option("--tokens", min=1, help="Tokens to measure dependence on, about (default: 5000).", metavar="N"),
    ] = None,
    beside: Annotated[
        Path | None,
        typer.Option("--beside", help="An earlier output of --dependence, shown side by side.", metavar="DIR"),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Compare token weights of the same rollouts: correlations, spread, and the tokens they differ on most.

    With --policy also the cosine between their policy gradients, in float32, with one gradient in memory for each.
    With --dependence instead of folders: which scores of attention tell the tokens that depend on the image.

    Example: dapo-stages compare-weights weights-vgr weights-entropy --policy policy --out comparison
    """
    if dependence:
        if folders or groups is not None:
            raise typer.BadParameter("--dependence takes neither folders of weights nor --groups.")
        if rollouts is None or policy is None:
            raise typer.BadParameter("--dependence needs --rollouts and --policy.")
        plan = dependence_plan(out, rollouts, policy, tokens or TOKENS, beside)
        work, result, page, show = _write_dependence, DEPENDENCE, DEPENDENCE_TEXT, _show_dependence
    else:
        if tokens is not None or beside is not None:
            raise typer.BadParameter("--tokens and --beside belong to --dependence.")
        if len(folders or ()) < 2:
            raise typer.BadParameter("name at least two folders of weights, or pass --dependence.")
        plan = _comparison_plan(out, folders or [], rollouts, policy, groups or _GROUPS)
        work, result, page, show = _write_comparison, RESULT, TEXT, _show_comparison
    carry_out.run(plan, work, overwrite=overwrite, dry_run=dry_run, as_json=json and dry_run, alone=True)
    if dry_run:
        return
    found = json_module.loads((out / result).read_text(encoding="utf-8"))
    if json:
        answer({"stage": "compare-weights", "out": str(out), **found})
        return
    show(found)
    tell(str(out / page))


def _write_dependence(output: Output) -> None:
    """Measure dependence, then write the result as JSON, Markdown and a plot."""
    from dapo_stages.reporting.documents.dependence_shown import PLOT, dependence_document, dependence_plot

    found = token_dependence(output.plan)
    _write(output, found, (DEPENDENCE, DEPENDENCE_TEXT, PLOT), dependence_document, dependence_plot)


def _show_dependence(found: dict[str, Any]) -> None:
    from dapo_stages.reporting.documents.dependence_shown import facts, kinds_table, scores_table
    from dapo_stages.terminal.printed_table import print_table

    for line in facts(found):
        tell(line)
    print()
    print_table(scores_table(found))
    print()
    print_table(kinds_table(found))


def _comparison_plan(out: Path, folders: list[Path], rollouts: Path | None, policy: Path | None, groups: int) -> Plan:
    sources = [Source(folder, "weight-tokens") for folder in folders]
    inputs = {f"weights-{number}": source for number, source in enumerate(sources, start=1)}
    inputs["rollouts"] = _rollouts(sources, rollouts)
    if policy is not None:
        inputs["policy"] = PolicyFolder(policy)
    recorded = {"names": _names(sources), "groups": groups if policy else 0, "tokens": SHOWN, "context": CONTEXT}
    return Plan("compare-weights", out, recorded, 0, inputs)


def _write_comparison(output: Output) -> None:
    """Compare, then write the result as JSON, Markdown and a plot."""
    from dapo_stages.reporting.documents.weights_compared import PLOT, comparison_document, comparison_plot

    _write(output, Comparison(output.plan).compare(), (RESULT, TEXT, PLOT), comparison_document, comparison_plot)


def _show_comparison(found: dict[str, Any]) -> None:
    from dapo_stages.reporting.documents.weights_compared import pairs_table, schemes_table
    from dapo_stages.terminal.printed_table import print_table

    print_table(schemes_table(found))
    print()
    print_table(pairs_table(found))


def _write(
    output: Output,
    found: dict[str, Any],
    names: tuple[str, str, str],
    document: Callable[[dict[str, Any]], str],
    plot: Callable[[dict[str, Any]], str],
) -> None:
    with output.files() as folder:
        text = json_module.dumps(found, indent=1, allow_nan=False, ensure_ascii=False) + "\n"
        for name, content in zip(names, (text, document(found), plot(found)), strict=True):
            write_text(folder / name, content)
    output.counts |= {"completions": found["completions"], "tokens": found["tokens"]}


def _rollouts(sources: list[Source], named: Path | None) -> Source:
    """The rollouts that all were made from; by default at the path in the first one's manifest."""
    if named is None:
        recorded = sources[0].manifest.inputs.get("rollouts")
        named = Path(recorded.path) if recorded else sources[0].folder / "rollout"
        if not (named / MANIFEST).exists():
            problem = f"no output of rollout, which {sources[0].folder} was made from"
            raise DataError(named, problem, "Pass its folder with --rollouts DIR.")
    rollouts = Source(named, "rollout")
    for source in sources:
        source.require_input("rollouts", rollouts)
    return rollouts


def _names(sources: list[Source]) -> list[str]:
    """The scheme of each folder; with the folder if several have the same."""
    schemes = [str(source.manifest.config.get("weights", {}).get("scheme", "")) for source in sources]
    names = [
        scheme if scheme and schemes.count(scheme) == 1 else f"{scheme} ({source.folder.name})".strip()
        for scheme, source in zip(schemes, sources, strict=True)
    ]
    counted = Counter(names)
    return [
        name if counted[name] == 1 else f"{scheme} ({source.folder}, {number})".strip()
        for number, (name, scheme, source) in enumerate(zip(names, schemes, sources, strict=True), start=1)
    ]
