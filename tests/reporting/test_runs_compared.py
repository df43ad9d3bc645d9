"""compare-runs: two hand-made runs in, one page out: what it says, and how it behaves in a browser."""

from __future__ import annotations

import html
import json
import re
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from reporting import tiny_run
from support.browser import complaints, one, prefer, requests, resize, violations, visit
from support.commands import run as command
from tools.test_compare_evals import evaluation, greedy

from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.schemas import SCHEMAS
from dapo_stages.reporting.runs_compared import _held_out

if TYPE_CHECKING:
    from selenium.webdriver import Chrome

HOSTILE = "<script>alert(1)<&>\u202e[x]"
NAMES = ("first", HOSTILE)


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """The second has another beta and a name in markup, and no attention; of the same 8 questions in iteration 2 the
    first has 1-4 right, the second 3-8."""
    folder = tmp_path_factory.mktemp("logs")
    a, b = (folder / "a" / NAMES[0], folder / "b" / NAMES[1])
    for run, attention in ((a, True), (b, False)):
        run.mkdir(parents=True)
        config = "seed: 1\nreport: {samples: 2}\nmodel: {name: embedded}\n"
        (run / "config.yaml").write_text(config + ("" if attention else "train: {beta: 0.125}\n"))
        tiny_run.publish(Plan("prepare-data", run / "data", {}, 1), lambda output: None)
        tiny_run.publish(Plan("init-policy", run / "policy", {"model": {"name": "embedded"}}, 1), lambda output: None)
        tiny_run.evaluation(run, 0, greedy=0.25)
        for number in (1, 2):
            tiny_run.iteration(run, number, attention=attention)
        assert command("report", "--config", run / "config.yaml", "--run", run).code == 0
        marks = "11110000" if attention else "00111111"
        shutil.rmtree(run / "iter-0002/eval")
        evaluation(run / "iter-0002/eval", greedy(marks), data=run / "data")
    return a, b


def compared(*arguments: object) -> dict[str, Any]:
    result = command("compare-runs", *arguments, "--json")
    assert result.code == 0, result.stderr
    found: dict[str, Any] = json.loads(result.stdout)
    return found


