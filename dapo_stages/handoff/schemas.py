"""Arrow schemas of every Parquet file, explicit and versioned; nothing is ever inferred."""

from __future__ import annotations

import json
from collections.abc import Collection, Sequence

import pyarrow as pa

SCHEMA_VERSION = 1

SEGMENTS = ("early", "middle", "late", "all")
MASSES = ("vision", "text", "other", "first", "generated")
TOKEN_SCORES = ("logprobs", "entropy", "blank_logprobs", "visual_kl")  # from score-attention's extra passes
# The same, of later versions: a file has those that were asked for.
MORE_TOKEN_SCORES = ("blank_entropy", "jsd", "k3", "vision_cosine", "rollout_mass", "vision_gradient")
TOKEN_VGR = tuple(f"token_vgr_{segment}" for segment in SEGMENTS[:3])
BY_IMAGE = "attn_vision_by_image"  # of rollouts with a prompt of several images, or a video
OF_LAYERS = ("token_vgr_layers", "vgr_layers")  # per token, and of the completion; over the layers that were chosen

# Mirrors datasets.Image(): the order of children and their nullability must match for images to decode.
IMAGE = pa.struct([pa.field("bytes", pa.binary()), pa.field("path", pa.string())])


def _list(value: pa.DataType) -> pa.DataType:
    return pa.list_(pa.field("element", value, nullable=False))


def _required(name: str, kind: pa.DataType) -> pa.Field:
    return pa.field(name, kind, nullable=False)


FLOATS, INTS, STRINGS = _list(pa.float32()), _list(pa.int32()), _list(pa.string())

_PROMPT = [
    _required("prompt_id", pa.string()),
    pa.field("images", pa.list_(IMAGE)),
    _required("problem", pa.string()),
    _required("solution", pa.string()),
    _required("prompt_text", pa.string()),
    _required("prompt_ids", INTS),
    _required("image_grid_thw", _list(INTS)),
    _required("source", pa.string()),
    _required("slice", pa.string()),
]

# Values of other columns of the source by name, as JSON: evaluate reports them separately.
_LABELS = pa.field("labels", pa.string())

# The row of the source as JSON, without images: plug-in rewards may need its other columns.
_ROW = pa.field("row", pa.string())

_GROUP = [
    _required("group_id", pa.string()),
    _required("iteration", pa.int32()),
    *_PROMPT,
    _required("round", pa.int32()),
    _required("num_correct", pa.int32()),
    _required("kept", pa.bool_()),
]

# When the frames of videos are shown (data/visuals.py); null: the prompt has none.
_FRAMES = pa.field("frame_seconds", FLOATS)

# By another reward than accuracy (rollout.informative); null: num_correct tells.
_INFORMATIVE = pa.field("informative", pa.bool_())

_COMPLETION = [
    _required("completion_id", pa.string()),
    _required("group_id", pa.string()),
    _required("sample", pa.int32()),
    _required("text", pa.string()),
    _required("completion_ids", INTS),
    _required("token_texts", STRINGS),
    _required("sampling_logprobs", FLOATS),
    _required("finish_reason", pa.string()),
    _required("engine", pa.string()),
    _required("policy_version", pa.int32()),
    _required("reward_accuracy", pa.float32()),
    _required("reward_format", pa.float32()),
    _required("reward_overlong", pa.float32()),
]

# How the accuracy reward read a completion. Not in the buffer, which nobody reads for it.
_READING = [
    pa.field("answer", pa.string()),
    pa.field("read_from", pa.string()),
]
READING = tuple(field.name for field in _READING)

# The tokens that the policy wrote, and that are in the loss; null: all. Others are given to it, as what a tool says.
_LOSS_MASK = pa.field("loss_mask", _list(pa.bool_()))

