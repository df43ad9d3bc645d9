"""Schemes from files of the user: what they may return, and how they fail."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.groups.scheme_file import SchemeFile

ROW: dict[str, Any] = {"completion_id": "c7", "vgr": [1.0, 2.0, float("nan")], "num_text_tokens": 4}
KNOWN = ("vgr", "num_text_tokens")
LIMIT = RewardsConfig(plugin_timeout=5.0)


def opened(root: Path, code: str, where: str = "mine.py:f") -> SchemeFile:
    (root / "mine.py").write_text(f"import numpy as np\n{code}\n")
    return SchemeFile(where, LIMIT, root, KNOWN)


def refused(root: Path, code: str, where: str = "mine.py:f") -> str:
    with pytest.raises(ConfigError) as raised:
        opened(root, code, where)
    return str(raised.value).replace(f"{root}/", "")


@pytest.mark.parametrize(
    ("body", "values"),
    [
        ("return 1 / vgr", [1.0, 0.5, np.nan]),  # unknown where its column is
        ("return [3, None, 0]", [3.0, np.nan, 0.0]),
        ("return (True, 2.5, np.float32(1))", [1.0, 2.5, 1.0]),
    ],
)
def test_what_a_scheme_may_return(body: str, values: list[float], tmp_path: Path) -> None:
    scheme = opened(tmp_path, f"def f(vgr, num_text_tokens):\n    {body}")
    assert scheme.columns == ("vgr", "num_text_tokens")
    np.testing.assert_array_equal(scheme.raw_weights(ROW, 3), values)
    scheme.close()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return [1, 2]", "2 values for the 3 tokens of completion c7"),
        ("return 1.0", "the result 1.0 instead of an array for the 3 tokens of completion c7"),
        ("return [1, -0.5, 1]", "the value -0.5 for token 1 of completion c7"),
        ("return [1, 1, float('inf')]", "the value inf for token 2 of completion c7"),
        ("return [1, float('nan'), 1]", "NaN where every column is finite for token 1 of completion c7"),
        ("return [1, 'x', 1]", "the value 'x' for token 1 of completion c7"),
        ("return [1 // 0]", "ZeroDivisionError: integer division or modulo by zero (line 3) for the 3 tokens"),
    ],
)
def test_what_it_may_not(body: str, found: str, tmp_path: Path) -> None:
    scheme = opened(tmp_path, f"def f(vgr):\n    {body}")
    with pytest.raises(DataError) as raised:
        scheme.raw_weights(ROW, 3)
    expected = "mine.py:f: the scheme must give a finite number, not negative, or None for each of 3 tokens, got"
    assert str(raised.value).startswith(f"{expected} {found}")
    assert str(raised.value).endswith(
        "Fix the function and run the command again, with --overwrite if the file was edited."
    )
    scheme.close()


def test_a_scheme_that_ends_its_process(tmp_path: Path) -> None:
    scheme = opened(tmp_path, "import os\ndef f(vgr):\n    os._exit(3)")
    with pytest.raises(DataError, match=r"the scheme ended its process \(exit code 3\) while weighing the 3 tokens of"):
        scheme.raw_weights(ROW, 3)


def test_mistakes_show_before_anything_is_weighed(tmp_path: Path) -> None:
    assert refused(tmp_path, "def g(vgr): pass") == (
        "weights.scheme: mine.py: no function f in this file. Write `def f(vgr)`, with the columns it needs, or "
        "correct the name in the configuration."
    )
    assert refused(tmp_path, "def f(vrg): pass") == (
        "weights.scheme: mine.py:f: the parameter vrg must be a column of the attention files (num_text_tokens, vgr), "
        "token_texts or completion_ids. Correct its name."
    )
    assert refused(tmp_path, "1 // 0").startswith(
        "weights.scheme: mine.py: cannot import the file (ZeroDivisionError: integer division or modulo by zero (line 2"
    )
    assert refused(tmp_path, "", "no.py:f").startswith("weights.scheme: no.py: the file does not exist.")
    assert refused(tmp_path, "", "../mine.py:f").startswith(
        "weights.scheme: '../mine.py' is outside the working folder"
    )
