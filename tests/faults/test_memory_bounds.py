"""What a command needs in memory is bounded, whatever the files are that it is given: each runs under RLIMIT_AS."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from functools import cache
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image
from reporting import tiny_run
from support.commands import Result
from support.words import WordProcessor

from dapo_stages.handoff.manifests import read_manifest
from faults import data_sets, forged
from faults.images import bomb, chunk, ico_with, noise, png, png_with_text, saved
from faults.limited import MIB, limited, sparse
from faults.table import record

ROW = 15
ROOM = 900  # MiB beyond what the process has before; threads and pools of Arrow take a good part of it unused
IMAGE = saved(Image.fromarray(noise()))
GIGABYTES = 4 << 30


@pytest.fixture(autouse=True)
def _without_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())


def prepare(source: Path, folder: Path, *args: object) -> Result:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "run.yaml").write_text(json.dumps({"data": {"source": str(source)}, "model": {"name": "embedded"}}))
    return limited(ROOM, "prepare-data", "--config", folder / "run.yaml", "--out", folder / "data", *args)


def refused(result: Result, words: str) -> None:
    assert (result.code, result.stdout) == (3, ""), result.stderr
    assert words in result.stderr and "Traceback" not in result.stderr, result.stderr
    record(ROW, 1)


def test_the_limit_bites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Otherwise no other test here says anything. Running out of memory is an error that says so."""

    def greedy() -> None:
        monkeypatch.setattr("dapo_stages.stages.prepare_data.source_files", lambda data: bytearray((ROOM + 64) * MIB))

    table = data_sets.write_rows(tmp_path / "rows.parquet", [IMAGE, IMAGE])
    (tmp_path / "run.yaml").write_text(json.dumps({"data": {"source": str(table)}, "model": {"name": "embedded"}}))
    options = ["--config", tmp_path / "run.yaml", "--out", tmp_path / "data"]
    refused(limited(ROOM, "prepare-data", *options, before=greedy), "out of memory. Use smaller batches.")
    assert limited(ROOM, "prepare-data", *options).code == 0


# ---- images


def gif(side: int) -> bytes:
    """A GIF with a canvas of any size around a frame of 24 × 16."""
    data = bytearray(saved(Image.fromarray(noise()), "GIF"))
    data[6:10] = side.to_bytes(2, "little") * 2
    return bytes(data)


def tiff(side: int) -> bytes:
    """One whose tags say that it is larger than its pixels."""
    data = bytearray(saved(Image.new("L", (300, 301)), "TIFF"))
    for old in (300, 301):
        data = bytearray(bytes(data).replace(old.to_bytes(2, "little") + b"\0\0", side.to_bytes(4, "little"), 1))
    return bytes(data)


