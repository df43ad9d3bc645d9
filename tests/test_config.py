"""Configuration: the reference settings by default, and every mistake named with its setting."""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any, get_args

import pytest
from pydantic import BaseModel, Field
from support.commands import run

from dapo_stages.config import Config, Section, dump_config, load_config
from dapo_stages.config.base import Later
from dapo_stages.errors import ConfigError

PIPELINES = Path(__file__).parents[1] / "pipelines"
FIX = "Fix the file, or the --set option, and run the command again."


def load(tmp_path: Path, text: str, *overrides: str) -> Config:
    path = tmp_path / "run.yaml"
    path.write_text(text, encoding="utf-8")
    return load_config(path, list(overrides))


def refused(tmp_path: Path, text: str, *overrides: str) -> str:
    """The message, with the file's folder left out."""
    with pytest.raises(ConfigError) as caught:
        load(tmp_path, text, *overrides)
    assert caught.value.exit_code == 3
    return str(caught.value).replace(f"{tmp_path}/", "")


def test_a_duplicate_section_is_refused(tmp_path: Path) -> None:
    text = "train:\n  beta: 0.1\nseed: 1\ntrain:\n  delta: 3\n"
    assert "run.yaml: not valid YAML (duplicate key `train`" in refused(tmp_path, text)


def fields(model: type[BaseModel], place: str = "") -> Iterator[tuple[str, Any]]:
    """Every field of every section, by its dotted key."""
    for name, field in model.model_fields.items():
        key = f"{place}{name}"
        sections = [
            kind
            for kind in (field.annotation, *get_args(field.annotation))
            if isinstance(kind, type) and issubclass(kind, BaseModel)
        ]
        yield key, field
        for section in sections:
            yield from fields(section, f"{key}.")


def _is_leaf(field: Any) -> bool:
    return not isinstance(field.default, BaseModel)


LEAVES = [(key, field) for key, field in fields(Config) if _is_leaf(field)]


def test_walking_the_models_finds_every_key_of_the_resolved_file(tmp_path: Path) -> None:
    def keys(values: dict[str, Any], place: str = "") -> Iterator[str]:
        for name, value in values.items():
            yield from keys(value, f"{place}{name}.") if isinstance(value, dict) and value else [f"{place}{name}"]

    text = (
        "train: {lora: {}, perception: {}, engine_mask: {high: 2}, entropy_control: {}}\nrewards: {judge: {model: m}}\n"
    )
    text += "weights: {select: {top: 0.4}}\nevaluate: {sampler: {}}\n"
    text += "rollout: {curriculum: {}, informative: {}}\nsft: {}\n"
    text += "data: {sources: {cats: {source: x, columns: {}}}}\n"
    resolved = load(tmp_path, text + "schedules: {train.beta: {start: 0, end: 1}}\n").model_dump(mode="json")
    resolved["schedules"] = resolved["schedules"]["train.beta"]  # the name is the user's
    resolved["data"]["sources"] = resolved["data"]["sources"]["cats"]
    groups = {
        "train.lora",
        "train.perception",
        "train.engine_mask",
        "train.entropy_control",
        "rewards.judge",
        "rollout.curriculum",
        "rollout.informative",
        "sft",
        "schedules",
        "weights.select",
        "evaluate.sampler",
    }
    groups |= {"data.sources", "data.sources.columns"}
    assert set(keys(resolved)) | groups == {key for key, _ in LEAVES}


@pytest.mark.parametrize(("key", "field"), LEAVES, ids=[key for key, _ in LEAVES])
def test_every_key_says_what_it_means(key: str, field: Any) -> None:
    assert field.description and field.description.endswith((".", "?"))


SECTIONS = {type(field.default).__name__: type(field.default) for _, field in fields(Config) if not _is_leaf(field)}


@pytest.mark.parametrize("section", SECTIONS.values(), ids=list(SECTIONS))
def test_every_section_says_what_it_is_about(section: type[BaseModel]) -> None:
    assert section.__doc__


