"""Everything that can be said before the first expensive step, from files and settings alone; torch is not imported.

Each check is the one that the stages make, called earlier. Those that read data or start processes are not repeated
while nothing that they depend on has changed.
"""

from __future__ import annotations

import shutil
import socket
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from itertools import islice
from pathlib import Path
from urllib.parse import urlsplit

from dapo_stages.config import Config, DataConfig
from dapo_stages.data.columns import images_of
from dapo_stages.data.images import BadImage
from dapo_stages.data.raw_rows import RawSource
from dapo_stages.data.sources import is_on_hub, open_source
from dapo_stages.data.survey import survey
from dapo_stages.data.templates import question_template
from dapo_stages.errors import ConfigError, DapoStagesError, DataError, EngineError, ModelError
from dapo_stages.groups.advantage_file import advantage_file
from dapo_stages.groups.scheme_file import scheme_file
from dapo_stages.handoff.manifests import MANIFEST, remembered
from dapo_stages.handoff.policy_folders import PolicyFolder
from dapo_stages.handoff.referred import fetched, refers
from dapo_stages.models.families import named
from dapo_stages.models.requirements import require_quantizer, require_scores, require_served
from dapo_stages.planning import launched
from dapo_stages.planning.checked import Checked
from dapo_stages.planning.dimensions import dimensions_of
from dapo_stages.planning.launched import StageStart
from dapo_stages.planning.published_models import EMBEDDED, PUBLISHED
from dapo_stages.planning.run_plan import Plan
from dapo_stages.planning.stage_costs import Rates
from dapo_stages.rewards.registry import Rewards
from dapo_stages.runs.commands import command, setup_command
from dapo_stages.runs.pipeline import FOLDERS
from dapo_stages.runs.progress import survey as survey_of
from dapo_stages.runs.run_folder import Run
from dapo_stages.small_files import bytes_below, read_json
from dapo_stages.training.loss_file import loss_file

_LOOKED_AT = 8  # rows whose images must not all be missing
_PATIENCE = 1.0  # seconds for a server to accept a connection
_TRACKERS = {"wandb": "wandb", "tensorboard": "tensorboard"}


