"""Any text survives or is named: through datasets, shards, weights, reports, inspect and status.

How a browser and a Markdown reader take it is in tests/reporting (test_hostile_page.py, test_markdown.py).
"""

from __future__ import annotations

import csv
import io
import json
import re
import unicodedata
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from reporting import hostile_run, tiny_run
from reporting.hostile_run import FIELDS, PAYLOADS, mark
from support.commands import Result
from support.commands import run as command
from support.rows import rows
from support.words import WordProcessor

from dapo_stages.errors import DataError
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.shards import ShardReader, write_shard
from dapo_stages.terminal.safe_text import visible
from faults.folders import KINDS, republish, rewrite, schema
from faults.table import record

# Whole texts that nothing may change, beside those that look like markup.
WHOLE = [
    *(text for text, _ in PAYLOADS),
    "",
    "\x00",
    "\ufeffmark of the order of bytes",
    "\ufffe\uffff\U0010ffff\ufdd0",
    "\r\n\r\n\t\v\f",
    "e\u0301\u0302" * 50,
    "\u202e\u2066\u200f" * 20,
    "\x1b]0;title\x07\x1b[2J\x1b[31m",
    "𝕏" * 1000,
    "NULL nan None \\N",
    '"quoted", \'cells\'; a,b\n"c"',
]
HALF = ["\ud800", "a\udfffb", "\udc80\udcff", "\ud83d "]  # halves of characters, which no UTF-8 has
BROKEN = [b"\xff", b"\xc3", b"\xed\xa0\x80", b"\xf8\x88\x80\x80\x80", b"\xc0\x80", b"caf\xe9"]
STEERING = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069]")
MEGABYTES = "字<b>`|\x1b[31m\u202e " * 700_000  # 11.2 MB of UTF-8


# Shards


@pytest.mark.parametrize("kind", KINDS)
def test_a_shard_gives_back_every_text(kind: str, tmp_path: Path) -> None:
    """Every text in every column of text of every table; a half character is named by its column."""
    columns, path = schema(kind), tmp_path / "a.parquet"
    texts = [name for name in columns.names if columns.field(name).type == pa.string()]
    lists = [
        name for name in columns.names if columns.field(name).type == pa.list_(pa.field("element", pa.string(), False))
    ]
    made = list(rows(columns, len(WHOLE)))
    for row, text in zip(made, WHOLE, strict=True):
        row |= dict.fromkeys(texts, text) | {name: [text] * 3 for name in lists}
    write_shard(path, columns, made)
    with ShardReader(path, columns, "rollout") as reader:
        for found, wanted in zip(reader.rows(), made, strict=True):
            assert found == wanted
    halves = [(name, text) for name in texts for text in HALF]
    for name, text in halves:
        with pytest.raises(DataError, match=f"a.parquet: a value in column {name} does not fit "):
            write_shard(path, columns, [made[0] | {name: text}])
    record(11, len(WHOLE) * (len(texts) + len(lists)) + len(halves), "texts through every table")


@pytest.mark.parametrize("kind", KINDS)
def test_text_that_is_not_utf_8_is_named_by_its_row(kind: str, tmp_path: Path) -> None:
    """Arrow's own files may hold any bytes as text."""
    columns, path = schema(kind), tmp_path / "a.parquet"
    for number, broken in enumerate(BROKEN):
        name = next(name for name in reversed(columns.names) if columns.field(name).type == pa.string())
        made = list(rows(columns, 5))
        arrays = [pa.array([row[field.name] for row in made], field.type) for field in columns]
        bytes_ = [made[i][name].encode() if i != 3 else broken for i in range(5)]
        arrays[columns.get_field_index(name)] = pa.array(bytes_, pa.binary()).view(pa.string())
        pq.write_table(pa.Table.from_arrays(arrays, schema=columns), path)
        with ShardReader(path, columns, "rollout") as reader, pytest.raises(DataError) as caught:
            list(reader.rows())
        words = f"row 3: column {name} is not valid UTF-8. Run rollout again."
        assert str(caught.value) == f"{path}: {words}", number
    record(11, len(BROKEN), "bytes that are not UTF-8, in shards")


# Datasets


@pytest.fixture()
def prepare(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Result]:
    monkeypatch.setattr("dapo_stages.stages.prepare_data._processor", lambda *_: WordProcessor())

    def command_(name: str, content: bytes, *args: object) -> Result:
        (tmp_path / name).write_bytes(content)
        (tmp_path / "run.yaml").write_text(json.dumps({"data": {"source": str(tmp_path / name)}}))
        more = ["--overwrite", "--set", "data.columns.slice=slice", *args]
        return command("prepare-data", "--config", tmp_path / "run.yaml", "--out", tmp_path / "data", *more)

    return command_


