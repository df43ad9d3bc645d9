"""docs/coming-from.md: both sides of its tables exist, and so do the defaults."""

from __future__ import annotations

import dataclasses
import re
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
import yaml
from pydantic import BaseModel
from support.commands import ROOT

from dapo_stages.config import Config, load_config
from dapo_stages.config.loading import _keys_beside

PAGE = (ROOT / "docs/coming-from.md").read_text(encoding="utf-8")


def rows(first: str) -> list[list[str]]:
    """The cells of a table whose header begins so."""
    table = PAGE.split(f"\n| {first} |")[1].split("\n\n")[0].splitlines()[2:]
    return [[cell.strip() for cell in line.strip("|").split(" | ")] for line in (f"{line} " for line in table)]


def names(cell: str) -> list[str]:
    return re.findall(r"`([^`]+)`", cell)


OURS = {
    key
    for first in ("there", "ms-swift", "there, P = 4", "verl", "PAPO", "often called")
    for cells in rows(first)
    for key in re.findall(r"`([a-z_]+(?:\.[a-z_]+)*)(?:=\d+)?`", cells[2 if first in {"there", "verl"} else 1])
}


def test_tables_are_read() -> None:
    assert len(OURS) > 50 and "train.epsilon_high" in OURS and "planned_iterations" in OURS


@pytest.mark.parametrize("key", sorted(OURS | set(re.findall(r"`(train\.lora\.\w+|rewards\.\w+)`", PAGE))))
def test_every_key_of_ours_exists(key: str) -> None:
    assert key.split(".")[-1] in _keys_beside(tuple(key.split(".")))


@pytest.fixture(scope="module")
def theirs() -> dict[str, Any]:
    trl = pytest.importorskip("trl")
    return {field.name: field.default for field in dataclasses.fields(trl.GRPOConfig)}


@pytest.mark.parametrize("cells", rows("there"), ids=lambda cells: cells[0])
def test_names_and_defaults_of_a_row_are_true(cells: list[str], theirs: dict[str, Any]) -> None:
    there, default_there, here, default_here = (names(cell) for cell in cells[:4])
    for name in there:
        assert name.startswith("--") and name[2:] in theirs
    for name, default in zip(there, default_there, strict=False):
        assert theirs[name[2:]] == read(default)
    for name, default in zip(here, default_here, strict=False):
        value: Any = reduce(getattr, name.split("."), Config())
        assert not isinstance(value, BaseModel)
        assert (list(value) if isinstance(value, tuple) else value) == read(default)


def read(text: str) -> Any:
    value = yaml.safe_load(text)
    return float(value) if isinstance(value, str) and re.fullmatch(r"[\d.]+e-?\d+", value) else value


def keys(trainer: str) -> set[str]:
    """Recorded from a version of a trainer, which the first line names."""
    lines = (ROOT / f"tests/trainers/{trainer}.txt").read_text(encoding="utf-8").splitlines()
    return {line for line in lines if not line.startswith("#")}


def in_full(cell: str) -> list[str]:
    """`a.b.c`, `.d` -> a.b.c, a.b.d."""
    found: list[str] = []
    for name in names(cell):
        found.append(found[-1].rpartition(".")[0] + name if name.startswith(".") else name)
    return found


def test_every_name_of_ms_swift_exists() -> None:
    transformers = pytest.importorskip("transformers")
    known = keys("ms-swift") | {field.name for field in dataclasses.fields(transformers.Seq2SeqTrainingArguments)}
    table = rows("ms-swift")
    assert {name for cells in table for name in names(cells[0])} <= {f"--{name}" for name in known}
    not_there = {name for cells in table for name in names(cells[2])}
    assert not_there == {name for cells in rows("there") for name in names(cells[0]) if name[2:] not in known}


@pytest.mark.parametrize(("trainer", "column"), [("verl", 0), ("easyr1", 1)])
def test_every_name_of_verl_and_easyr1_exists(trainer: str, column: int) -> None:
    known = keys(trainer)
    found = [name for cells in rows("verl") for name in in_full(cells[column])]
    assert len(found) > 25 and set(found) <= known, sorted(set(found) - known)


@pytest.mark.parametrize("cells", rows("there, P = 4"), ids=["16 prompts", "64 prompts"])
def test_the_arithmetic_is_that_of_trl(cells: list[str], tmp_path: Path) -> None:
    trl = pytest.importorskip("trl")
    flags = dict(re.findall(r"--(\w+) (\d+)", f"{rows('there, P = 4')[0][0]} {cells[0]}"))
    config = trl.GRPOConfig(output_dir=str(tmp_path), use_cpu=True, **{name: int(n) for name, n in flags.items()})
    (tmp_path / "run.yaml").write_text("{}")
    ours = load_config(tmp_path / "run.yaml", names(cells[1]))
    # TRL knows of this one process here; four have four times as many completions.
    completions = 4 * config.generation_batch_size
    assert ours.rollout.prompts_per_iteration * ours.rollout.num_generations == completions
    assert ours.train.updates_per_iteration == config.steps_per_generation / config.gradient_accumulation_steps
