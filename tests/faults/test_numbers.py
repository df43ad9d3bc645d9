"""NaN, infinities and lists of the wrong length, in any column that is read: named, or they change nothing.

Rows are as another program would write them, under manifests that agree: only their values are wrong. What counts is
what train-step would train on, the mini-batch: it is finite and whole, or there is a message with file and column.
"""

from __future__ import annotations

import math
import re
import shutil
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from reporting import tiny_run
from support.commands import run as command
from support.pipeline import Run

from dapo_stages.config import load_config
from dapo_stages.errors import DataError
from dapo_stages.groups.token_weighting import TokenWeighting
from dapo_stages.handoff.manifests import Source, kind_of, write_manifest
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.resuming import open_output
from dapo_stages.handoff.schemas import NOT_FINITE, TOKEN_SCORES
from dapo_stages.handoff.shards import Row, Shard
from dapo_stages.maths.schemes import SCHEMES
from dapo_stages.stages.weight_tokens import Weighting
from dapo_stages.training.batches import mini_batch
from dapo_stages.training.train_groups import read_groups
from faults.folders import republish, rewrite
from faults.table import record

VOCABULARY = 64
POLICY: Any = SimpleNamespace(tokens=SimpleNamespace(vision_ids={2}, vocabulary=VOCABULARY), processor=None)
LARGEST = float(np.finfo(np.float32).max)
MANY = [40, pytest.param(1500, marks=pytest.mark.faults)]


@dataclass(frozen=True)
class Change:
    """One wrong value: in which column of which row, and for a list where."""

    table: str
    column: str
    row: int
    place: int
    value: Any  # of a number; for a list's length -1: one less, 1: one more, 0: none
    length: bool

    def apply(self, rows: list[Row]) -> Row:
        """Put it into the rows, and give the row as it was."""
        row = rows[self.row % len(rows)]
        before = dict(row)
        old = row[self.column]
        if not isinstance(old, list):
            row[self.column] = self.value
        elif self.length:
            row[self.column] = {0: [], -1: old[:-1], 1: [*old, old[-1] if old else 1]}[self.value]
        else:
            place = self.place % len(old)
            row[self.column] = [*old[:place], self.value, *old[place + 1 :]]
        return before


def changes(tables: dict[str, tuple[str, ...]], schemas: dict[str, pa.Schema]) -> st.SearchStrategy[Change]:
    """Any wrong value in any of these columns."""
    strange = [math.nan, math.inf, -math.inf, LARGEST, -LARGEST, 0.0, -1.0, 1e-45, 1e30]
    floats = st.one_of(st.sampled_from(strange), st.floats(width=32))
    ints = st.one_of(st.sampled_from([-1, 0, VOCABULARY, 2**31 - 1, -(2**31)]), st.integers(-(2**31), 2**31 - 1))
    one_of = []
    for table, columns in tables.items():
        for column in columns:
            kind = schemas[table].field(column).type
            is_list = pa.types.is_list(kind)
            value = floats if pa.types.is_floating(kind.value_type if is_list else kind) else ints
            rows, places = st.integers(0, 7), st.integers(0, 10)
            common = {"table": st.just(table), "column": st.just(column), "row": rows, "place": places}
            one_of.append(st.builds(Change, **common, value=value, length=st.just(False)))
            if is_list:
                lengths = st.sampled_from([0, -1, 1])
                one_of.append(st.builds(Change, **common, value=lengths, length=st.just(True)))
    return st.one_of(one_of)


def examples(count: int) -> settings:
    """So many examples, the same ones every time."""
    checks = [HealthCheck.too_slow, HealthCheck.function_scoped_fixture, HealthCheck.data_too_large]
    return settings(max_examples=count, deadline=None, derandomize=True, database=None, suppress_health_check=checks)