@cache
def compressed(length: int) -> bytes:
    import zlib

    packer = zlib.compressobj(9)
    return b"".join(packer.compress(b"\0" * MIB) for _ in range(length // MIB)) + packer.flush()


BOMBS: dict[str, Callable[[], bytes]] = {
    "a PNG that says 30000x30000": lambda: png(30_000, 30_000),
    "a whole PNG of 30000x30000": bomb,
    "a PNG with 2 GB of pixels for 9x9": lambda: png(9, 9)[:33] + chunk(b"IDAT", compressed(2 << 30)),
    "an icon with a bomb in it": lambda: ico_with(bomb()),
    "a comment of 2 GB": lambda: (
        png_with_text(noise(), 0, packed=False)[:33]
        + chunk(b"zTXt", b"Comment\0\0" + compressed(2 << 30))
        + png_with_text(noise(), 0, packed=False)[33:]
    ),
    "a profile of 2 GB": lambda: (
        png_with_text(noise(), 0, packed=False)[:33]
        + chunk(b"iCCP", b"Profile\0\0" + compressed(2 << 30))
        + png_with_text(noise(), 0, packed=False)[33:]
    ),
    "a GIF of 65535x65535": lambda: gif(65_535),
    "a TIFF of 60000x60000": lambda: tiff(60_000),
    "a WebP of 16384x16384": lambda: webp_of_16384(),
    "a JPEG of 60000x60000": lambda: jpeg(60_000),
}
SLOW = {
    "a PNG with 2 GB of pixels for 9x9", "a comment of 2 GB", "a profile of 2 GB",
}  # fmt: skip


def webp_of_16384() -> bytes:
    """The header of VP8L has 14 bits for each side."""
    data = bytearray(saved(Image.fromarray(noise()), "WEBP", lossless=True))
    at = data.index(b"VP8L") + 9
    data[at : at + 4] = ((1 << 28) - 1).to_bytes(4, "little")
    return bytes(data)


def jpeg(side: int) -> bytes:
    data = bytearray(saved(Image.fromarray(noise()), "JPEG"))
    at = data.index(b"\xff\xc0") + 5
    data[at : at + 4] = side.to_bytes(2, "big") * 2
    return bytes(data)


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.faults) if n in SLOW else n for n in BOMBS])
def test_a_bomb_costs_its_row(name: str, tmp_path: Path) -> None:
    data = BOMBS[name]()
    assert len(data) < 3 * MIB
    table = data_sets.write_rows(tmp_path / "rows.parquet", [IMAGE, IMAGE, data, IMAGE])
    result = prepare(table, tmp_path)
    assert result.code == 0, result.stderr
    counts = read_manifest(tmp_path / "data").counts
    kept = 1 if name == "a PNG with 2 GB of pixels for 9x9" and not counts["dropped_images"] else 0  # read as 9x9
    assert (counts["train"] + counts["held_out"], counts["dropped_images"]) == (3 + kept, 1 - kept)
    record(ROW, 1)


@pytest.mark.faults
@pytest.mark.parametrize("name", ["a whole PNG of 30000x30000", "an icon with a bomb in it"])
@pytest.mark.parametrize("command", ["report", "inspect"])
def test_a_bomb_in_a_strangers_shard_is_not_decoded(
    command: str, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tiny_run, "image", lambda which: BOMBS[name]())
    tiny = tiny_run.build(tmp_path / "tiny")
    if command == "report":
        result = limited(ROOM, "report", "--config", tiny / "config.yaml", "--run", tiny)
    else:
        monkeypatch.setenv("FORCE_COLOR", "1")  # so that the image is drawn
        result = limited(ROOM, "inspect", "--run", tiny, "it1-p0-s0")
    assert result.code == 0, result.stderr
    record(ROW, 1)


def test_a_bomb_in_a_strangers_shard_is_not_decoded_for_a_model(tmp_path: Path) -> None:
    from dapo_stages.data.images import BadImage, decode

    with pytest.raises(BadImage, match="30000x30000 pixels"):
        decode({"bytes": bomb(), "path": None})
    record(ROW, 1)


# ---- tables


def zeros(path: Path, column: str, sizes: list[int], codec: str = "zstd") -> Path:
    """A Parquet file of a few kilobytes with values of so many zeros."""
    values: dict[str, list[Any]] = {"image": [IMAGE] * len(sizes), "problem": ["A or B?"] * len(sizes)}
    values["solution"] = ["A"] * len(sizes)
    values[column] = [b"\0" * size for size in sizes]
    kinds = {name: pa.binary() if name in {"image", column} else pa.string() for name in values}
    table = pa.table(values, schema=pa.schema(kinds))
    pq.write_table(table, path, compression=codec, use_dictionary=False, data_page_size=1 << 30)
    assert path.stat().st_size < 4 * MIB
    return path


