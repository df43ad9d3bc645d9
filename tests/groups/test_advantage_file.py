"""Advantages from files of the user: what they may return, and how they fail."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from support.pipeline import Run, table

from dapo_stages.config import RewardsConfig
from dapo_stages.errors import ConfigError, DataError
from dapo_stages.groups.advantage_file import AdvantageFile
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.shards import sha256_of
from dapo_stages.maths.advantage_estimators import Rewarded

GROUPS = [
    Rewarded(np.array([3.0, 1.0, 2.0]), {"accuracy": np.array([1.0, 0.0, np.nan])}, np.array([4.0, 2.0, 6.0])),
    Rewarded(np.array([0.0, 5.0]), {"accuracy": np.array([0.0, 1.0])}, np.array([1.0, 3.0])),
]


def opened(root: Path, code: str, where: str = "mine.py:f") -> AdvantageFile:
    (root / "mine.py").write_text(f"import numpy as np\n{code}\n")
    return AdvantageFile(where, RewardsConfig(plugin_timeout=5.0), root, ("accuracy", "format"))


def test_it_is_given_all_groups_by_name_and_gives_an_array_for_each(tmp_path: Path) -> None:
    """Minus the median, over the largest of the batch, times the accuracy where there is one, less the length."""
    advantage = opened(
        tmp_path,
        "def f(rewards, accuracy, lengths):\n"
        "    largest = max(values.max() for values in rewards)\n"
        "    return [\n"
        "        (values - np.median(values)) / largest * np.nan_to_num(right, nan=2.0) - size\n"
        "        for values, right, size in zip(rewards, accuracy, lengths)\n"
        "    ]",
    )
    assert advantage.needs_lengths
    first, second = advantage.estimate(GROUPS)
    np.testing.assert_allclose(first, [1 / 5 - 4, -2, -6])
    np.testing.assert_allclose(second, [-1, 2.5 / 5 - 3])
    assert advantage.estimate([]) == []
    advantage.close()


@pytest.mark.parametrize(
    ("body", "found"),
    [
        ("return 1.0", "the result 1.0 instead of a list of arrays for the completions of 2 groups"),
        ("return rewards[:1]", "1 arrays for the completions of 2 groups"),
        ("return [rewards[0], rewards[0]]", "3 values for the 2 completions of group 1"),
        ("return [rewards[0], [0, None]]", "None for completion 1 of group 1"),
        ("return [rewards[0] / 0, rewards[1]]", "the value inf for completion 0 of group 0"),
        ("return [[1, 2, float('nan')], [0, 0]]", "the value nan for completion 2 of group 0"),
        ("return rewards[2]", "IndexError: list index out of range (line 3) for the completions of 2 groups"),
    ],
)
def test_what_it_may_not_return(body: str, found: str, tmp_path: Path) -> None:
    advantage = opened(tmp_path, f"def f(rewards):\n    {body}")
    with pytest.raises(DataError) as raised:
        advantage.estimate(GROUPS)
    assert str(raised.value) == (
        "mine.py:f: the advantage must give an array for each group, with a finite number for each of its completions, "
        f"got {found}. Fix the function and run the command again, with --overwrite if the file was edited."
    )
    advantage.close()


def test_mistakes_show_before_anything_is_read(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as raised:
        opened(tmp_path, "def f(reward): pass")
    assert str(raised.value) == (
        "weights.advantage: mine.py:f: the parameter reward must be rewards, lengths or the name of a reward "
        "(accuracy, format). Correct its name."
    )
    with pytest.raises(ConfigError, match=r"no function f in this file\. Write `def f\(rewards\)`, with the columns"):
        opened(tmp_path, "def g(rewards): pass")


def test_weights_are_made_with_it(small_run: Run, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards minus twice the accuracy: not what any other gives, and easy to see in the files."""
    monkeypatch.chdir(tmp_path)
    Path("mine.py").write_text(
        "def f(rewards, accuracy):\n    return [values - 2 * right for values, right in zip(rewards, accuracy)]\n"
    )
    settings = {"weights__advantage": "mine.py:f", "weights__filter": "none"}
    small_run.command("weight-tokens", *small_run.weights_inputs(1), "--out", tmp_path / "w", **settings)
    rows = table(tmp_path / "w", "weights")
    assert len(rows) > 10
    np.testing.assert_allclose(rows.advantage, rows.reward - 2 * rows.reward_accuracy, atol=1e-5)
    assert Source(tmp_path / "w").manifest.config["files"] == {"weights.advantage": sha256_of(tmp_path / "mine.py")}
    source = (tmp_path / "mine.py").read_bytes()
    Path("mine.py").unlink()
    assert (tmp_path / "w/weights.advantage.py").read_bytes() == source  # the output keeps it
    Source(tmp_path / "w").verify_all()
