"""A run of many iterations: what a command reads and writes grows with them as little as it can."""

from __future__ import annotations

import shutil
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from reporting import tiny_run
from support.commands import run as command
from support.long_run import lengthen

from dapo_stages import small_files
from dapo_stages.handoff import manifests, shards
from dapo_stages.handoff.manifests import MANIFEST
from dapo_stages.reporting import run_report
from dapo_stages.reporting.page.charts import Chart, Series, draw

pytestmark = pytest.mark.long

SOME, MANY = 110, 210  # more than the documents have whole


@pytest.fixture(scope="module")
def runs(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Path]:
    """Runs of so many iterations, all of them finished and reported."""
    place = tmp_path_factory.mktemp("long")
    begun = tiny_run.build(place / "begun")
    config = (begun / "config.yaml").read_text(encoding="utf-8")
    (begun / "config.yaml").write_text(config.replace("samples: 2", "samples: 2, completions: 0"), encoding="utf-8")
    made = {}
    for last in (SOME, MANY):
        made[last] = place / str(last)
        shutil.copytree(begun, made[last])
        report(made[last])
        lengthen(made[last], last)
        report(made[last])
    return made


def report(run: Path, *arguments: object) -> str:
    result = command("report", "--config", run / "config.yaml", "--run", run, *arguments)
    assert result.code == 0, result.stderr
    return result.stdout


@contextmanager
def counted() -> Iterator[tuple[Counter[Path], Counter[Path]]]:
    """How often each small file is read in whole, and the bytes of each that is written."""
    read, written = Counter[Path](), Counter[Path]()
    reading, writing = small_files.read_bytes, shards.write_text

    def read_bytes(path: Path, *arguments: int) -> bytes:
        read[path] += 1
        return reading(path, *arguments)

    def write_text(path: Path, text: str, *arguments: tuple[int, int] | None) -> None:
        written[path] += len(text.encode())
        writing(path, text, *arguments)

    with pytest.MonkeyPatch.context() as patched:
        for module in (small_files, manifests):
            patched.setattr(module, "read_bytes", read_bytes)
        for module in (shards, manifests, run_report):
            patched.setattr(module, "write_text", write_text)
        yield read, written


@pytest.mark.parametrize("name", ["status", "doctor"])
def test_each_manifest_is_read_once(runs: dict[int, Path], name: str) -> None:
    """Evaluations once more, for the best of them, and the newest iteration, whose figures are shown."""
    with counted() as (read, _):
        result = command(name, "--run", runs[SOME])
    assert result.code == 0, result.stdout
    newest = runs[SOME] / f"iter-{SOME:04d}"
    found = {path: n for path, n in read.items() if path.name == MANIFEST and newest not in path.parents}
    assert len(found) >= 7 * (SOME - 1)
    assert {path.parent.name for path, count in found.items() if count > 1} == {"eval"}
    assert max(found.values()) == 2


def test_every_output_of_a_long_run_is_done(runs: dict[int, Path]) -> None:
    lines = command("status", "--run", runs[MANY]).stdout.splitlines()
    assert sum(line.split()[1:] == ["done"] * 6 for line in lines) == MANY


def test_one_more_report_reads_and_writes_little_of_those_before(runs: dict[int, Path]) -> None:
    """Of each iteration before: its report's manifest and figures, and its evaluation's manifest. A row of each table
    and a dot of each curve, as long as dots can be told apart."""
    reads, bytes_written = {}, {}
    for last, run in runs.items():
        shutil.rmtree(run / f"iter-{last:04d}/report")
        with counted() as (read, written):
            report(run, "--iteration", last)
        reads[last], bytes_written[last] = read.total(), written.total()
        assert max(count for path, count in read.items() if f"iter-{last:04d}" not in str(path)) <= 2
    more = MANY - SOME
    assert (reads[MANY] - reads[SOME]) / more <= 3
    assert (bytes_written[MANY] - bytes_written[SOME]) / more < 6000


def test_the_documents_have_the_newest_iterations_and_name_the_others(runs: dict[int, Path]) -> None:
    for name in ("rollout_results.md", "token_weights.md", "eval_results.md"):
        text = (runs[MANY] / name).read_text(encoding="utf-8")
        assert text.count("\n## Iteration ") == 100
        assert f"\n## Iteration {MANY}\n" in text and f"\n## Iteration {MANY - 99}\n" in text
        first = f"{MANY - 100 + 1} earlier iteration(s), 0 to {MANY - 100}, are in their own folders only"
        assert f"{first}, the last of them in `iter-{MANY - 100:04d}/report/{name}`." in text
    table = (runs[MANY] / "rollout_results.md").read_text(encoding="utf-8").split("\n## ")[0]
    assert table.count("\n| ") == 1 + MANY + 1


def test_the_terminal_has_the_first_and_the_newest_iterations(runs: dict[int, Path]) -> None:
    lines = report(runs[MANY]).splitlines()
    assert [line.split()[0] for line in lines[1:4]] == ["0", "…", str(MANY - 47)]
    assert lines[50].split()[0] == str(MANY) and lines[51].startswith("best: ")


def test_a_report_of_before_it_noted_what_stages_took_is_shown_with_it(tmp_path: Path) -> None:
    """By the manifests of the stages, which every report read then."""
    run = tiny_run.build(tmp_path / "tiny")
    report(run)
    page = (run / "report.html").read_text(encoding="utf-8")
    folder = run / "iter-0001/report"
    made = manifests.read_manifest(folder)
    assert made.counts.keys() == {"iteration", "parts", "seconds", "memory", "spent", "settings", "origin"}
    older = {name: made.counts[name] for name in ("iteration", "parts", "settings", "origin")}
    manifests.write_manifest(folder, made.model_copy(update={"counts": older}))
    assert report(run) and (run / "report.html").read_text(encoding="utf-8") == page


def test_a_long_curve_keeps_its_peaks_and_stays_small() -> None:
    def curve(length: int, **peaks: float) -> str:
        values = {float(x): x / length for x in range(length)} | {float(at[1:]): y for at, y in peaks.items()}
        points = sorted(values.items())
        return draw(Chart("t", "y", [Series("s", points, [(x, y - 0.1, y + 0.1) for x, y in points])]))

    small, large = curve(240), curve(5000, _1234=9.0, _4321=-9.0)
    assert small.count("<circle") == 240 and len(large) < 1.2 * len(small)
    for said in (
        "iteration 0: s 0.000",
        "iteration 4999: s 1.000",
        "iteration 1234: s 9.000",
        "iteration 4321: s -9.000",
    ):
        assert f"<title>{said} (" in large
