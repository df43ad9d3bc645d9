"""Cases decided by hand: what a reader would say the completion answered."""

from __future__ import annotations

import time

import pytest

from dapo_stages.rewards.answers import extract_answer, extract_choice, parse_solution

TAGGED = [
    ("<think>red</think><answer>B</answer>", "B"),
    ("<answer> b </answer>", "B"),
    ("<answer>(c)</answer>", "C"),
    ("<answer>[D]</answer>", "D"),
    ("<answer>B. green</answer>", "B"),
    ("<answer>B) green</answer>", "B"),
    ("<answer>b) green</answer>", "B"),
    ("<answer>(B) a green circle</answer>", "B"),
    ("<answer>B: green</answer>", "B"),
    ("<answer>B green</answer>", "B"),
    ("<answer>B - green</answer>", "B"),
    ("<answer>Option C</answer>", "C"),
    ("<answer>The answer is D.</answer>", "D"),
    ("<answer>\\boxed{B}</answer>", "B"),
    ("<answer>$B$</answer>", "B"),
    ("<answer>**B**</answer>", "B"),
    ("<answer>Ｂ</answer>", "B"),
    ("<answer>（Ｃ）</answer>", "C"),
    ("<answer>B．绿色</answer>", "B"),
    ("<answer>B、绿色</answer>", "B"),
    ("<answer>选B</answer>", "B"),
    ("<answer>答案：D</answer>", "D"),
    ("<answer>I</answer>", "I"),
    ("<answer>J.</answer>", "J"),
    ("<answer>\nA\n</answer>", "A"),
    ("<answer>a</answer>", "A"),
    ("<answer>It is green (B)</answer>", "B"),
    ("<Answer>B</Answer>", "B"),
    ("<answer>K</answer>", None),
    ("<answer>A red circle</answer>", None),
    ("<answer>a dog</answer>", None),
    ("<answer>green</answer>", None),
    ("<answer></answer>", None),
    ("<answer>A or B</answer>", None),
    ("<answer>A, B, C, D</answer>", None),
    ("<answer>A/B</answer>", None),
    ("<answer>ABCD</answer>", None),
    ("<answer>A 或 B</answer>", None),
    ("<answer>The answer is A or B</answer>", None),
    ("<answer>B, B</answer>", "B"),
    ("<answer>B</answer> or <answer>C</answer>", "C"),
    ("<answer><answer>B</answer></answer>", "B"),
    ("<answer>B</answer> The answer is C.", "B"),
    ("<answer>green</answer> The answer is C.", "C"),
    ("<answer>A or B</answer> The answer is C.", None),
    ("<answer>B", "B"),
]
THOUGHT = [
    ("<think><answer>A</answer></think><answer>B</answer>", "B"),
    ("<think><answer>A</answer></think>", None),
    ("<think>The answer is A.</think>", None),
    ("<think>The answer is A.</think> The answer is C.", "C"),
    ("<think>The answer is A. <answer>A</answer>", None),
    ("<think>B", None),
    ("<answer>B</answer><think>or <answer>C</answer>", "B"),
    ("It could be A.</think><answer>B</answer>", "B"),
    ("The answer is A.</think> hm", None),
    ("<think>A <think>B</think><answer>C</answer>", "C"),
    ("<think>A</think><answer>B</answer></think>", "B"),
    ("<think>A</think><answer>B</answer><think><answer>C</answer></think>", "B"),
    ("<THINK>A</THINK> B", "B"),
]
STATED = [
    ("The answer is B", "B"),
    ("the answer is b.", "B"),
    ("Answer: (C)", "C"),
    ("The answer is option b) green.", "B"),
    ("The correct answer is\n\nB", "B"),
    ("The answer is “B”.", "B"),
    ("ANSWER:B", "B"),
    ("A: red\nB: green\nThe best choice here is B: green\n", "B"),
    ("A and B are wrong, so C", "C"),
    ("The answer is a big red circle.", None),
    ("答案是：\n**B**", "B"),
    ("我觉得是B", "B"),
    ("It's A.", "A"),
    ("**Answer:** C", "C"),
    ("**Answer**: C", "C"),
    ("Final answer - D", "D"),
    ("The correct option is D.", "D"),
    ("So the correct answer is option B, green.", "B"),
    ("The answer is therefore most likely C.", "C"),
    ("The right answer would be A.", "A"),
    ("Therefore, A is the correct answer.", "A"),
    ("(D) is right, C is not.", "D"),
    ("Option B is correct because A is red.", "B"),
    ("I choose C over D.", "C"),
    ("I'd go with option (b).", "B"),
    ("The answer is \\boxed{\\text{(C)}}", "C"),
    ("Hence $\\boxed{B}$. A was tempting.", "B"),
    ("A is red, so **B** and not C", "B"),
    ("**B. green** fits, unlike A", "B"),
    ("The answer is A. Wait, no: the answer is B.", "B"),
    ("The answer is B, not A.", "B"),
    ("The answer is B and A is wrong.", "B"),
    ("The answer is A or B.", None),
    ("The answer is a red circle. B", "B"),
    ("The answer is: A red circle. Option C", "C"),
    ("Answer: I think it is C", "C"),
    ("The answer is not B but C", "C"),
    ("A is right of the box, so D", "D"),
    ("答案是 B", "B"),
    ("答案是B。", "B"),
    ("答案：Ｃ", "C"),
    ("答案应该是选项 D", "D"),
    ("正确答案为（Ａ）。", "A"),
    ("正确选项是 B，不是 C", "B"),
    ("选 C", "C"),
    ("我选择B，因为它是绿色的", "B"),
    ("故选：A", "A"),
    ("所以选D项", "D"),
    ("B是正确的，A是红色", "B"),
    ("不选A，选B", "B"),
    ("A不正确，C正确", "C"),
]
LONE = [
    ("B", "B"),
    ("(b)", "B"),
    ("B.", "B"),
    ("It looks like C", "C"),
    ("First A, then D", "D"),
    ("A red circle is shown. B", "B"),
    ("B. A red circle is shown.", "B"),
    ("A red circle is shown.", None),
    ("I see a red circle.", None),
    ("What am I? I, for one, do not know.", None),
    ("Grade A", "A"),
    ("Option A shows it", "A"),
    ("Not B", None),
    ("I am sure that B is wrong, C", "C"),
    ("A, because C is wrong", "A"),
    ("不是A", None),
    ("图中是绿色，B", "B"),
    ("Ｄ", "D"),
    ("C++ and vitamin B12 in the U.S.A.", None),
    ("E = mc^2 in D-dur", "E"),
    ("\tI\n", "I"),
    ("red", None),
    ("", None),
    ("  \n", None),
]