def jsonl(table: list[dict[str, Any]]) -> bytes:
    return "".join(json.dumps(row, ensure_ascii=False) + "\n" for row in table).encode()


def as_json(table: list[dict[str, Any]]) -> bytes:
    return json.dumps(table, indent=1).encode()


def as_csv(table: list[dict[str, Any]]) -> bytes:
    buffer = io.StringIO(newline="")
    writer = csv.DictWriter(buffer, list(table[0]))
    writer.writeheader()
    writer.writerows(table)
    return buffer.getvalue().encode()


def parquet(table: list[dict[str, Any]]) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(pa.Table.from_pylist(table), buffer)
    return buffer.getvalue()


FORMATS = {"jsonl": jsonl, "json": as_json, "csv": as_csv, "parquet": parquet}


def question(text: str) -> dict[str, Any]:
    """The text in every column; `<image>` and blanks are what they mean."""
    return {"image": None, "problem": f"A or B? {text}", "solution": f"A. {text}", "slice": f"s {text}"}


@pytest.mark.parametrize("form", FORMATS)
def test_a_data_set_keeps_its_text(form: str, prepare: Callable[..., Result], tmp_path: Path) -> None:
    table = [question(text) for text in WHOLE]
    result = prepare(f"rows.{form}", FORMATS[form](table), "--set", "data.max_prompt_length=100000")
    assert result.code == 0, result.stderr
    data = Source(tmp_path / "data")
    found = {row["prompt_id"][-6:]: row for kind in ("train", "held_out") for row in data.rows(kind)}
    assert data.manifest.counts["dropped_other"] == 0 and len(found) == len(WHOLE)
    for number, wanted in enumerate(table):
        row = found[f"{number:06d}"]
        assert (row["problem"], row["slice"]) == (wanted["problem"], wanted["slice"]), number
        assert wanted["problem"].strip() in row["prompt_text"], number
    record(11, 2 * len(WHOLE), f"texts of a {form} dataset")


@pytest.mark.parametrize("column", ["problem", "solution", "slice"])
def test_half_characters_cost_a_row_and_are_counted(
    column: str, prepare: Callable[..., Result], tmp_path: Path
) -> None:
    table = [question("whole") for _ in range(20)] + [question("whole") | {column: f"a {half}"} for half in HALF]
    result = prepare("rows.json", as_json(table))
    assert result.code == 0, result.stderr
    counts = Source(tmp_path / "data").manifest.counts
    assert (counts["train"] + counts["held_out"], counts["dropped_other"]) == (20, len(HALF))
    assert all("row 2" in why and "half a character" in why for why in counts["dropped_rows"])
    record(11, len(HALF), "half characters in datasets")


@pytest.mark.parametrize("broken", BROKEN, ids=repr)
def test_a_data_set_that_is_not_utf_8_is_named_by_its_line(
    broken: bytes, prepare: Callable[..., Result], tmp_path: Path
) -> None:
    table = [question(f"HERE{number}") for number in range(30)]
    for form, where in (("jsonl", "line 18"), ("json", "line 106"), ("csv", "line 19")):
        content = FORMATS[form](table).replace(b"A or B? HERE17", b"A or B? " + broken)
        result = prepare(f"rows.{form}", content)
        assert result.code == 3
        words = f"rows.{form} {where}: the text is not UTF-8. Fix the file."
        assert result.stderr.splitlines()[-1] == f"{tmp_path}/{words}"
    problems = [row["problem"].encode() for row in table[:17]] + [broken] + [b"A or B?"] * 12
    columns = {name: pa.array([row[name] for row in table]) for name in ("image", "solution", "slice")}
    columns["problem"] = pa.array(problems, pa.binary()).view(pa.string())
    pq.write_table(pa.table(columns), buffer := io.BytesIO())
    result = prepare("rows.parquet", buffer.getvalue())
    words = "rows.parquet row 17: column problem is not valid UTF-8. Fix the file."
    assert result.code == 3 and f"{tmp_path}/{words}" in result.stderr, result.stderr
    record(11, 4, "bytes that are not UTF-8, in datasets")


