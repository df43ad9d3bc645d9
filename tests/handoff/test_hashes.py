"""Hashes that are kept: right after every change of a file, whatever its mtime says; a list that nobody else writes."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import threading
import time
from pathlib import Path
from types import SimpleNamespace

import pytest

from dapo_stages.config.run import Verify
from dapo_stages.errors import DataError
from dapo_stages.handoff import carry_out, hashes
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan

MIB = 1 << 20
HOUR = 3_600_000_000_000
PLACE = hashes.place  # as it is before tests/conftest.py moves it


@pytest.fixture()
def listed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A cache folder of the test's own; the list in it."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.setattr(hashes, "place", PLACE)
    return tmp_path / "cache/dapo-stages/hashes.json"


@pytest.fixture()
def later(monkeypatch: pytest.MonkeyPatch) -> None:
    """An hour after the files were written."""
    now = time.time_ns
    monkeypatch.setattr(time, "time_ns", lambda: now() + HOUR)


@pytest.fixture()
def reads(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Names of the files that are read."""
    names: list[str] = []
    read = hashes._read

    def noted(path: Path) -> object:
        names.append(path.name)
        return read(path)

    monkeypatch.setattr(hashes, "_read", noted)
    return names


def large(path: Path, fill: bytes = b"a") -> str:
    """A file of 2 MiB; its hash by hashlib."""
    path.write_bytes(fill * 2 * MIB)
    return hashlib.sha256(fill * 2 * MIB).hexdigest()


@pytest.mark.usefixtures("later")
def test_a_large_file_is_read_once(listed: Path, reads: list[str], tmp_path: Path) -> None:
    expected = large(tmp_path / "one")
    (tmp_path / "small").write_bytes(b"abc")
    for _ in range(3):
        assert hashes.sha256_kept(tmp_path / "one") == expected
        assert hashes.sha256_kept(tmp_path / "small") == hashlib.sha256(b"abc").hexdigest()
    assert reads == ["one", "small", "small", "small"]
    assert hashes.sha256_kept(tmp_path / "one", again=True) == expected and reads[-1] == "one"
    assert list(json.loads(listed.read_text()).values()) == [expected]
    assert listed.parent.stat().st_mode & 0o777 == 0o700


@pytest.mark.usefixtures("later", "listed")
def test_a_change_is_seen_though_size_and_mtime_are_as_before(tmp_path: Path) -> None:
    path = tmp_path / "weights"
    large(path)
    before = path.stat()
    hashes.sha256_kept(path)
    expected = large(path, b"b")
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert path.stat().st_mtime_ns == before.st_mtime_ns and path.stat().st_size == before.st_size
    assert hashes.sha256_kept(path) == expected


@pytest.mark.usefixtures("listed")
def test_a_file_that_was_changed_just_now_is_not_kept(reads: list[str], tmp_path: Path) -> None:
    """A second change within the resolution of the clock would leave its times as they are."""
    path = tmp_path / "weights"
    large(path)
    hashes.sha256_kept(path)
    hashes.sha256_kept(path)
    assert reads == ["weights", "weights"]


@pytest.mark.usefixtures("later")
def test_a_damaged_list_is_made_anew(listed: Path, tmp_path: Path) -> None:
    expected = large(tmp_path / "one")
    hashes.sha256_kept(tmp_path / "one")
    for content in (
        "{",
        "[]",
        "null",
        '{"1-2-3-4-5": 7}',
        "\0" * 10,
        "[" * 100_000,
        json.dumps({"a": "b" * (3 * MIB)}),
    ):
        listed.write_text(content)
        assert hashes.sha256_kept(tmp_path / "one") == expected
        assert list(json.loads(listed.read_text()).values()) == [expected]


@pytest.mark.usefixtures("later")
@pytest.mark.parametrize("how", ["list", "folder", "link"])
def test_a_list_that_others_can_write_is_not_believed(how: str, listed: Path, tmp_path: Path) -> None:
    expected = large(tmp_path / "one")
    hashes.sha256_kept(tmp_path / "one")
    forged = dict.fromkeys(json.loads(listed.read_text()), "0" * 64)
    listed.write_text(json.dumps(forged))
    assert hashes.sha256_kept(tmp_path / "one") == "0" * 64  # from ourselves it would be
    if how == "link":
        listed.rename(tmp_path / "elsewhere.json")
        listed.symlink_to(tmp_path / "elsewhere.json")
    else:
        (listed if how == "list" else listed.parent).chmod(0o777)
    assert hashes.sha256_kept(tmp_path / "one") == expected


