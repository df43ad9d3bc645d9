"""W&B offline: one folder of one run that has each point once, whatever happened before."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from collections import Counter
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from support.commands import ROOT
from support.offline_wandb import inspect, records

from dapo_stages.reporting.trackers.feed import Feed
from dapo_stages.reporting.trackers.media import Media
from dapo_stages.reporting.trackers.sending import track

pytestmark = pytest.mark.long
pytest.importorskip("wandb")


@pytest.fixture(autouse=True)
def _offline(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("WANDB_API_KEY", "WANDB_MODE", "WANDB_DATA_DIR"):
        monkeypatch.delenv(name, raising=False)


def feed(run: Path, last: int, accuracy: float = 0.5, **more: Any) -> Feed:
    """Iterations 1 to `last`, of two updates each."""
    rest = {"rollout": {"accuracy": accuracy}, "train": {"updates": [{"loss": 0.25}, {"loss": 0.125}]}}
    figures = {number: {"iteration": number, **rest} for number in range(1, last + 1)}
    return Feed(run, "p", list(figures.values()), {number: json.dumps(one) for number, one in figures.items()}, **more)


def note(run: Path) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((run / "wandb/dapo-stages.json").read_text())
    return found


def folder(run: Path, identity: str) -> Path:
    """The only folder of an id."""
    (found,) = (run / "wandb").glob(f"offline-run-*-{identity}")
    return found


def is_whole(rows: list[dict[str, Any]], last: int) -> bool:
    """Whether a run has every iteration and every optimizer step once, in records without a gap."""
    names = ("iteration", "optimizer_step")
    found = Counter((name, row[name]) for row in rows for name in names if name in row)
    ends = zip(names, (last, 2 * last), strict=True)
    wanted = Counter((name, number) for name, end in ends for number in range(1, end + 1))
    return found == wanted and [row["_number"] for row in rows] == list(range(3 * last))


def test_a_report_after_each_iteration_leaves_one_folder(tmp_path: Path) -> None:
    for last in (1, 2, 2, 3):
        track(feed(tmp_path, last), ["wandb"])
    identity = note(tmp_path)["id"]
    found = records(tmp_path)
    assert found.keys() == {identity} and is_whole(found[identity], 3) and folder(tmp_path, identity)
    assert "WANDB_DATA_DIR" not in os.environ and not (tmp_path / "wandb/unfinished").exists()


def test_parts_of_older_versions_become_one(tmp_path: Path) -> None:
    """They wrote a folder for each report, and noted neither what was uploaded nor, at first, which iterations."""
    track(feed(tmp_path, 1), ["wandb"])
    found = note(tmp_path)
    for second in range(10, 13):
        (tmp_path / f"wandb/offline-run-20250101_0000{second}-{found['id']}").mkdir()
    old = {key: found[key] for key in ("id", "steps", "open", "media")}
    logged = [[name, step, value] for (name, step), value in feed(tmp_path, 1).points().items()]
    (tmp_path / "wandb/dapo-stages.json").write_text(json.dumps({**old, "logged": logged}))
    track(feed(tmp_path, 2), ["wandb"])
    assert note(tmp_path)["points"].keys() == {"1", "2"} and note(tmp_path)["id"] == found["id"]
    assert note(tmp_path)["steps"] == 6 and folder(tmp_path, found["id"])


KILLED = """
import os, signal, sys
from pathlib import Path
from dapo_stages.reporting.trackers.sending import track
from reporting.trackers.test_wandb_run import feed
kill = lambda iteration: os.kill(os.getpid(), signal.SIGKILL)
track(feed(Path(sys.argv[1]), 2, reports={2: "b"}, made=[2], media=kill), ["wandb"])
"""


def test_killed_while_it_writes_and_started_again(tmp_path: Path) -> None:
    """What was there before stays, and the part that was cut off is where `wandb sync` does not look."""
    track(feed(tmp_path, 1), ["wandb"])
    before = note(tmp_path)
    first = folder(tmp_path, before["id"])
    environment = {key: value for key, value in os.environ.items() if key != "WANDB_SERVICE"}  # one of its own
    environment["PYTHONPATH"] = os.pathsep.join(map(str, (ROOT, ROOT / "tests")))
    command = [sys.executable, "-c", KILLED, str(tmp_path)]
    ended = subprocess.run(command, env=environment, cwd=ROOT, capture_output=True, text=True)
    assert ended.returncode == -signal.SIGKILL, ended.stderr
    assert note(tmp_path) == before and folder(tmp_path, before["id"]) == first
    assert list((tmp_path / "wandb/unfinished/wandb").glob("offline-run-*"))
    track(feed(tmp_path, 2, reports={2: "b"}, made=[2], media=Media), ["wandb"])
    found = records(tmp_path)
    assert found.keys() == {before["id"]} and is_whole(found[before["id"]], 2)
    assert folder(tmp_path, before["id"]) and not (tmp_path / "wandb/unfinished").exists()


def test_what_the_service_may_have_is_replaced_by_a_run_that_says_so(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Figures that changed: before `wandb sync` they are written again, after it, whose mark is there, elsewhere."""
    track(feed(tmp_path, 1), ["wandb"])
    track(feed(tmp_path, 1, accuracy=0.625), ["wandb"])
    first = note(tmp_path)["id"]
    (log,) = folder(tmp_path, first).glob("run-*.wandb")
    log.with_name(f"{log.name}.synced").touch()
    assert "wandb:" not in capsys.readouterr().err
    track(feed(tmp_path, 1, accuracy=0.75), ["wandb"])
    said = f"wandb: figures have changed, and W&B only appends: run {first} stays as it is, and a new one is started"
    assert said in capsys.readouterr().err
    second = note(tmp_path)["id"]
    found = records(tmp_path)
    accuracies = {key: [row["rollout/accuracy"] for row in rows if "iteration" in row] for key, rows in found.items()}
    assert accuracies == {first: [0.625], second: [0.75]} and is_whole(found[second], 1)
    (run,) = (record["run"] for record in inspect(folder(tmp_path, second)) if record["type"] == "run")
    assert run["notes"] == f"replaces run {first}: figures have changed"


def test_a_sending_that_was_cut_off_online_is_replaced(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    track(feed(tmp_path, 1), ["wandb"])
    first = note(tmp_path)
    (tmp_path / "wandb/dapo-stages.json").write_text(json.dumps(first | {"open": True, "uploaded": True}))
    track(feed(tmp_path, 1), ["wandb"])
    second = note(tmp_path)
    assert "wandb: an earlier report was interrupted" in capsys.readouterr().err
    assert second["id"] != first["id"] and second["notes"].startswith(f"replaces run {first['id']}: ")
    assert second["points"] == first["points"] and not second["open"]


def test_tables_that_were_sent_are_in_every_folder_after(tmp_path: Path) -> None:
    one = feed(tmp_path, 2, reports={1: "a", 2: "b"}, made=[1], media=Media)
    track(one, ["wandb"])
    track(replace(one, made=[2]), ["wandb"])
    ((_, rows),) = records(tmp_path).items()
    assert [row["iteration"] for row in rows if any(key.startswith("stages.") for key in row)] == [1, 2]
    assert len(list((tmp_path / "wandb/staged").iterdir())) == 1