@dataclass
class Folder:
    """A published folder of which one table at a time is another."""

    original: Path
    now: Path

    def __post_init__(self) -> None:
        self.source = Source(self.original)
        self.rows = {shard.name: self._rows(shard) for shard in self.source.manifest.shards}
        self.schemas = {name: pq.read_schema(self.original / name) for name in self.files}

    def _rows(self, shard: Shard) -> list[Row]:
        with self.source.reader(kind_of(shard.name), shard) as reader:
            return list(reader.rows())

    @property
    def files(self) -> list[str]:
        return [shard.name for shard in self.source.manifest.shards]

    def with_(self, name: str, change: Change) -> tuple[Source, Row]:
        """The folder with this change, and the row as it was before."""
        shutil.rmtree(self.now, ignore_errors=True)
        shutil.copytree(self.original, self.now)
        made = [dict(row) for row in self.rows[name]]
        before = change.apply(made)
        rewrite(self.now / name, made, self.schemas[name])
        return republish(self.now), before


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two iterations; the first leaves a buffer, the second's weights replay from it. All token scores are there."""
    run = tiny_run.build(tmp_path_factory.mktemp("runs") / "numbers", last="attention")
    for number in (1, 2):
        folder = run / f"iter-{number:04d}"
        scored = Source(folder / "attention")
        rows = [row | {name: [0.5] * len(row["vgr"]) for name in TOKEN_SCORES} for row in scored.rows("attention")]
        plan = Plan("score-attention", folder / "attention", {"all": 1}, 1, {"rollouts": Source(folder / "rollout")})
        tiny_run.publish(plan, partial(Output.write, kind="attention", index=0, rows=rows))
        weigh(run, number, folder / "weights", {})
    return run


def weigh(run: Path, number: int, out: Path, instead: dict[str, Source], *overrides: str) -> Source:
    """weight-tokens without its command; `instead` replaces inputs by name."""
    here, before = run / f"iter-{number:04d}", run / f"iter-{number - 1:04d}"
    config = load_config(run / "config.yaml", ["weights.replay.min_reward=-1e30", *overrides]).at(number)
    inputs = {"rollouts": Source(here / "rollout"), "attention": Source(here / "attention")}
    if number > 1:
        inputs["replay"] = Source(before / "weights")
    shutil.rmtree(out, ignore_errors=True)
    with open_output(Plan("weight-tokens", out, {"iteration": number}, 1, inputs | instead)) as output:
        assert isinstance(output, Output)
        Weighting(output, config, number, TokenWeighting(config.weights)).run()
        output.publish()
    return Source(out)


def trained_on(rollouts: Source, weights: Source, run: Path) -> int:
    """Completions in the mini-batch of these files, all finite and whole."""
    inputs: dict[str, Source] = {"policy": PolicyFolder(run / "policy"), "rollouts": rollouts, "weights": weights}
    with ExitStack() as stack:
        groups = read_groups(stack, Plan("train-step", run, {}, 1, inputs), POLICY)
    batch = mini_batch(groups, 3)
    samples = [sample for part in batch.batches for sample in part.samples]
    for sample in samples:
        assert len(sample.ids) == len(sample.sampling) == len(sample.weights) > 0
        assert all(0 <= token < VOCABULARY for token in sample.ids)
        assert all(map(math.isfinite, (*sample.sampling, *sample.weights)))
        assert math.isfinite(np.float32(sample.advantage))
    assert batch.tokens == sum(len(sample.ids) for sample in samples)
    return len(samples)


def named(error: DataError, change: Change, *folders: Path) -> None:
    """The message names the column, and a file or folder that the change is in or shows in."""
    text = str(error)
    assert change.column in text or re.search(_SHOWS_IN.get(change.column, "^$"), text), text
    assert any(text.startswith(str(folder)) for folder in folders), text


# What a message says of these where the value itself could be, and only what follows from it can not.
_TOO_LARGE = "column (reward|advantage|score|mean_reward|std_reward) must be finite, but has -?inf"
_SHOWS_IN = {
    "token_weights": "weights for the",
    "completion_ids": " tokens ",
    "reward_accuracy": _TOO_LARGE,
    "reward_format": _TOO_LARGE,
    "reward_overlong": _TOO_LARGE,
    "reward_vgr": _TOO_LARGE,
    "vgr": "values of",
    "mass_vision": "values of",
    "entropy": "values of",
    "visual_kl": "values of",
}

TRAIN_READS = {
    "rollouts": {
        "prompts-00000.parquet": ("prompt_ids",),
        "completions-00000.parquet": ("completion_ids", "sampling_logprobs", "policy_version"),
    },
    "weights": {
        "weights-00000.parquet": ("advantage", "token_weights"),
        "weights-00001.parquet": ("advantage", "importance", "token_weights"),
        "replayed-prompts-00000.parquet": ("prompt_ids",),
        "replayed-completions-00000.parquet": ("completion_ids", "sampling_logprobs", "policy_version"),
    },
}