# The settings of the published runs, by key.
REFERENCE = {
    "model.name": "Qwen/Qwen2.5-VL-7B-Instruct",
    "model.dtype": "bfloat16",
    "data.source": "lujunxi57/DDM",
    "data.columns.image": "image",
    "data.columns.problem": "problem",
    "data.columns.solution": "solution",
    "data.held_out_fraction": 0.1,
    "data.split_seed": 42,
    "data.max_image_size": 1024,
    "data.max_prompt_length": 1024,
    "rollout.num_generations": 8,
    "rollout.max_completion_length": 384,
    "rollout.sampler.top_p": 1.0,
    "rewards.overlong_cache": 50,
    "attention.query": "predicting",
    "weights.clip": (0.2, 3.0),
    "weights.mean_preserving": True,
    "weights.early_fraction": 0.1,
    "weights.vgr_mapping": "quantile",
    "weights.vgr_min_range": 5.0,
    "weights.scale_rewards": "group",
    "weights.replay.size": 64,
    "weights.replay.var_epsilon": 1e-6,
    "weights.replay.min_reward": 1.5,
    "train.loss_type": "dapo",
    "train.importance_sampling_level": None,
    "train.epsilon_low": 0.2,
    "train.epsilon_high": 0.28,
    "train.engine_is_cap": 2.0,
    "train.beta": 0.0,
    "train.learning_rate": 1e-5,
    "train.schedule": "cosine",
    "train.warmup_fraction": 0.05,
    "train.max_grad_norm": 1.0,
    "train.gradient_checkpointing": True,
    "train.batch_completions": 4,
    "evaluate.num_generations": 4,
}


@pytest.mark.parametrize("key", REFERENCE)
def test_a_default_is_the_reference_setting(key: str) -> None:
    value: Any = Config()
    for part in key.split("."):
        value = getattr(value, part)
    assert value == REFERENCE[key]


# Files


def test_an_empty_file_is_the_reference(tmp_path: Path) -> None:
    assert load(tmp_path, "") == load(tmp_path, "# nothing\n") == Config()


def test_what_is_written_out_reads_back(tmp_path: Path) -> None:
    text = "seed: 7\ntrain: {lora: {rank: 4}, learning_rate: 1e-5, betas: [0.9, 0.95]}\ndata: {system_prompt: 看图 é}\n"
    config = load(
        tmp_path,
        text,
        "rewards.plugins={style: style.py:score}",
        "weights.reward_weights.plugins={style: 0.5}",
        "report.trackers=[wandb]",
    )
    assert load(tmp_path, dump_config(config)) == config
    assert dump_config(load(tmp_path, dump_config(config))) == dump_config(config)
    assert (config.train.lora is not None, config.data.system_prompt) == (True, "看图 é")


def test_a_file_says_only_what_differs_from_the_one_it_extends(tmp_path: Path) -> None:
    (tmp_path / "base.yaml").write_text("seed: 5\ntrain: {beta: 0.1, delta: 3.0}\n")
    config = load(tmp_path, "extends: base.yaml\ntrain: {delta: 4.0}\n")
    assert (config.seed, config.train.beta, config.train.delta) == (5, 0.1, 4.0)


def test_a_file_cannot_extend_itself(tmp_path: Path) -> None:
    assert refused(tmp_path, "extends: run.yaml\n") == (
        "run.yaml: circular `extends` through run.yaml. Remove the cycle."
    )


def test_a_loaded_configuration_cannot_change() -> None:
    with pytest.raises(ValueError, match="frozen"):
        Config().train.beta = 1.0  # type: ignore[misc]


def test_sections_are_named_by_their_dots() -> None:
    assert Config().sections("model.dtype", "keep") == {
        "model.dtype": "bfloat16",
        "keep": {"rollouts": None, "states": 2, "policies": None, "best": True},
    }


class Inner(Section):
    """A section with a setting that was added later, and one whose default has changed since."""

    old: int = 1
    new: Annotated[int, Later(2)] = 2
    moved: Annotated[int, Later(3)] = 4
    power: float = 0.0
    how: Annotated[str, Later("once", only_with="power")] = "twice"


class Outer(Section):
    inner: Inner = Inner()
    maybe: Annotated[Inner | None, Later(None)] = None
    named: dict[str, Inner] = Field({})