@pytest.fixture(scope="module")
def page(runs: tuple[Path, Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "compared.html"
    assert compared(*runs, "--out", out)["page"] == str(out)
    return out


def test_the_same_questions_in_pairs(runs: tuple[Path, Path], page: Path) -> None:
    """Both right: questions 3 and 4. Only A: 1 and 2, only B: 5 to 8. McNemar: P(at most 2 of 6) twice, 44/64."""
    (pair,) = compared(*runs, "--out", page)["pairs"]
    (measure,) = pair["measures"]
    assert (measure["won"], measure["lost"], measure["tied"]) == (4, 2, 2)
    assert measure["p"] == pytest.approx(2 * (1 + 6 + 15) / 64)
    (row,) = re.findall(r"<tr><td>greedy</td>(.*?)</tr>", page.read_text(encoding="utf-8"))
    cells = re.findall(r"<td>(.*?)</td>", row)
    assert cells[:3] == ["8", "50.0%", "75.0%"] and cells[3].startswith("+25.0 (")
    assert cells[4:] == ["2", "2", "4", "0", "0.688"]


def test_other_questions_are_not_compared(runs: tuple[Path, Path], tmp_path: Path) -> None:
    a, b = (Path(shutil.copytree(run, tmp_path / name)) for run, name in zip(runs, "ab", strict=True))
    shutil.rmtree(b / "iter-0002/eval")
    other = tmp_path / "other"
    tiny_run.publish(Plan("prepare-data", other, {"data": "other"}, 2), lambda output: None)
    evaluation(b / "iter-0002/eval", greedy("11111111"), data=other)
    said = compared(a, b, "--out", tmp_path / "page.html")["pairs"][0]
    assert said["why_not"] == "the held-out questions are others, by their content hashes" and not said["measures"]
    assert "Not compared: the held-out questions are others" in (tmp_path / "page.html").read_text(encoding="utf-8")
    for number in (0, 1, 2):
        shutil.rmtree(b / f"iter-{number:04d}/eval")
    assert compared(a, b, "--out", tmp_path / "page.html")["pairs"][0]["why_not"] == "b: no evaluation"


def test_questions_that_are_the_same_among_other_training_rows(tmp_path: Path) -> None:
    row: dict[str, Any] = dict.fromkeys(SCHEMAS["held_out"].names)
    row |= {"prompt_id": "h0", "problem": "?", "solution": "A", "prompt_text": "?", "prompt_ids": [1], "images": []}
    row |= {"image_grid_thw": [], "source": "s", "slice": ""}
    hashes = []
    for name, seed in (("a", 1), ("b", 2)):
        folder = tmp_path / name
        tiny_run.publish(Plan("prepare-data", folder, {}, seed), lambda output: output.write("held_out", 0, [row]))
        content = Source(folder).manifest.content_hash
        hashes.append((content, list(_held_out(folder, content))))
    assert hashes[0][0] != hashes[1][0] and hashes[0][1] == hashes[1][1] != []
    assert list(_held_out(tmp_path / "a", "another")) == []


def test_what_differs_in_the_configurations(runs: tuple[Path, Path], page: Path) -> None:
    differs = compared(*runs, "--out", page)["differs"]
    assert differs == {"train.beta": [{"value": 0.0}, {"value": 0.125}]}
    text = page.read_text(encoding="utf-8")
    assert "<tr><td>train.beta</td><td>0</td><td>0.125</td><td>0</td></tr>" in text


def test_names_stay_text(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    assert "<script>alert" not in text and "\u202e" not in text
    assert f"<title>first and {html.escape('<script>alert(1)<&>⟨U+202E⟩[x]')} – dapo-stages</title>" in text


def test_it_opens_quietly_and_asks_for_nothing(chromium: Chrome, page: Path) -> None:
    visit(chromium, page)
    assert complaints(chromium) == [] and requests(chromium) == [page.resolve().as_uri()]


@pytest.mark.parametrize(("scheme", "width"), [("light", 1280), ("dark", 390)])
def test_it_is_accessible_and_fits(chromium: Chrome, page: Path, scheme: str, width: int) -> None:
    prefer(chromium, scheme)
    resize(chromium, width, 900)
    visit(chromium, page)
    assert violations(chromium) == []
    assert chromium.execute_script("return document.documentElement.scrollWidth") <= width


def test_each_curve_of_both_runs_shares_a_chart_and_a_cursor(chromium: Chrome, page: Path) -> None:
    """Mean reward 1.5 in both runs and iterations; the second run has no VGR, and keeps its color elsewhere."""
    from selenium.webdriver.common.keys import Keys

    visit(chromium, page)
    titles = [heading.text for heading in chromium.find_elements("css selector", ".charts h3")]
    assert "Accuracy: held-out greedy" in titles and "Reward" in titles and len(titles) == len(set(titles))

    def chart(title: str) -> tuple[list[str], list[str]]:
        section = chromium.find_elements("css selector", ".charts > section")[titles.index(title)]
        names, values = (section.find_elements("css selector", f".legend {tag}") for tag in ("span", "b"))
        return [name.text for name in names], [value.text for value in values]

    names = ["first", "<script>alert(1)<&>⟨U+202E⟩[x]"]
    assert chart("Reward") == (names, ["1.500", "1.500"])
    assert chart("VGR by layers (lower is more grounded): all") == (names, ["1.250", "–"])
    one(chromium, ".charts svg[tabindex='0']").send_keys(Keys.HOME)
    assert chart("Accuracy: held-out greedy") == (names, ["50.0%", "50.0%"])  # of iteration 1, as the rollouts above
    assert chart("VGR by layers (lower is more grounded): all") == (names, ["2.500", "–"])
    colors = chromium.execute_script(
        "return [...document.querySelectorAll('.charts > section')].map(s => [...s.querySelectorAll('g[data-name]')]"
        ".map(g => g.getAttribute('class') + g.dataset.name))"
    )
    assert {tuple(of_chart) for of_chart in colors} == {tuple(f"s{n}{name}" for n, name in enumerate(names))}


def test_one_run_or_one_without_a_report_is_refused(runs: tuple[Path, Path], tmp_path: Path) -> None:
    alone = command("compare-runs", runs[0], "--out", tmp_path / "page.html")
    assert alone.code == 3 and "expected two or more runs, got one. Name another run" in alone.stderr
    bare = tiny_run.build(tmp_path / "bare")
    result = command("compare-runs", runs[0], bare, "--out", tmp_path / "page.html")
    assert (result.code, result.stderr) == (
        3,
        f"{bare}: no finished report. Run report first, or name another run.\n",
    )
    assert not (tmp_path / "page.html").exists()