@dataclass
class Readiness:
    """A configuration, the run that it is for, and how make starts its stages."""

    config: Config
    run: Run
    starts: Sequence[StageStart] = ()
    checked: Checked = field(default_factory=Checked)

    def troubles(self) -> Iterator[DapoStagesError]:
        """Everything that would end the run, in the order in which it would show."""
        model: list[Callable[[], None]] = [self._attention, self._quantizer]
        for check in (*model, *self._of_data(), self._sft, *self._own_functions(), *self._engines(), self._trackers):
            try:
                check()
            except DapoStagesError as error:
                yield error
        for start in self.starts or (StageStart("TRAIN"),):
            yield from launched.troubles(start, self.config, self._family)
        try:
            self._disk()
        except DapoStagesError as error:
            yield error
        yield from self._damaged()
        self.checked.keep()

    # ---- The model ---------------------------------------------------------------------------------------------------

    @property
    def _family(self) -> str | None:
        """The architecture in the model's config.json; None where that is not on this machine."""
        about = self._config_json()
        if about is None:
            return None
        text = about.get("text_config")
        return named(str(about.get("model_type")), text if isinstance(text, dict) else {})

    def _config_json(self) -> dict[str, object] | None:
        name = self.config.model.name
        folder: Path | None = Path(name)
        if (self.run.path / "policy" / MANIFEST).exists():
            with suppress(DapoStagesError):
                full = PolicyFolder(self.run.path / "policy").full
                about = full.manifest.policy
                folder = fetched(about, download=False) if refers(about) else full.folder
        elif name in (known := {**PUBLISHED, "embedded": EMBEDDED}) and not Path(name).is_dir():
            return dict(known[name])
        elif not Path(name).is_dir():
            folder = None
            with suppress(DapoStagesError):
                folder = fetched({"reference": name, "revision": None}, download=False) if _is_cached(name) else None
        with suppress(OSError, ValueError):
            if folder is not None and isinstance(found := read_json(folder / "config.json"), dict):
                return found
        return None

    def _attention(self) -> None:
        """A folder must be one, the family must have the scores that are asked for, and a server must take it."""
        name, family = self.config.model.name, self._family
        if family is None:
            path = Path(name)
            if not (self.run.path / "policy").exists() and (path.is_absolute() or path.is_dir() or name.count("/") > 1):
                raise ModelError(
                    f"{name}: no config.json of a checkpoint in this folder. Set model.name to another one."
                )
            return
        require_scores(family, self.config.attention)
        for stage, engine in self._engine_names():
            if engine == "server":
                require_served(stage, family)

    def _quantizer(self) -> None:
        if self.config.model.quantization is not None:
            require_quantizer(self.config.model.quantization)

    # ---- Data, and functions from the user's files ----------------------------------------------------------------

    def _of_data(self) -> Iterator[Callable[[], None]]:
        """A check for each dataset, unless the run has its data."""
        if (self.run.path / "data" / MANIFEST).exists():
            return
        for own in self.config.data.of_sources().values():
            for one in filter(None, (own, own.of_held_out())):
                yield partial(self._source, one)

    def _source(self, data: DataConfig) -> None:
        if data.template is not None:
            question_template(data.template)
        if data.source == "embedded" or is_on_hub(data):  # what is on the hub, prepare-data finds out
            return
        with self.checked.once("data", data.recorded(), _files_below(data.source)) as is_new:
            if is_new:
                source = open_source(self.config.model_copy(update={"data": data}))
                survey(source, data)
                _some_image(source, data)

    def _sft(self) -> None:
        """The dataset and the template of supervised steps, unless the run has its policy."""
        sft = self.config.sft
        if sft is None or (self.run.path / "policy" / MANIFEST).exists():
            return
        from dapo_stages.data.examples import is_own, learned_from

        question_template(sft.completion, "sft.completion")
        if not is_own(self.config):
            self._source(learned_from(self.config))

    def _own_functions(self) -> Iterator[Callable[[], None]]:
        """Plug-ins, scheme, advantage and loss from files are loaded as their stages do."""
        config, names = self.config, tuple(self.config.rewards.plugins)
        places = [*config.rewards.plugins.values(), config.weights.scheme, str(config.weights.advantage)]
        places.append(config.train.loss_type)
        files = [Path(place.rpartition(":")[0]) for place in places if ".py:" in place]
        if not files:
            return
        judge = ("judge",) if config.rewards.judge is not None else ()
        longest = config.rollout.max_completion_length

        def loaded(load: Callable[[], object]) -> Callable[[], None]:
            def check() -> None:
                told = [config.recorded(), str(Path.cwd())]
                with self.checked.once(f"functions: {load.__name__}", told, files) as is_new:
                    if is_new and (found := load()) is not None:
                        close = getattr(found, "close", None)
                        if close is not None:
                            close()

            return check

        def plugins() -> object:
            return Rewards(config.rewards, longest, root=Path.cwd(), judge=False) if names else None

        def scheme() -> object:
            return scheme_file(config)

        def advantage() -> object:
            return advantage_file(config, (*names, *judge))

        def loss() -> object:
            return loss_file(config)

        yield from map(loaded, (plugins, scheme, advantage, loss))

    # ---- Engines and trackers --------------------------------------------------------------------------------------

    def _engine_names(self) -> list[tuple[str, str]]:
        evaluates = [("evaluate", self.config.evaluate.engine)] if self.config.data.holds_out else []
        return [("rollout", self.config.rollout.engine), *evaluates]

    def _engines(self) -> Iterator[Callable[[], None]]:
        pythons = {start.name.lower(): start.python for start in self.starts}
        for stage, engine in self._engine_names():
            if engine == "vllm":
                yield partial(launched.require_vllm, stage, pythons.get(stage, ""))
        server = self.config.engines.server
        # One that is started on each policy need not run yet.
        if "server" in dict(self._engine_names()).values() and server.reload != "none" and server.restart is None:
            yield self._server

    def _server(self) -> None:
        url = self.config.engines.server.url
        place = urlsplit(url)
        port = place.port or (443 if place.scheme == "https" else 80)
        try:
            socket.create_connection((place.hostname or "", port), _PATIENCE).close()
        except OSError as error:
            raise EngineError(
                url, f"no server answers there ({error})", "Start it, or set engines.server.url."
            ) from None

    def _trackers(self) -> None:
        for name in self.config.report.trackers:
            if find_spec(_TRACKERS[name]) is None:
                raise ConfigError(
                    f"report.trackers: {name} is not installed. Run .venv/bin/pip install {_TRACKERS[name]}, or leave "
                    "it out."
                )

    # ---- The run's folder ------------------------------------------------------------------------------------------

    def _disk(self) -> None:
        """Raise DataError if what the run keeps does not fit, by the sizes of `plan` and without any image."""
        try:
            sizes = dimensions_of(self._config_json() or {})
        except (ValueError, KeyError):
            return
        rates = Rates(operations=1.0, memory=1.0, disk=1.0, link=1.0, call=0.0)  # no times are asked for
        plan = Plan(sizes, self.config, 1, "single", "cpu", rates)
        with suppress(ConfigError):
            wanted = plan.on_disk(plan.files(0))
            place = next(one for one in (self.run.path, *self.run.path.absolute().parents) if one.exists())
            free = shutil.disk_usage(place).free
            if wanted > free + bytes_below(self.run.path):
                raise DataError(
                    self.run.path,
                    f"the run needs at least {wanted / 1e9:.3g} GB on disk, but {free / 1e9:.3g} GB are free",
                    "Free space, or lower keep.states, keep.policies and keep.rollouts (dapo-stages plan has all).",
                )

    def _damaged(self) -> Iterator[DapoStagesError]:
        """Outputs that make takes for finished, and whose readers will refuse them."""
        if not self.run.path.is_dir():
            return
        with remembered():
            found = survey_of(self.run)
        for name, state in found.setup.items():
            if state.state == "damaged":
                advice = f"Run {setup_command(self.run, name, again=True)}."
                yield DataError(self.run.path / name, f"damaged: {state.why}", advice)
        for number, outputs in found.iterations.items():
            for name in FOLDERS:
                if outputs[name].state == "damaged":
                    advice = f"Run {command(self.run, number, name, again=True)}."
                    yield DataError(self.run.folder(number) / name, f"damaged: {outputs[name].why}", advice)


def _some_image(source: RawSource, data: DataConfig) -> None:
    """Raise the first error if no image of the first rows can be found."""
    first: BadImage | None = None
    for row in islice(source.rows("held_out" if data.held_out_fraction == 1.0 else "train"), _LOOKED_AT):
        for cell in images_of(row.values, data.columns):
            try:
                source.image(row, cell)
            except BadImage as bad:
                first = first or bad
            else:
                return
    if first is not None:
        raise first


def _files_below(source: str) -> list[Path]:
    path = Path(source).expanduser()
    if path.is_dir():
        return [path, *sorted(one for one in path.rglob("*") if one.suffix in (".parquet", ".jsonl", ".json", ".csv"))]
    return [path]


def _is_cached(name: str) -> bool:
    """Whether a hub model's config.json is in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    with suppress(ValueError):
        return isinstance(try_to_load_from_cache(name, "config.json"), str)
    return False
