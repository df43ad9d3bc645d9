"""Each point reaches a tracker once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from reporting import tiny_run
from support.offline_wandb import inspect, records

from dapo_stages.handoff.manifests import Source
from dapo_stages.reporting.iteration.figures import Figures
from dapo_stages.reporting.iteration.histograms import BINS, histogram, histograms
from dapo_stages.reporting.trackers.feed import Feed, news
from dapo_stages.reporting.trackers.media import shown
from dapo_stages.reporting.trackers.sending import track
from dapo_stages.reporting.trackers.wandb_run import mode
from dapo_stages.runs.run_folder import Run

pytestmark = pytest.mark.long

FIRST: Figures = {"iteration": 1, "rollout": {"accuracy": 0.5}, "train": {"loss": 0.3, "updates": [{"loss": 0.3}]}}
SECOND: Figures = {"iteration": 2, "rollout": {"accuracy": 0.625}, "train": {"updates": [{"loss": 0.1}, {"loss": 0.2}]}}
AGAIN: Figures = {"iteration": 1, "rollout": {"accuracy": 0.75}}


def feed(run: Path, *figures: Figures, **more: Any) -> Feed:
    return Feed(run, "p", figures, {one["iteration"]: json.dumps(one) for one in figures}, **more)


@pytest.fixture(autouse=True)
def _no_key(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.delenv("WANDB_MODE", raising=False)


def events(run: Path) -> Counter[tuple[str, int, float]]:
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_file_loader import LegacyEventFileLoader

    found: Counter[tuple[str, int, float]] = Counter()
    for path in (run / "runs").glob("events.*"):
        for event in LegacyEventFileLoader(str(path)).Load():
            scalars = [value for value in event.summary.value if value.WhichOneof("value") == "simple_value"]
            found.update((value.tag, event.step, round(value.simple_value, 6)) for value in scalars)
    return found


def test_points_carry_iterations_and_optimizer_steps(tmp_path: Path) -> None:
    assert feed(tmp_path, FIRST, SECOND).points() == {
        ("rollout/accuracy", 1): 0.5,
        ("train/loss", 1): 0.3,
        ("update/loss", 1): 0.3,
        ("rollout/accuracy", 2): 0.625,
        ("update/loss", 2): 0.1,
        ("update/loss", 3): 0.2,
    }


def test_a_changed_point_means_starting_afresh(tmp_path: Path) -> None:
    two = feed(tmp_path, {"iteration": 1, "a": 1.0}, {"iteration": 2, "a": 2.0})
    assert news(two, {("a", 1): 1.0}, {}) == (False, {("a", 2): 2.0}, [], [])
    assert news(two, {("a", 1): 1.5}, {}) == (True, two.points(), [], [])
    assert news(two, two.points() | {("b", 1): 1.0}, {}) == (True, two.points(), [], [])


def test_media_are_sent_for_new_iterations_and_for_all_by_backfill(tmp_path: Path) -> None:
    three = feed(tmp_path, reports={1: "a", 2: "b", 3: "c"}, made=[3])
    assert news(three, {}, {}) == (False, {}, [3], [1, 2])
    assert news(three, {}, {1: "a", 3: "c"}) == (False, {}, [], [2])
    assert news(replace(three, backfill=True), {}, {3: "c"}) == (False, {}, [1, 2], [])
    assert news(three, {}, {1: "other"}) == (True, {}, [1, 3], [2])
    assert news(replace(three, made=[]), {}, {4: "gone"}) == (True, {}, [], [1, 2, 3])


def test_tensorboard_gets_each_point_once(tmp_path: Path) -> None:
    track(feed(tmp_path, FIRST), ["tensorboard"])
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    before = tiny_run.contents(tmp_path / "runs", os.listdir(tmp_path / "runs"))
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    assert tiny_run.contents(tmp_path / "runs", os.listdir(tmp_path / "runs")) == before
    found = events(tmp_path)
    assert set(found.values()) == {1}
    assert ("rollout/accuracy", 2, 0.625) in found and ("update/loss", 3, 0.2) in found


def test_what_is_noted_is_not_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """As long as the note is of these very files: it is not if one has gone, or one came from elsewhere."""
    from dapo_stages.reporting.trackers import tensorboard_events

    reads: list[int] = []
    reading = tensorboard_events._read

    def noted(paths: list[Path]) -> object:
        reads.append(len(paths))
        return reading(paths)

    monkeypatch.setattr(tensorboard_events, "_read", noted)
    track(feed(tmp_path, FIRST), ["tensorboard"])
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    assert reads == [0]
    first, second = sorted((tmp_path / "runs").glob("events.*"))
    second.unlink()
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    assert reads == [0, 1]
    assert set(events(tmp_path).values()) == {1} and len(events(tmp_path)) == 6
    (tmp_path / "runs/dapo-stages.json").write_text("{")
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    assert reads == [0, 1, 2] and first.exists()


def test_an_iteration_done_again_replaces_its_tensorboard_points(tmp_path: Path) -> None:
    track(feed(tmp_path, FIRST), ["tensorboard"])
    track(feed(tmp_path, AGAIN), ["tensorboard"])
    assert events(tmp_path) == {("rollout/accuracy", 1, 0.75): 1}


def test_an_event_file_cut_off_in_the_middle_is_carried_on_from(tmp_path: Path) -> None:
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    (path,) = (tmp_path / "runs").glob("events.*")
    path.write_bytes(path.read_bytes()[:-20])
    assert 0 < len(events(tmp_path)) < 6
    track(feed(tmp_path, FIRST, SECOND), ["tensorboard"])
    assert len(found := events(tmp_path)) == 6 and set(found.values()) == {1}


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({}, "offline"),
        ({"WANDB_MODE": "online"}, "offline"),
        ({"WANDB_API_KEY": "k"}, "online"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "offline"}, "offline"),
        ({"WANDB_API_KEY": "k", "WANDB_MODE": "dryrun"}, "offline"),
        ({"WANDB_MODE": "disabled"}, "disabled"),
    ],
)
def test_wandb_is_online_with_a_key_in_the_environment_only(
    environment: dict[str, str], expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert mode() == expected


def test_a_tracker_that_is_not_installed_is_named_and_costs_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "wandb", None)
    track(feed(tmp_path, FIRST), ["wandb"])
    assert "cannot send to wandb, which is not installed" in (said := capsys.readouterr().err)
    assert "pip install wandb tensorboard" in said


def test_trackers_do_not_import_torch(tmp_path: Path) -> None:
    code = (
        "import sys; from pathlib import Path\n"
        "from dapo_stages.reporting.trackers.feed import Feed\n"
        "from dapo_stages.reporting.trackers.sending import track\n"
        f"track(Feed(Path({str(tmp_path)!r}), 'p', [{FIRST!r}], {{1: 'key'}}), ['tensorboard'])\n"
        "assert not {'torch', 'transformers'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parents[2])


def test_a_histogram_counts_what_is_finite() -> None:
    found = histogram(np.array([0.0, 1.0, 1.0, 3.0, np.nan, np.inf]))
    assert found is not None
    assert (found["edges"][0], found["edges"][-1], len(found["edges"])) == (0.0, 3.0, BINS + 1)
    assert {i: n for i, n in enumerate(found["counts"]) if n} == {0: 1, BINS // 3: 2, BINS - 1: 1}
    assert histogram(np.array([np.nan])) is None
    assert sum((histogram(np.array([2.0, 2.0]), logarithmic=True) or {"counts": []})["counts"]) == 2


def test_bins_of_ratios_have_the_same_ratio() -> None:
    found = histogram(np.array([0.01, 1.0, 100.0]), logarithmic=True)
    assert found is not None
    np.testing.assert_allclose(np.diff(np.log(found["edges"])), np.log(10_000) / BINS)
    assert {i for i, n in enumerate(found["counts"]) if n} == {0, BINS // 2, BINS - 1}


def test_histograms_are_of_every_token_and_completion(tmp_path: Path) -> None:
    """By hand: completions of 11, 11, 6 and 8 tokens, weights 0.5 … 1.5; VGR 1, 2, 3, 4 in all tokens of each."""
    found = histograms(Run(tiny_run.build(tmp_path / "tiny")).sources(1))
    assert {name: sum(one["counts"]) for name, one in found.items()} == {"token_weights": 36, "token_vgr": 36, "vgr": 4}
    assert (found["token_weights"]["edges"][0], found["token_weights"]["edges"][-1]) == (0.5, 1.5)
    assert [n for n in found["token_vgr"]["counts"] if n] == [11, 11, 6, 8]


def test_text_for_trackers_is_not_endless_and_steers_nothing() -> None:
    assert shown("\x1b[2J\u202e" + "a" * 1_000_000) == "␛[2J⟨U+202E⟩" + "a" * 9995 + " … (1,000,005 characters)"


# Through the command, with the trackers' own readers


def points_of(run: Path) -> dict[tuple[str, int], float]:
    """What a tracker should have, from the report's own files: leaves of figures.json, and rows of metrics.parquet."""
    expected: dict[tuple[str, int], float] = {}
    step = 0
    for number in (0, 1, 2):
        folder = run / f"iter-{number:04d}"
        figures = json.loads((folder / "report/figures.json").read_text())
        figures.pop("iteration")
        expected |= {(name, number): value for name, value in flat(figures)}
        if (folder / "train").exists():
            for row in Source(folder / "train").rows("metrics"):
                expected[f"update/{row['name']}", step + row["update"]] = row["value"]
            step += 2
    return expected


