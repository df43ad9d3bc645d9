"""merge: an adapter and its base, or several policies, in; one policy with all weights out."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from dapo_stages.errors import ConfigError
from dapo_stages.handoff import carry_out
from dapo_stages.handoff.manifests import Source
from dapo_stages.handoff.outputs import Output
from dapo_stages.handoff.plans import Plan
from dapo_stages.handoff.policy_folders import PROMPTING, PolicyFolder
from dapo_stages.terminal.console import progress
from dapo_stages.terminal.options import DryRun, Json, Out, Overwrite

if TYPE_CHECKING:
    from dapo_stages.models.checkpoints import Tensors

MERGEKIT = "mergekit-yaml"


def main(
    policies: Annotated[
        list[Path], typer.Option("--policy", help="Policy folder; repeat the option, from old to new.", metavar="DIR")
    ],
    out: Out,
    method: Annotated[
        Literal["linear", "ema", "mergekit"],
        typer.Option("--method", help="A weighted mean, a moving average from old to new, or a mergekit recipe."),
    ] = "linear",
    weights: Annotated[
        str | None, typer.Option("--weights", help="linear: weights in the order of the policies; default: equal.")
    ] = None,
    decay: Annotated[
        float | None, typer.Option("--decay", help="ema: share kept at each further policy, from 0 to below 1.")
    ] = None,
    recipe: Annotated[
        Path | None,
        typer.Option("--recipe", help="mergekit: its YAML file.", metavar="FILE", exists=True, dir_okay=False),
    ] = None,
    overwrite: Overwrite = False,
    dry_run: DryRun = False,
    json: Json = False,
) -> None:
    """Merge an adapter into its base, or average policies, into a standard checkpoint.

    A single adapter is merged into its base, unquantized. Several policies are averaged tensor by tensor, adapters
    merged into their bases; weights are divided by their sum. A mergekit recipe names its models itself; --policy then
    gives the architecture, tokenizer and processor of the result.

    Example: dapo-stages merge --policy iter-0004/train/policy --policy iter-0006/train/policy --method linear
    --weights 1,3 --out merged
    """
    sources = [PolicyFolder(policy) for policy in policies]
    recorded = _settings(method, len(sources), weights, decay, recipe)
    if method != "mergekit" and len(sources) == 1 and not sources[0].is_adapter:
        raise ConfigError(f"{sources[0].folder}: expected an adapter or several policies, got one. Repeat --policy.")
    plan = Plan("merge", out, recorded, 0, _inputs(sources))
    carry_out.run(
        plan,
        lambda output: Merge(output, sources).run(),
        overwrite=overwrite,
        dry_run=dry_run,
        as_json=json,
        alone=True,
    )


def _settings(method: str, count: int, weights: str | None, decay: float | None, recipe: Path | None) -> dict[str, Any]:
    """The settings that determine the result. Raises ConfigError for missing, invalid or unrelated options."""
    from dapo_stages.maths.policy_averages import ema_shares, linear_shares

    given = {"--weights": weights, "--decay": decay, "--recipe": recipe}
    own = {"linear": "--weights", "ema": "--decay", "mergekit": "--recipe"}[method]
    for option, value in given.items():
        if value is not None and option != own:
            raise ConfigError(f"{option}: --method {method} only takes {own}. Leave it out.")
    if method == "mergekit":
        if recipe is None:
            raise ConfigError("--method mergekit: --recipe is missing. Pass the YAML file for mergekit.")
        return {"method": method, "recipe": recipe.read_text(encoding="utf-8")}
    if method == "ema" and decay is None:
        raise ConfigError("--method ema: --decay is missing. Pass one, such as 0.9.")
    try:
        shares = ema_shares(count, decay) if decay is not None else linear_shares(_numbers(weights, count))
    except ValueError as error:
        raise ConfigError(f"{own}: {error}. Fix it.") from None
    return {"method": method, "shares": shares}


def _numbers(text: str | None, count: int) -> list[float]:
    if text is None:
        return [1.0] * count
    try:
        numbers = [float(part) for part in text.split(",")]
    except ValueError:
        raise ValueError(f"expected a number for each policy, such as 1,3, got {text!r}") from None
    if len(numbers) != count:
        raise ValueError(f"expected a weight for each policy ({count}), such as 1,3, got {len(numbers)}")
    return numbers


def _inputs(sources: list[PolicyFolder]) -> dict[str, Source]:
    inputs: dict[str, Source] = {}
    for number, source in enumerate(sources, start=1):
        inputs[f"policy-{number}"] = source
        if source.is_adapter:
            inputs[f"base-{number}"] = source.full
    return inputs


class Merge:
    """Merges policies into one checkpoint."""

    def __init__(self, output: Output, sources: list[PolicyFolder]) -> None:
        self._output, self._sources = output, sources
        self._settings = output.plan.config

    def run(self) -> None:
        """Write the checkpoint, and describe it for the manifest."""
        if self._settings["method"] == "mergekit":
            self._by_mergekit()
        else:
            self._average()
        first = self._sources[0].manifest.policy
        version = max(source.version for source in self._sources)
        self._output.policy = {"version": version, "model": str(first.get("model", ""))}
        if prompting := next((source.prompting for source in self._sources if source.prompting), None):
            self._output.policy[PROMPTING] = prompting
        self._output.counts |= {"policies": len(self._sources)}

    def _average(self) -> None:
        from dapo_stages.models.checkpoints import Adapted, Checkpoint
        from dapo_stages.models.merging import copy_beside, merge, require_same

        for source in self._sources:
            source.verify()
        bases = [Checkpoint(source.checkpoint()) for source in self._sources]
        require_same(bases)
        tensors: list[Tensors] = [
            Adapted(base, source.folder) if source.is_adapter else base
            for base, source in zip(bases, self._sources, strict=True)
        ]
        layout = bases[0].layout
        with progress("merge: files", len(layout)) as advance:
            for file, names in layout.items():
                if not self._output.has(file):
                    with self._output.files() as folder:
                        merge(tensors, self._settings["shares"], names, folder / file)
                advance(1, file)
        with self._output.files() as folder:
            copy_beside(bases[0].folder, folder)
        self._output.counts["tensors"] = len(bases[0].shapes)

    def _by_mergekit(self) -> None:
        """Let mergekit write into a separate folder, then move the files of a checkpoint out of it."""
        import subprocess

        from dapo_stages.handoff.referred import INDEX
        from dapo_stages.models.checkpoints import Checkpoint
        from dapo_stages.models.merging import copy_beside, require_same

        program = _mergekit()
        with self._output.files() as folder:
            made, recipe = folder / "mergekit", folder / "recipe.yaml"
            recipe.write_text(self._settings["recipe"], encoding="utf-8")
            done = subprocess.run([program, str(recipe), str(made)], stdout=subprocess.PIPE, stderr=subprocess.STDOUT)
            if done.returncode != 0:
                said = " ".join(done.stdout.decode(errors="replace").split())[-400:]
                raise ConfigError(f"--recipe: mergekit failed (… {said}). Fix the recipe.")
            base = self._sources[0].checkpoint()
            require_same([Checkpoint(base), Checkpoint(made)])
            names = copy_beside(made, folder)
            copy_beside(base, folder, but={INDEX, *names})
            for path in made.glob("*.safetensors"):
                path.rename(folder / path.name)


def _mergekit() -> str:
    """Path of the program, in this Python's environment or on the PATH."""
    import shutil
    import sys

    beside = str(Path(sys.executable).parent)
    found = shutil.which(MERGEKIT, path=beside) or shutil.which(MERGEKIT)
    if found is None:
        raise ConfigError(
            f"--method mergekit: `{MERGEKIT}` is not on the PATH. Install mergekit, preferably in its own "
            "environment: pipx install mergekit (or pip install mergekit)."
        )
    return found
