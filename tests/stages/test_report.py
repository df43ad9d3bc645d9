"""report on a small run: what it writes, what it leaves alone, and what it says."""

from __future__ import annotations

import json
import re
import shlex
import subprocess
import sys
from html.parser import HTMLParser
from pathlib import Path

import pytest
import typer
from reporting import tiny_run
from support.commands import ROOT
from support.commands import run as run_command
from typer.testing import CliRunner, Result

from dapo_stages.entrypoints.cli import module_of
from dapo_stages.handoff.manifests import mark_pruned, read_manifest
from dapo_stages.reporting import run_report
from dapo_stages.stages.report import main

DOCUMENTS = ("rollout_results.md", "token_weights.md", "eval_results.md", "report.html")


def report(run: Path, *arguments: str) -> Result:
    app = typer.Typer(pretty_exceptions_enable=False)
    app.command()(main)
    return CliRunner().invoke(app, ["--config", str(run / "config.yaml"), "--run", str(run), *arguments])


@pytest.fixture(scope="module")
def reported(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny <b>run")
    assert report(run).exit_code == 0
    return run


@pytest.fixture()
def run(tmp_path: Path) -> Path:
    return tiny_run.build(tmp_path / "tiny")


class Page(HTMLParser):
    """Tags, addresses and texts of a page."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.tags: set[str] = set()
        self.addresses: list[str] = []
        self.text = ""
        self.feed(text)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.add(tag)
        self.addresses += [value or "" for name, value in attrs if name in {"src", "href"}]

    def handle_data(self, data: str) -> None:
        self.text += data


def test_each_iteration_gets_a_published_report_of_its_own(reported: Path) -> None:
    parts = {n: set(read_manifest(reported / f"iter-000{n}" / "report", "report").inputs) for n in (0, 1, 2)}
    everything = {"rollout", "attention", "weights", "train", "eval"}
    assert parts == {0: {"eval"}, 1: everything, 2: everything}
    figures = json.loads((reported / "iter-0002/report/figures.json").read_text())
    assert figures["rollout"]["accuracy"] == 0.75


def test_rollout_results_start_with_the_table_over_iterations(reported: Path) -> None:
    lines = (reported / "rollout_results.md").read_text().splitlines()
    table = [line for line in lines[:10] if line.startswith("|")]
    assert len(table) == 2 + 3
    cells = [cell.strip() for cell in table[4].split("|")]
    assert cells[1:7] == ["2", "1.500", "75.0%", "87.5%", "75.0%", "37.5%"]
    assert (
        "reward 3.000 (accuracy 1.00, format 1.00, overlong 0.00, vgr 1.00); advantage +0.900; VGR 0.500"
        in "\n".join(lines)
    )


def test_token_weights_are_strung_together(reported: Path) -> None:
    assert (
        "<think>(0.50) The(0.70) circle(0.90) is(1.10) red(1.30) .(1.50)" in (reported / "token_weights.md").read_text()
    )


def test_eval_results_show_slices_and_a_wrong_answer(reported: Path) -> None:
    text = (reported / "eval_results.md").read_text()
    assert "| prior\\|violating | 2 | 65.0% | 100.0% | 37.5% | – | – | – |" in text
    assert "wrong, answer A, greedy, prior\\|violating" in text


def test_hostile_text_is_never_markup_in_markdown(reported: Path) -> None:
    for name in DOCUMENTS[:3]:
        outside, fence = [], ""
        for line in (reported / name).read_text().splitlines():
            mark = re.match(r"`{3,}", line)
            if fence:
                fence = "" if line == fence else fence
            elif mark:
                fence = mark.group()
            else:
                outside.append(line)
        assert not fence
        prose = "\n".join(outside)
        assert not re.search(r"(?<!\\)<", prose)
        assert "# 标题" not in prose
        for table in re.findall(r"(?:^\|.*\n)+", prose, re.MULTILINE):
            assert len({len(re.findall(r"(?<!\\)\|", line)) for line in table.splitlines()}) == 1


def test_hostile_text_is_never_markup_in_the_page(reported: Path) -> None:
    """What completions say is in a block of JSON; tests/reporting/test_hostile_page.py has the browser's view."""
    text = (reported / "report.html").read_text()
    page = Page(text)
    assert text.count("<script") == 3 and "alert(1)" in text and "\x1b" not in text
    assert "tiny <b>run" in page.text and "prior|violating" in page.text


def test_the_page_needs_nothing_but_itself(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    assert Page(text).addresses == ["#browser"]
    code = re.sub(r"<td>[^<]*</td>", "", text)  # the configuration names addresses of servers
    assert "url(" not in code and "http://" not in code and "https://" not in code


def test_the_page_has_curves(reported: Path) -> None:
    text = (reported / "report.html").read_text()
    assert "<title>iteration 2: held-out greedy 75.0%</title>" in text
    assert "<title>iteration 1: all 2.500</title>" in text
    assert "<h3>Memory</h3>" in text and "GiB at the peak of a stage" in text
    assert "Distribution of rewards" in text and "Distribution of advantages" in text


def test_how_many_completions_are_in_the_page_can_be_set(run: Path) -> None:
    assert report(run, "--set", "report.completions=4").exit_code == 0
    data = json.loads(re.findall(r'id="data">(.*?)</script>', (run / "report.html").read_text(), re.S)[0])
    # Four of each iteration: its replayed group of one and, whole although it has four, one that was sampled.
    assert [(group["iteration"], group["id"]) for group in data] == [(2, "it2-p0"), (2, "it1-p0"), (1, "it1-p0")]
    assert report(run, "--set", "report.completions=0", "--overwrite").exit_code == 0
    assert 'id="browser"' not in (run / "report.html").read_text()


def test_the_terminal_shows_the_table_and_the_path(reported: Path) -> None:
    lines = report(reported).stdout.splitlines()
    assert lines[0].split()[:2] == ["iteration", "reward"]
    assert lines[3].split()[:7] == ["2", "1.500", "75.0%", "87.5%", "75.0%", "37.5%", "85.0%"]
    assert lines[-2:] == [
        f"best: iteration 2, held-out greedy 75.0% -> {reported}/iter-0002/train/policy",
        str(reported / "report.html"),
    ]


def test_a_slice_that_has_fallen_is_told(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_report, "fallen", lambda all_: f"{len(all_)} evaluations: prior|violating has fallen.")
    said = "3 evaluations: prior|violating has fallen."
    assert said in report(run).stdout.splitlines()
    assert said.replace("|", "\\|") in (run / "eval_results.md").read_text().splitlines()


def test_json_gives_the_figures(reported: Path) -> None:
    result = json.loads(report(reported, "--json").stdout)
    assert [figures["iteration"] for figures in result["iterations"]] == [0, 1, 2]
    assert result["made"] == []


def test_a_second_report_changes_nothing(run: Path) -> None:
    report(run, "--set", "report.trackers=[tensorboard]")
    paths = [path for path in run.rglob("*") if path.is_file()]
    before = {path: path.read_bytes() for path in paths}
    assert report(run, "--set", "report.trackers=[tensorboard]").exit_code == 0
    assert {path: path.read_bytes() for path in run.rglob("*") if path.is_file()} == before


def test_a_report_takes_in_what_came_since(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    assert report(run).exit_code == 0
    assert read_manifest(run / "iter-0002/report").inputs.keys() == {"rollout"}
    tiny_run.iteration(run, 2)
    (run / "iter-0003/rollout").mkdir(parents=True)
    (run / "iter-0003/rollout/.partial.json").write_text("{}")
    assert report(run).exit_code == 0
    assert "train" in read_manifest(run / "iter-0002/report").inputs
    assert not (run / "iter-0003/report").exists()


@pytest.mark.parametrize("changed", ["report.samples=1", "report.completions=1", "seed=9"])
def test_a_changed_setting_is_for_reports_that_are_not_made_yet(run: Path, changed: str) -> None:
    report(run, "--iteration", "0")
    report(run, "--iteration", "1")
    before = {number: read_manifest(run / f"iter-000{number}/report") for number in (0, 1)}
    done = report(run, "--set", changed)
    assert done.exit_code == 0
    assert "report: keeping 2 made with other settings; pass --overwrite to make them again" in done.stderr
    assert {number: read_manifest(run / f"iter-000{number}/report") for number in (0, 1)} == before
    made = read_manifest(run / "iter-0002/report")
    key, value = changed.split("=")
    assert str({**made.config, "seed": made.seed}[key]) == value
    again = report(run, "--set", changed)
    assert again.exit_code == 0 and read_manifest(run / "iter-0002/report") == made


def test_a_report_that_lacks_an_evaluation_gets_it_under_other_settings_too(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="train")
    report(run)
    tiny_run.evaluation(run, 2, greedy=0.5)
    assert report(run, "--set", "report.samples=1").exit_code == 0
    assert "eval" in read_manifest(run / "iter-0002/report").inputs


def test_a_changed_setting_for_a_report_by_name_is_refused_without_overwrite(run: Path) -> None:
    report(run)
    refused = report(run, "--iteration", "0", "--set", "report.samples=1")
    assert refused.exit_code == 1 and refused.exception is not None
    assert str(refused.exception) == (
        f"{run}/iter-0000/report: the output of report here is stale (made from other inputs or configuration). "
        "Pass --overwrite to replace it, or name another --out."
    )
    assert report(run, "--set", "report.samples=1", "--overwrite").exit_code == 0
    assert "it1-p1" not in (run / "rollout_results.md").read_text()


def test_reports_of_an_older_version_are_made_again(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("dapo_stages.reporting.run_report.LAYOUT", 2)
        assert report(run).exit_code == 0
    assert json.loads(report(run, "--json").stdout)["made"] == [0, 1, 2]
    assert json.loads(report(run, "--json").stdout)["made"] == []


def test_reports_without_completions_for_the_page_are_shown_without(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as older:
        older.setattr("dapo_stages.reporting.run_report.BROWSED", "other.json")
        assert report(run).exit_code == 0
    assert report(run).exit_code == 0
    text = (run / "report.html").read_text()
    assert 'id="data">[]</script>' in text and "<h2>Curves</h2>" in text


def test_the_commands_of_the_page_about_reports_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("first", "second"):
        run = tiny_run.build(tmp_path / "training_logs" / name)
        assert report(run).exit_code == 0
    monkeypatch.chdir(tmp_path)
    blocks = re.findall(r"```bash\n(.*?)```", (ROOT / "docs/report.md").read_text(encoding="utf-8"), re.S)
    for line in "".join(blocks).replace("\\\n", " ").splitlines():
        program, *arguments = shlex.split(line)
        assert program == ".venv/bin/dapo-stages" and run_command(*arguments).code == 0
    assert (tmp_path / "compared.html").exists()


def test_one_iteration_can_be_asked_for(run: Path) -> None:
    assert report(run, "--iteration", "1").exit_code == 0
    assert not (run / "iter-0002/report").exists()
    assert "## Iteration 2" not in (run / "rollout_results.md").read_text()


def test_pruned_rollouts_leave_the_report_as_it_was(run: Path) -> None:
    report(run)
    before = (run / "report.html").read_bytes()
    for name in ("rollout", "attention"):
        mark_pruned(run / "iter-0001" / name)
        for path in (run / "iter-0001" / name).glob("*.parquet"):
            path.unlink()
    assert report(run).exit_code == 0
    assert (run / "report.html").read_bytes() == before


def test_attention_may_be_off_and_the_report_says_so(tmp_path: Path) -> None:
    run = tiny_run.build(tmp_path / "tiny", last="rollout")
    tiny_run.scores(run, 2, enabled=False)
    tiny_run.weights(run, 2, attention=False)
    assert report(run).exit_code == 0
    weights = (run / "token_weights.md").read_text()
    said = "Attention was not measured (attention.enabled: false): every token weighs 1, the VGR reward is neutral."
    assert "<think>(1.00) The(1.00)" in weights
    assert weights.count(said) == 1 and weights.index("## Iteration 2") < weights.index(said)
    assert "not measured in iteration 2" in Page((run / "report.html").read_text()).text


def test_the_mismatch_of_engine_and_trainer_is_reported(reported: Path) -> None:
    said = "Logprobs of engine and trainer differ by 0.020 on average, by 0.500 at most."
    assert (reported / "rollout_results.md").read_text().count(said) == 2
    page = Page((reported / "report.html").read_text()).text
    assert "Engine against trainer" in page and "mean |Δ logprob|" in page


def test_a_dry_run_writes_nothing(run: Path) -> None:
    result = report(run, "--dry-run")
    assert result.exit_code == 0
    assert f"report would write {run}/iter-0001/report" in result.stderr
    assert not (run / "iter-0001/report").exists() and not (run / "report.html").exists()
    assert json.loads(report(run, "--dry-run", "--json").stdout)["iterations"] == {"0": "new", "1": "new", "2": "new"}


def test_a_run_without_any_output_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.yaml").write_text("seed: 1\n")
    assert str(report(tmp_path).exception) == (
        f"{tmp_path}: no finished output of any stage. Run rollout or evaluate first."
    )


def test_a_folder_that_is_not_there_is_a_usage_error(tmp_path: Path) -> None:
    assert report(tmp_path / "nowhere").exit_code == 2


@pytest.mark.parametrize("command", ["report", "status", "inspect"])
def test_torch_stays_out(run: Path, command: str) -> None:
    arguments = {"report": ["--config", str(run / "config.yaml")], "status": [], "inspect": ["it1-p0-s0"]}[command]
    code = (
        "import sys, typer\n"
        f"from {module_of(command)} import main\n"
        "app = typer.Typer(); app.command()(main)\n"
        f"app({['--run', str(run), *arguments]!r}, standalone_mode=False)\n"
        "assert not {'torch', 'transformers', 'wandb', 'pandas'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2], capture_output=True)


@pytest.mark.parametrize("command", ["report", "status", "inspect"])
def test_help_loads_neither_arrow_nor_jinja(command: str) -> None:
    code = (
        f"import sys; import {module_of(command)}\n"
        "assert not {'pyarrow', 'jinja2', 'PIL', 'numpy', 'pydantic'} & sys.modules.keys()\n"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])
