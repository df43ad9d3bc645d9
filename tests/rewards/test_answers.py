"""Cases decided by hand: what a reader would say the completion answered, and why."""

from __future__ import annotations

import random
import time

import pytest

from dapo_stages.rewards.accuracy import accuracy
from dapo_stages.rewards.answers import parse_solution, read_answer, read_choice
from dapo_stages.rewards.format import format_reward
from dapo_stages.rewards.isolated import symbolic

TAGGED = [
    ("<think>red</think><answer>B</answer>", "B", "the layout asked for"),
    ("<answer> b </answer>", "B", "a letter alone may be in lower case"),
    ("<answer>(c)</answer>", "C", "brackets are no part of a letter"),
    ("<answer>[D]</answer>", "D", "square brackets neither"),
    ("<answer>B. green</answer>", "B", "an option with its text, after a dot"),
    ("<answer>B) green</answer>", "B", "after a bracket"),
    ("<answer>b) green</answer>", "B", "in lower case, made a letter by the bracket"),
    ("<answer>(B) a green circle</answer>", "B", "in brackets, the text has an article"),
    ("<answer>B: green</answer>", "B", "after a colon"),
    ("<answer>B green</answer>", "B", "B is no English word"),
    ("<answer>B - green</answer>", "B", "a dash before a word"),
    ("<answer>Option C</answer>", "C", "an option by its name"),
    ("<answer>The answer is D.</answer>", "D", "a sentence inside the tags"),
    ("<answer>\\boxed{B}</answer>", "B", "a box inside the tags"),
    ("<answer>$B$</answer>", "B", "LaTeX delimiters"),
    ("<answer>**B**</answer>", "B", "Markdown"),
    ("<answer>Ｂ</answer>", "B", "full-width"),
    ("<answer>（Ｃ）</answer>", "C", "full-width brackets, too"),
    ("<answer>B．绿色</answer>", "B", "a full-width dot"),
    ("<answer>B、绿色</answer>", "B", "an ideographic comma"),
    ("<answer>选B</answer>", "B", "'choose B'"),
    ("<answer>答案：D</answer>", "D", "'answer: D'"),
    ("<answer>I</answer>", "I", "alone in the tags, I is the ninth option"),
    ("<answer>J.</answer>", "J", "the last letter"),
    ("<answer>\nA\n</answer>", "A", "line breaks around it"),
    ("<answer>a</answer>", "A", "a is no article without a noun"),
    ("<answer>It is green (B)</answer>", "B", "the only letter that stands alone"),
    ("<Answer>B</Answer>", "B", "tags in another case still enclose an answer"),
    ("<answer>K</answer>", None, "K is beyond J"),
    ("<answer>A red circle</answer>", None, "the article"),
    ("<answer>a dog</answer>", None, "the article in lower case"),
    ("<answer>green</answer>", None, "no letter"),
    ("<answer></answer>", None, "empty"),
    ("<answer>A or B</answer>", None, "two letters are no choice"),
    ("<answer>A, B, C, D</answer>", None, "all of them are no choice"),
    ("<answer>A/B</answer>", None, "two letters with a slash"),
    ("<answer>ABCD</answer>", None, "a word of letters"),
    ("<answer>A 或 B</answer>", None, "'A or B'"),
    ("<answer>The answer is A or B</answer>", None, "a statement of two letters"),
    ("<answer>B, B</answer>", "B", "the same letter twice"),
    ("<answer>B</answer> or <answer>C</answer>", "C", "the last block wins"),
    ("<answer><answer>B</answer></answer>", "B", "nested: the inner block counts"),
    ("<answer>B</answer> The answer is C.", "B", "the tags win over what follows"),
    ("<answer>green</answer> The answer is C.", "C", "a block without a letter is skipped"),
    ("<answer>A or B</answer> The answer is C.", None, "a block of two letters is not"),
    ("<answer>B", "B", "never closed: a lone letter is left"),
    ("<answer>C</answer><answer></answer>", "C", "an empty last block is skipped, C then stands alone"),
    ("<answer>D", "D", "cut off before the end tag"),
    ("D</answer>", "D", "an end tag alone"),
    ("<answer >B</answer>", "B", "a tag with a space is no tag: the letter stands alone"),
    ("< answer>B< /answer>", "B", "neither is this"),
    ("＜answer＞B＜/answer＞", "B", "full-width angle brackets become plain ones"),
    ("<answer>\\text{B}</answer>", "B", "LaTeX text"),
    ("<answer>$\\boxed{\\text{D}}$</answer>", "D", "a box of text between dollar signs"),
    ("<answer>\\(C\\)</answer>", "C", "LaTeX's other delimiters"),
    ("<answer>A.</answer>", "A", "a full stop after a capital A"),
    ("<answer>A: a red circle</answer>", "A", "a colon after a capital A"),
    ("<answer>Apple</answer>", None, "a letter inside a word"),
    ("<answer>Bad</answer>", None, "B inside a word"),
    ("<answer>cab</answer>", None, "letters of options all through a word"),
    ("<answer>B12</answer>", None, "a letter before digits is a name"),
    ("<answer>A and C</answer>", None, "two letters with 'and'"),
    ("<answer>A;B</answer>", None, "two letters with a semicolon"),
    ("<answer>A B</answer>", None, "two letters with a space"),
    ("<answer>A、B</answer>", None, "two letters with an ideographic comma"),
    ("<answer>Ａ，Ｂ</answer>", None, "two full-width letters"),
    ("<answer>None</answer>", None, "none of them"),
    ("<answer>?</answer>", None, "a question mark"),
    ("<answer>正确答案是C</answer>", "C", "'the right answer is C'"),
    ("<answer>选项B：绿色</answer>", "B", "'option B: green'"),
    ("<answer>ｂ</answer>", "B", "full-width lower case"),
    ("<answer>B</answer><answer>B</answer><answer>B</answer>", "B", "repeated"),
    ("<answer>A</answer><answer>A</answer><answer>B</answer>", "B", "repeated, then corrected"),
]
THOUGHT = [
    ("<think><answer>A</answer></think><answer>B</answer>", "B", "a block inside the thought does not answer"),
    ("<think><answer>A</answer></think>", None, "nothing outside the thought"),
    ("<think>The answer is A.</think>", None, "a statement inside the thought"),
    ("<think>The answer is A.</think> The answer is C.", "C", "only the one outside counts"),
    ("<think>It could be B. <answer>A</answer>", "A", "a thought that is never closed may end in an answer block"),
    ("<think>A dog.\nB", "B", "or in a line with the letter alone"),
    ("<think>A dog, so the answer is B.", "B", "or in a statement"),
    ("<think>The answer is A, I guess.\nThe wheel is red", None, "what is stated in its middle is none"),
    ("<think>It could be A or B", None, "and two letters at its end are none"),
    ("A. Yes\nB. No", None, "yes and no may be the options themselves"),
    ("A. not there\nB. on the right", None, "so may words that could judge"),
    ("A. red - no\nB. green - yes", "B", "after an option they judge it"),
    ("- A: incorrect\n- B: correct", "B", "a verdict that is no option"),
    ("<think>x</think><answer>B\nbecause A is red", "B", "of a block that is never closed the first line counts"),
    ("<answer>B</answer><think>or <answer>C</answer>", "B", "a second thought does not answer"),
    ("It could be A.</think><answer>B</answer>", "B", "the prompt opened the thought"),
    ("The answer is A.</think> hm", None, "so that this belongs to it"),
    ("<think>A <think>B</think><answer>C</answer>", "C", "nested: the first end closes"),
    ("<think>A</think><answer>B</answer></think>", "B", "a further end closes nothing"),
    ("<think>A</think><answer>B</answer><think><answer>C</answer></think>", "B", "two thoughts"),
    ("<THINK>A</THINK> B", "B", "tags in capitals"),
    ("<think>A</think>", None, "a thought and no answer"),
    ("</think>B", "B", "an end tag first"),
    ("<think></think><answer>B</answer>", "B", "an empty thought"),
    (
        "<think><think><think><think><think>A</think></think></think></think></think><answer>B</answer>",
        "B",
        "nested deeply",
    ),
    ("<answer>A</answer></think><answer>B</answer>", "B", "the first block was in a thought that the prompt opened"),
    ("<Think>A</tHink><ANSWER>C</ANSWER>", "C", "mixed case"),
]
STATED = [
    ("The answer is B", "B", "a statement"),
    ("the answer is b.", "B", "in lower case at the end of a sentence"),
    ("Answer: (C)", "C", "after a colon, in brackets"),
    ("The answer is option b) green.", "B", "the word option, lower case with a bracket"),
    ("The correct answer is\n\nB", "B", "on another line"),
    ("The answer is “B”.", "B", "typographic quotes"),
    ("ANSWER:B", "B", "capitals, no space"),
    ("A: red\nB: green\nThe best choice here is B: green\n", "B", "a list of options before it"),
    ("A and B are wrong, so C", "C", "what is ruled out is not chosen"),
    ("The answer is a big red circle.", None, "the article"),
    ("答案是：\n**B**", "B", "'the answer is:', Markdown on the next line"),
    ("我觉得是B", "B", "'I think it is B'"),
    ("It's A.", "A", "a capital A before a full stop is no article"),
    ("**Answer:** C", "C", "bold up to the colon"),
    ("**Answer**: C", "C", "bold before the colon"),
    ("Final answer - D", "D", "a dash"),
    ("The correct option is D.", "D", "option instead of answer"),
    ("So the correct answer is option B, green.", "B", "with its text"),
    ("The answer is therefore most likely C.", "C", "hedges in between"),
    ("The right answer would be A.", "A", "another form of to be"),
    ("Therefore, A is the correct answer.", "A", "the letter first"),
    ("(D) is right, C is not.", "D", "in brackets, and one that is ruled out"),
    ("Option B is correct because A is red.", "B", "a reason that names another option"),
    ("I choose C over D.", "C", "the one chosen, not the one compared with"),
    ("I'd go with option (b).", "B", "lower case in brackets"),
    ("The answer is \\boxed{\\text{(C)}}", "C", "text in a box in LaTeX"),
    ("Hence $\\boxed{B}$. A was tempting.", "B", "a box wins over a letter after it"),
    ("A is red, so **B** and not C", "B", "bold wins over plain letters"),
    ("**B. green** fits, unlike A", "B", "bold with its text"),
    ("The answer is A. Wait, no: the answer is B.", "B", "the last statement wins"),
    ("The answer is B, not A.", "B", "a denied letter after it"),
    ("The answer is B and A is wrong.", "B", "'and' that begins a sentence"),
    ("The answer is A or B.", None, "two letters are no statement"),
    ("The answer is a red circle. B", "B", "the article in the statement, then a letter"),
    ("The answer is: A red circle. Option C", "C", "a capital article in the statement"),
    ("Answer: I think it is C", "C", "the pronoun after the colon"),
    ("The answer is not B but C", "C", "a denied letter before it"),
    ("A is right of the box, so D", "D", "'right of' is a place"),
    ("答案是 B", "B", "'the answer is B'"),
    ("答案是B。", "B", "without a space, ideographic full stop"),
    ("答案：Ｃ", "C", "full-width colon and letter"),
    ("答案应该是选项 D", "D", "'should be option D'"),
    ("正确答案为（Ａ）。", "A", "'the right answer is (A)', full-width"),
    ("正确选项是 B，不是 C", "B", "'B, not C'"),
    ("选 C", "C", "'choose C'"),
    ("我选择B，因为它是绿色的", "B", "'I choose B, because it is green'"),
    ("故选：A", "A", "'hence choose: A'"),
    ("所以选D项", "D", "'so choose item D'"),
    ("B是正确的，A是红色", "B", "'B is right, A is red'"),
    ("不选A，选B", "B", "'not A, choose B'"),
    ("A不正确，C正确", "C", "'A is not right, C is'"),
    ("\\boxed{D}", "D", "a box alone"),
    ("$$\\boxed{\\mathrm{B}}$$", "B", "a box in a formula of its own"),
    ("\\boxed{A} no, \\boxed{C}", "C", "the last box wins"),
    ("The answer is \\textbf{B}.", "B", "LaTeX bold"),
    ("My choice is E.", "E", "choice instead of answer"),
    ("Ｔｈｅ ａｎｓｗｅｒ ｉｓ Ｂ", "B", "a full-width sentence"),
    ("最佳选项是C", "C", "'the best option is C'"),
    ("答案选D", "D", "'answer: choose D'"),
]
LONE = [
    ("B", "B", "nothing else"),
    ("(b)", "B", "lower case in brackets"),
    ("B.", "B", "a full stop"),
    ("It looks like C", "C", "the only capital that stands alone"),
    ("First A, then D", "D", "the last lone letter wins"),
    ("A red circle is shown. B", "B", "the article, then a letter"),
    ("B. A red circle is shown.", "B", "a letter, then the article"),
    ("A red circle is shown.", None, "the article alone"),
    ("I see a red circle.", None, "the pronoun"),
    ("What am I? I, for one, do not know.", None, "the pronoun before punctuation"),
    ("Grade A", "A", "a capital A at the end"),
    ("Option A shows it", "A", "the word before makes it an option"),
    ("Not B", None, "ruled out"),
    ("I am sure that B is wrong, C", "C", "ruled out by what follows"),
    ("A, because C is wrong", "A", "C is ruled out, A is left"),
    ("不是A", None, "'is not A'"),
    ("图中是绿色，B", "B", "'the image is green, B'"),
    ("Ｄ", "D", "full-width alone"),
    ("C++ and vitamin B12 in the U.S.A.", None, "letters in names and abbreviations"),
    ("E = mc^2 in D-dur", None, "letters of a formula and of a compound"),
    ("\tI\n", "I", "I as all there is"),
    ("red", None, "a word"),
    ("", None, "empty"),
    ("  \n", None, "blank"),
    ("Banana and Cabbage", None, "letters at the start of words"),
    ("ABC", None, "a word of letters"),
    ("x^A + B_1", None, "letters in formulas"),
    ("Don't", None, "letters around an apostrophe"),
    ("K", None, "beyond J"),
    ("Z", None, "far beyond J"),
    ("5", None, "a number"),
    ("🙂 B 🙂", "B", "between emoji"),
    ("\x00B\x00", "B", "between control characters"),
    ("\ufeffC", "C", "after a byte order mark"),
    ("C\u200b", "C", "before a space of no width"),
    ("Б", None, "a Cyrillic letter"),
    ("β", None, "a Greek letter"),
    ("\ud800", None, "half a character"),
    ("<|im_end|>", None, "a special token"),
    ("<think>", None, "a tag alone"),
    ("</answer>", None, "an end tag alone"),
]
# Answers that are not letters: text, solution, score, reason.
OTHERS = [
    ("<think>5</think><answer>12</answer>", "12", 1.0, "a number"),
    ("<answer>12.0</answer>", "12", 1.0, "the same number, written otherwise"),
    ("<answer>１２</answer>", "12", 1.0, "full-width digits"),
    ("<answer>\\frac{1}{2}</answer>", "0.5", 1.0, "a fraction in LaTeX"),
    ("<answer>$\\dfrac{3}{6}$</answer>", "1/2", 1.0, "not in lowest terms"),
    ("so $x = \\boxed{\\sqrt{8}}$", "2\\sqrt{2}", 1.0, "a root in a box"),
    ("<answer>5 cm</answer>", "5", 1.0, "a unit that the solution leaves out"),
    ("<answer>5 cm</answer>", "5 m", 0.0, "another unit"),
    ("<answer>1,000</answer>", "1000", 1.0, "digit groups"),
    ("<answer>3 or 4</answer>", "4", 0.0, "two numbers are no choice"),
    ("<answer>-3</answer>", "3", 0.0, "another sign"),
    ("<answer>three</answer>", "3", 1.0, "a number in words"),
    ("<answer>Red.</answer>", "red", 1.0, "case and full stop"),
    ("<answer>the red one</answer>", "red one", 1.0, "an article"),
    ("<answer>reddish</answer>", "red", 0.0, "a longer word"),
    ("<answer>绿色</answer>", "绿色", 1.0, "Chinese"),
    ("答案是5，因为有五个。", "5", 1.0, "'the answer is 5, because there are five'"),
    ("<think>7</think>", "7", 0.0, "only in the thought"),
    ("<answer>7</answer><answer>8</answer>", "7", 0.0, "the last block wins"),
    ("<answer>7", "7", 1.0, "cut off before the end tag"),
    ("<answer></answer>", "7", 0.0, "empty"),
    ("", "7", 0.0, "nothing at all"),
    ("", "", 0.0, "no solution: nothing is right"),
    ("one\\ntwo\\nthree", "two", 0.0, "several lines are no short answer"),
    ("<answer>9^{9^{9^9}}</answer>", "2", 0.0, "no end in sight: killed"),
    ("<answer>\\frac{1}{0}</answer>", "2", 0.0, "no number"),
]


