"""Two evaluations of the same questions: their differences, with intervals and paired tests."""

from __future__ import annotations

from typing import Any

from dapo_stages.errors import DataError
from dapo_stages.groups.answer_tallies import COLUMNS, MODES, Question, Tallies, by_slices, counts
from dapo_stages.handoff.manifests import Source

_NAMED = 3  # questions that a message names


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
    says = f"{measure['measure']}: {says} ({points(measure['difference'])} points"
    if interval is not None:
        low, high = interval
        excludes = low > 0 or high < 0
        says += f"; the {100 * confidence:g}% interval, {points(low)} to {points(high)}, "
        says += "excludes 0)" if excludes else "includes 0, so no difference is shown)"
    else:
        says += ")"
    return f"{says}; {measure['test']}: p = {number(measure['p'])}."


def points(value: float) -> str:
    """A difference in percentage points: +2.5."""
    return f"{100 * value:+.1f}"
