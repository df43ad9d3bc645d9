"""One spelling each: what the table of words in CONTRIBUTING.md rules out is in no file."""

from __future__ import annotations

import re
import subprocess
from collections.abc import Iterator
from contextlib import suppress

from support.commands import ROOT

PAGE = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
TABLE = PAGE.split("| we write | we don't write | meaning |\n|---|---|---|\n")[1].split("\n\n")[0]
# Words that have another meaning elsewhere, so that only people can tell.
BY_EYE = re.compile("flag|switch|directory|question|answer|response|(base )?model|worker|done|outdated|half-way|.* on")
RULES = ("CONTRIBUTING.md", "tests/test_errors.py", "tests/test_words.py")
# Texts of the demo's data, of prompts and of runs that were recorded with them; SVGs hold such texts.
DATA = (
    "dapo_stages/data/embedded/",
    "tests/data/embedded/",
    "tests/upgrades/recorded/",
    "tests/rewards/answers.jsonl",
    "tests/rewards/hard_answers.jsonl",
    "tests/rewards/more_answers.jsonl",
)
TEXTS = re.compile(
    r"hat colour|hich colour|ts colour|cats/colours|task colours|[\"'`.]colours\b|\bcolours: one|, colour\"|Ġ|"
    r"what the picture shows|Look at the picture and think|Picture \{\{ image_count|Picture 1|`--picture`|"
    r"`make pictures`"
)


def ruled_out() -> list[str]:
    """The stems of the second column: `optimiser` -> `optimis`, `log-prob` also finds `log-probs`."""
    cells = [line.split("|")[2].strip() for line in TABLE.splitlines()]
    words = [word.strip() for cell in cells for word in cell.split(",") if word.strip()]
    return [re.sub(r"(?<=is)er?$", "", word) for word in words if not BY_EYE.fullmatch(word)]


def texts() -> Iterator[tuple[str, str]]:
    """Name and text of every file that is not data."""
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    for name in listed.split("\0"):
        path = ROOT / name
        if not path.is_file() or name in RULES or name.startswith(DATA) or path.suffix == ".svg":
            continue
        with suppress(UnicodeDecodeError):
            yield name, path.read_text(encoding="utf-8")


def test_no_file_has_a_word_that_the_table_rules_out() -> None:
    stems = re.compile(rf"\b(?:{'|'.join(map(re.escape, ruled_out()))})", re.I)
    found = [
        f"{name}:{number}: {line.strip()[:90]}"
        for name, text in texts()
        for number, line in enumerate(text.splitlines(), start=1)
        if stems.search(TEXTS.sub("", line))
    ]
    assert not found, "\n".join(found)


def test_the_table_is_read() -> None:
    assert {"picture", "data set", "log-prob", "optimis", "quantis", "colour", "grey", "mend"} <= set(ruled_out())