CHOICES = TAGGED + THOUGHT + STATED + LONE


def test_the_tables_are_large_and_say_why() -> None:
    texts = [text for text, *_ in CHOICES]
    assert len(texts) == len(set(texts)) >= 120
    assert all(reason for *_, reason in CHOICES + OTHERS)


@pytest.mark.parametrize(("text", "letter", "reason"), CHOICES)
def test_choice(text: str, letter: str | None, reason: str) -> None:
    assert read_choice(text).answer == letter, reason
    scores = {solution: accuracy(text, solution) for solution in "ABCDEFGHIJ"}
    assert scores == {solution: float(solution == letter) for solution in "ABCDEFGHIJ"}, reason


@pytest.mark.parametrize(("text", "solution", "score", "reason"), OTHERS)
def test_score_of_other_answers(text: str, solution: str, score: float, reason: str) -> None:
    assert accuracy(text, solution, timeout=1 if "9^9" in text else 20) == score, reason


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
    assert read_answer(text).answer == answer


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
    read_choice(text)
    read_choice(f"<answer>{text}</answer>")
    read_answer(text)
    assert time.process_time() - start < 30  # a second on most machines; hours if a pattern is not linear


@pytest.mark.parametrize("megabytes", [2, pytest.param(10, marks=pytest.mark.faults)])
@pytest.mark.parametrize("piece", ["x", "<think>", "<answer>B</answer> ", "The answer is B. ", "</answer>选\n"])
def test_megabytes_are_read_in_linear_time(piece: str, megabytes: int) -> None:
    """Ten times the text takes about ten times as long; a quadratic reader would take a hundred times."""
    seconds = []
    for size in (megabytes * 100_000, megabytes * 1_000_000):
        text = piece * (size // len(piece))
        start = time.process_time()
        assert accuracy(text, "B") in (0.0, 1.0) and format_reward(text) == 0.0
        seconds.append(time.process_time() - start)
    print(f"{piece!r}: {seconds[1]:.2f} s for {megabytes} MB")
    assert seconds[1] < 30 * max(seconds[0], 0.01)


FUZZ = [
    *(
        "<think>",
        "</think>",
        "<answer>",
        "</answer>",
        "<Answer>",
        "<think",
        "answer>",
        "\\boxed{",
        "\\text{",
        "}",
        "{",
        "$",
    ),
    *(
        "A",
        "B",
        "C",
        "Ｄ",
        "a",
        "b",
        "I",
        "(",
        ")",
        "（",
        "）",
        ".",
        "。",
        ",",
        "、",
        ":",
        "：",
        "**",
        "`",
        "\n",
        " ",
        "\t",
    ),
    *(
        "The answer is ",
        "answer: ",
        "not ",
        " or ",
        " and ",
        "选",
        "不选",
        "答案是",
        "正确",
        "option ",
        "is wrong",
        "is correct",
    ),
    *(
        "1",
        "0.5",
        "-3",
        "\\frac{1}{2}",
        "^",
        "%",
        "cm",
        "π",
        "\x00",
        "\ud800",
        "\udfff",
        "\u202e",
        "🙂",
        "é",
        "ﬁ",
        "½",
        "²",
        "\ufeff",
    ),
]


@pytest.mark.long
def test_nothing_makes_the_parser_fail(monkeypatch: pytest.MonkeyPatch) -> None:
    """10 000 strings, half of tags and words with a meaning here, half of random characters; the seed is fixed.

    Expressions are read up to the point where math-verify would compare them.
    """
    monkeypatch.setattr(symbolic, "equal", lambda *_, **__: False)
    drawn = random.Random(0)
    start = time.process_time()
    for number in range(10_000):
        if number % 2:
            text = "".join(drawn.choices(FUZZ, k=drawn.randrange(40)))
        else:
            text = "".join(chr(drawn.randrange(0x11_0000)) for _ in range(drawn.randrange(60)))
        choice, answer = read_choice(text).answer, read_answer(text).answer
        assert choice is None or (len(choice) == 1 and choice in "ABCDEFGHIJ")
        assert answer is None or (answer and answer == answer.strip())
        assert parse_solution(text) is not None and format_reward(text) in (0.0, 1.0)
        assert accuracy(text, "B") == float(choice == "B")
        assert accuracy(text, "12 cm") in (0.0, 1.0)
        assert accuracy("<answer>12 cm</answer>", text) in (0.0, 1.0)
    print(f"{time.process_time() - start:.1f} s")
    assert time.process_time() - start < 200  # a pattern that is not linear takes hours
