"""Plug-in rewards: loading, one call per group in a process of their own, and failures."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import pytest

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.rewards.isolated.plugins import Plugins

TEXTS = ["<answer>B</answer>", "<answer>C</answer>", ""]
ROW: dict[str, object] = {"solution": "B", "problem": "What color is it?", "prompt_id": "p7"}
EXPECTED = "reward mine must be a finite number or None for each of 3 completions"
FIX = "Fix the function and run the command again, with --overwrite if the file was edited."


def load(root: Path, timeout: float = 30.0, environment: list[str] | None = None, **plugins: str) -> Plugins:
    config = RewardsConfig(plugins=plugins, plugin_timeout=timeout, plugin_environment=environment or [])
    return Plugins(config, root)


def write(root: Path, code: str, name: str = "mine.py") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    return path


def score(plugins: Plugins, row: dict[str, object] = ROW) -> dict[str, list[float | None]]:
    return plugins.score(TEXTS, [5, 6, 7], row)


def failure(root: Path, body: str, timeout: float = 30.0) -> str:
    """The whole message about a function with this body."""
    write(root, f"import math, os, sys, time\ndef f(completions, rows):\n    {body}\n")
    plugins = load(root, timeout, mine="mine.py:f")
    with pytest.raises(DataError) as raised:
        score(plugins)
    plugins.close()
    return str(raised.value)


def alive(process_id: int) -> bool:
    """Whether it is running; a zombie is not."""
    try:
        return Path(f"/proc/{process_id}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except FileNotFoundError:
        return False


def gone_within(process_id: int, seconds: float) -> bool:
    end = time.monotonic() + seconds
    while alive(process_id) and time.monotonic() < end:
        time.sleep(0.02)
    return not alive(process_id)


# ---- arguments and results of a function


def test_a_group_is_one_call_and_rows_belong_to_completions(tmp_path: Path) -> None:
    write(
        tmp_path,
        "calls = 0\n"
        "def count(completions, rows):\n"
        "    global calls\n"
        "    calls += 1\n"
        "    return [calls] * len(completions)\n"
        "def tokens(completions, rows):\n"
        "    return [row['num_tokens'] + 100 * row['sample'] for row in rows]\n"
        "def right(completions, rows):\n"
        "    return [row.pop('solution') in text for text, row in zip(completions, rows, strict=True)]\n",
    )
    plugins = load(tmp_path, z="mine.py:count", b="mine.py:tokens", m="mine.py:right")
    row = dict(ROW)
    assert plugins.names == ("b", "m", "z")
    assert score(plugins, row) == {"b": [5, 106, 207], "m": [1, 0, 0], "z": [1, 1, 1]}
    assert score(plugins, row)["z"] == [2, 2, 2]
    assert row == ROW


def test_a_file_is_run_once_and_may_define_dataclasses(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Seen:\n    n: int = 0\n"
        "seen = Seen()\ndef one(c, r):\n    seen.n += 1\n    return [seen.n] * len(c)\ntwo = one\n",
    )
    assert score(load(tmp_path, a="mine.py:one", b="mine.py:two")) == {"a": [1] * 3, "b": [2] * 3}


def test_none_is_no_opinion(tmp_path: Path) -> None:
    write(tmp_path, "def f(c, r): return [None, 0.5, None]\n")
    assert score(load(tmp_path, mine="mine.py:f")) == {"mine": [None, 0.5, None]}


@pytest.mark.parametrize(
    "result", ["numpy.array([0.5, 1, 2], 'float32')", "[numpy.float32(0.5), 1, True + 1]", "(0.5, 1.0, 2.0)"]
)
def test_arrays_and_tuples_are_fine(tmp_path: Path, result: str) -> None:
    write(tmp_path, f"import numpy\ndef f(c, r): return {result}\n")
    values = score(load(tmp_path, f="mine.py:f"))["f"]
    assert values == [0.5, 1, 2] and {type(value) for value in values} == {float}


def test_images_and_strange_text_arrive_as_they_are(tmp_path: Path) -> None:
    write(
        tmp_path,
        "def f(completions, rows):\n"
        "    assert rows[1]['images'] == [{'bytes': bytes(range(256)) * 4000, 'path': None}]\n"
        "    return [len(completions[0]) == 3 and ord(completions[0][1]) == 0xd800, len(completions[1]), 0]\n",
    )
    row = {**ROW, "images": [{"bytes": bytes(range(256)) * 4000, "path": None}]}
    texts = ["a\ud800\n", "x" * 10_000_000, '"}\n{"values": [9, 9, 9]}']
    values = load(tmp_path, f="mine.py:f").score(texts, [1, 1, 1], row)["f"]
    assert values == [1, 10_000_000, 0]


# ---- failures


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return [1, math.nan, 2]", "the value nan"),
        ("return [1, -math.inf, 2]", "the value -inf"),
        ("return [1, 1e300, 2]", "the value 1e+300"),
        ("return [1, '1', 2]", "the value '1'"),
        ("return [1, [1.0], 2]", "the value [1.0]"),
        ("return [1, 1j, 2]", "the value 1j"),
        ("return [1, 10 ** 5000, 2]", "the value of type int"),
        ("return [1 / (len(c) - 18) for c in completions[1:]]", "ZeroDivisionError: division by zero (line 3)"),
        ("return [rows[1]['nope'] for c in completions[1:]]", "KeyError: 'nope' (line 3)"),
        ("for c in completions[1:]: sys.exit(3)", "SystemExit: 3 (line 3)"),
    ],
)  # fmt: skip
def test_a_bad_value_names_file_function_and_completion(tmp_path: Path, body: str, found: str) -> None:
    said = f"mine.py:f: {EXPECTED}, got {found} for completion 1 of prompt p7, '<answer>C</answer>'. {FIX}"
    assert failure(tmp_path, body) == said


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return [1.0, 2.0]", "2 values for the 3 completions of prompt p7"),
        ("return [1.0] * 4", "4 values for the 3 completions of prompt p7"),
        ("return []", "0 values for the 3 completions of prompt p7"),
        ("return None", "the result None instead of a list for the 3 completions of prompt p7"),
        ("return 1.0", "the result 1.0 instead of a list for the 3 completions of prompt p7"),
        ("return '123'", "the result '123' instead of a list for the 3 completions of prompt p7"),
        (
            "return {0: 1, 1: 2, 2: 3}",
            "the result {0: 1, 1: 2, 2: 3} instead of a list for the 3 completions of prompt p7",
        ),
        ("raise OSError('no disk')", "OSError: no disk (line 3) for the 3 completions of prompt p7"),
    ],
)
def test_a_bad_result_names_file_function_and_prompt(tmp_path: Path, body: str, found: str) -> None:
    assert failure(tmp_path, body) == f"mine.py:f: {EXPECTED}, got {found}. {FIX}"


@pytest.mark.parametrize(("body", "how"), [("os._exit(7)", "exit code 7"), ("os.kill(os.getpid(), 11)", "SIGSEGV")])
def test_a_function_that_ends_the_process_is_named_with_its_prompt(tmp_path: Path, body: str, how: str) -> None:
    said = f"reward mine ended its process ({how}) while scoring the 3 completions of prompt p7"
    assert failure(tmp_path, body) == f"mine.py:f: {said}. {FIX}"


@pytest.mark.parametrize("body", ["time.sleep(60)", "while True: pass", "sum(range(10 ** 12))"])
def test_a_function_that_hangs_is_killed_and_the_key_is_named(tmp_path: Path, body: str) -> None:
    start = time.monotonic()
    said = failure(tmp_path, body, timeout=0.4)
    assert time.monotonic() - start < 10
    assert said == (
        "mine.py:f: reward mine did not score the 3 completions of prompt p7 within rewards.plugin_timeout=0.4 s and "
        "was killed. Raise rewards.plugin_timeout and run the command again (finished shards stay), or fix the "
        "function."
    )


@pytest.mark.long
def test_what_a_hanging_function_has_started_is_ended_with_it(tmp_path: Path) -> None:
    body = "import subprocess; p = subprocess.Popen(['sleep', '60']); open('pid', 'w').write(str(p.pid)); p.wait()"
    here = Path.cwd()
    os.chdir(tmp_path)
    try:
        failure(tmp_path, body, timeout=2.0)
    finally:
        os.chdir(here)
    assert gone_within(int((tmp_path / "pid").read_text()), 5)


def test_what_it_prints_goes_to_stderr_and_reading_stdin_finds_nothing(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    write(
        tmp_path,
        "import sys\ndef f(c, r):\n    print('hello', sys.stdin.read(), flush=True)\n    return [1] * len(c)\n",
    )
    plugins = load(tmp_path, mine="mine.py:f")
    assert score(plugins) == {"mine": [1, 1, 1]}
    out, err = capfd.readouterr()
    assert (out, err) == ("", "hello \n")


# ---- the process


def test_one_process_is_kept_and_ends_with_the_rewards(tmp_path: Path) -> None:
    write(tmp_path, "import os\ndef f(c, r): return [os.getpid()] * len(c)\n")
    plugins = load(tmp_path, a="mine.py:f", b="mine.py:f")
    values = score(plugins)
    process_id = int(values["a"][0] or 0)
    assert values["b"][0] == process_id != os.getpid()
    assert score(plugins) == values
    plugins.close()
    assert not alive(process_id)
    forgotten = load(tmp_path, a="mine.py:f")
    process_id = int(score(forgotten)["a"][0] or 0)
    del forgotten
    assert gone_within(process_id, 5)


@pytest.mark.skipif(sys.platform != "linux", reason="elsewhere the alarm ends it, after the time limit")
@pytest.mark.parametrize("busy", [False, True])
def test_it_dies_with_a_parent_that_is_killed(tmp_path: Path, busy: bool) -> None:
    nap = "time.sleep(60)" if busy else "None"
    write(
        tmp_path,
        "import os, time\ndef f(c, r):\n    open('pid.part', 'w').write(str(os.getpid()))\n"
        f"    os.rename('pid.part', 'pid')\n    {nap}\n    return [1] * len(c)\n",
    )
    code = (
        "import time; from pathlib import Path\n"
        "from dapo_stages.config import RewardsConfig; from dapo_stages.rewards.isolated.plugins import Plugins\n"
        "plugins = Plugins(RewardsConfig(plugins={'mine': 'mine.py:f'}), Path.cwd())\n"
        "plugins.score(['x'], [1], {}); time.sleep(60)\n"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], cwd=tmp_path)
    end = time.monotonic() + 60
    while not (tmp_path / "pid").exists() and time.monotonic() < end:
        time.sleep(0.02)
    process_id = int((tmp_path / "pid").read_text())
    assert alive(process_id)
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert gone_within(process_id, 5)


def test_secrets_of_the_environment_stay_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HF_TOKEN", "hf_secret")
    monkeypatch.setenv("WANDB_API_KEY", "w_secret")
    monkeypatch.setenv("JUDGE_OF_MINE_API_KEY", "for the plug-in")
    monkeypatch.setenv("RANK", "1")
    write(
        tmp_path,
        "import os\nNAMES = ('HF_TOKEN', 'WANDB_API_KEY', 'JUDGE_OF_MINE_API_KEY', 'RANK', 'PATH')\n"
        "def f(c, r): return [sum(2 ** i for i, name in enumerate(NAMES) if name in os.environ)] * len(c)\n",
    )
    assert score(load(tmp_path, mine="mine.py:f"))["mine"][0] == 8 + 16
    listed = load(tmp_path, environment=["JUDGE_OF_MINE_API_KEY"], mine="mine.py:f")
    assert score(listed)["mine"][0] == 4 + 8 + 16


# ---- finding the functions


def test_a_symbolic_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(write(tmp_path, "def f(c, r): return [1] * len(c)\n"))
    assert score(load(tmp_path, mine="link.py:f")) == {"mine": [1, 1, 1]}


def test_a_missing_file_and_function_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, mine="no.py:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: {tmp_path}/no.py: the file does not exist. Write a Python file with the function f, or "
        "correct the path in the configuration (it is relative to the working folder)."
    )
    path = write(tmp_path, "f = 1\n")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, mine="mine.py:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: {path}: no function f in this file. Write `def f(completions, rows)`, or correct the "
        "name in the configuration."
    )


@pytest.mark.parametrize("code", ["def f(:\n", "import no_such_module\n", "raise SystemExit(1)\n", "\0"])
def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, code: str) -> None:
    path = write(tmp_path, code)
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, mine="mine.py:f")
    assert str(raised.value).startswith(f"rewards.plugins.mine: {path}: cannot import the file (")
    assert str(raised.value).endswith("). Fix the file and run the command again.")


def test_a_file_that_never_finishes_importing_is_killed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dapo_stages.rewards.isolated.plugins.START_LIMIT", 0.5)
    path = write(tmp_path, "import time\ntime.sleep(60)\n")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, timeout=0.4, mine="mine.py:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: {path}: importing the file took more than 0.5 s. Raise rewards.plugin_timeout and run "
        "the command again."
    )


@pytest.mark.parametrize("where", ["mine.py", "mine.py:", ":f", "mine.py:not a name", "", "mine.py:f()"])
def test_a_plugin_is_a_file_and_a_function(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, mine=where)
    assert str(raised.value) == (
        f"rewards.plugins.mine: expected path/to/file.py:function, got {where!r}. Correct it in the configuration."
    )


@pytest.mark.parametrize("name", ["accuracy", "vgr", "judge", "a b", "1st", ""])
def test_a_name_must_make_a_column_of_its_own(tmp_path: Path, name: str) -> None:
    write(tmp_path, "def f(c, r): return [1] * len(c)\n")
    with pytest.raises(ConfigError) as raised:
        load(tmp_path, 30.0, None, **{name: "mine.py:f"})
    assert str(raised.value) == (
        f"rewards.plugins.{name}: {name!r} is not a valid name (letters, digits and _, but none of accuracy, format, "
        "judge, overlong, vgr). Rename the plug-in in the configuration."
    )


def test_numbers_of_float32_come_back_whole(tmp_path: Path) -> None:
    write(tmp_path, "import numpy\ndef f(c, r): return numpy.array([0.1, 1e-40, 3.4e38], 'float32')\n")
    values = score(load(tmp_path, f="mine.py:f"))["f"]
    assert values == np.array([0.1, 1e-40, 3.4e38], "float32").astype(float).tolist()
