"""rollout_results.md: figures of an iteration worked by hand, and all of its groups in pages."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from markdown_it import MarkdownIt
from reporting import tiny_run
from stages.test_report import report

from dapo_stages.reporting.documents import rollout_pages


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    return tiny_run.build(tmp_path / "tiny")


def part(run: Path, iteration: int) -> str:
    text = (run / "rollout_results.md").read_text(encoding="utf-8")
    return text.split("\n## Iteration ")[iteration + 1]


def test_vgr_by_layers_rewards_and_tokens(run: Path) -> None:
    """Of four completions: VGR 1, 2, 3 and 4, the last without late layers; total rewards 3, 3, 0.5 and -0.5.

    Variances: total 18.5/4 - 2.25, accuracy 1/4, vgr 1.625/4 - 1/4, format 3/16, overlong 0.25/4 - 1/64.
    """
    report(run)
    first = part(run, 1)
    assert "VGR by layers: early 2.500, middle 2.500, late 2.000, all 2.500; " in first
    assert "12.0 text tokens and 4.0 vision tokens per group on average." in first
    assert dict(re.findall(r"^\| (\w+) \| (-?[0-9.]+ \| [0-9.]+) \|$", first, re.M)) == {
        "accuracy": "0.500 | 0.500",
        "vgr": "0.500 | 0.395",
        "format": "0.750 | 0.433",
        "overlong": "-0.125 | 0.217",
        "total": "1.500 | 1.541",
    }
    assert "12 text and 4 vision tokens" in first


def test_before_there_are_weights_the_rewards_are_of_all_that_was_sampled(tmp_path: Path) -> None:
    """Six of eight are right: standard deviation sqrt(0.75 * 0.25)."""
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    report(run)
    last = part(run, 2)
    assert "| accuracy | 0.750 | 0.433 |" in last and "VGR by layers" not in last and "vision tokens" not in last


def test_all_groups_are_in_pages_of_a_fixed_size(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A group each, with all of its completions; the first file links to them, and they to each other."""
    monkeypatch.setattr(rollout_pages, "GROUPS", 1)
    report(run, "--set", "report.samples=all")
    for number in (1, 2):
        pages = sorted((run / f"iter-{number:04d}/report").glob("rollout_results-*.md"))
        assert [page.name for page in pages] == ["rollout_results-0001.md", "rollout_results-0002.md"]
        texts = [page.read_text(encoding="utf-8") for page in pages]
        ids = [re.findall(r"^#### (\S+)", text.replace("\\", ""), re.M) for text in texts]
        assert ids == [[f"it{number}-p{group}-s{sample}" for sample in range(4)] for group in (0, 1)]
        assert texts[0].startswith(f"# Iteration {number}, groups 1 to 1 of 2\n")
        linked = re.findall(r"\]\(([^)]*)\)", part(run, number).split("\n### ")[0])
        assert linked == [f"iter-{number:04d}/report/{page.name}" for page in pages]
        for page, text in zip(pages, texts, strict=True):
            found = re.findall(r"\]\(([^)]*)\)", text.split("\n### ")[0])
            assert len(found) == 2 and all((page.parent / link).exists() for link in found)
            assert not {token.type for token in MarkdownIt("commonmark").parse(text)} & {"html_block", "hr"}
    assert "All groups" not in part(run, 0)


def test_a_last_page_may_be_shorter(run: Path) -> None:
    names = ["rollout_results.md", *(f"rollout_results-{number:04d}.md" for number in (1, 2, 3))]
    assert rollout_pages.links("f", names) == (
        "All groups: [1 to 50](f/rollout_results-0001.md), [51 to 100](f/rollout_results-0002.md), "
        "[from 101 on](f/rollout_results-0003.md)\n"
    )
    assert rollout_pages.links("f", ["rollout_results.md"]) == ""


def test_without_all_there_are_no_pages(run: Path) -> None:
    report(run, "--set", "report.samples=all")
    report(run, "--set", "report.samples=1", "--overwrite")
    assert not list(run.glob("iter-*/report/rollout_results-*.md"))
    assert "All groups" not in (run / "rollout_results.md").read_text(encoding="utf-8")
