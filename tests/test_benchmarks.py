"""The measuring of the benchmarks, their table, and the GPU benchmark at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.limits import matrix_rate
from benchmarks.measure import Comparison, Figure
from benchmarks.real_size import once
from benchmarks.table import write

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


def test_the_gpu_benchmark_runs_at_toy_size() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.gpu import measure

    result = measure(torch.device("cpu"), tiny=True, rows=2, repetitions=1)
    assert [(one["work"], one["prompt"]) for one in result["figures"]] == [
        (kind, way) for kind in ("scoring", "generation", "update") for way in ("shared", "separate")
    ]
    assert set(result["speed-up"]) == {"scoring", "generation", "update"}
    assert result["checks"]["logprob difference"] < 1e-4


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
