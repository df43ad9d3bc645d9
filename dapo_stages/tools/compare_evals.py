"""compare-evals: two evaluations of the same questions in, their difference with paired tests out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dapo_stages.errors import DataError
from dapo_stages.groups.answer_tallies import COLUMNS, MODES, SLICE, Question, Tallies, by_slices, counts
from dapo_stages.handoff.manifests import Source
from dapo_stages.terminal.options import Json

if TYPE_CHECKING:
    from dapo_stages.terminal.printed_table import Table

_NAMED = 3  # questions that a message names
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


def aligned(a: Source, b: Source) -> tuple[list[Question], list[Question]]:
    """The questions of both in the order of A; raises DataError unless they are the same."""
    of_a, of_b = ({question.prompt_id: question for question in _read(source)} for source in (a, b))
    if odd := sorted(of_a.keys() ^ of_b.keys()):
        some = ", ".join(odd[:_NAMED]) + (", …" if len(odd) > _NAMED else "")
        raise DataError(
            b.folder,
            f"the questions differ from those in {a.folder} ({len(odd)} are in one only: {some})",
            "Evaluate both policies on the same data folder, with the same evaluate.max_questions.",
        )
    other = [name for name, question in of_a.items() if question.solution != of_b[name].solution]
    if other or not of_a:
        problem = f"the solution of {other[0]} differs from that in {a.folder}" if other else "no questions"
        raise DataError(b.folder, problem, "Evaluate both policies on the same data folder.")
    return list(of_a.values()), [of_b[name] for name in of_a]


def compare(
    a: list[Question], b: list[Question], *, resamples: int, confidence: float, seed: int
) -> list[dict[str, Any]]:
    """Every measure that both have, for all questions and by slice; `a` and `b` are in the same order."""
    import numpy as np

    from dapo_stages.maths.question_statistics import Ratio, holm, mcnemar, ratio_intervals, sign_flip

    groups = [("", "", list(range(len(a))))]
    for column, values in by_slices(a).items():
        groups += [(column, value, chosen) for value, chosen in values.items() if len(chosen) < len(a)]
    measures = []
    for mode in MODES:
        answers = [counts(questions, mode, "answers") for questions in (a, b)]
        if not all(each.all() for each in answers):
            continue
        right = [counts(questions, mode, "correct") for questions in (a, b)]
        # In whole numbers, so that the permutation test is exact for any numbers of samples.
        whole = int(np.lcm.reduce(np.unique(np.concatenate(answers))))
        of_a, of_b = (correct * (whole // each) for correct, each in zip(right, answers, strict=True))
        rows: list[dict[str, Any]] = []
        for column, value, chosen in groups:
            difference = (of_b - of_a)[chosen]
            won, lost = int((difference > 0).sum()), int((difference < 0).sum())
            # The most extreme further question: one policy answers it right in all samples, the other in none.
            ratio = Ratio(difference / whole, np.ones(len(chosen)), lowest=(-1.0, 1.0))
            ends = ratio_intervals([ratio], resamples=resamples, confidence=confidence, seed=seed)
            rows.append(
                {
                    "column": column,
                    "slice": value,
                    "questions": len(chosen),
                    "a": float(of_a[chosen].mean() / whole),
                    "b": float(of_b[chosen].mean() / whole),
                    "difference": float(difference.mean() / whole),
                    "interval": None if np.isnan(ends).any() else [round(float(end), 6) for end in ends[:, 0]],
                    "won": won,
                    "lost": lost,
                    "tied": len(chosen) - won - lost,
                    "p": mcnemar(won, lost) if whole == 1 else sign_flip(difference),
                }
            )
        for row, corrected in zip(rows[1:], holm([row["p"] for row in rows[1:]]), strict=True):
            row["p_holm"] = corrected
        changed = {
            name: [question.prompt_id for question, one in zip(a, sign * (of_b - of_a), strict=True) if one > 0]
            for name, sign in (("won", 1), ("lost", -1))
        }
        title = {"greedy": "greedy", "sample": f"mean@{_samples(answers)}", "blank": "image blanked"}[mode]
        test = "McNemar's exact test" if whole == 1 else "exact paired permutation test"
        measures.append({"measure": title, "test": test, **rows[0], "slices": rows[1:], "changed": changed})
    return measures


def _read(source: Source) -> list[Question]:
    tallies = Tallies()
    for shard in source.shards("completions"):
        with source.reader("completions", shard) as reader:
            for row in reader.rows(COLUMNS):
                tallies.add(row)
        tallies.settle()
    return tallies.questions


def _other_differences(a: Source, b: Source) -> list[str]:
    """What else may explain a difference: settings, the seed of the samples, the data folder."""
    of_a, of_b = ({**source.manifest.config, "seed": source.manifest.seed} for source in (a, b))
    found = sorted(name for name in of_a.keys() | of_b.keys() if of_a.get(name) != of_b.get(name))
    hashes = [source.manifest.inputs["data"].content_hash for source in (a, b) if "data" in source.manifest.inputs]
    return found + (["data"] if len(set(hashes)) > 1 else [])


def _samples(answers: list[Any]) -> str:
    """`8`, or `4 and 8` if the two have different numbers of samples."""
    return " and ".join(dict.fromkeys(str(int(each.max())) for each in answers))


def sentence(measure: dict[str, Any], confidence: float) -> str:
    """What a measure says, in words."""
    from dapo_stages.terminal.safe_text import number

    net, interval = measure["won"] - measure["lost"], measure["interval"]
    if measure["test"].startswith("McNemar"):
        more = f"{abs(net)} {'more' if net > 0 else 'fewer'}" if net else "as many"
        says = f"B answers {more} of {measure['questions']} questions right {'than' if net else 'as'} A"
    else:
        says = f"B does better than A on {measure['won']} of {measure['questions']} questions, worse on "
        says += f"{measure['lost']}"
    says = f"{measure['measure']}: {says} ({_points(measure['difference'])} points"
    if interval is not None:
        low, high = interval
        excludes = low > 0 or high < 0
        says += f"; the {100 * confidence:g}% interval, {_points(low)} to {_points(high)}, "
        says += "excludes 0)" if excludes else "includes 0, so no difference is shown)"
    else:
        says += ")"
    return f"{says}; {measure['test']}: p = {number(measure['p'])}."


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
                    _points(row["difference"]),
                    f"{_points(ends[0])} … {_points(ends[1])}" if ends else NOTHING,
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


def _points(value: float) -> str:
    return f"{100 * value:+.1f}"