@pytest.mark.parametrize("count", MANY)
def test_train_step_trains_on_nothing_strange(count: int, run: Path, tmp_path: Path) -> None:
    here = run / "iter-0002"
    folders = {
        "rollouts": Folder(here / "rollout", tmp_path / "rollout"),
        "weights": Folder(here / "weights", tmp_path / "weights"),
    }
    usual = {name: folder.source for name, folder in folders.items()}
    whole = trained_on(usual["rollouts"], usual["weights"], run)
    assert whole >= 4
    columns = {f"{name}/{file}": each for name, of in TRAIN_READS.items() for file, each in of.items()}
    schemas = {table: folders[table.split("/")[0]].schemas[table.split("/")[1]] for table in columns}
    outcomes = {"refused": 0, "trained": 0}

    @examples(count)
    @given(changes(columns, schemas))
    def check(change: Change) -> None:
        name, file = change.table.split("/")
        source, before = folders[name].with_(file, change)
        try:
            found = trained_on(**(usual | {name: source}), run=run)
        except DataError as error:
            named(error, change, source.folder, *(folder.original for folder in folders.values()))
            outcomes["refused"] += 1
        else:
            assert found == whole, "a completion was left out"
            strange = isinstance(change.value, float) and not math.isfinite(change.value)
            assert not strange or before.get("in_loss") is False
            outcomes["trained"] += 1

    check()
    assert min(outcomes.values()) > count // 20
    record(8, count, f"train-step's columns: {outcomes['refused']} refused")


WEIGHTS_READ: dict[str, dict[str, tuple[str, ...]]] = {
    "rollouts": {
        "completions-00000.parquet": (
            "completion_ids", "sampling_logprobs", "reward_accuracy", "reward_format", "reward_overlong"
        ),
    },
    "attention": {
        "attention-00000.parquet": (
            "vgr_all", "vgr", "mass_vision", "entropy", "visual_kl", "num_text_tokens", "num_vision_tokens",
        ),
    },
    "replay": {
        "buffer-00000.parquet": ("iteration", "score", "mean_reward", "std_reward", "prompt_ids"),
        "buffer-completions-00000.parquet": (
            "completion_ids", "sampling_logprobs", "token_weights", "reward_accuracy", "reward_format",
            "reward_overlong", "reward_vgr",
        ),
    },
}  # fmt: skip


@pytest.mark.parametrize("count", MANY)
def test_weight_tokens_hands_on_nothing_strange(count: int, run: Path, tmp_path: Path) -> None:
    """Under any scheme and setting: what it reads is refused by name, or what it writes can be trained on."""
    here = run / "iter-0002"
    folders = {
        "rollouts": Folder(here / "rollout", tmp_path / "rollout"),
        "attention": Folder(here / "attention", tmp_path / "attention"),
        "replay": Folder(run / "iter-0001/weights", tmp_path / "replay"),
    }
    columns = {f"{name}/{file}": each for name, of in WEIGHTS_READ.items() for file, each in of.items()}
    schemas = {table: folders[table.split("/")[0]].schemas[table.split("/")[1]] for table in columns}
    whole = trained_on(Source(here / "rollout"), Source(here / "weights"), run)
    options = st.tuples(
        st.sampled_from([f"weights.scheme={scheme}" for scheme in SCHEMES]),
        st.sampled_from(["weights.vgr_mapping=quantile", "weights.vgr_mapping=mad"]),
        st.sampled_from([f"weights.scale_rewards={how}" for how in ("group", "batch", "none")]),
        st.sampled_from(["weights.smooth_sigma=0", "weights.smooth_sigma=1", "weights.mean_preserving=false"]),
        st.sampled_from(["weights.replay.priority_alpha=1", "weights.replay.priority_alpha=0.6"]),
        st.sampled_from(["weights.replay.priority_beta=0", "weights.replay.priority_beta=1"]),
        st.sampled_from(["weights.reward_weights.vgr=0", "weights.reward_weights.vgr=1.5"]),
    )
    outcomes = {"refused": 0, "weighted": 0}

    @examples(count)
    @given(changes(columns, schemas), options)
    def check(change: Change, overrides: tuple[str, ...]) -> None:
        name, file = change.table.split("/")
        source, _ = folders[name].with_(file, change)
        try:
            weights = weigh(run, 2, tmp_path / "out", {name: source}, *overrides)
            rollouts = source if name == "rollouts" else Source(here / "rollout")
            found = trained_on(rollouts, weights, run)
        except DataError as error:
            named(error, change, source.folder, tmp_path / "out", here / "rollout", here / "attention")
            outcomes["refused"] += 1
        else:
            assert found <= whole
            outcomes["weighted"] += 1

    check()
    assert min(outcomes.values()) > count // 20
    record(8, count, f"weight-tokens' columns: {outcomes['refused']} refused")


