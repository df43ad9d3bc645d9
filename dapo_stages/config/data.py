"""Questions and images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Later, Section


class ColumnsConfig(Section):
    """Names of the dataset's columns."""

    image: str = Field("image", description="The image, or a list of images.")
    problem: str = Field("problem", description="The question, with its options; `<image>` marks where images go.")
    solution: str = Field("solution", description="The correct answer: a bare letter, or inside <answer>…</answer>.")
    messages: str | None = Field(
        None, description="Conversation column (`prompt`/`messages`), used where `problem` is missing."
    )
    slice: str | None = Field(None, description="Column whose values the evaluation reports separately.")
    slices: tuple[str, ...] = Field((), description="More columns whose values the evaluation reports separately.")


class SyntheticConfig(Section):
    """The embedded synthetic task and its sizes."""

    task: Literal["colours", "scenes"] = Field(
        "colours",
        description="colours: one colored shape. scenes: positions, relations and counts of several objects.",
    )
    shuffled: bool = Field(False, description="Shuffle the options of `scenes`, which takes far longer to learn.")
    train: Count = Field(4096, description="Training questions.")
    held_out: Count = Field(512, description="Held-out questions.")

    @model_validator(mode="after")
    def _colors_have_one_order(self) -> Self:
        if self.shuffled and self.task == "colours":
            raise ValueError("shuffled is true, but the options of task colours have a fixed order")
        return self


class DataConfig(Section):
    """Where the questions come from and how they become prompts."""

    source: str = Field(
        "lujunxi57/DDM",
        description="Hub id, Parquet/JSONL file or folder, image folder, save_to_disk folder, or `embedded`.",
    )
    split: str = Field("train", description="Split of a hub dataset.")
    columns: ColumnsConfig = ColumnsConfig()
    held_out_fraction: Annotated[float, Field(gt=0, lt=1)] = Field(
        0.1, description="Fraction of the rows held out for evaluation."
    )
    split_seed: int = Field(42, description="Seed of the train/held-out split.")
    max_rows: Count | None = Field(None, description="Use only the first rows of the source.")
    max_image_size: Annotated[int, Field(ge=28)] = Field(
        1024, description="Larger images are scaled down to fit a square with sides of this many pixels."
    )
    max_image_pixels: Count = Field(
        50_000_000, description="An image with more pixels is rejected before it is decoded (data.on_bad_image)."
    )
    max_prompt_length: Count = Field(
        1024, description="Longest prompt in tokens, image tokens included; longer ones are dropped and counted."
    )
    on_bad_image: Literal["skip", "error"] = Field("skip", description="Drop and count rows with a bad image, or stop.")
    on_control_tokens: Annotated[Literal["escape", "drop", "error"], Later("escape")] = Field(
        "escape",
        description="Rows whose text contains control tokens of the tokenizer (`<|im_end|>`): tokenize these as plain "
        "text, drop and count the rows, or stop.",
    )
    system_prompt: str | None = Field(None, description="System message; null uses the built-in one, '' leaves it out.")
    synthetic: SyntheticConfig = SyntheticConfig()