def test_keys_that_came_later_are_recorded_where_they_differ_from_the_default_they_came_with() -> None:
    off = {"power": 0.0}  # and nothing depends on `how`
    everything = {"inner": {"old": 1, "new": 2, "moved": 4, **off, "how": "twice"}, "maybe": None, "named": {}}
    assert Outer().model_dump() == everything
    assert Outer().recorded() == {"inner": {"old": 1, "moved": 4, **off}, "named": {}}
    for how, recorded in (("twice", {"how": "twice"}), ("once", {})):
        assert Inner(power=1, how=how).recorded() == {"old": 1, "moved": 4, "power": 1.0, **recorded}
    changed = Outer(inner=Inner(new=5, moved=3), maybe=Inner(moved=3), named={"a": Inner(old=7, moved=3)})
    inner, one, seven = {"old": 1, "new": 5, **off}, {"old": 1, **off}, {"old": 7, **off}
    assert changed.recorded() == {"inner": inner, "maybe": one, "named": {"a": seven}}
    assert changed.recorded(exclude={"named": True, "inner": {"new"}}) == {"inner": one, "maybe": one}


def test_the_configuration_that_is_hashed_by_default_stays() -> None:
    """As of the first release: settings that came later are not in it until they are set."""
    recorded = json.dumps(Config().recorded(), sort_keys=True).encode()
    assert hashlib.sha256(recorded).hexdigest() == "fa728c2caf36755a16c5560b86ceca4d7f1ff4e9427b32eb2d0fcbdfd437dabe"


def test_a_scheme_is_one_of_the_packages_or_a_function_in_a_file(tmp_path: Path) -> None:
    assert load(tmp_path, "weights: {scheme: my_rewards.py:looks}").weights.scheme == "my_rewards.py:looks"
    assert "expected path/to/file.py:function or one of uniform, vgr, aei" in refused(
        tmp_path, "weights: {scheme: vrg}"
    )


# Mistakes


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("trian: {beta: 1}", "run.yaml: trian is not a setting (did you mean train?)"),
        (
            "train: {learning_rat: 1}",
            "run.yaml: train.learning_rat is not a setting (did you mean train.learning_rate?)",
        ),
        ("train: {lora: {rnak: 4}}", "run.yaml: train.lora.rnak is not a setting (did you mean train.lora.rank?)"),
        (
            "keep: {xyzzy: 4}",
            "run.yaml: keep.xyzzy is not a setting (expected one of rollouts, states, state_every, policies, best)",
        ),
        (
            "weights: {replay: {sise: 4}}",
            "run.yaml: weights.replay.sise is not a setting (did you mean weights.replay.size?)",
        ),
    ],
)
def test_an_unknown_key_is_refused_with_a_suggestion(text: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text) == f"{message}\n{FIX}"


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("train.epsilon_low=1.5", "train.epsilon_low must be less than 1 (got 1.5)"),
        ("train.learning_rate=0", "train.learning_rate must be greater than 0 (got 0)"),
        ("evaluate.num_generations=-1", "evaluate.num_generations must be greater than or equal to 0 (got -1)"),
        ("data.held_out_fraction=2", "data.held_out_fraction must be less than or equal to 1 (got 2)"),
        ("rollout.source_shares={a: 1}", "rollout.source_shares must name the datasets of data.sources (none), got a"),
        ("train.loss_type=ppo", "train.loss_type: expected path/to/file.py:function or one of dapo, grpo, bnpo, "
         "dr_grpo, gspo, cispo, sapo, gmpo, luspo, vespo, dppo_tv, dppo_kl, clip_cov, kl_cov, got 'ppo'"),
        ("weights.advantage=ppo", "weights.advantage: expected path/to/file.py:function or one of grpo, gdpo, rloo, "
         "reinforce_plus_plus, reinforce_plus_plus_baseline, pass_at_k, opo, got 'ppo'"),
        ("seed=-1", "seed must be greater than or equal to 0 (got -1)"),
        ("planned_iterations=ten", "planned_iterations must be a valid integer, unable to parse string as an integer "
         "(got 'ten')"),
        ("weights.clip=[1.5, 3]", "weights: clip must satisfy 0 <= lo < 1 < hi, got [1.5, 3.0]"),
        ("weights={advantage: opo, scale_rewards: batch}", "weights: scale_rewards must be group, its default, with "
         "advantage opo, got batch; only grpo lets one choose what it divides by"),
        ("train={loss_type: vespo, importance_sampling_level: sequence}", "train: importance_sampling_level must be "
         "token or null with loss_type vespo, got sequence; its formula has no other"),
        ("train={loss_type: bnpo, aggregation: token_sum}", "train: aggregation must be null with loss_type bnpo, got "
         "token_sum; bnpo is dapo's loss, averaged over a micro-batch"),
        ("train.cispo_epsilon_low=0.2", "train: cispo_epsilon_low must be null with loss_type dapo; it is the lower "
         "clip of cispo"),
        ("train.engine_mask={low: 2, high: 1}", "train.engine_mask: low must be less than high, got 2 and 1"),
        ("train.engine_is_floor=3", "train: engine_is_floor must be less than engine_is_cap, got 3 and 2"),
        ("train.kl.target=0.1", "train: kl.target needs beta above 0, which is what follows it"),
        ("train.delta=1.2", "train: delta must be greater than 1 + epsilon_high (1.28) or null, got 1.2"),
        ("train={loss_type: gspo, importance_sampling_level: token}", "train: importance_sampling_level must be "
         "sequence or null with loss_type gspo, got token; loss_type grpo is the token ratio with gspo's normalizer"),
        ("train={loss_type: cispo, delta: 3}", "train: delta must be null with loss_type cispo, got 3; epsilon_high "
         "caps its ratio for advantages of either sign"),
        ("data.synthetic.shuffled=true", "data.synthetic: shuffled is true, but the options of task colours have a "
         "fixed order"),
        ("weights.replay.min_reward=.nan", "weights.replay.min_reward must be a finite number (got nan)"),
        ("train.learning_rate=.inf", "train.learning_rate must be a finite number (got inf)"),
        ("rewards={judge: {}}", "rewards.judge.model is missing (got {})"),
    ],
)  # fmt: skip
def test_a_value_out_of_range_is_refused_with_the_range(override: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, "", override) == f"run.yaml: {message}\n{FIX}"


