"""metrics.json of evaluate: several kinds of accuracy from per-question counts, each with its interval."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from dapo_stages.groups.answer_tallies import PLACES, SLICE, Question, by_slices, counts

if TYPE_CHECKING:
    from dapo_stages.maths.question_statistics import Ratio

Path = tuple[str, ...]  # of keys to a number in metrics.json
_DIGITS = 6  # decimals of an interval's ends: sums round differently with another number of threads


def metrics(questions: list[Question], *, resamples: int, confidence: float, seed: int) -> dict[str, Any]:
    """All metrics, overall and by slice; None where a mode was off or a metric is not defined."""
    import numpy as np

    from dapo_stages.maths.question_statistics import METHOD, ratio_intervals

    ratios = _ratios(questions)

    def part(chosen: slice | list[int]) -> dict[str, Any]:
        here = {path: ratio.among(chosen) for path, ratio in ratios.items()}
        ends = ratio_intervals(list(here.values()), resamples=resamples, confidence=confidence, seed=seed)
        values, intervals = {}, {}
        for index, (path, ratio) in enumerate(here.items()):
            below = float(ratio.wholes_Q.sum())
            value = float(ratio.parts_Q.sum()) / below if below > 0 else None
            low, high = (round(float(end), _DIGITS) for end in ends[:, index])
            values[path] = value
            intervals[path] = None if value is None or np.isnan([low, high]).any() else [low, high]
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
        "interval": {"confidence": confidence, "resamples": resamples, "over": "questions", "method": METHOD},
    }


def _ratios(questions: list[Question]) -> dict[Path, Ratio]:
    """Every metric as per-question parts and wholes."""
    import numpy as np

    from dapo_stages.maths.question_statistics import Ratio

    def share(mode: str, part: str, whole: str = "answers") -> Ratio:
        parts, wholes = (counts(questions, mode, name).astype(np.float64) for name in (part, whole))
        most = float(wholes.max(initial=0))
        return Ratio(parts, wholes, (0.0, most), (most, most))

    sampled = bool(counts(questions, "sample", "answers").any())
    greedy, blank = counts(questions, "greedy", "correct"), counts(questions, "blank", "correct")
    asked = (counts(questions, "greedy", "answers") > 0) & (counts(questions, "blank", "answers") > 0)
    chance = np.array([1 / question.options if question.options else np.nan for question in questions])
    luck = float(chance.mean()) if questions else 0.0
    none = (0.0, 0.0)
    return {
        ("greedy_accuracy",): share("greedy", "correct"),
        ("greedy_format",): share("greedy", "formed"),
        ("sampled_accuracy",): share("sample", "correct"),
        ("sampled_format",): share("sample", "formed"),
        ("sampled_accuracy_well_formed",): share("sample", "strict", "formed"),
        ("blank_accuracy",): share("blank", "correct"),
        ("mean_tokens",): share("sample" if sampled else "greedy", "tokens")._replace(lowest=none, highest=none),
        ("greedy_strict_accuracy",): share("greedy", "strict"),
        ("sampled_strict_accuracy",): share("sample", "strict"),
        ("chance_accuracy",): Ratio(chance, chance * 0 + 1, none, none),  # NaN if the number of options is unknown
        # At worst, one more question is right only with the image, or only without it.
        ("prior_share",): Ratio(np.where(asked, blank, 0.0), np.where(asked, greedy, 0.0), (0.0, 1.0), (1.0, 0.0)),
        ("prior_share_above_chance",): Ratio(
            np.where(asked, blank - chance, 0.0),
            np.where(asked, greedy - chance, 0.0),
            (-luck, 1 - luck),
            (1 - luck, -luck),
        ),
        **_of_k(questions),
        **{
            ("read_from", name, place): share(mode, place)
            for mode, name in (("greedy", "greedy"), ("sample", "sampled"))
            for place in PLACES
        },
    }


def _of_k(questions: list[Question]) -> dict[Path, Ratio]:
    """pass@k and majority@k."""
    import numpy as np

    from dapo_stages.maths.at_k import majority_at_k, pass_at_k, sizes
    from dapo_stages.maths.question_statistics import Ratio

    n = max((question.of("sample", "answers") for question in questions), default=0)
    correct = counts(questions, "sample", "correct")
    votes = np.zeros((len(questions), 1 + max((len(question.wrong) for question in questions), default=0)), np.int64)
    votes[:, 0] = correct
    for row, question in zip(votes, questions, strict=True):
        row[1 : 1 + len(question.wrong)] = question.wrong
    ones = np.ones(len(questions))
    return {
        **{("pass_at_k", str(k)): Ratio(pass_at_k(correct, n, k), ones) for k in sizes(n)},
        **{("majority_at_k", str(k)): Ratio(majority_at_k(votes, n, k), ones) for k in sizes(n)},
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
