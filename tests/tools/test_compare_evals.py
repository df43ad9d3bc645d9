"""compare-evals: hand-made evaluations in, figures worked by hand out."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from reporting.tiny_run import publish
from support.commands import run

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan

Answers = dict[str, str]  # mode -> a 1 or 0 for each answer


def evaluation(folder: Path, questions: dict[str, Answers], *, data: Path | None = None, **config: Any) -> Path:
    """A published evaluation; questions of the slice "odd" have an odd number at the end of their id.

    Its counts have the greedy accuracy. `data`: the folder of the questions.
    """
    rows = [
        {
            "completion_id": f"{name}-{mode}-{sample}",
            "prompt_id": name,
            "slice": "odd" if name[-1] in "13579" else "even",
            "mode": mode,
            "sample": sample,
            "solution": "A",
            "text": "A",
            "completion_ids": [5],
            "token_texts": ["A"],
            "sampling_logprobs": [-0.1],
            "policy_version": 1,
            "reward_overlong": 0.0,
            "num_tokens": 1,
            "finish_reason": "stop",
            "reward_accuracy": float(right),
            "reward_format": 1.0,
            "answer": "A" if right == "1" else "B",
            "read_from": "lone",
            "num_options": None,
            "labels": None,
        }
        for name, answers in questions.items()
        for mode, marks in answers.items()
        for sample, right in enumerate(marks)
    ]

    def fill(output: Output) -> None:
        half = len(questions) // 2 or 1
        names = list(questions)
        for number, part in enumerate((names[:half], names[half:])):
            output.write("completions", number, [row for row in rows if row["prompt_id"] in part])
        right = [row["reward_accuracy"] == 1 for row in rows if row["mode"] == "greedy"]
        output.counts |= {"greedy_accuracy": sum(right) / len(right)} if right else {}

    publish(Plan("evaluate", folder, config, 1, {"data": Source(data)} if data else {}), fill)
    return folder


def greedy(marks: str) -> dict[str, Answers]:
    return {f"q{number:02d}": {"greedy": mark} for number, mark in enumerate(marks)}


def compared(a: Path, b: Path, *options: object) -> dict[str, Any]:
    result = run("compare-evals", a, b, "--json", *options)
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


def test_greedy_answers_worked_by_hand(tmp_path: Path) -> None:
    """B wins 7 questions and loses 1 of 12: p = 2 (1 + 8) / 2^8, half of the questions more. The 95% interval
    includes no difference, as the test does; that of 80% does not."""
    a = evaluation(tmp_path / "a", greedy("000000011100"))
    b = evaluation(tmp_path / "b", greedy("111111101100"))
    (found,) = compared(a, b)["measures"]
    assert [found[name] for name in ("measure", "questions", "won", "lost", "tied")] == ["greedy", 12, 7, 1, 4]
    assert (found["a"], found["b"], found["difference"]) == pytest.approx((3 / 12, 9 / 12, 6 / 12))
    assert found["p"] == 18 / 256
    assert -0.2 < found["interval"][0] < 0 < 0.5 < found["interval"][1] < 1
    assert compared(a, b, "--confidence", 0.8)["measures"][0]["interval"][0] > 0
    assert found["changed"] == {"won": [f"q0{number}" for number in range(7)], "lost": ["q07"]}


def test_slices_get_their_own_tests_with_holms_correction(tmp_path: Path) -> None:
    """Even: 4 won of 6 (p = 2/16). Odd: 3 won, 1 lost (p = 2 (1 + 4) / 16, at most 1). Holm: 2 × .125, then .625."""
    a = evaluation(tmp_path / "a", greedy("000000011100"))
    b = evaluation(tmp_path / "b", greedy("111111101100"))
    (found,) = compared(a, b)["measures"]
    rows = {row["slice"]: row for row in found["slices"]}
    assert {name: (row["won"], row["lost"], row["tied"]) for name, row in rows.items()} == {
        "even": (4, 0, 2), "odd": (3, 1, 2),
    }  # fmt: skip
    assert {name: (row["p"], row["p_holm"]) for name, row in rows.items()} == {
        "even": (0.125, 0.25), "odd": (0.625, 0.625),
    }  # fmt: skip


def test_samples_are_compared_by_their_means(tmp_path: Path) -> None:
    """Right in 1, 2, 0 of 4 against 1, 2, 2 of 2, so +1/4, +1/2, +1: of 8 signs only all + and all - are as far."""
    marks = {"a": ("1000", "1100", "0000"), "b": ("10", "11", "11")}
    folders = [
        evaluation(tmp_path / name, {f"q{n}": {"sample": mark} for n, mark in enumerate(each)})
        for name, each in marks.items()
    ]
    (found,) = compared(*folders)["measures"]
    assert found["measure"] == "mean@4 and 2" and found["test"] == "exact paired permutation test"
    assert (found["won"], found["lost"], found["tied"], found["p"]) == (3, 0, 0, 0.25)
    assert found["difference"] == pytest.approx((1 / 4 + 1 / 2 + 1) / 3)


def test_the_order_of_the_rows_does_not_matter(tmp_path: Path) -> None:
    questions = greedy("0011010111")
    a, other = evaluation(tmp_path / "a", questions), greedy("1010110111")
    b = evaluation(tmp_path / "b", other)
    turned = evaluation(tmp_path / "c", dict(reversed(other.items())))
    assert compared(a, b)["measures"] == compared(a, turned)["measures"]


def test_a_policy_against_itself_differs_nowhere(tmp_path: Path) -> None:
    """One more question may: its weight among 33 is Beta(1, 32), whose quantile of .975 is 1 - .025^(1/32) = .1089."""
    a = evaluation(tmp_path / "a", greedy("01101101" * 4))
    (found,) = compared(a, a, "--resamples", 20_000)["measures"]
    assert (found["difference"], found["p"], found["tied"]) == (0, 1, 32)
    assert found["interval"] == pytest.approx([-0.1089, 0.1089], abs=0.005)
    shown = run("compare-evals", a, a).stdout
    assert "greedy: B answers as many of 32 questions right as A (+0.0 points; the 95% interval, -1" in shown
    assert "includes 0, so no difference is shown); McNemar's exact test: p = 1.000." in shown


def test_only_kinds_of_answers_that_both_have_are_compared(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", {"q1": {"greedy": "1", "blank": "0"}})
    b = evaluation(tmp_path / "b", {"q1": {"greedy": "0", "sample": "11"}})
    assert [one["measure"] for one in compared(a, b)["measures"]] == ["greedy"]
    c = evaluation(tmp_path / "c", {"q1": {"sample": "01"}})
    result = run("compare-evals", a, c)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{c}: no greedy, sampled or blanked answers in common with {a}. Evaluate both with the same settings.\n"
    )


def test_other_questions_are_refused(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", greedy("010")), evaluation(tmp_path / "b", greedy("01011111"))
    result = run("compare-evals", a, b)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{b}: the questions differ from those in {a} (5 are in one only: q03, q04, q05, …). "
        "Evaluate both policies on the same data folder, with the same evaluate.max_questions.\n"
    )
    nothing = run("compare-evals", a, tmp_path / "none")
    assert nothing.code == 3 and "no such file: there is no output of evaluate. Run evaluate first." in nothing.stderr


def test_what_else_differs_is_said(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", greedy("01"), rewards={"symbolic": True}, evaluate={"num_generations": 4})
    b = evaluation(tmp_path / "b", greedy("01"), rewards={"symbolic": False}, evaluate={"num_generations": 4})
    assert compared(a, b)["also_differs"] == ["rewards"]
    assert "Besides the policies, the evaluations differ in: rewards.\n" in run("compare-evals", a, b).stdout
    assert "Besides" not in run("compare-evals", a, a).stdout


def test_the_text_names_changed_questions_and_the_file_has_the_same(tmp_path: Path) -> None:
    a = evaluation(tmp_path / "a", greedy("000000011100"))
    b = evaluation(tmp_path / "b", greedy("111111101100"))
    result = run("compare-evals", a, b, "--list", 2, "--out", tmp_path / "new/compared.md")
    lines = result.stdout.splitlines()
    assert lines[:2] == [f"A: {a}", f"B: {b}"]
    assert "greedy, won: q00, q01, … (7)" in lines and "greedy, lost: q07" in lines
    assert any(line.startswith("The intervals cover which questions were drawn, not training") for line in lines)
    assert any(line.startswith("Several slices are several tests") for line in lines)
    assert any(
        line.startswith("greedy: B answers 6 more of 12 questions right than A (+50.0 points;") for line in lines
    )
    text = (tmp_path / "new/compared.md").read_text()
    assert "| greedy | all | 12 | 25.0% | 75.0% | +50.0 |" in text and "- greedy, won: q00, q01, … (7)" in text


def test_the_weightings_follow_the_seed(tmp_path: Path) -> None:
    a, b = evaluation(tmp_path / "a", greedy("0101101")), evaluation(tmp_path / "b", greedy("1101010"))
    assert compared(a, b, "--seed", 1) == compared(a, b, "--seed", 1)
    wide, narrow = (compared(a, b, "--confidence", c)["measures"][0]["interval"] for c in (0.99, 0.6))
    assert wide[0] < narrow[0] <= narrow[1] < wide[1]
