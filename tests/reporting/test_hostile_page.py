"""Whatever a model or a dataset says is shown as text, in a real browser; and large pages open."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from reporting import hostile_run
from reporting.hostile_run import FIELDS, PAYLOADS, shown
from support.browser import complaints, requests, visit, work_of
from support.commands import run as command

from dapo_stages.config import Config
from dapo_stages.reporting.iteration.thumbnails import thumbnail
from dapo_stages.reporting.page.held_out import over_iterations
from dapo_stages.reporting.page.html import About, render
from dapo_stages.terminal.printed_table import Table

if TYPE_CHECKING:
    from selenium.webdriver import Chrome


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The page of a run with a group for each payload, which says it in every field that can."""
    run = hostile_run.build(tmp_path_factory.mktemp("runs") / "hostile")
    result = command("report", "--config", run / "config.yaml", "--run", run, "--iteration", 3)
    assert result.code == 0, result.stderr
    return run / "report.html"


def elements(chromium: Chrome) -> dict[str, int]:
    found: dict[str, int] = chromium.execute_script(
        "const counts = {}; for (const one of document.querySelectorAll('*'))"
        " counts[one.localName] = (counts[one.localName] ?? 0) + 1; return counts"
    )
    return found


def test_what_completions_say_is_shown_as_text(chromium: Chrome, hostile: Path) -> None:
    """225 cases: each payload in each field."""
    visit(chromium, hostile)
    seen = []
    while True:
        counts = elements(chromium)
        assert counts["script"] == 3 and counts["style"] == counts["html"] == counts["body"] == 1
        assert not counts.keys() & {"iframe", "textarea", "object"}
        seen += chromium.execute_script(
            "return [...document.querySelectorAll('.group')].map(group => [group.textContent, group.innerText])"
        )
        later = chromium.find_element("id", "next")
        if not later.is_enabled():
            break
        chromium.execute_script("arguments[0].click()", later)
    texts = [text for text, _ in seen]
    assert len(texts) == len(PAYLOADS)
    cases = [(case, field) for case in range(len(PAYLOADS)) for field in FIELDS]
    missing = [(case, field) for case, field in cases if not any(shown(case, field) in text for text in texts)]
    assert missing == []
    options = chromium.execute_script(
        "return [...document.querySelector('[name=slice]').options].map(option => option.textContent)"
    )
    assert sorted(options[1:]) == sorted(shown(case, "slice") for case in range(len(PAYLOADS)))
    assert complaints(chromium) == [] and requests(chromium) == [hostile.resolve().as_uri()]


def test_what_runs_are_called_is_shown_as_text(chromium: Chrome, tmp_path: Path) -> None:
    """100 cases: each payload as a fact, a header, a cell, and a slice in the legend of a curve."""
    everything = [text.replace("\x00", "") for text, _ in PAYLOADS]
    figures = {"iteration": 1, "eval": {"by_slice": {text: {"greedy_accuracy": 0.5} for text in everything}}}
    page = tmp_path / "page.html"
    table = Table(everything, [everything])
    facts = {f"fact {index}": text for index, text in enumerate(everything)}
    page.write_text(render(everything[1], table, [figures], {}, [], facts), encoding="utf-8", newline="")
    visit(chromium, page)
    told = [(seen or said).replace("␀", "").replace("\n", "⏎").replace("\t", " ") for said, seen in PAYLOADS]
    for selector in ("dd", "th", "td", ".legend span"):
        script = f"return [...document.querySelectorAll('{selector}')].map(one => one.textContent)"
        assert chromium.execute_script(script)[: len(everything)] == told, selector
    assert chromium.title == f"{told[1]} – dapo-stages"
    assert elements(chromium)["script"] == 3 and complaints(chromium) == []


def groups(number: int, size: int, tokens: int) -> list[dict[str, Any]]:
    """Made-up groups as browse.py gives them, with photo-like images."""
    rng = random.Random(1)
    words = [" the", " image", " shows", " a", " triangle", " angle", "°", " therefore", ",", " 3.14"]
    return [
        {
            "id": f"g{index}", "prompt": f"p{index}", "slice": "", "problem": "Which one? " * 20, "solution": "A",
            "sampled": 1, "kept": True, "correct": 1, "informative": True, "replayed": False,
            "images": [{"uri": photo(index % 10), "width": 320, "height": 240}],
            "completions": [
                {
                    "id": f"g{index}-s{sample}", "tokens": rng.choices(words, k=tokens), "cut": 0,
                    "weights": [round(rng.uniform(0.2, 3), 2) for _ in range(tokens)],
                    "vgrs": [round(rng.uniform(0.2, 3), 3) for _ in range(tokens)],
                    "vgr": 1.0, "reward": 1.0, "rewards": {"accuracy": 1.0}, "advantage": 0.1, "finish": "stop",
                    "in_loss": True, "why": "", "heat": None,
                }
                for sample in range(size)
            ],
        }
        for index in range(number)
    ]  # fmt: skip