# What may be other than finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
def test_what_may_be_infinite_is_reported_and_shown(value: float, tmp_path: Path) -> None:
    """A completion that saw nothing of its image; an update whose loss was not finite."""
    run = tiny_run.build(tmp_path / "run")
    here = run / "iter-0002"
    for part in ("attention", "train"):
        folder = Folder(here / part, tmp_path / "none")
        (name,) = folder.files
        for row in folder.rows[name]:
            row |= {column: _everywhere(row[column], value) for column in row.keys() & NOT_FINITE}
        rewrite(here / part / name, folder.rows[name], folder.schemas[name])
        republish(here / part)
    report = command("report", "--config", run / "config.yaml", "--run", run)
    assert report.code == 0, report.stderr
    for args in (["it2-p0-s0"], ["it2-p0-s0", "--json"], ["--find", "worst"]):
        shown = command("inspect", "--run", run, *args)
        assert shown.code == 0, shown.stderr
    blind = command("inspect", "--run", run, "--find", "disagree")
    assert blind.code == 3 and "no completion has a VGR. Run score-attention" in blind.stderr
    assert command("status", "--run", run, "--json").code == 0
    record(8, 6, "values that may be infinite, in reports")


def _everywhere(found: Any, value: float) -> Any:
    if isinstance(found, list):
        return [_everywhere(one, value) for one in found]
    return value if isinstance(found, float) else found


# Through the commands


@pytest.mark.faults
@pytest.mark.parametrize(
    ("part", "file", "column", "value", "words"),
    [
        ("weights", "weights-00000.parquet", "advantage", math.nan, ": column advantage must be finite, but has nan"),
        ("weights", "weights-00000.parquet", "token_weights", math.inf, "token_weights must be finite, but has inf"),
        ("rollout", "completions-00000.parquet", "sampling_logprobs", -math.inf, "must be finite, but has -inf"),
        (
            "rollout",
            "completions-00000.parquet",
            "completion_ids",
            10**6,
            " has token 1000000, but the policy's vocabulary",
        ),
    ],
)
def test_the_commands_refuse_it_before_anything_is_trained(
    part: str, file: str, column: str, value: float, words: str, small_run: Run, tmp_path: Path
) -> None:
    here = small_run.at(2)
    folder = Folder(here / part, tmp_path / part)
    trained = next(row["completion_id"] for row in Source(here / "weights").rows("weights") if row["in_loss"])
    row = [row["completion_id"] for row in folder.rows[file]].index(trained)
    source, _ = folder.with_(file, Change(part, column, row, 0, value, False))
    sources = {"rollout": here / "rollout", "weights": here / "weights", part: source.folder}
    inputs = ["--policy", small_run.policy(1), "--rollouts", sources["rollout"], "--weights", sources["weights"]]
    if part == "rollout":  # weights of these very rollouts, but for the wrong value
        weights = Source(here / "weights").manifest
        made_from = weights.inputs | {"rollouts": weights.inputs["rollouts"].model_copy(
            update={"content_hash": source.manifest.content_hash}
        )}  # fmt: skip
        shutil.copytree(here / "weights", tmp_path / "weights")
        write_manifest(tmp_path / "weights", weights.model_copy(update={"inputs": made_from}))
        inputs[-1] = tmp_path / "weights"
    result = small_run.attempt("train-step", *inputs, "--out", tmp_path / "train")
    assert result.code == 3 and words in result.stderr.splitlines()[-1], result.stderr
    assert not (tmp_path / "train/manifest.json").exists() and not (tmp_path / "train/policy").exists()
    record(8, 1, "train-step on a strange value")