_ATTENTION = [
    _required("completion_id", pa.string()),
    _required("status", pa.string()),
    *(pa.field(f"mass_{kind}", FLOATS) for kind in MASSES),
    pa.field("vgr", FLOATS),
    *(
        pa.field(f"{name}_{segment}", pa.float32())
        for segment in SEGMENTS
        for name in ("vgr", "aei_text", "aei_vision", "attn_text", "attn_vision")
    ),
    _required("num_text_tokens", pa.int32()),
    _required("num_vision_tokens", pa.int32()),
    *(pa.field(f"patch_attention_{segment}", _list(_list(pa.float16()))) for segment in SEGMENTS),
    *(pa.field(name, FLOATS) for name in TOKEN_SCORES),
    *(pa.field(name, FLOATS) for name in TOKEN_VGR),
    pa.field("token_vgr_layers", FLOATS),
    pa.field("vgr_layers", pa.float32()),
    *(pa.field(name, FLOATS) for name in MORE_TOKEN_SCORES),
    pa.field(BY_IMAGE, FLOATS),
]

_WEIGHT = [
    _required("completion_id", pa.string()),
    _required("group_id", pa.string()),
    _required("source", pa.string()),
    _required("source_iteration", pa.int32()),
    _required("reward", pa.float32()),
    _required("reward_accuracy", pa.float32()),
    _required("reward_vgr", pa.float32()),
    _required("reward_format", pa.float32()),
    _required("reward_overlong", pa.float32()),
    _required("reward_phase", pa.string()),
    _required("advantage", pa.float32()),
    pa.field("importance", pa.float32()),  # of a replayed group: corrects for how it was drawn; null: 1
    _required("token_weights", FLOATS),
    _required("in_loss", pa.bool_()),
    _required("why", pa.string()),
]

# The replay buffer: complete groups, each with what is needed to train on it again.
_BUFFER_GROUP = [
    *_GROUP,
    _required("score", pa.float32()),
    _required("mean_reward", pa.float32()),
    _required("std_reward", pa.float32()),
    pa.field("draws", pa.int32()),  # number of iterations that have trained on it again; null: 0
]
_BUFFER_COMPLETION = [
    *_COMPLETION,
    _required("reward_vgr", pa.float32()),
    _required("token_weights", FLOATS),
]

_METRICS = [
    _required("iteration", pa.int32()),
    _required("update", pa.int32()),
    _required("name", pa.string()),
    pa.field("value", pa.float64()),
]

_EVALUATION = [
    _required("completion_id", pa.string()),
    _required("prompt_id", pa.string()),
    _required("slice", pa.string()),
    _required("mode", pa.string()),
    _required("sample", pa.int32()),
    _required("solution", pa.string()),
    _required("text", pa.string()),
    _required("completion_ids", INTS),
    _required("token_texts", STRINGS),
    _required("sampling_logprobs", FLOATS),
    _required("num_tokens", pa.int32()),
    _required("finish_reason", pa.string()),
    _required("policy_version", pa.int32()),
    _required("reward_accuracy", pa.float32()),
    _required("reward_format", pa.float32()),
    _required("reward_overlong", pa.float32()),
    pa.field("answer", pa.string()),  # as the accuracy reward reads it
    _required("read_from", pa.string()),
    pa.field("num_options", pa.int32()),
    _LABELS,
]

# All floats are finite except in these columns: VGR is undefined for a token that saw nothing of the image, and an
# update may have no finite loss.
NOT_FINITE = frozenset({field.name for field in _ATTENTION} | {"value"})
# Columns of lists with one element per token of the completion, and lists that are never empty.
PER_TOKEN = (
    "completion_ids", "token_texts", "sampling_logprobs", "token_weights", "loss_mask",
    *(f"mass_{kind}" for kind in MASSES), "vgr",
    *TOKEN_SCORES, *TOKEN_VGR, "token_vgr_layers", *MORE_TOKEN_SCORES,
    *(f"patch_attention_{segment}" for segment in SEGMENTS),
)  # fmt: skip
FILLED = frozenset({"prompt_ids", "completion_ids"})
# Nullable columns added after the first files were written. If a file lacks them, they are read as null.
LATER = frozenset(
    {
        *("draws", "row", "informative", "loss_mask", "frame_seconds", BY_IMAGE),
        *(*READING, *TOKEN_VGR, *OF_LAYERS, *MORE_TOKEN_SCORES),
    }
)


