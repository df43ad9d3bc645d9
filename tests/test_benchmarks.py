"""The arithmetic of the benchmarks by hand, their table, and the GPU benchmark at toy size."""

from __future__ import annotations

from pathlib import Path

import pytest
from benchmarks.limits import Load, Shape, completion_pairs, forward, matrix_rate, scoring, training
from benchmarks.measure import Comparison, Figure
from benchmarks.table import write

SHAPE = Shape(
    hidden=8,
    layers=2,
    heads=4,
    kv_heads=2,
    mlp=16,
    vocabulary=10,
    vision=4,
    vision_mlp=6,
    vision_layers=3,
    vision_full_layers=1,
    window=4,
    patch=5,
    merge=4,
)


def test_pairs_of_queries_and_keys_are_those_of_the_causal_mask() -> None:
    # Prompt of 3; the queries of completions of 2 and 1 see 4 + 5 and 4 keys.
    assert completion_pairs(Load(3, (2, 1), ())) == 13


def test_operations_of_text_are_those_counted_by_hand() -> None:
    # A layer: q and o 8 × 8, k and v 8 × 4, three of 8 × 16: 576 weights. 6 tokens; 6 pairs in the prompt, 13 after.
    layers = 2 * (2 * 6 * 576 + 4 * 8 * (6 + 13))
    assert forward(SHAPE, Load(3, (2, 1), ()), logits=False) == layers
    assert forward(SHAPE, Load(3, (2, 1), ()), logits=True) == layers + 2 * 3 * 8 * 10


def test_operations_of_a_picture_are_those_counted_by_hand() -> None:
    # 8 patches: embedding 8 × 5 × 4; a layer 4 · 16 + 3 · 24 = 136 weights; 64 pairs in the full layer, 32 in the two
    # others; 2 merged tokens through 16 × 16 and 16 × 8.
    picture = 2 * 8 * 5 * 4 + 3 * 2 * 8 * 136 + 4 * 4 * (64 + 2 * 32) + 2 * 2 * (16 * 16 + 16 * 8)
    text = forward(SHAPE, Load(3, (1,), ()), logits=False)
    assert forward(SHAPE, Load(3, (1,), (8,)), logits=False) == text + picture


def test_training_is_three_forwards() -> None:
    load = Load(3, (2, 1), (8,))
    assert training(SHAPE, load) == 3 * forward(SHAPE, load, logits=True)


def test_scoring_scores_completions_once_more_and_ends_at_the_keys_of_the_last_layer() -> None:
    # Once more: 2 layers, 8 wide, 13 pairs. Unneeded in the last layer: v 8 × 4, o 8 × 8, three of 8 × 16, 19 pairs.
    load = Load(3, (2, 1), (8,))
    again, unneeded = 2 * 2 * 8 * 13, 2 * 6 * (32 + 64 + 384) + 4 * 8 * 19
    assert scoring(SHAPE, load) == forward(SHAPE, load, logits=False) + again - unneeded


def test_separate_rows_compute_the_prompt_as_often_as_there_are_completions() -> None:
    load = Load(100, (4, 4, 4, 4), (8,))
    separate = sum(forward(SHAPE, one, logits=False) for one in load.separate())
    assert 3 < separate / forward(SHAPE, load, logits=False) < 4


def test_the_matrix_rate_is_a_rate() -> None:
    assert 1e7 < matrix_rate(size=64, seconds=0.02) < 1e15


def test_a_ratio_is_median_over_median() -> None:
    assert Comparison(ours=[1.0, 2.0, 9.0], theirs=[5.0, 8.0, 6.0]).ratio == 3.0


def test_the_table_keeps_lines_that_were_not_measured_again(tmp_path: Path) -> None:
    machine = {"processor": "one", "date": "today"}
    write(tmp_path, machine, [Figure("a", "work a", "b", 2.0, 1.5), Figure("c", "work c", "d", 1.2, 1.1, "at most")])
    write(tmp_path, machine | {"date": "tomorrow"}, [Figure("a", "work a", "b", 3.0, 1.5)])
    text = (tmp_path / "benchmarks.md").read_text(encoding="utf-8")
    assert "| work a | b | 3.00 × | at least 1.5 × | ✓ |" in text
    assert "| work c | d | 1.20 × | at most 1.1 × | ✗ |" in text


def test_the_gpu_benchmark_runs_at_toy_size() -> None:
    torch = pytest.importorskip("torch")
    from benchmarks.gpu import measure

    result = measure(torch.device("cpu"), tiny=True, rows=2, repetitions=1)
    assert [(one["work"], one["prompt"]) for one in result["figures"]] == [
        (kind, way) for kind in ("scoring", "generation", "update") for way in ("shared", "separate")
    ]
    assert set(result["speed-up"]) == {"scoring", "generation", "update"}
    assert result["checks"]["log-prob difference"] < 1e-4