def test_all_mistakes_are_named_at_once(tmp_path: Path) -> None:
    lines = refused(tmp_path, "sede: 1\ntrain: {beta: -1}\n").splitlines()
    assert len(lines) == 3
    assert {line.split()[1] for line in lines[:2]} == {"sede", "train.beta"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("train: {beta: 1", "run.yaml: not valid YAML (while parsing a flow mapping"),
        ("a: b: c", "run.yaml: not valid YAML (mapping values are not allowed here"),
        ("- train\n- keep\n", "run.yaml: expected keys and values, such as `seed: 42`, got a list. Fix the file."),
        ("train", "run.yaml: expected keys and values, such as `seed: 42`, got a str. Fix the file."),
        ("seed: !!python/object/apply:os.system [a]", "run.yaml: not valid YAML (could not determine a construc"),
    ],
)  # fmt: skip
def test_what_is_no_mapping_in_yaml_is_refused(text: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).startswith(message)


@pytest.mark.parametrize("text", ["1: {}", "train: 5", "train:\n  - beta", "weights: {reward_weights: {plugins: 3}}"])
def test_a_file_of_another_shape_is_refused(text: str, tmp_path: Path) -> None:
    assert refused(tmp_path, text).startswith("run.yaml: ")


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        load_config(tmp_path / "nowhere.yaml")
    assert str(caught.value) == (
        f"{tmp_path}/nowhere.yaml: cannot read the configuration ([Errno 2] No such file or directory: "
        f"'{tmp_path}/nowhere.yaml'). Pass a YAML file, such as pipelines/embedded.yaml."
    )


# --set


def test_overrides_win_over_the_file_and_reach_into_absent_sections(tmp_path: Path) -> None:
    config = load(
        tmp_path, "train: {beta: 0.1}\ndata:\n", "train.beta=0.2", "data.columns.image=photo", "train.lora.rank=8"
    )
    assert (config.train.beta, config.data.columns.image) == (0.2, "photo")
    assert config.train.lora is not None and config.train.lora.rank == 8


@pytest.mark.parametrize(
    ("override", "key", "value"),
    [
        ("train.learning_rate=1e-5", "learning_rate", 1e-5),
        ("train.lora=null", "lora", None),
        ("train.gradient_checkpointing=false", "gradient_checkpointing", False),
        ("train.betas=[0.8, 0.9]", "betas", (0.8, 0.9)),
        ("train.top_entropy_quantile=2e-1", "top_entropy_quantile", 0.2),
    ],
)
def test_values_of_overrides_are_yaml(override: str, key: str, value: object, tmp_path: Path) -> None:
    assert getattr(load(tmp_path, "", override).train, key) == value