def _schema(fields: list[pa.Field]) -> pa.Schema:
    schema = pa.schema(fields).with_metadata({b"dapo_stages.schema_version": str(SCHEMA_VERSION).encode()})
    if schema.get_field_index("images") < 0:
        return schema
    # What datasets.Features writes, so that load_dataset("parquet") and the hub's viewer show images.
    features = {field.name: _feature(field.type) for field in fields}
    info = json.dumps({"info": {"features": features}})
    return schema.with_metadata({**(schema.metadata or {}), b"huggingface": info.encode()})


def _feature(kind: pa.DataType) -> dict[str, object]:
    if kind == IMAGE:
        return {"_type": "Image"}
    if pa.types.is_list(kind):
        return {"feature": _feature(kind.value_type), "_type": "List"}
    names = {"float": "float32", "double": "float64", "halffloat": "float16"}
    return {"dtype": names.get(str(kind), str(kind)), "_type": "Value"}


# Name of a shard's kind (the part of its file name before the number) -> its schema.
SCHEMAS: dict[str, pa.Schema] = {
    "train": _schema([*_PROMPT, _ROW, _FRAMES]),
    "held_out": _schema([*_PROMPT, _LABELS, _ROW, _FRAMES]),
    "prompts": _schema([*_GROUP, _INFORMATIVE, _FRAMES]),
    "completions": _schema([*_COMPLETION, *_READING, _LOSS_MASK]),
    "attention": _schema(_ATTENTION),
    "weights": _schema(_WEIGHT),
    "replayed-prompts": _schema([*_GROUP, _FRAMES]),
    "replayed-completions": _schema([*_COMPLETION, _LOSS_MASK]),
    "buffer": _schema([*_BUFFER_GROUP, _FRAMES]),
    "buffer-completions": _schema([*_BUFFER_COMPLETION, _LOSS_MASK]),
    "metrics": _schema(_METRICS),
    "evaluation": _schema(_EVALUATION),
}

_WITH_REWARDS = {"completions", "weights", "replayed-completions", "buffer-completions"}


def shared_schema(rewards: Sequence[str]) -> pa.Schema:
    """Rollouts as a dataset that is shared: a row per prompt, with lists of what its completions are and have."""
    lists = {"completions": STRINGS, "finish_reasons": STRINGS, "tokens": INTS}
    return _schema(
        [
            pa.field("images", pa.list_(IMAGE)),
            _required("problem", pa.string()),
            _required("solution", pa.string()),
            *(_required(name, kind) for name, kind in lists.items()),
            *(_required(f"reward_{name}", pa.list_(pa.float32())) for name in rewards),
            _required("num_correct", pa.int32()),
            _required("kept", pa.bool_()),
            _required("slice", pa.string()),
            _required("prompt", pa.string()),
            _required("iteration", pa.int32()),
            _required("policy_version", pa.int32()),
            _required("group_id", pa.string()),
        ]
    )


def schema_of(kind: str, rewards: tuple[str, ...] = (), stage: str = "") -> pa.Schema:
    """The schema of a kind of shard. Those that hold rewards also have a column for each plug-in's and the judge's
    reward, null where it gives none.

    `completions` of the stage evaluate are of held-out prompts and have columns of their own.
    """
    schema = SCHEMAS["evaluation" if (stage, kind) == ("evaluate", "completions") else kind]
    for name in rewards if kind in _WITH_REWARDS else ():
        schema = schema.append(pa.field(f"reward_{name}", pa.float32()))
    return schema


def of_file(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    """The schema of a file with these columns: without the later columns that it lacks."""
    fields = [field for field in schema if field.name in names or not (field.nullable and field.name in LATER)]
    return schema if len(fields) == len(schema) else _schema(fields)
