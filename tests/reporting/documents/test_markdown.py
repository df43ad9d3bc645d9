"""The Markdown files of a run: they grow line by line, and what models and datasets say stays text.

Read by markdown-it-py, a parser of CommonMark that rich brings along.
"""

from __future__ import annotations

import difflib
import re
import time
from pathlib import Path
from typing import Any

import pytest
from markdown_it import MarkdownIt
from markdown_it.token import Token
from reporting import tiny_run
from stages.test_report import report

from dapo_stages.reporting.documents.markdown import (
    rollout_document,
    rollout_fragment,
    weights_document,
    weights_fragment,
)
from dapo_stages.terminal.printed_table import Table
from dapo_stages.terminal.safe_text import markdown_inline, visible

DOCUMENTS = ("rollout_results.md", "token_weights.md", "eval_results.md")


def texts(run: Path) -> dict[str, str]:
    return {name: (run / name).read_text(encoding="utf-8") for name in DOCUMENTS}


def test_an_iteration_adds_lines_and_changes_none(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny")
    report(run, "--iteration", "0")
    report(run, "--iteration", "1")
    before = texts(run)
    report(run)
    for name, after in texts(run).items():
        lines = list(difflib.ndiff(before[name].splitlines(), after.splitlines()))
        assert [line for line in lines if line.startswith("- ")] == []
        assert any(line == "+ ## Iteration 2" for line in lines)


def test_a_report_made_again_has_the_same_bytes(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny")
    report(run)
    before = texts(run)
    assert report(run, "--overwrite").exit_code == 0
    assert texts(run) == before
    for name in DOCUMENTS:
        (run / name).unlink()
    for number in (0, 1, 2):
        assert report(run, "--iteration", str(number), "--overwrite").exit_code == 0
    assert texts(run) == before


PAYLOADS = {
    "script": "<script>alert(1)</script>",
    "image": "<img src=x onerror=alert(1)>",
    "textarea": "</textarea></pre></code>",
    "comment": "<!-- -->",
    "fence": "```\n# heading\n~~~\n",
    "long fence": "`" * 50 + "\n<b>bold</b>",
    "tildes": "~~~\n## heading",
    "table": "| a | b |\n|---|---|\n| 1 | 2 |",
    "cell": "a|b\\|c\\",
    "heading": "# heading\nsetext\n===\n",
    "closing": "trailing ## #",
    "link": "[click](javascript:alert(1)) <https://e.example> https://e.example www.e.example",
    "reference": "[a]: https://e.example\n\n![p](x.png)",
    "emphasis": "**bold** __bold__ *i* ~~s~~ `code` \\",
    "list": "- one\n1. two\n> quote\n---",
    "maths": "$x$ $$y$$",
    "entity": "&lt;b&gt; &#60;",
    "markup": "[/box] [bold red]x[/]",
    "right to left": "a \u202eb\u202c \u2066c\u2069 \u200fd\u200e \u061ce",
    "control": "a\x00b\x1b[31mc\x07d\x7fe\x85f\x9bg\rh\x0bi\x0cj\u2028k\u2029l",
    "surrogate": "a\ud800b",
    "template": "{{ 7 * 7 }} {% x %}",
}
FIELDS = ("problem", "solution", "slice", "group_id", "completion_id", "text", "token", "reward name", "why")


def sample(field: str, text: str) -> dict[str, Any]:
    """A group with one completion, in which one field is what somebody else wrote."""
    said = dict.fromkeys(FIELDS, "plain") | {field: text}
    completion = {
        "completion_id": said["completion_id"], "text": said["text"], "tokens": [said["token"], " end"],
        "token_weights": [0.5, 1.5], "vgr": 1.0, "reward": 1.0, "rewards": {said["reward name"]: 1.0},
        "advantage": 0.5, "in_loss": False, "why": said["why"], "finish_reason": "stop",
    }  # fmt: skip
    return {
        "group_id": said["group_id"], "slice": said["slice"], "problem": said["problem"], "solution": said["solution"],
        "num_correct": 1, "num_completions": 1, "kept": True, "images": [], "completions": [completion],
    }  # fmt: skip


def parsed(text: str) -> list[Token]:
    return MarkdownIt("commonmark").enable("table").enable("strikethrough").parse(text)


def inline(tokens: list[Token]) -> set[str]:
    return {child.type for token in tokens for child in token.children or []}


@pytest.mark.parametrize("field", FIELDS)
@pytest.mark.parametrize("payload", PAYLOADS)
def test_foreign_text_stays_text(payload: str, field: str) -> None:
    text = PAYLOADS[payload]
    one = sample(field, text)
    figures = {"iteration": 1}
    table = Table(["iteration", text], [["1", text]])
    rollout = rollout_document(text, table, [rollout_fragment(figures, [one])])
    weights = weights_document(text, [weights_fragment(figures, [one])])
    for document, headings, fences in ((rollout, 4, 2), (weights, 3, 1)):
        assert not re.search(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]", document)
        document.encode("utf-8")
        tokens = parsed(document)
        kinds = [token.type for token in tokens]
        assert kinds.count("heading_open") == headings and kinds.count("fence") == fences
        assert not {"html_block", "blockquote_open", "hr", "bullet_list_open", "ordered_list_open"} & set(kinds)
        assert inline(tokens) <= {"text", "text_special", "softbreak", "code_inline"}
        assert kinds.count("table_open") == kinds.count("th_open") / 2
    tokens = parsed(rollout)
    assert [token.content for token in tokens if token.type == "fence"] == [
        visible(one["problem"]) + "\n",
        visible(one["completions"][0]["text"]) + "\n",
    ]


@pytest.mark.parametrize("payload", PAYLOADS)
def test_inline_text_reads_as_it_was(payload: str) -> None:
    """What a reader of the Markdown sees is the text on one line, character by character."""
    text = f"x{PAYLOADS[payload]}x"
    (token,) = (token for token in parsed(markdown_inline(text)) if token.type == "inline")
    shown = "".join(child.content for child in token.children or [])
    assert shown == visible(text).replace("\n", "⏎")


def test_addresses_make_no_links_in_renderers_that_look_for_them() -> None:
    assert markdown_inline("https://e.example www.e.example") == "https\\://e.example www\\.e.example"


def test_a_megabyte_of_text_is_no_trouble() -> None:
    started = time.process_time()
    for text in ("x" * 1_000_000, "`" * 1_000_000, "|<b>\u202e\n" * 200_000):
        one = sample("text", text)
        one["completions"][0]["tokens"] = [text, "end"]
        assert len(rollout_fragment({"iteration": 1}, [one])) > 1_000_000
        assert weights_fragment({"iteration": 1}, [one]).count("(1.50)") == 1
    assert time.process_time() - started < 200