@pytest.mark.parametrize(("text", "letter"), TAGGED + THOUGHT + STATED + LONE)
def test_choice(text: str, letter: str | None) -> None:
    assert extract_choice(text) == letter


@pytest.mark.parametrize(
    ("text", "answer"),
    [
        ("<think>5</think><answer> 12 cm </answer>", "12 cm"),
        ("<think><answer>5</answer></think><answer>6</answer>", "6"),
        ("<answer>5</answer><answer>6</answer>", "6"),
        ("<answer></answer>", None),
        ("So $x = \\boxed{\\frac{1}{2}}$.", "\\frac{1}{2}"),
        ("\\boxed{1} and \\boxed{\\text{red}}", "red"),
        ("The answer is 3.5. It was hard.", "3.5"),
        ("The **answer** is 12 cm, because it is.", "12 cm"),
        ("答案是5，因为有五个。", "5"),
        ("<think>5</think>42", "42"),
        ("one\ntwo", None),
        ("<think>5", None),
        ("", None),
    ],
)
def test_answer(text: str, answer: str | None) -> None:
    assert extract_answer(text) == answer


@pytest.mark.parametrize(
    ("solution", "parsed"),
    [
        ("B", "B"),
        (" b ", "B"),
        ("Ｂ", "B"),
        ("(B)", "B"),
        ("B. green", "B"),
        ("B) green", "B"),
        ("B green", "B"),
        ("<answer>B</answer>", "B"),
        ("<answer> B. green </answer>", "B"),
        ("<think>A</think><answer>B</answer>", "B"),
        ("Answer: B", "B"),
        ("\\boxed{B}", "B"),
        ("I", "I"),
        ("A red circle", "A red circle"),
        ("a dog", "a dog"),
        ("A, C", "A, C"),
        ("D = 5", "D = 5"),
        ("B^2", "B^2"),
        ("A - B", "A - B"),
        ("<answer>12 cm</answer>", "12 cm"),
        ("0.5", "0.5"),
        ("blue", "blue"),
        ("K", "K"),
        ("", ""),
    ],
)
def test_solution(solution: str, parsed: str) -> None:
    assert parse_solution(solution) == parsed


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "<answer>", "\\boxed{", "A ", "A, ", "answer is ", "选", "**", "( ", "the ", "\\text{"],
)
def test_long_hostile_text_is_read_quickly(piece: str) -> None:
    text = piece * (20_000 // len(piece))
    start = time.process_time()
    extract_choice(text)
    extract_choice(f"<answer>{text}</answer>")
    extract_answer(text)
    assert time.process_time() - start < 3