@pytest.mark.parametrize(
    "form", ["jsonl", *(pytest.param(form, marks=pytest.mark.faults) for form in list(FORMATS)[1:])]
)
def test_a_question_of_ten_megabytes_is_left_out_and_the_rest_kept(
    form: str, prepare: Callable[..., Result], tmp_path: Path
) -> None:
    table = [question(f"number {number}") for number in range(20)] + [question(MEGABYTES)]
    result = prepare(f"rows.{form}", FORMATS[form](table))
    assert result.code == 0, result.stderr
    counts = Source(tmp_path / "data").manifest.counts
    assert (counts["train"] + counts["held_out"], counts["dropped_long"]) == (20, 1)
    assert len(json.dumps(counts)) < 2000
    record(11, 1, "10 MB")


# Rollouts, weights, reports


TEXTS = [*PAYLOADS, *((text, None) for text in ("\ufeff", "𝕏 e\u0301", "\ufffe\uffff\ufdd0"))]


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    run = hostile_run.build(tmp_path_factory.mktemp("runs") / "texts", TEXTS)
    result = command("report", "--config", run / "config.yaml", "--run", run)
    assert result.code == 0, result.stderr
    assert not STEERING.search(result.stdout + result.stderr)
    return run


def test_weights_keep_every_id_and_the_buffer_every_text(run: Path, tmp_path: Path) -> None:
    """Groups of two completions whose ids, question, answer and tokens are the text."""
    prompts, completions, looks = [], [], []
    for number, (text, _) in enumerate(TEXTS):
        group = {"group_id": f"{number} {text}", "prompt_id": f"p {text}", "problem": text, "solution": text}
        prompts.append(tiny_run.prompt(1, 0, correct=1) | group)
        for sample in (1, 2):  # one right, one wrong
            key = {"completion_id": f"{number} {sample} {text}"}
            said = key | {"group_id": group["group_id"], "text": text, "engine": text}
            completion = tiny_run.completion(1, 0, sample) | said
            completions.append(completion | {"token_texts": [text] * len(completion["completion_ids"])})
            looks.append(key | {"length": len(completion["completion_ids"])})
    config = {"iteration": 1, "rollout": {"prompts_per_iteration": len(TEXTS)}}
    tables = {"prompts": prompts, "completions": completions}
    plan = Plan("rollout", tmp_path / "r", config, 1)

    def fill(output: Output) -> None:
        for kind, made in tables.items():
            output.write(kind, 0, made)

    tiny_run.publish(plan, fill)
    scored = next(Source(run / "iter-0001/attention").rows("attention"))
    off = dict.fromkeys(scored) | {"status": "off", "num_text_tokens": 0, "num_vision_tokens": 0}
    attention = [off | {"completion_id": look["completion_id"]} for look in looks]
    plan = Plan("score-attention", tmp_path / "a", {}, 1, {"rollouts": Source(tmp_path / "r")})
    tiny_run.publish(plan, lambda output: output.write("attention", 0, attention))
    result = command(
        "weight-tokens", "--config", run / "config.yaml", "--rollouts", tmp_path / "r", "--attention", tmp_path / "a",
        "--iteration", 1, "--out", tmp_path / "w", "--set", "weights.replay.size=1000",
        "--set", "weights.replay.min_reward=-10",
    )  # fmt: skip
    assert result.code == 0, result.stderr
    weights = Source(tmp_path / "w")
    assert [row["completion_id"] for row in weights.rows("weights")] == [row["completion_id"] for row in completions]
    named = ("completion_id", "group_id", "text", "engine", "token_texts", "completion_ids")
    stored = {row["completion_id"]: row for row in weights.rows("buffer-completions")}
    assert len(stored) == len(completions)
    for row in completions:
        assert {name: stored[row["completion_id"]][name] for name in named} == {name: row[name] for name in named}
    asked = {row["group_id"]: row for row in weights.rows("buffer")}
    for row in prompts:
        assert {name: asked[row["group_id"]][name] for name in row} == row
    record(11, len(TEXTS) * 9, "texts through weight-tokens and its buffer")


def test_the_page_holds_every_text_as_data(run: Path) -> None:
    page = (run / "report.html").read_text(encoding="utf-8")
    (data,) = re.findall(r'<script type="application/json" id="data">(.*?)</script>', page, re.DOTALL)
    assert not STEERING.search(data) and not set("<>&") & set(data)
    groups = [group for group in json.loads(data) if group["iteration"] == 3]
    assert len(groups) == len(TEXTS)
    for case, (text, seen) in enumerate(TEXTS):
        group = next(group for group in groups if group["id"].startswith(f"{case}:group:"))
        want = mark(case, "problem", seen or text)
        assert group["problem"] == want and group["completions"][0]["tokens"][0] == want.replace("problem", "token")
    record(11, len(TEXTS) * len(FIELDS), "texts in the page's data")


