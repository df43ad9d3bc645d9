"""Whatever is in a configuration, a command says what is wrong with it: no value of any setting ends in a traceback."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import yaml
from support.commands import run
from test_config import LEAVES, load

from dapo_stages.config import Config, dump_config, load_config
from dapo_stages.errors import ConfigError

PIPELINES = Path(__file__).parents[1] / "pipelines"
SECTIONS = "train: {lora: {}}\nrewards: {judge: {model: m}}\nrollout: {curriculum: {}}\n"
NUMBERS = ["1" + "0" * 22, "-1" + "0" * 22, "9" * 5000, "1" + "0" * 400 + ".0", "1e400", ".inf", "-.nan", "1e300", "-0"]
# Difficult YAML: recursive and huge aliases, tags that do not fit, impossible dates.
NOTATIONS = [
    *("&a [*a]", "&a {b: *a}", "&a {<<: *a}", "&a {? *a : 1}", "{b: &a [[*a]]}", "*a", "&a", "<<", "{<<: 1}"),
    *("2001-99-99", "2001-01-01", "!!timestamp x", "!!int x", "!!float x", "!!bool x", "!!binary x", "!!null x"),
    *("!!map [a]", "!!seq {a: 1}", "!!str [a]", "!!set {a}", "!!omap [a]", "!!pairs [a]", "!!python/name:os.system ''"),
    *(
        "{? [1] : 2}",
        "{1: 2}",
        "{null: 1}",
        "{a: 1, a: 2}",
        "[" * 400,
        "[" * 60 + "]" * 60,
        "'\\0'",
        '"\\0"',
        '"\\ud800"',
    ),
]
KEYS = ["seed", "data.source", "data.columns.slices", "train.betas", "train.beta", "rewards.plugins", "rewards.judge"]
KEYS += ["schedules", "schedules.train.beta", "nothing", "seed.x", "..", "weights.reward_weights.plugins"]


def is_taken_or_refused(path: Path, *overrides: str) -> None:
    """What is accepted can be written, recorded and read again."""
    try:
        config = load_config(path, list(overrides))
    except ConfigError as error:
        assert str(error)
        return
    json.dumps(config.recorded(), allow_nan=False)
    config.at(1)
    assert Config.model_validate(yaml.safe_load(dump_config(config))) == config


@pytest.mark.parametrize("key", [key.replace("schedules.", "schedules.train.beta.") for key, _ in LEAVES])
def test_no_number_is_too_much_for_a_key(key: str, tmp_path: Path) -> None:
    path = tmp_path / "run.yaml"
    path.write_text(SECTIONS, encoding="utf-8")
    for number in NUMBERS:
        is_taken_or_refused(path, f"{key}={number}")


@pytest.mark.parametrize("notation", NOTATIONS, ids=lambda text: text[:12])
def test_no_notation_is_too_much(notation: str, tmp_path: Path) -> None:
    path, other = tmp_path / "run.yaml", tmp_path / "other.yaml"
    path.write_text(SECTIONS, encoding="utf-8")
    for key in KEYS:
        is_taken_or_refused(path, f"{key}={notation}")
        nested = notation
        for name in reversed([part for part in key.split(".") if part]):
            nested = f"{{{name}: {nested}}}"
        other.write_text(nested, encoding="utf-8")
        is_taken_or_refused(other)


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    return str(caught.value).replace(f"{tmp_path}/", "")


@pytest.mark.parametrize("text", ["train: &a [*a]", "schedules: &a {b: *a}"])
def test_an_alias_inside_of_what_it_names_is_said(text: str, tmp_path: Path) -> None:
    assert "run.yaml: not valid YAML (nested too deeply, or recursive" in refused(tmp_path, text)
    key, _, value = text.partition(": ")
    said = ": the value is not valid YAML (nested too deeply, or recursive"
    assert said in refused(tmp_path, "", f"{key}={value}")


def test_aliases_that_stand_for_millions_of_values_are_refused(tmp_path: Path) -> None:
    levels = ["a0: &a0 [x, x, x, x, x, x, x, x, x, x]"]
    levels += [f"a{n}: &a{n} [{', '.join([f'*a{n - 1}'] * 10)}]" for n in range(1, 9)]
    assert "(more than 100000 values" in refused(tmp_path, "\n".join(levels))


def test_aliases_as_people_use_them_are_taken(tmp_path: Path) -> None:
    text = "train: {lora: {target_modules: &where [q_proj]}}\ndata: {columns: {slices: *where}}\n"
    assert load(tmp_path, text).data.columns.slices == ("q_proj",)


@pytest.mark.parametrize(
    ("key", "largest", "beyond"),
    [
        ("seed", str(2**64 - 1), str(2**64)),
        ("data.max_rows", str(2**63 - 1), str(2**63)),
        ("data.split_seed", str(-(2**63) + 1), str(-(2**63))),
        ("train.learning_rate", "3.4e38", "3.5e38"),
        ("weights.clip", "[0.5, 3.4e38]", "[0.5, 3.5e38]"),
        ("weights.reward_weights.plugins", "{}", "{a: -3.5e38}"),
        ("engines.server.timeout", "2e6", "2.1e6"),
    ],
)
def test_numbers_end_where_those_of_torch_arrow_and_sockets_do(
    key: str, largest: str, beyond: str, tmp_path: Path
) -> None:
    load(tmp_path, "", f"{key}={largest}")
    assert f"run.yaml: {key} must be " in refused(tmp_path, "", f"{key}={beyond}")


# A configuration with every setting that was cut off


@pytest.fixture(scope="module")
def resolved() -> str:
    return dump_config(load_config(PIPELINES / "smoke.yaml", ["schedules.train.beta={start: 0.1, end: 0.2}"]))


@pytest.mark.parametrize("older", [False, True])
def test_one_that_was_cut_off_is_refused_wherever_that_was(resolved: str, older: bool, tmp_path: Path) -> None:
    """Older versions wrote no first and last line; then it is tested from the model section to the last section."""
    lines = resolved.splitlines(keepends=True)
    first = 1
    if older:
        lines = [line.partition("  # every")[0].rstrip() + "\n" for line in lines[:-1]]
        first = next(number for number, line in enumerate(lines) if line.startswith("model:")) + 2
    last = (
        next(number for number, line in enumerate(lines) if line.startswith("schedules:")) if older else len(lines) - 1
    )
    path = tmp_path / "config.yaml"
    for end in range(first, last + 1, 5):
        text = "".join(lines[:end])
        for cut in (text, text[: len(text) - len(lines[end - 1]) // 2]):
            path.write_text(cut, encoding="utf-8")
            with pytest.raises(ConfigError, match=r"the file is cut off after|not valid YAML"):
                load_config(path)
    path.write_text("".join(lines), encoding="utf-8")
    assert load_config(path).planned_iterations == 2


def test_what_is_said_of_one_that_was_cut_off(resolved: str, tmp_path: Path) -> None:
    path = tmp_path / "config.yaml"
    path.write_text(resolved[: resolved.index("\ntrain:")], encoding="utf-8")
    result = run("config", "--config", path, "--out", path)
    assert (result.code, result.stdout) == (3, "")
    assert result.stderr == (
        f"{path}: the file is cut off after `weights` (expected every setting of the run, down to the line `# That was "
        "every key.`). Restore a complete copy, or move the file away and write it again from the configuration that "
        "the run started with (make iterate RUN=… CONFIG=…). If nothing is missing, add that line.\n"
    )
    assert path.read_text(encoding="utf-8") == resolved[: resolved.index("\ntrain:")]
    path.unlink()
    assert run("config", "--config", PIPELINES / "smoke.yaml", "--out", path).code == 0


@pytest.mark.parametrize(
    "text", ["", "seed: 3\n", "seed: 3\nplanned_iterations: 2\nmodel: {name: m}\n", "extends: base.yaml"]
)
def test_one_that_names_only_what_differs_is_whole(text: str, tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("train: {beta: 0.5}\n", encoding="utf-8")
    load(tmp_path, text)


def test_lines_may_follow_the_last_one_and_change_between(resolved: str, tmp_path: Path) -> None:
    assert load(tmp_path, resolved.replace("seed: 42", "seed: 7") + "# mine\n").seed == 7