@pytest.mark.usefixtures("later")
def test_a_list_of_somebody_else_is_not_believed(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = large(tmp_path / "one")
    hashes.sha256_kept(tmp_path / "one")
    listed.write_text(json.dumps(dict.fromkeys(json.loads(listed.read_text()), "0" * 64)))
    monkeypatch.setattr(os, "getuid", lambda: listed.stat().st_uid + 1)
    assert hashes.place() is None
    assert hashes.sha256_kept(tmp_path / "one") == expected


@pytest.mark.usefixtures("later")
def test_the_list_stays_small(listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hashes, "_MOST", 3)
    expected = [large(tmp_path / str(number), bytes([number])) for number in range(5)]
    assert [hashes.sha256_kept(tmp_path / str(number)) for number in range(5)] == expected
    assert list(json.loads(listed.read_text()).values()) == expected[2:]


@pytest.mark.usefixtures("later")
def test_without_a_place_for_it_hashes_are_right_all_the_same(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    expected = large(tmp_path / "one")
    (tmp_path / "file").touch()
    monkeypatch.setattr(hashes, "place", PLACE)
    for root in (str(tmp_path / "file"), "/proc/nowhere", "/dev/null"):
        monkeypatch.setenv("XDG_CACHE_HOME", root)
        assert hashes.place() is None
        assert hashes.sha256_kept(tmp_path / "one") == expected


@pytest.mark.usefixtures("later")
def test_a_file_that_changes_while_it_is_read_is_not_kept(
    listed: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "one"
    large(path)
    digest = hashlib.file_digest

    def slow(file: io.BufferedReader, kind: str) -> object:
        found = digest(file, kind)
        os.utime(path)
        return found

    monkeypatch.setattr(hashlib, "file_digest", slow)
    hashes.sha256_kept(path)
    assert not listed.exists()


@pytest.mark.usefixtures("later", "listed")
def test_several_readers_at_a_time(tmp_path: Path) -> None:
    expected = [large(tmp_path / str(number), bytes([number])) for number in range(6)]
    found: dict[int, str] = {}

    def work(number: int) -> None:
        found[number] = hashes.sha256_kept(tmp_path / str(number))

    threads = [threading.Thread(target=work, args=(number,)) for number in range(6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert [found[number] for number in range(6)] == expected
    assert [hashes.sha256_kept(tmp_path / str(number)) for number in range(6)] == expected


@pytest.mark.parametrize(
    ("ns", "wait"),
    [
        (7_000_000_000, 2_000_000_000),  # times in whole seconds
        (7_000_000_001, 50_000_001),
        (7_123_456_789, 50_000_000 + 123_456_789),
    ],
)
def test_how_long_a_change_may_hide_depends_on_the_clock(ns: int, wait: int) -> None:
    found = SimpleNamespace(st_mtime_ns=ns, st_ctime_ns=7_000_000_000)
    assert hashes._unsettled(found, 7_000_000_000) == wait  # type: ignore[arg-type]


@pytest.fixture()
def policy(tmp_path: Path) -> Path:
    """A published output with a large file."""

    def fill(output: Output) -> None:
        large(output.folder / "weights.bin")
        output.add_files("weights.bin")

    plan = Plan("init-policy", tmp_path / "policy", {}, 1)
    carry_out.run(plan, fill, overwrite=False, dry_run=False, as_json=False)
    return tmp_path / "policy"


def verify(folder: Path) -> None:
    source = Source(folder)
    source.verified(source.manifest.shards[0])


@pytest.mark.usefixtures("listed")
def test_what_was_written_is_not_read_again_to_be_verified(policy: Path, reads: list[str]) -> None:
    verify(policy)
    assert reads == []
    with hashes.reading_again(True):
        verify(policy)
    assert reads == ["weights.bin"]
    shutil.copytree(policy, policy.parent / "copy")
    verify(policy.parent / "copy")
    assert reads == ["weights.bin", "weights.bin"]


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize("how", ["content", "content and time", "rename"])
def test_a_published_file_that_changes_is_noticed(how: str, policy: Path) -> None:
    path = policy / "weights.bin"
    before = path.stat()
    if how == "rename":
        large(policy / "other", b"b")
        (policy / "other").rename(path)
    else:
        large(path, b"b")
    if how != "content":
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    with pytest.raises(DataError, match="has changed: it does not match its checksum"):
        verify(policy)


@pytest.mark.usefixtures("listed")
@pytest.mark.parametrize(("setting", "read"), [("changed", []), ("always", ["weights.bin"])])
def test_a_stage_reads_every_input_again_if_it_is_told_to(
    setting: Verify, read: list[str], policy: Path, reads: list[str], tmp_path: Path
) -> None:
    plan = Plan("merge", tmp_path / "out", {}, 1, verify=setting)
    carry_out.run(plan, lambda output: verify(policy), overwrite=False, dry_run=False, as_json=False)
    assert reads == read
    verify(policy)
    assert reads == read
