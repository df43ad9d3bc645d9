"""config: a YAML file and overrides in, the resolved configuration of a run out."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import typer

from dapo_stages.bounded import read_text
from dapo_stages.config import dump_config, load_config
from dapo_stages.console import say
from dapo_stages.errors import ConfigError
from dapo_stages.manifests import MANIFEST
from dapo_stages.shards import write_text
from dapo_stages.stages.options import ConfigFile, Overrides


def main(
    config: ConfigFile,
    out: Annotated[Path | None, typer.Option("--out", help="File to write; else stdout.", metavar="FILE")] = None,
    set_: Overrides = None,
) -> None:
    """Check a configuration and write it out with every key resolved.

    A file that already says the same is left alone, time stamp included. With --out, a data.source that is a path has
    to be there.

    Example: dapo-stages config --config pipelines/embedded.yaml --out training_logs/first/config.yaml
    """
    import yaml

    from dapo_stages.data.sources import check_source

    settings = load_config(config, set_)
    text = dump_config(settings)
    if out is None:
        print(text, end="")
        return
    _check_run(out, yaml.safe_load(text))
    if not (out.parent / "data" / MANIFEST).exists():  # here and not after a policy has been made
        check_source(settings.data)
    out.parent.mkdir(parents=True, exist_ok=True)
    if not out.is_file() or out.read_text(encoding="utf-8") != text:
        write_text(out, text)
        say(f"config: wrote {out}")


def _check_run(out: Path, values: dict[str, Any]) -> None:
    """Refuse another model or other data in a run whose policy or data are there: it would go on with the old ones."""
    import yaml

    if not out.is_file():
        return
    try:
        before = yaml.safe_load(read_text(out))
    except (yaml.YAMLError, ValueError):
        before = None
    if not isinstance(before, dict):
        raise ConfigError(f"{out}: found no configuration; needed the one that dapo-stages wrote. Move it away.")
    for part, section, key in (("policy", "model", "name"), ("data", "data", "source")):
        if not (out.parent / part / MANIFEST).exists():
            continue
        had, has = (config.get(section, {}).get(key) for config in (before, values))
        if had != has:
            raise ConfigError(
                f"{out}: found {section}.{key} {has!r}; needed {had!r}, which {out.parent / part} was made from. "
                "Name another run (RUN=…), or remove that folder to start this one anew."
            )