def flat(values: dict[str, Any], place: str = "") -> list[tuple[str, float]]:
    found: list[tuple[str, float]] = []
    for name, value in values.items():
        if isinstance(value, dict):
            found += flat(value, f"{place}{name}/")
        elif isinstance(value, int | float) and not isinstance(value, bool):
            found.append((f"{place}{name}", value))
    return found


@pytest.fixture(scope="module")
def tracked(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Reports of iterations 0 and 1 before a tracker was on; then of 2 with both, twice again, and a backfill."""
    pytest.importorskip("wandb")
    pytest.importorskip("tensorboard")
    from stages.test_report import report

    run = tiny_run.build(tmp_path_factory.mktemp("runs") / "tiny", last="rollout")
    with pytest.MonkeyPatch.context() as patch:
        patch.delenv("WANDB_API_KEY", raising=False)
        patch.delenv("WANDB_MODE", raising=False)
        assert report(run).exit_code == 0
        tiny_run.iteration(run, 2)
        on = ("--set", "report.trackers=[wandb, tensorboard]")
        first = report(run, *on)
        assert first.stderr.count("but not the tables and histograms of 2 of them; run report --backfill") == 2
        for arguments in ([], [], ["--backfill"], ["--backfill"]):
            assert report(run, *on, *arguments).exit_code == 0
    return run


def test_wandb_has_every_metric_of_every_iteration_once(tracked: Path) -> None:
    ((_, rows),) = records(tracked).items()
    found: Counter[tuple[str, int]] = Counter()
    values = {}
    for row in rows:
        step = int(row["iteration"] if "iteration" in row else row["optimizer_step"])
        for name, value in row.items():
            if "/" in name and isinstance(value, int | float):
                found[name, step] += 1
                values[name, step] = value
    assert set(found.values()) == {1}
    assert values == pytest.approx(points_of(tracked))
    assert [row["_number"] for row in rows] == list(range(len(rows)))


def test_wandb_has_tables_histograms_and_the_configuration_once(tracked: Path) -> None:
    ((identity, rows),) = records(tracked).items()
    for name, iterations in (("histograms/token_weights", [1, 2]), ("completions", [1, 2]), ("stages", [0, 1, 2])):
        assert [row["iteration"] for row in rows if any(key.startswith(f"{name}.") for key in row)] == iterations
    drawn = next(row for row in rows if "histograms/vgr.values" in row and row["iteration"] == 1)
    assert [n for n in drawn["histograms/vgr.values"] if n] == [1, 1, 1, 1]
    table = next(table for table in tables(tracked, "completions") if table["data"][0][0] == 1)
    (row,) = (row for row in table["data"] if row[2] == "it1-p0-s3")
    assert "<script>alert(1)</script> [/box]" in row[6] and "\x1b" not in row[6] and row[8] == -0.5
    assert (row[3]["_type"], row[3]["width"], row[3]["height"]) == ("image-file", 56, 56)
    assert "</answer>(1.50)" in table["data"][0][7]
    stages = tables(tracked, "stages")[-1]  # of the last iteration
    by_stage = {stage: (own, made_from) for stage, own, made_from in stages["data"]}
    hashes = {s: Source(tracked / "iter-0002" / s).manifest.content_hash[:12] for s in ("rollout", "weights", "train")}
    rollout, weights = hashes["rollout"], hashes["weights"]
    assert by_stage["train-step"] == (hashes["train"], f"rollouts {rollout}, weights {weights}")
    first = next((tracked / "wandb").glob(f"offline-run-*-{identity}"))
    config = next(record["run"]["config"]["update"] for record in inspect(first) if record["type"] == "run")
    assert (config["seed"], config["report"]["samples"], config["train"]["epsilon_high"]) == (1, 2, 0.28)


def test_wandb_keeps_what_it_uploads_in_the_run(tracked: Path) -> None:
    places = [Path(entry["local_path"]) for entry in uploads(tracked)]
    assert places and all(place.is_relative_to(tracked) and place.exists() for place in places)


def uploads(run: Path) -> list[dict[str, Any]]:
    """The files of all artifacts: where each is now, and what it is called in its artifact."""
    written = [inspect(folder) for folder in sorted((run / "wandb").glob("offline-run-*"))]
    artifacts = [record["artifact"] for records in written for record in records if record["type"] == "artifact"]
    return [entry for artifact in artifacts for entry in artifact["manifest"]["contents"]]


def tables(run: Path, name: str) -> list[dict[str, Any]]:
    wanted = [entry for entry in uploads(run) if entry["path"] == f"{name}.table.json"]
    return [json.loads(Path(entry["local_path"]).read_text()) for entry in wanted]


def test_tensorboard_has_every_metric_of_every_iteration_once(tracked: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    read = EventAccumulator(str(tracked / "runs"), size_guidance={"scalars": 0, "histograms": 0, "images": 0}).Reload()
    found = {name: [(one.step, one.value) for one in read.Scalars(name)] for name in read.Tags()["scalars"]}
    expected = points_of(tracked)
    assert sum(map(len, found.values())) == len(expected)
    values = {(name, step): value for name, pairs in found.items() for step, value in pairs}
    assert values == pytest.approx(expected)
    assert sorted(read.Tags()["histograms"]) == [f"histograms/{name}" for name in ("token_vgr", "token_weights", "vgr")]
    histogram_of_1 = next(one for one in read.Histograms("histograms/token_weights") if one.step == 1)
    assert (histogram_of_1.histogram_value.num, histogram_of_1.histogram_value.max) == (36, 1.5)
    assert sorted(one.step for one in read.Images("samples/1/image")) == [1, 2]
    assert read.Images("samples/1/image")[0].encoded_image_string.startswith(b"\x89PNG")
    assert sorted(one.step for one in read.Tensors("stages")) == [0, 1, 2]
    (config,) = read.Tensors("configuration")
    assert b"\nseed: 1\n" in config.tensor_proto.string_val[0]
