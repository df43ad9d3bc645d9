"""docs/sizing.md: what it shows of plan is what plan prints, and the text has the figures of the table."""

from __future__ import annotations

import json
import re

from support.commands import ROOT, run

PAGE = (ROOT / "docs/sizing.md").read_text(encoding="utf-8")


def test_the_budget_of_the_reference_is_what_plan_prints() -> None:
    shown = re.search(r"```text\n\$ dapo-stages (plan --config )(\S+)( .*)\n([^`]+)```", PAGE)
    assert shown is not None
    command, config, options, output = shown.groups()
    result = run(*command.split(), ROOT / config, *options.split())
    assert (result.code, result.stdout) == (0, output)


def test_the_text_about_the_budget_has_its_figures() -> None:
    found = json.loads(run("plan", "--config", ROOT / "pipelines/reference-7b.yaml", "--gpus", 4, "--json").stdout)
    sums = {
        phase: sum(parts.get(phase, 0) for parts in found["seconds"].values())
        for phase in ("start", "load", "save", "hash")
    }
    stays = found["resident"]
    text = " ".join(PAGE.split())
    assert (
        f"{1 - found['work']:.0%} of an iteration is outside its work: starting processes takes {sums['start']:.0f} s, "
        f"reading policies and state {sums['load']:.0f} s, writing them {sums['save']:.0f} s, hashing "
        f"{sums['hash']:.0f} s"
    ) in text
    assert f"{stays['iteration']:.0f} s instead of {found['iteration']:.0f}, {stays['work']:.0%} of it work" in text
