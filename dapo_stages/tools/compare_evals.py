"""compare-evals: two evaluations of the same questions in, their difference with paired tests out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.errors import DataError
from dapo_stages.groups.answer_tallies import SLICE
from dapo_stages.groups.paired_answers import aligned, compare, points, sentence
from dapo_stages.handoff.manifests import Source
from dapo_stages.terminal.options import Json

if TYPE_CHECKING:
    from dapo_stages.terminal.printed_table import Table

_HEADERS = ["measure", "slice", "questions", "A", "B", "B − A", "interval", "won", "lost", "tied", "p", "p (Holm)"]
_SCOPE = (
    "The intervals cover which questions were drawn, not training: each policy comes from one run, and telling which "
    "recipe is better takes several seeds of each."
)
_SLICES = (
    "Several slices are several tests: p (Holm) is corrected for all slices of a measure, the intervals and p are not."
)


def main(
    first: Annotated[Path, typer.Argument(help="Folder written by evaluate: the one to compare with.", metavar="A")],
    second: Annotated[Path, typer.Argument(help="Folder written by evaluate for the same questions.", metavar="B")],
    out: Annotated[Path | None, typer.Option("--out", help="Also write a Markdown file.", metavar="FILE")] = None,
    list_: Annotated[
        int, typer.Option("--list", min=0, help="List up to N of the questions won, and of those lost.", metavar="N")
    ] = 0,
    resamples: Annotated[int, typer.Option("--resamples", min=100, help="Random weightings per interval.")] = 2000,
    confidence: Annotated[
        float, typer.Option("--confidence", min=0.5, max=0.999, help="Confidence of the intervals.")
    ] = 0.95,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the weightings.")] = 42,
    as_json: Json = False,
) -> None:
    """Compare two policies on the same held-out questions: differences, intervals, paired tests.

    Greedy answers with McNemar's exact test, mean@k with the exact paired permutation test; for all questions and by
    slice.

    Example: dapo-stages compare-evals iter-0000/eval iter-0006/eval --list 5 --out compared.md
    """
    from dapo_stages.handoff.shards import write_text
    from dapo_stages.terminal.console import answer

    sources = Source(first, "evaluate"), Source(second, "evaluate")
    a, b = aligned(*sources)
    found = {
        "a": str(first),
        "b": str(second),
        "questions": len(a),
        "confidence": confidence,
        "resamples": resamples,
        "also_differs": _other_differences(*sources),
        "measures": compare(a, b, resamples=resamples, confidence=confidence, seed=seed),
    }
    if not found["measures"]:
        problem = f"no greedy, sampled or blanked answers in common with {first}"
        raise DataError(second, problem, "Evaluate both with the same settings.")
    if out is not None:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_text(out, _markdown(found, list_))
    if as_json:
        answer(found)
    else:
        _show(found, list_)


def _other_differences(a: Source, b: Source) -> list[str]:
    """What else may explain a difference: settings, the seed of the samples, the data folder."""
    of_a, of_b = ({**source.manifest.config, "seed": source.manifest.seed} for source in (a, b))
    found = sorted(name for name in of_a.keys() | of_b.keys() if of_a.get(name) != of_b.get(name))
    hashes = [source.manifest.inputs["data"].content_hash for source in (a, b) if "data" in source.manifest.inputs]
    return found + (["data"] if len(set(hashes)) > 1 else [])


def _table(found: dict[str, Any]) -> Table:
    from dapo_stages.terminal.printed_table import Table
    from dapo_stages.terminal.safe_text import NOTHING, number, percent

    rows = []
    for measure in found["measures"]:
        for row in (measure, *measure["slices"]):
            ends = row["interval"]
            rows.append(
                [
                    measure["measure"],
                    _slice_name(row),
                    str(row["questions"]),
                    percent(row["a"]),
                    percent(row["b"]),
                    points(row["difference"]),
                    f"{points(ends[0])} … {points(ends[1])}" if ends else NOTHING,
                    *(str(row[name]) for name in ("won", "lost", "tied")),
                    number(row["p"]),
                    number(row.get("p_holm")),
                ]
            )
    return Table(_HEADERS, rows)


def _slice_name(row: dict[str, Any]) -> str:
    if not row["column"]:
        return "all"
    return str(row["slice"]) if row["column"] == SLICE else f"{row['column']}={row['slice']}"


def _notes(found: dict[str, Any], most: int) -> list[str]:
    """The sentences under the table."""
    from dapo_stages.terminal.safe_text import one_line

    said = [sentence(measure, found["confidence"]) for measure in found["measures"]]
    if found["also_differs"]:
        said.append(f"Besides the policies, the evaluations differ in: {', '.join(found['also_differs'])}.")
    said.append(_SCOPE)
    if any(measure["slices"] for measure in found["measures"]):
        said.append(_SLICES)
    for measure in found["measures"] if most else ():
        for name, ids in measure["changed"].items():
            more = f", … ({len(ids)})" if len(ids) > most else ""
            said.append(f"{measure['measure']}, {name}: {', '.join(map(one_line, ids[:most])) or 'none'}{more}")
    return said


def _show(found: dict[str, Any], most: int) -> None:
    from dapo_stages.terminal.console import tell
    from dapo_stages.terminal.printed_table import print_table

    tell(f"A: {found['a']}\nB: {found['b']}\n")
    print_table(_table(found))
    tell("\n" + "\n".join(_notes(found, most)))


def _markdown(found: dict[str, Any], most: int) -> str:
    from dapo_stages.terminal.safe_text import markdown_inline, markdown_table

    table = _table(found)
    heading = f"# B against A\n\nA: {markdown_inline(found['a'])}, B: {markdown_inline(found['b'])}\n"
    notes = "\n".join(f"- {markdown_inline(note)}" for note in _notes(found, most))
    return "\n".join([heading, markdown_table(table.headers, table.rows), notes, ""])
