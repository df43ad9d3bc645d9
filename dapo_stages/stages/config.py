"""config: a YAML file and overrides in, the resolved configuration of a run out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dapo_stages.config import dump_config, load_config
from dapo_stages.console import say
from dapo_stages.shards import write_text
from dapo_stages.stages.options import ConfigFile, Overrides


def main(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else stdout.", metavar="FILE")] = None,
    set_: Overrides = None,
) -> None:
    """Check a configuration and write it out with every key resolved.

    A file that already says the same is left alone, time stamp included.

    Example: dapo-stages config --config pipelines/embedded.yaml --out training_logs/first/config.yaml
    """
    text = dump_config(load_config(config, set_))
    if out is None:
        print(text, end="")
        return
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        write_text(out, text)
        say(f"config: wrote {out}")