def test_markdown_holds_nothing_that_steers(run: Path) -> None:
    for name in ("rollout_results.md", "token_weights.md", "eval_results.md"):
        assert not STEERING.search((run / name).read_text(encoding="utf-8"))
    record(11, 3, "Markdown")


def test_inspect_shows_every_text_and_steers_no_terminal(run: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """In plain text, in color, and as JSON, which gives it back as it was."""
    for case, (text, _) in enumerate(TEXTS):
        key = mark(case, "completion", text)
        plain = command("inspect", "--run", run, key)
        assert plain.code == 0, plain.stderr
        assert (
            not STEERING.search(plain.stdout)
            and visible(f"solution   {_line(mark(case, 'solution', text))}") in plain.stdout
        )
        found = command("inspect", "--run", run, key, "--json")
        assert not STEERING.search(found.stdout)
        said = json.loads(found.stdout)
        assert (said["completion_id"], said["prompt"]["problem"]) == (key, mark(case, "problem", text))
        assert said["tokens"] == [mark(case, "token", text), " end"]
    ranked = command("inspect", "--run", run, "--find", "worst", "--iteration", 3)
    assert ranked.code == 0 and "Next after it: " in ranked.stdout and not STEERING.search(ranked.stdout)
    missing = command("inspect", "--run", run, "\x1b[31mnothing")
    assert missing.code == 3 and not STEERING.search(missing.stderr)
    record(11, 2 * len(TEXTS) + 2, "texts through inspect")


def _line(text: str) -> str:
    return text.replace("\r\n", "\n").replace("\n", "⏎").replace("\t", " ")


@pytest.mark.parametrize("payloads", [PAYLOADS[17:20], pytest.param(PAYLOADS, marks=pytest.mark.faults)], ids=len)
def test_status_and_comparisons_steer_no_terminal(payloads: list[tuple[str, str | None]], tmp_path: Path) -> None:
    """Slices, solutions and question ids that say such things, in what the commands print."""
    run = tiny_run.build(tmp_path / "run")
    for text, _ in payloads:
        folder = run / "iter-0002/eval"
        made = list(Source(folder).rows("completions"))
        for number, row in enumerate(made):
            row |= {"slice": text, "labels": json.dumps({text: text}), "prompt_id": f"{number} {text}"}
        rewrite(folder / "completions-00000.parquet", made, schema("evaluation"))
        metrics = json.loads((folder / "metrics.json").read_text())
        metrics |= {"by_slice": {text: {"greedy_accuracy": 0.5}}, "slices": {text: 4}}
        (folder / "metrics.json").write_text(json.dumps(metrics))
        republish(folder)
        report = command("report", "--config", run / "config.yaml", "--run", run, "--iteration", 2, "--overwrite")
        status = command("status", "--run", run)
        compared = command("compare-evals", folder, folder, "--list", 3)
        for result in (report, status, compared):
            assert result.code == 0, result.stderr
            assert not STEERING.search(result.stdout + result.stderr), (text, result.stdout)
    record(11, 3 * len(payloads), "texts in what commands print")


@pytest.mark.faults
def test_eleven_megabytes_are_reported_and_shown(tmp_path: Path) -> None:
    """A question, an answer and a completion, which is one token."""
    run = hostile_run.build(tmp_path / "long", [(MEGABYTES, None)], ("problem", "solution", "token"))
    result = command("report", "--config", run / "config.yaml", "--run", run)
    assert result.code == 0, result.stderr
    (row,) = Source(run / "iter-0003/rollout").rows("completions")
    assert row["text"] == f"{mark(0, 'token', MEGABYTES)} end"
    assert (run / "report.html").stat().st_size < 30e6
    assert not STEERING.search((run / "rollout_results.md").read_text(encoding="utf-8"))
    shown = command("inspect", "--run", run, "--find", "best", "--iteration", 3)
    assert shown.code == 0 and not STEERING.search(shown.stdout) and len(shown.stdout) > 10e6
    record(11, 2, "10 MB")


def test_every_character_that_steers_is_shown_as_a_symbol() -> None:
    """All 1 114 112 code points, by what Unicode says of them: controls, directions, line ends, halves."""
    for code in range(0x110000):
        character = chr(code)
        category, direction = unicodedata.category(character), unicodedata.bidirectional(character)
        steers = category in {"Cc", "Cs", "Zl", "Zp"} and character not in "\n\t"
        steers |= direction in {"LRE", "RLE", "PDF", "LRO", "RLO", "LRI", "RLI", "FSI", "PDI"}
        steers |= character in "\u200e\u200f\u061c"
        assert (visible(character) != character) == steers, hex(code)
    record(11, 1, "all code points")
