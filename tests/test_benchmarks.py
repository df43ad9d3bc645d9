"""The measuring of the benchmarks, their table, and gpu-check at toy size."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
from benchmarks import gpu_wheels
from benchmarks.gpu_record import Line, Record
from benchmarks.limits import matrix_rate
from benchmarks.measure import Comparison, Figure
from benchmarks.real_size import once
from benchmarks.table import write
from support.commands import ROOT

pytestmark = pytest.mark.long


def test_the_matrix_rate_is_a_rate() -> None:
    assert 1e7 < matrix_rate(size=64, seconds=0.02) < 1e15


def test_a_ratio_is_median_over_median() -> None:
    assert Comparison(ours=[1.0, 2.0, 9.0], theirs=[5.0, 8.0, 6.0]).ratio == 3.0


def test_the_table_keeps_lines_that_were_not_measured_again(tmp_path: Path) -> None:
    machine = {"processor": "one", "date": "today"}
    write(tmp_path, machine, [Figure("a", "work a", "b", 2.0, 1.5), Figure("c", "work c", "d", 1.2, 1.1, "at most")])
    other = {"processor": "two", "date": "tomorrow"}
    write(tmp_path, other, [Figure("a", "work a", "b", 3.0, 1.5)])
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| machine | 1 | 2 |\n| --- | --- | --- |\n| processor | two | one |\n" in text
    assert "| work a | b | 3.00 × | at least 1.5 × | ✓ |  |  |  |  | 1 |" in text
    assert "| work c | d | 1.20 × | at most 1.1 × | ✗ |  |  |  |  | 2 |" in text


def test_the_work_of_gpu_check_runs_at_toy_size() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.gpu_work import measured

    lines = list(measured(torch.device("cpu"), tiny=True))
    assert [line.ok for line in lines if line.part == "same numbers"] == [True, True]
    timed = [(line.part, line.name) for line in lines if "seconds" in line.values and line.part != "policy"]
    sizes = ("40 + 3 × 6", "24 + 3 × 4")
    assert timed == [
        (kind, f"{way}, {size}")
        for size in sizes
        for kind in ("update", "scoring", "generation")
        for way in ("shared, sdpa", "separate")
    ]


def test_gpu_check_that_is_cut_off_leaves_what_it_has(tmp_path: Path) -> None:
    words = ["-m", "benchmarks.gpu", "--device=cpu", "--tiny", "--only=equality", "--out", str(tmp_path)]
    environment = {**os.environ, "PYTHONPATH": f"{ROOT / 'tests'}{os.pathsep}{ROOT}"}
    process = subprocess.Popen([sys.executable, *words], env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    first = process.stdout.readline()
    process.kill()
    process.communicate()
    found = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    assert "packed, float32" in first
    assert (found["state"], found["lines"][0]["name"]) == ("cut off", "packed, float32")
    assert "| packed, float32 |" in (tmp_path / "gpu-check.md").read_text(encoding="utf-8")


def test_numbers_that_json_lacks_are_written_as_text(tmp_path: Path) -> None:
    record = Record(tmp_path, {"device": "cpu"})
    record.add(Line("part", "one", {"rate": math.inf, "seconds": 0.25}, ok=False))
    found = json.loads((tmp_path / "gpu-check.json").read_text(encoding="utf-8"))
    assert found["lines"][0]["values"] == {"rate": "inf", "seconds": 0.25}
    record.end("complete")
    assert not record.sound


def test_only_modules_that_cannot_be_imported_come_from_the_bundle(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    bundle, place = tmp_path / "bundle", tmp_path / "place"
    bundle.mkdir()
    for name in ("not_here", "yaml"):
        with zipfile.ZipFile(bundle / f"{name}-1.0-py3-none-any.whl", "w") as wheel:
            wheel.writestr(f"{name}/__init__.py", "VERSION = 'of the bundle'")
    monkeypatch.setattr(gpu_wheels, "NEEDED", {"not_here": ("not_here",), "yaml": ("yaml",)})
    monkeypatch.setattr(sys, "path", [*sys.path])
    monkeypatch.setenv("PYTHONPATH", "before")
    assert gpu_wheels.provide(bundle, place) == ["not_here-1.0-py3-none-any.whl"]
    assert [path.name for path in place.iterdir()] == ["not_here"]
    assert os.environ["PYTHONPATH"] == f"before{os.pathsep}{place}"
    monkeypatch.setattr(gpu_wheels, "NEEDED", {"nowhere": ("nowhere",)})
    with pytest.raises(SystemExit, match="no wheel of nowhere"):
        gpu_wheels.provide(bundle, place)


def test_parts_of_the_real_size_run_appear_whole_and_are_made_once(tmp_path: Path) -> None:
    def cut_short(folder: Path) -> None:
        (folder / "first").touch()
        raise KeyboardInterrupt

    def whole(folder: Path) -> None:
        (folder / "second").touch()

    with pytest.raises(KeyboardInterrupt):
        once(tmp_path / "part", cut_short)
    assert not list(tmp_path.iterdir())
    once(tmp_path / "part", whole)
    once(tmp_path / "part", cut_short)
    assert [path.name for path in tmp_path.rglob("*")] == ["part", "second"]