@pytest.mark.parametrize(
    ("column", "codec", "limit"),
    [
        ("image", "zstd", 16),  # MiB; the bound itself takes longer to test
        pytest.param("image", "zstd", None, marks=pytest.mark.faults),
        pytest.param("image", "gzip", None, marks=pytest.mark.faults),
        pytest.param("problem", "brotli", None, marks=pytest.mark.faults),
    ],
)
def test_a_column_that_swells_is_refused_before_it_does(
    column: str, codec: str, limit: int | None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if limit is not None:
        monkeypatch.setattr("dapo_stages.data.table_files._BYTES_AT_ONCE", limit * MIB)
    table = zeros(tmp_path / "rows.parquet", column, [1, 1, ((limit or 256) + 4) * MIB], codec)
    result = prepare(table, tmp_path)
    refused(result, f"{table} column {column}: ")
    assert f" MiB, more than {limit or 256} MiB and more than 200 times as many. Remove such rows.\n" in result.stderr


@pytest.mark.faults
def test_large_rows_are_read_a_few_at_a_time(tmp_path: Path) -> None:
    """16 rows of 60 MiB of noise would be 960 MiB twice over. The images are bad, the work is bounded."""
    noise_ = os.urandom(60 * MIB)
    kinds = pa.schema({"image": pa.binary(), "problem": pa.string(), "solution": pa.string()})
    with pq.ParquetWriter(tmp_path / "rows.parquet", kinds, compression="none", use_dictionary=False) as writer:
        values = [IMAGE, IMAGE, *[noise_] * 8]
        for start in range(0, len(values), 2):
            part = values[start : start + 2]
            rows = [{"image": value, "problem": "A or B?", "solution": "A"} for value in part]
            writer.write_table(pa.Table.from_pylist(rows, schema=kinds))
    result = prepare(tmp_path / "rows.parquet", tmp_path)
    assert result.code == 0, result.stderr
    assert read_manifest(tmp_path / "data").counts["dropped_images"] == 8
    record(ROW, 1)


@pytest.mark.parametrize("ending", ["jsonl", *(pytest.param(e, marks=pytest.mark.faults) for e in ("json", "csv"))])
def test_a_huge_table_without_a_line_is_refused(ending: str, tmp_path: Path) -> None:
    result = prepare(sparse(tmp_path / f"rows.{ending}", 300 * MIB), tmp_path)
    refused(result, f"rows.{ending}: the .{ending} file is damaged (")


@pytest.mark.parametrize(
    ("ending", "words"),
    [("json", "rows.json: the .json file is damaged ("), ("jsonl", "rows.jsonl line 1: not valid JSON (")],
)
def test_brackets_without_an_end_are_refused(ending: str, words: str, tmp_path: Path) -> None:
    (tmp_path / f"rows.{ending}").write_text("[" * 1_000_000)
    refused(prepare(tmp_path / f"rows.{ending}", tmp_path), words)


# ---- files of a run


def weigh(tiny: Path) -> Result:
    here = tiny / "iter-0001"
    folders = ["--rollouts", here / "rollout", "--attention", here / "attention", "--out", tiny / "out"]
    return limited(ROOM, "weight-tokens", "--config", tiny / "config.yaml", *folders, "--iteration", 1)


def _huge(path: Path) -> None:
    sparse(path, GIGABYTES)


def _nested(path: Path) -> None:
    path.write_text("[" * 1_000)


def _endless(path: Path) -> None:
    path.unlink(missing_ok=True)
    path.symlink_to("/dev/zero")


@pytest.mark.parametrize("make", [_huge, _nested, _endless])
def test_a_manifest_without_an_end_is_refused(make: Callable[[Path], None], tiny: Path) -> None:
    make(tiny / "iter-0001/rollout/manifest.json")
    refused(weigh(tiny), f"{tiny}/iter-0001/rollout/manifest.json: not a valid manifest (")


@pytest.mark.parametrize("make", [_huge, _nested, _endless])
def test_a_note_of_progress_without_an_end_means_starting_afresh(make: Callable[[Path], None], tiny: Path) -> None:
    (tiny / "out").mkdir()
    make(tiny / "out/.partial.json")
    result = weigh(tiny)
    assert result.code == 0, result.stderr
    record(ROW, 1)


@pytest.mark.parametrize("make", [_huge, _nested, _endless])
def test_figures_without_an_end_are_left_out_of_the_status(make: Callable[[Path], None], tiny: Path) -> None:
    assert limited(ROOM, "report", "--config", tiny / "config.yaml", "--run", tiny).code == 0
    make(tiny / "iter-0002/report/figures.json")
    result = limited(ROOM, "status", "--run", tiny)
    assert result.code == 0 and "Traceback" not in result.stderr
    record(ROW, 1)


@pytest.mark.faults
def test_a_shard_that_swells_is_refused(tiny: Path) -> None:
    """Its checksum and columns are right; its texts are half a gigabyte of zeros each."""
    path = tiny / "iter-0001/rollout/completions-00000.parquet"
    table = pq.read_table(path)
    texts = pa.array(["\0" * (66 * MIB)] * len(table), pa.string())
    table = table.set_column(table.schema.get_field_index("text"), table.schema.field("text"), texts)
    pq.write_table(table, path, compression="zstd", use_dictionary=False)
    assert path.stat().st_size < 4 * MIB
    forged.replace(path.parent, path.name, path.read_bytes())
    forged.follow(tiny / "iter-0001/attention", "rollouts", path.parent)
    result = limited(ROOM, "inspect", "--run", tiny, "it1-p0-s0")
    refused(result, f"{path}: a row group of 528 MiB is too large (at most 512 MiB).")


# ---- configuration


@pytest.mark.parametrize("make", [_huge, _nested, _endless])
@pytest.mark.parametrize("name", ["run.yaml", "base.yaml"])
def test_a_configuration_without_an_end_is_refused(name: str, make: Callable[[Path], None], tmp_path: Path) -> None:
    (tmp_path / "run.yaml").write_text("extends: base.yaml\n")
    (tmp_path / "base.yaml").write_text("")
    make(tmp_path / name)
    result = limited(ROOM, "config", "--config", tmp_path / "run.yaml")
    refused(result, f"{tmp_path / name}: ")


@pytest.mark.parametrize(("levels", "said"), [(4, "(got [[["), (11, "not valid YAML (more than 100000 values ")])
def test_a_billion_laughs_are_not_quoted(levels: int, said: str, tmp_path: Path) -> None:
    """Each line names the one before ten times; what is wrong is said in few words."""
    lines = [f"a{i}: &a{i} [{', '.join([f'*a{i - 1}'] * 10)}]" for i in range(1, levels + 1)]
    text = "\n".join(["a0: &a0 [lol]", *lines, f"seed: *a{levels}"]) + "\n"
    (tmp_path / "run.yaml").write_text(text)
    result = limited(ROOM, "config", "--config", tmp_path / "run.yaml")
    refused(result, said)
    assert len(result.stderr) < 20_000  # unknown keys, and what is known, are in it


# ---- servers


def test_an_answer_without_an_end_is_cut_off(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import asyncio

    import httpx

    from dapo_stages.config import JudgeConfig
    from dapo_stages.errors import EngineError
    from dapo_stages.processes import servers
    from dapo_stages.rewards.judging.judge import _Reply

    sent = []

    async def body() -> Any:
        for _ in range(1000):
            sent.append(MIB)
            yield b" " * MIB

    async def ask() -> None:
        server = servers.Server("judge", "rewards.judge", "NO_KEY", JudgeConfig(model="m", retries=0))
        transport = httpx.MockTransport(lambda request: httpx.Response(200, content=body()))
        async with httpx.AsyncClient(transport=transport, base_url="http://localhost") as client:
            await server.ask(client, _Reply, servers.CHAT, {"x": 1})

    monkeypatch.setattr(servers, "_LONGEST_ANSWER", 8 * MIB)
    with pytest.raises(EngineError, match="expected a response of a few tokens, got one larger than 8 MiB"):
        asyncio.run(ask())
    assert sum(sent) <= 10 * MIB
    record(ROW, 1)