@pytest.mark.parametrize(
    ("override", "message"),
    [
        (
            "train.beta",
            "--set train.beta: no `=` in the option (expected section.key=value, such as train.learning_rate=1e-5). "
            "Correct it.",
        ),
        (
            "=5",
            "--set =5: no key before the `=` (expected section.key=value, such as train.learning_rate=1e-5). "
            "Correct it.",
        ),
        ("seed.more=1", "--set seed.more=1: seed is a single value, not a section with settings. Correct the option."),
        ("train.bta=1", f"run.yaml: train.bta is not a setting (did you mean train.beta?)\n{FIX}"),
    ],
)
def test_an_override_that_cannot_be_applied_is_named(override: str, message: str, tmp_path: Path) -> None:
    assert refused(tmp_path, "seed: 4", override) == message


def test_an_override_that_is_no_yaml_is_named(tmp_path: Path) -> None:
    said = refused(tmp_path, "", "train.betas=[0.9")
    assert said.startswith("--set train.betas=[0.9: the value is not valid YAML (while parsing a flow sequence")
    assert said.endswith("). Quote it.")


def test_an_override_cannot_bring_back_extends(tmp_path: Path) -> None:
    assert "run.yaml: extends is not a setting (" in refused(tmp_path, "", "extends=other.yaml")


OTHERS = {*PIPELINES.glob("accelerate/*"), PIPELINES / "study/study.yaml"}  # that are not configurations of a run


@pytest.mark.parametrize(
    "path",
    [path for path in sorted(PIPELINES.rglob("*.yaml")) if path not in OTHERS],
    ids=lambda p: p.stem,
)
def test_every_configuration_that_ships_is_valid(path: Path) -> None:
    load_config(path)


@pytest.mark.parametrize("stage", ["rollout", "evaluate"])
def test_an_engine_that_is_not_there_is_answered_by_those_that_are(tmp_path: Path, stage: str) -> None:
    assert refused(tmp_path, f"{stage}: {{engine: paged}}") == (
        f"run.yaml: {stage}.engine must be 'transformers', 'vllm' or 'server' (got 'paged')\n{FIX}"
    )


@pytest.mark.parametrize("stage", ["rollout", "evaluate"])
def test_what_suppresses_special_tokens_elsewhere_bounds_the_temperature(tmp_path: Path, stage: str) -> None:
    (tmp_path / "run.yaml").write_text("rollout: {sampler: {temperature: 2.5}}")
    vllm = f"{stage}.engine=vllm"
    with pytest.raises(ConfigError) as error:
        load_config(tmp_path / "run.yaml", [vllm])
    assert f"rollout.sampler.temperature must be at most 2 with {stage}.engine vllm, because" in str(error.value)
    assert " (got 2.5)\n" in str(error.value)
    found = load_config(tmp_path / "run.yaml", [vllm, "rollout.sampler.temperature=2"])
    assert getattr(found, stage).engine == "vllm"
    own = "evaluate.sampler={temperature: 3}"
    if stage == "rollout":
        assert load_config(tmp_path / "run.yaml", ["rollout.sampler.temperature=2", vllm, own])
    else:
        assert load_config(tmp_path / "run.yaml", [vllm, "evaluate.sampler={temperature: 2}"])
        with pytest.raises(
            ConfigError, match=r"evaluate\.sampler\.temperature must be at most 2 with evaluate\.engine"
        ):
            load_config(tmp_path / "run.yaml", [vllm, own])


@pytest.mark.parametrize("stage", ["rollout", "evaluate"])
def test_a_quantized_policy_is_sampled_from_as_it_is_trained(tmp_path: Path, stage: str) -> None:
    text = f"{{model: {{quantization: nf4}}, train: {{lora: {{rank: 4}}}}, {stage}: {{engine: server}}}}"
    message = (
        f"run.yaml: {stage}.engine must be transformers with model.quantization nf4, to sample from the quantized "
    )
    assert refused(tmp_path, text) == f"{message}base that is trained (got server)\n{FIX}"


def test_a_server_has_an_address(tmp_path: Path) -> None:
    said = refused(tmp_path, "engines: {server: {url: localhost:8000}}")
    assert said.startswith("run.yaml: engines.server.url must match pattern '^https?")
    assert " (got 'localhost:8000')" in said


