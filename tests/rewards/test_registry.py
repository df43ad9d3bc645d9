"""All rewards together, and the user's own."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.rewards.registry import Rewards, Scored

TEXT = "<think>It is green.</think><answer>B</answer>"
ROW: dict[str, object] = {"solution": "B", "problem": "What colour is it?"}


def rewards(root: Path, **plugins: str) -> Rewards:
    return Rewards(RewardsConfig(plugins=plugins), 384, root)


def write(root: Path, code: str, name: str = "mine.py") -> Path:
    path = root / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(code, encoding="utf-8")
    return path


def test_the_three_rewards_of_a_completion(tmp_path: Path) -> None:
    scored = rewards(tmp_path).score(TEXT, 20, ROW)
    assert scored == Scored(accuracy=1.0, format=1.0, overlong=0.0, plugins={})
    wrong = rewards(tmp_path).score("<answer>C</answer>", 384, ROW)
    assert wrong == Scored(accuracy=0.0, format=0.0, overlong=-1.0, plugins={})


def test_overlong_falls_over_the_cache(tmp_path: Path) -> None:
    # 384 - 50 = 334 tokens are free; half of the cache costs half a point (equation 13 of DAPO).
    default = rewards(tmp_path)
    assert [default.score("", n, ROW).overlong for n in (334, 359, 384)] == [0.0, -0.5, -1.0]
    own = Rewards(RewardsConfig(overlong_max_length=100, overlong_cache=10), 384, tmp_path)
    assert [own.score("", n, ROW).overlong for n in (90, 95, 101)] == [0.0, -0.5, -1.0]


def test_plugins_are_sorted_and_get_completion_and_row(tmp_path: Path) -> None:
    write(tmp_path, "def length(c, row): return len(c)\ndef none(c, row): return None\n", "a/b.py")
    write(tmp_path, "def right(completion, row):\n    return row.pop('solution') == 'B'\n")
    loaded = rewards(tmp_path, z="a/b.py:length", b="a/b.py:none", m="mine.py:right")
    assert loaded.names == ("b", "m", "z")
    row = dict(ROW)
    scored = loaded.score(TEXT, 20, row)
    assert scored.plugins == {"b": 0.0, "m": 1.0, "z": float(len(TEXT))}
    assert list(scored.plugins) == ["b", "m", "z"]
    assert row == ROW


def test_a_file_is_run_once_and_may_define_dataclasses(tmp_path: Path) -> None:
    write(
        tmp_path,
        "from __future__ import annotations\nfrom dataclasses import dataclass\n"
        "@dataclass\nclass Seen:\n    n: int = 0\n"
        "seen = Seen()\ndef one(c, r):\n    seen.n += 1\n    return seen.n\ntwo = one\n",
    )
    assert rewards(tmp_path, a="mine.py:one", b="mine.py:two").score(TEXT, 1, ROW).plugins == {"a": 1.0, "b": 2.0}


def test_numbers_of_numpy_are_numbers(tmp_path: Path) -> None:
    write(tmp_path, "import numpy\ndef f(c, r): return numpy.float32(0.5)\n")
    value = rewards(tmp_path, f="mine.py:f").score(TEXT, 1, ROW).plugins["f"]
    assert type(value) is float
    assert value == np.float32(0.5)


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return float('nan')", "the result nan"),
        ("return float('inf')", "the result inf"),
        ("return 1e300", "the result 1e+300"),
        ("return '1'", "the result '1'"),
        ("return [1.0]", "the result [1.0]"),
        ("return 1j", "the result 1j"),
        ("return 1 / 0", "ZeroDivisionError: division by zero"),
        ("return r['nope']", "KeyError: 'nope'"),
    ],
)
def test_a_bad_result_names_file_function_and_completion(tmp_path: Path, body: str, found: str) -> None:
    write(tmp_path, f"def f(c, r): {body}\n")
    with pytest.raises(DataError) as raised:
        rewards(tmp_path, mine="mine.py:f").score(TEXT, 1, ROW)
    assert str(raised.value) == (
        f"mine.py:f: found {found} for completion {TEXT!r}; needed a finite number, or None, from reward mine. "
        "Mend the function and run the command again."
    )


@pytest.mark.parametrize(("digits", "found"), [(400, "the result 1000"), (5000, "a result of type int")])
def test_a_huge_integer_is_refused(tmp_path: Path, digits: int, found: str) -> None:
    write(tmp_path, f"def f(c, r): return 10 ** {digits}\n")
    with pytest.raises(DataError, match=f"found {found}"):
        rewards(tmp_path, mine="mine.py:f").score(TEXT, 1, ROW)


@pytest.mark.parametrize(
    "path", ["../mine.py", "a/../../mine.py", "a/../mine.py", "/etc/mine.py", "C:/mine.py", "..\\mine.py"]
)
def test_a_path_cannot_leave_the_folder(tmp_path: Path, path: str) -> None:
    root = tmp_path / "root"
    (root / "a").mkdir(parents=True)
    write(tmp_path, "raise RuntimeError('was run')\n")
    write(root, "raise RuntimeError('was run')\n")
    with pytest.raises(ConfigError) as raised:
        rewards(root, mine=f"{path}:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: found {path!r}, which leads out of {root}; needed a path inside the working folder. "
        "Copy the file there and name it by a relative path without `..`."
    )


def test_a_symbolic_link_cannot_leave_the_folder(tmp_path: Path) -> None:
    root = tmp_path / "root"
    root.mkdir()
    outside = write(tmp_path, "raise RuntimeError('was run')\n")
    (root / "link.py").symlink_to(outside)
    (root / "folder").symlink_to(tmp_path)
    for path in ("link.py", "folder/mine.py"):
        with pytest.raises(ConfigError, match="which leads out of"):
            rewards(root, mine=f"{path}:f")


def test_a_symbolic_link_inside_the_folder_is_fine(tmp_path: Path) -> None:
    (tmp_path / "link.py").symlink_to(write(tmp_path, "def f(c, r): return 1\n"))
    assert rewards(tmp_path, mine="link.py:f").score(TEXT, 1, ROW).plugins == {"mine": 1.0}


def test_a_missing_file_and_function_say_what_to_do(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        rewards(tmp_path, mine="no.py:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: {tmp_path}/no.py: found no such file; needed a Python file with the function f. "
        "Write it, or correct the path in the configuration (it is relative to the working folder)."
    )
    path = write(tmp_path, "f = 1\n")
    with pytest.raises(ConfigError) as raised:
        rewards(tmp_path, mine="mine.py:f")
    assert str(raised.value) == (
        f"rewards.plugins.mine: {path}: found no function f; needed `def f(completion, row)`. "
        "Write it, or correct the name in the configuration."
    )


@pytest.mark.parametrize("code", ["def f(:\n", "import no_such_module\n", "raise SystemExit(1)\n", "\0"])
def test_a_file_that_cannot_be_imported_is_named(tmp_path: Path, code: str) -> None:
    path = write(tmp_path, code)
    with pytest.raises(ConfigError) as raised:
        rewards(tmp_path, mine="mine.py:f")
    assert str(raised.value).startswith(f"rewards.plugins.mine: {path}: found ")
    assert str(raised.value).endswith("needed a file that Python can import. Mend the file and run the command again.")


@pytest.mark.parametrize("where", ["mine.py", "mine.py:", ":f", "mine.py:not a name", "", "mine.py:f()"])
def test_a_plugin_is_a_file_and_a_function(tmp_path: Path, where: str) -> None:
    with pytest.raises(ConfigError) as raised:
        rewards(tmp_path, mine=where)
    assert str(raised.value) == (
        f"rewards.plugins.mine: found {where!r}; needed path/to/file.py:function. Correct it in the configuration."
    )


@pytest.mark.parametrize("name", ["accuracy", "vgr", "a b", "1st", ""])
def test_a_name_must_make_a_column_of_its_own(tmp_path: Path, name: str) -> None:
    write(tmp_path, "def f(c, r): return 1\n")
    with pytest.raises(ConfigError) as raised:
        Rewards(RewardsConfig(plugins={name: "mine.py:f"}), 384, tmp_path)
    assert str(raised.value) == (
        f"rewards.plugins.{name}: found the name {name!r}; needed letters, digits and _, and none of accuracy, format, "
        "overlong, vgr. Rename the plug-in in the configuration."
    )


def test_rewards_are_finite(tmp_path: Path) -> None:
    scored = rewards(tmp_path).score("", 10_000, {"solution": ""})
    assert all(math.isfinite(value) for value in (scored.accuracy, scored.format, scored.overlong))
