"""Whatever a model or a data set says is shown as text, in a real browser; and large pages open."""

from __future__ import annotations

import io
import random
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from PIL import Image
from reporting import tiny_run
from support.browser import complaints, requests, visit
from support.commands import run as command

from dapo_stages.manifests import Source
from dapo_stages.outputs import Plan
from dapo_stages.reporting.html import render
from dapo_stages.reporting.pictures import thumbnail
from dapo_stages.reporting.tables import Table

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

# What is said -> what is shown (None: just that). Control and direction characters are shown as symbols.
PAYLOADS: list[tuple[str, str | None]] = [
    ("<script>alert(1)</script>", None),
    ("</script><script>alert(2)</script>", None),
    ("</textarea><img src=x onerror=alert(3)>", None),
    ("<!-- <script> -->", None),
    ("--><svg onload=alert(4)>", None),
    ("</style><style>*{display:none}</style>", None),
    ("</title></head><body>", None),
    ('"><iframe src="http://example.org">', None),
    ("' onmouseover='alert(5)", None),
    ("javascript:alert(6)", None),
    ("<a href=javascript:alert(7)>x</a>", None),
    ("&lt;b&gt; &amp; &#60;script&#62; &nbsp;", None),
    ("[/box] [bold]x[/bold] [link=file:///etc/passwd]x[/link]", None),
    ("| a | b |\n|---|---|\n| 1 | 2 |", None),
    ("```\n# heading\n```", None),
    ("{{ 7*7 }} {% raw %} ${7*7} <%= 7*7 %>", None),
    ('\\u003cscript\\u003e \\x3c \\" \\n', None),
    ("\u202eright to left\u202c", "⟨U+202E⟩right to left⟨U+202C⟩"),
    ("\u2066isolated\u2069 \u200fמשמאל لليمين", "⟨U+2066⟩isolated⟨U+2069⟩ ⟨U+200F⟩משמאל لليمين"),
    ("\x1b[31mred\x1b[0m \x07bell \x00nul \x7fdel", "␛[31mred␛[0m ␇bell ␀nul ␡del"),
    ("\x9b31m C1 \x85", "⟨U+009B⟩31m C1 ⟨U+0085⟩"),
    ("line\u2028separator\u2029paragraph", "line⟨U+2028⟩separator⟨U+2029⟩paragraph"),
    ("a\u0301 e\u200dzero 👩‍👩‍👧 𝕏 标题", None),
    ("__proto__ constructor toString", None),
    ("]]> <![CDATA[x]]> <?xml?> %00 \t tab", None),
]
FIELDS = ("problem", "solution", "slice", "group", "prompt", "completion", "token", "why", "finish")
LINES = {"problem", "solution", "token"}  # they keep their line breaks; elsewhere text stays on one line


def mark(case: int, field: str, text: str) -> str:
    return f"{case}:{field}:{text}:{case}"


def shown(case: int, field: str) -> str:
    said, seen = PAYLOADS[case]
    text = seen or said
    return mark(case, field, text if field in LINES else text.replace("\n", "⏎").replace("\t", " "))


@pytest.fixture(scope="module")
def hostile(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run with a group for each payload, which says it in every field that can."""
    run = tiny_run.build(tmp_path_factory.mktemp("runs") / "hostile", last="rollout")
    tables: dict[str, list[dict[str, Any]]] = {"prompts": [], "completions": [], "weights": []}
    for case, (text, _) in enumerate(PAYLOADS):
        group = mark(case, "group", text)
        prompt = {"group_id": group, "prompt_id": mark(case, "prompt", text), "slice": mark(case, "slice", text)}
        prompt |= {"problem": mark(case, "problem", text), "solution": mark(case, "solution", text)}
        key = {"group_id": group, "completion_id": mark(case, "completion", text)}
        tokens = {"token_texts": [mark(case, "token", text), " end"], "completion_ids": [1, 2]}
        tokens |= {"sampling_logprobs": [-1.0, -1.0], "finish_reason": mark(case, "finish", text)}
        tables["prompts"].append(tiny_run.prompt(3, 0, correct=1) | prompt)
        tables["completions"].append(tiny_run.completion(3, 0, 0) | tokens | key)
        weight: dict[str, Any] = {"source": "fresh", "source_iteration": 3, "reward": 1.0, "reward_accuracy": 1.0}
        weight |= {"reward_vgr": 0.0, "reward_format": 1.0, "reward_overlong": 0.0, "reward_phase": "regular"}
        weight |= {"advantage": 0.5, "importance": None, "token_weights": [0.5, 1.5], "in_loss": False}
        tables["weights"].append(weight | key | {"why": mark(case, "why", text)})
    here = run / "iter-0003"
    plan = Plan("rollout", here / "rollout", {"iteration": 3}, 1, {"policy": Source(run / "policy")})
    kinds = ("prompts", "completions")
    tiny_run.publish(plan, lambda output: [output.write(kind, 0, tables[kind]) for kind in kinds] and None)
    plan = Plan("weight-tokens", here / "weights", {}, 1, {"rollouts": Source(here / "rollout")})
    tiny_run.publish(plan, lambda output: output.write("weights", 0, tables["weights"]))
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
        assert counts["script"] == 2 and counts["style"] == counts["html"] == counts["body"] == 1
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
    for selector in ("dd", "th", "td", ".legend span"):
        script = f"return [...document.querySelectorAll('{selector}')].map(one => one.textContent)"
        assert chromium.execute_script(script)[: len(everything)] == everything, selector
    assert chromium.title == f"{everything[1]} – dapo-stages"
    assert elements(chromium)["script"] == 2 and complaints(chromium) == []


def groups(number: int, size: int, tokens: int) -> list[dict[str, Any]]:
    """Made-up groups as browse.py gives them, with photo-like pictures."""
    rng = random.Random(1)
    words = [" the", " picture", " shows", " a", " triangle", " angle", "°", " therefore", ",", " 3.14"]
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


def test_two_thousand_completions_open_in_two_seconds(chromium: Chrome, tmp_path: Path) -> None:
    page = tmp_path / "page.html"
    browsed = {"iteration": 1, "groups": groups(260, 8, 200)}
    page.write_text(render("large", Table(["n"], []), [], {}, [browsed], {}), encoding="utf-8")
    assert 10e6 < page.stat().st_size < 25e6
    assert any(visit(chromium, page) < 2.0 for _ in range(3))
    assert chromium.find_element("id", "count").text == "2,000 completions of 250 questions, page 1 of 42"
    chromium.execute_script("document.querySelector('[name=search]').value = 'g249-s7'; controls.requestSubmit()")
    assert chromium.find_element("id", "count").text.startswith("1 completion of 1 question")


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
