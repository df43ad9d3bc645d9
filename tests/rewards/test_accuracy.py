"""Which answers a teacher would accept, decided by hand."""

from __future__ import annotations

import pytest

from dapo_stages.rewards.accuracy import accuracy
from dapo_stages.rewards.isolated import symbolic


@pytest.mark.parametrize(
    ("text", "solution", "reward"),
    [
        ("<think>A</think><answer>B</answer>", "B", 1.0),
        ("<think>B</think><answer>A</answer>", "B", 0.0),
        ("<answer>B. green</answer>", "<answer>B</answer>", 1.0),
        ("答案是Ｂ", "B. green", 1.0),
        ("<answer>green</answer>", "B. green", 0.0),
        ("<think>B", "B", 1.0),
        ("", "B", 0.0),
    ],
)
def test_a_letter_is_compared_as_a_letter(
    text: str, solution: str, reward: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(symbolic, "equal", None)
    assert accuracy(text, solution) == reward


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("blue", "Blue"),
        ("The blue one.", "blue one"),
        ("a  dog", "dog"),
        ('"Yes"', "yes"),
        ("A, C", "A,C"),
        ("$x$", "x"),
        ("\\text{red}", "red"),
        ("12cm", "12 cm"),
        ("１２", "12"),
    ],
)
def test_equal_texts_need_no_mathematics(answer: str, solution: str) -> None:
    assert accuracy(f"<answer>{answer}</answer>", solution, symbolic=False) == 1.0


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("1/2", "0.5"),
        ("0.5", "1/2"),
        ("\\frac{1}{2}", "0.5"),
        ("$\\frac12$", "1/2"),
        ("\\boxed{0.50}", "\\frac{1}{2}"),
        ("\\(\\frac{1}{2}\\)", "0.5"),
        ("1 1/2", "1.5"),
        ("12 cm", "12"),
        ("12", "12 cm"),
        ("12.0 cm", "12cm"),
        ("12\\text{ cm}", "12 cm"),
        ("90°", "90"),
        ("90^\\circ", "90 degrees"),
        ("12 cm²", "12.0 cm^2"),
        ("5个", "5"),
        ("$5.00", "5 dollars"),
        ("1,234", "1234"),
        ("1 234 567", "1234567"),
        ("1e3", "1000"),
        ("2 × 10³", "2000"),
        ("50%", "0.5"),
        ("−3", "-3"),
        ("x = 5", "5"),
        ("y+x", "x+y"),
        ("x**2 + 2x + 1", "(x+1)^2"),
        ("sqrt(8)", "2\\sqrt{2}"),
        ("2*pi", "2\\pi"),
        ("2π cm", "2\\pi"),
        ("2, 1", "\\{1, 2\\}"),
        ("(1,2)", "(1, 2)"),
    ],
)
def test_equal_expressions(answer: str, solution: str) -> None:
    assert accuracy(f"<answer>{answer}</answer>", solution, timeout=20) == 1.0


@pytest.mark.parametrize(
    ("answer", "solution"),
    [
        ("0.33", "1/3"),
        ("12 m", "12 cm"),
        ("13 cm", "12 cm"),
        ("3 or 4", "4"),
        ("3, 4", "4"),
        ("3 4", "7"),
        ("3 4", "4"),
        ("it is 4 or so", "4"),
        ("act", "cat"),
        ("red", "3"),
        ("(2,1)", "(1,2)"),
        ("-3", "3"),
        ("1234", "12"),
        ("3 dogs and 2 cats", "2"),
        ("\\frac{", "2"),
        ("", "2"),
        ("", ""),
        (".", "!"),
        ("9" * 5000, "2"),
        ("\ud800", "2"),
        ("\x00", "2"),
        ("2}$ $\\frac{1}{0}", "2"),
        ("\\input{/etc/passwd}", "2"),
        ("__import__('os').getpid()", "2"),
    ],
)
def test_different_expressions(answer: str, solution: str) -> None:
    assert accuracy(f"<answer>{answer}</answer>", solution, timeout=20) == 0.0


def test_mathematics_can_be_switched_off() -> None:
    assert accuracy("<answer>1/2</answer>", "0.5", symbolic=False) == 0.0
