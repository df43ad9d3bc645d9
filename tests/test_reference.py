"""The generated pages of docs: what `make docs` makes of the code as it is, and complete."""

from __future__ import annotations

import importlib
import json
import re
from collections.abc import Iterator
from types import ModuleType

import pytest
import yaml
from support.commands import ROOT, run

from dapo_stages.config import Config, dump_config
from dapo_stages.entrypoints.cli import COMMANDS
from dapo_stages.handoff.schemas import SCHEMAS

COMMANDS_PAGE = (ROOT / "docs/commands.md").read_text(encoding="utf-8")
KEYS_PAGE = (ROOT / "docs/configuration.md").read_text(encoding="utf-8")


@pytest.fixture(scope="module")
def generate() -> Iterator[ModuleType]:
    with pytest.MonkeyPatch.context() as patched:
        patched.syspath_prepend(str(ROOT / "docs"))
        yield importlib.import_module("generate")


def test_every_column_of_every_file_has_one_meaning(generate: ModuleType) -> None:
    assert {file.kind for file in generate.FILES} == SCHEMAS.keys()
    used = set()
    for kind, schema in SCHEMAS.items():
        for name in schema.names:
            said = [column for column in generate.COLUMNS if column.name == name and column.kind in ("", kind)]
            own = [column for column in said if column.kind == kind]
            assert len(own or said) == 1, (kind, name)
            used |= {id(column) for column in own or said}
    assert used == {id(column) for column in generate.COLUMNS}


def test_the_pages_are_those_of_the_code(generate: ModuleType) -> None:
    for name, make in generate.PAGES.items():
        assert make() == (ROOT / "docs" / name).read_text(encoding="utf-8"), f"docs/{name} is old: run make docs"


def test_models_are_all_families_that_there_is_a_checkpoint_of(generate: ModuleType) -> None:
    """Their cells follow from the tests; here from the lists that the tests are given."""
    from support.families import OTHER, OWN_ROWS, SHARED

    table = generate.model_table
    assert table.NAMES.keys() == {*SHARED, *OWN_ROWS} - {OTHER}
    assert table.families_of("shares prefixes") == set(SHARED)
    assert table.families_of("trains") == table.families_of("attention scored") == {*SHARED, *OWN_ROWS} - {OTHER}


@pytest.mark.parametrize("command", COMMANDS)
def test_every_option_that_help_shows_is_there(command: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "200")
    section = COMMANDS_PAGE.split(f"\n### {command}\n")[1].split("\n### ")[0]
    shown = set(re.findall(r"^\S?\s+\*?\s*(--[a-z-]+)", run(command, "--help").stdout, re.M)) - {"--help"}
    assert shown or command == "new"
    assert shown <= set(re.findall(r"--[a-z-]+", "\n".join(re.findall(r"^\| (`--\S+)", section, re.M))))
    assert f"```bash\ndapo-stages {command} " in section
    for row in re.findall(r"^\| `.*", section, re.M):
        assert re.fullmatch(r"\| .* \| .* \| .* \| .+ \|", row)


def test_every_key_of_a_resolved_file_is_there_with_its_default() -> None:
    rows = dict(re.findall(r"^\| `([a-zA-Z_.]+)` \|.*\| `(.*)` \| .+ \|$", KEYS_PAGE, re.M))

    def walk(values: dict[str, object], place: str = "") -> None:
        for name, value in values.items():
            if isinstance(value, dict) and value:
                walk(value, f"{place}{name}.")
            else:
                assert json.loads(rows[f"{place}{name}"]) == value, f"{place}{name}"

    walk(yaml.safe_load(dump_config(Config())))
    assert rows.keys() >= {"train.lora.rank", "rewards.judge.mode", "rollout.curriculum.floor", "schedules.KEY.over"}


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("train.epsilon_low", "number, > 0, < 1"),
        ("train.delta", "number, > 1 or null"),
        ("rollout.num_generations", "integer, ≥ 2"),
        ("train.betas", "[number, ≥ 0, < 1; number, ≥ 0, < 1]"),
        ("weights.vgr_mapping", "`quantile`, `mad`"),
        ("model.compile", "true or false"),
        ("data.columns.slices", "list of text"),
        ("rewards.plugins", "name: text"),
    ],
)
def test_what_a_key_may_be_is_said(key: str, value: str) -> None:
    assert f"| `{key}` | {value} |" in KEYS_PAGE
