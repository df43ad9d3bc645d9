"""metrics.json of evaluate: accuracies of several kinds from the counts of questions, each with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dapo_stages.stages.eval_tallies import PLACES, SLICE, Question, by_slices, counts

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    Ratio = tuple[NDArray[np.float64], NDArray[np.float64]]  # [Q] parts, [Q] wholes: a figure is sum / sum

Path = tuple[str, ...]  # where a figure is in metrics.json
_DIGITS = 6  # of the ends of an interval: sums of fractions round differently with other numbers of threads


def metrics(questions: list[Question], *, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """All figures, for all questions and by slice; None where a mode was off or a figure is not defined."""
    import numpy as np

    from dapo_stages.maths.intervals import ratio_intervals

    ratios = _ratios(questions)
    parts, wholes = (np.stack([ratio[i] for ratio in ratios.values()], axis=1) for i in (0, 1))

    def part(chosen: Any) -> dict[str, Any]:
        here, whole = parts[chosen], wholes[chosen]
        ends = ratio_intervals(here, whole, resamples=resamples, confidence=confidence, seed=seed)
        values, intervals = {}, {}
        for index, path in enumerate(ratios):
            below = float(whole[:, index].sum())
            value = float(here[:, index].sum()) / below if below > 0 else None
            low, high = (round(float(end), _DIGITS) for end in ends[:, index])
            values[path] = value
            intervals[path] = None if value is None or np.isnan(low) else [low, high]
        return {**_nested(values), "intervals": _nested(intervals)}

    slices = by_slices(questions)
    named = slices.pop(SLICE, {})
    return {
        "questions": len(questions),
        "slices": {name: len(chosen) for name, chosen in named.items()},
        **part(slice(None)),
        "by_slice": {name: part(chosen) for name, chosen in named.items()},
        "by": {
            column: {value: {"questions": len(chosen), **part(chosen)} for value, chosen in values.items()}
            for column, values in slices.items()
        },
        "interval": {"confidence": confidence, "resamples": resamples, "over": "questions"},
    }


def _ratios(questions: list[Question]) -> dict[Path, Ratio]:
    """Every figure as parts and wholes for each question."""
    import numpy as np

    def ratio(mode: str, part: str, whole: str = "answers") -> Ratio:
        return counts(questions, mode, part).astype(np.float64), counts(questions, mode, whole).astype(np.float64)

    sampled = bool(counts(questions, "sample", "answers").any())
    greedy, blank = counts(questions, "greedy", "correct"), counts(questions, "blank", "correct")
    asked = (counts(questions, "greedy", "answers") > 0) & (counts(questions, "blank", "answers") > 0)
    chance = np.array([1 / question.options if question.options else np.nan for question in questions])
    return {
        ("greedy_accuracy",): ratio("greedy", "correct"),
        ("greedy_format",): ratio("greedy", "formed"),
        ("sampled_accuracy",): ratio("sample", "correct"),
        ("sampled_format",): ratio("sample", "formed"),
        ("sampled_accuracy_well_formed",): ratio("sample", "strict", "formed"),
        ("blank_accuracy",): ratio("blank", "correct"),
        ("mean_tokens",): ratio("sample" if sampled else "greedy", "tokens"),
        ("greedy_strict_accuracy",): ratio("greedy", "strict"),
        ("sampled_strict_accuracy",): ratio("sample", "strict"),
        ("chance_accuracy",): (chance, chance * 0 + 1),  # not a number where the options are not known
        ("prior_share",): (np.where(asked, blank, 0.0), np.where(asked, greedy, 0.0)),
        ("prior_share_above_chance",): (
            np.where(asked, blank - chance, 0.0),
            np.where(asked, greedy - chance, 0.0),
        ),
        **_of_k(questions),
        **{
            ("read_from", name, place): ratio(mode, place)
            for mode, name in (("greedy", "greedy"), ("sample", "sampled"))
            for place in PLACES
        },
    }


def _of_k(questions: list[Question]) -> dict[Path, Ratio]:
    """pass@k and majority@k."""
    import numpy as np

    from dapo_stages.maths.at_k import majority_at_k, pass_at_k, sizes

    n = max((question.of("sample", "answers") for question in questions), default=0)
    correct = counts(questions, "sample", "correct")
    votes = np.zeros((len(questions), 1 + max((len(question.wrong) for question in questions), default=0)), np.int64)
    votes[:, 0] = correct
    for row, question in zip(votes, questions, strict=True):
        row[1 : 1 + len(question.wrong)] = question.wrong
    ones = np.ones(len(questions))
    return {
        **{("pass_at_k", str(k)): (pass_at_k(correct, n, k), ones) for k in sizes(n)},
        **{("majority_at_k", str(k)): (majority_at_k(votes, n, k), ones) for k in sizes(n)},
    }


def _nested(values: dict[Path, Any]) -> dict[str, Any]:
    """`{("pass_at_k", "4"): x}` -> `{"pass_at_k": {"4": x}}`."""
    found: dict[str, Any] = {}
    for path, value in values.items():
        inner = found
        for key in path[:-1]:
            inner = inner.setdefault(key, {})
        inner[path[-1]] = value
    return found