@pytest.mark.parametrize(
    ("part", "key", "value"), [("policy", "model.name", "Qwen/other"), ("data", "data.source", "nobody/other")]
)
def test_a_run_keeps_the_model_and_the_data_it_was_started_with(
    tmp_path: Path, part: str, key: str, value: str
) -> None:
    """Its policy and data exist, and nothing would make them again."""
    out = tmp_path / "config.yaml"
    call = ["config", "--config", PIPELINES / "embedded.yaml", "--out", out]
    assert run(*call).code == 0
    assert run(*call, "--set", f"{key}={value}").code == 0  # nothing is made from it yet
    assert run(*call).code == 0
    (tmp_path / part).mkdir()
    (tmp_path / part / "manifest.json").write_text("{}")
    assert run(*call, "--set", "train.learning_rate=1e-6").code == 0
    before = out.read_text()
    refused = run(*call, "--set", f"{key}={value}")
    assert refused.code == 3 and out.read_text() == before
    assert f"{key} is '{value}', but {tmp_path / part} was made from 'embedded'" in refused.stderr


def test_a_run_is_not_begun_on_data_that_is_not_there(tmp_path: Path) -> None:
    """Otherwise the error would come only after the warm-up. The source of prepared data may be missing."""
    (tmp_path / "run.yaml").write_text("data: {source: none.jsonl}\n")
    words = ("config", "--config", tmp_path / "run.yaml", "--out", tmp_path / "run/config.yaml")
    result = run(*words)
    assert (result.code, result.stdout) == (3, "")
    said = "none.jsonl: no such file or folder. Correct the path, or name another dataset.\n"
    assert result.stderr == said and os.listdir(tmp_path) == ["run.yaml"]
    assert run("config", "--config", tmp_path / "run.yaml").code == 0
    (tmp_path / "run/data").mkdir(parents=True)
    (tmp_path / "run/data/manifest.json").touch()
    assert run(*words).code == 0


@pytest.mark.parametrize("value", ["last", "{last: 0}", "{first: 2}", "[]", "[1, 1]", "[-1]", "[true]", "2", "[1.5]"])
def test_what_are_no_layers_is_refused_in_one_sentence(tmp_path: Path, value: str) -> None:
    said = refused(tmp_path, "{}", f"weights.vgr_layers={value}")
    assert said.startswith("run.yaml: weights.vgr_layers: must be all, early, middle, late, {last: 6} or a list of ")
    assert said.count("\n") == 1


def test_layers_are_kept_in_order_and_recorded_only_if_they_are_not_all(tmp_path: Path) -> None:
    found = load(tmp_path, "weights: {layers: [5, 2], vgr_layers: {last: 6}}")
    assert (found.weights.layers, found.weights.vgr_layers) == ((2, 5), {"last": 6})
    assert found.sections("weights.layers", "weights.vgr_layers") == {
        "weights.layers": [2, 5], "weights.vgr_layers": {"last": 6},
    }  # fmt: skip
    assert load(tmp_path, "{}").sections("weights.layers", "weights.vgr_layers") == {}


def test_schemes_that_are_not_of_the_vgr_refuse_layers(tmp_path: Path) -> None:
    said = refused(tmp_path, "weights: {scheme: entropy, layers: late}")
    assert "run.yaml: weights: layers must be all with scheme entropy, which is not made of VGR; vgr, aei and" in said


def test_draws_that_are_all_the_same_are_refused(tmp_path: Path) -> None:
    said = refused(tmp_path, "attention: {blank: removed, blank_draws: 2}")
    assert "run.yaml: attention: blank_draws must be 1 with blank: removed, whose draws are all the same" in said


def test_runs_from_before_train_kl_keep_the_gradient_that_they_had(tmp_path: Path) -> None:
    text = dump_config(Config())
    begin, end = text.index("  kl:\n"), text.index("  reference_update_every:")
    old = load(tmp_path, text[:begin] + text[end:])
    assert old.train.kl.model_dump() == {
        "estimator": "k3", "gradient": "own", "clamp": None, "target": None, "horizon": 10000.0,
    }  # fmt: skip
    assert "kl" not in old.recorded()["train"]
    assert "kl" not in Config().recorded()["train"]  # without train.beta there is no such term
    assert Config.model_validate({"train": {"beta": 0.1}}).recorded()["train"]["kl"]["gradient"] == "reverse"
    assert {"estimator", "aggregation", "engine_mask", "vespo_k"}.isdisjoint(Config().recorded()["train"])