@cache
def photo(seed: int) -> str | None:
    """Coarse noise, which compresses about as badly as a photograph, as the page has it."""
    noise = Image.frombytes("RGB", (80, 60), random.Random(seed).randbytes(80 * 60 * 3))
    buffer = io.BytesIO()
    noise.resize((320, 240), Image.Resampling.BICUBIC).save(buffer, format="PNG")
    return thumbnail(buffer.getvalue())


def test_a_hundred_iterations_of_64_questions_with_8_completions(chromium: Chrome, tmp_path: Path) -> None:
    """100 tokens each, photographs, 64 held-out questions, 24 evaluations of them: the page has the newest 2000
    completions, stays under 20 MB, and opens in less than 3 s of work."""
    said = "<think>\nA triangle.\n</think>\n<answer>A</answer>" * 4
    answer = {"right": True, "text": said, "answer": "A", "read": "tags", "finish": "stop", "cut": 0}
    about = {"slice": "s", "solution": "A", "samples": 8, "right": 4, "blank": answer}
    evaluations = {
        n: [about | {"id": f"h{q}", "greedy": answer | {"right": q < n}} for q in range(64)] for n in range(0, 96, 4)
    }
    made = groups(64, 8, 100)
    row = {"problem": "Which one? " * 20, "solution": "A", "images": []}
    questions = over_iterations(evaluations, lambda name: row)
    for question in questions:
        question["images"] = [{"uri": photo(len(question["id"])), "width": 320, "height": 240}]
    figures: list[dict[str, Any]] = [
        {
            "iteration": n, "rollout": {"accuracy": n / 100, "format": 0.9, "mean_tokens": 200.0},
            "weights": {"reward": n / 50, "reward_accuracy": n / 100, "reward_vgr": 0.1},
            "eval": {"greedy_accuracy": n / 100, "blank_accuracy": 0.25, "by_slice": {"s": {"greedy_accuracy": 0.5}}},
            "train": dict.fromkeys(("entropy", "kl", "grad_norm", "clip_low", "clip_high", "learning_rate"), 0.1),
        }
        for n in range(101)
    ]  # fmt: skip
    browsed = (
        {"iteration": n, "groups": [one | {"id": f"{n}-{one['id']}"} for one in made]} for n in range(100, 0, -1)
    )
    page = tmp_path / "page.html"
    table = Table(["n"], [[str(n)] for n in range(101)])
    text = render("large", table, figures, {}, browsed, {}, About(config=Config(), questions=questions))
    page.write_text(text, encoding="utf-8")
    assert 10e6 < page.stat().st_size < 20e6
    assert work_of(chromium, page) < 3.0
    assert len(chromium.find_elements("css selector", ".charts > section")) > 8
    assert chromium.find_element("id", "count").text == "2,000 completions of 250 questions, page 1 of 42"
    chromium.execute_script("document.querySelector('[name=search]').value = '97-g57'; controls.requestSubmit()")
    assert chromium.find_element("id", "count").text.startswith("8 completions of 1 question")


def test_a_completion_of_a_megabyte_is_shown_when_asked_for(chromium: Chrome, tmp_path: Path) -> None:
    (group,) = groups(1, 1, 1)
    text = "</script><b>字 " * 80_000  # 1.04 MB in 960 000 characters
    group["completions"][0]["tokens"] = [text]
    page = tmp_path / "page.html"
    browsed = {"iteration": 1, "groups": [group]}
    page.write_text(render("long", Table(["n"], []), [], {}, [browsed], {}), encoding="utf-8")
    assert visit(chromium, page) < 2.0
    length = "return document.querySelector('.tokens').textContent.length"
    assert chromium.execute_script(length) == 20_000
    chromium.execute_script("document.querySelector('.completion button').click()")
    assert chromium.execute_script("return document.querySelector('.tokens').textContent") == text
    assert complaints(chromium) == []
