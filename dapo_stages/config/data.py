"""Questions and images."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from dapo_stages.config.base import Count, Fraction, Later, Section

SourceName = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_-]{0,63}$")]
SolutionFormat = Literal["auto", "letter", "index", "index_from_1", "text"]


class ColumnsConfig(Section):
    """Names of the dataset's columns; `a.b` is the field b of the column a. See docs/data.md."""

    image: str | tuple[str, ...] = Field(
        "image", description="The image, or a list of images; or several columns: `[image_1, image_2]`."
    )
    videos: Annotated[str, Later("videos")] = Field(
        "videos",
        description="Videos, where the dataset has this column: each a file, or a list of frames. `<video>` marks "
        "where they go in a question.",
    )
    problem: str = Field(
        "problem",
        description="The question, with or without its options; `<image>` (or `<image 2>`) marks where images go.",
    )
    solution: str = Field(
        "solution",
        description="The correct answer: a letter, or the index or text of an option (data.solution_format); else a "
        "number, an expression or words.",
    )
    options: Annotated[str | tuple[str, ...] | None, Later(None)] = Field(
        None,
        description="The options: a list, or text that contains one; or a column for each: `[A, B, C, D]`. They are "
        "added to questions that do not show them.",
    )
    messages: str | None = Field(
        None,
        description="Conversation column (`prompt`, `messages` or `conversations`), used where `problem` is missing. "
        "Without a solution column, its last turn is the solution.",
    )
    slice: str | None = Field(None, description="Column whose values the evaluation reports separately.")
    slices: tuple[str, ...] = Field((), description="More columns whose values the evaluation reports separately.")


class SyntheticConfig(Section):
    """The embedded synthetic task and its sizes."""

    task: Literal["colours", "motion", "places", "scenes"] = Field(
        "colours",
        description="colours: one colored shape. motion: which way a square goes in a video. places: where objects "
        "are, their colors and numbers. scenes: an older task, kept for runs that have it.",
    )
    shuffled: bool = Field(False, description="Shuffle the options of `scenes`, which takes far longer to learn.")
    train: Count = Field(4096, description="Training questions.")
    held_out: Count = Field(512, description="Held-out questions.")

    @model_validator(mode="after")
    def _options_have_one_order(self) -> Self:
        if self.shuffled and self.task != "scenes":
            raise ValueError(f"shuffled is true, but the options of task {self.task} have a fixed order")
        return self


class SourceConfig(Section):
    """One of several datasets; what is null is as in `data`."""

    source: str = Field(description="As data.source.")
    split: str | None = Field(None, description="As data.split.")
    columns: ColumnsConfig | None = Field(None, description="As data.columns, all of it.")
    solution_format: SolutionFormat | None = Field(None, description="As data.solution_format.")
    template: str | None = Field(None, description="As data.template.")
    system_prompt: str | None = Field(None, description="As data.system_prompt.")
    image_root: str | tuple[str, ...] | None = Field(None, description="As data.image_root.")
    held_out_fraction: Fraction | None = Field(None, description="As data.held_out_fraction.")
    held_out_source: str | None = Field(None, description="As data.held_out_source.")
    held_out_split: str | None = Field(None, description="As data.held_out_split.")
    max_rows: Count | None = Field(None, description="As data.max_rows.")


class DataConfig(Section):
    """Where the questions come from and how they become prompts."""

    source: str = Field(
        "lujunxi57/DDM",
        description="Hub id, Parquet/JSONL/CSV/TSV file or folder, image folder, save_to_disk folder, or `embedded`.",
    )
    sources: Annotated[dict[SourceName, SourceConfig], Later({})] = Field(
        {}, description="Several datasets by name, instead of data.source; see rollout.source_shares."
    )
    split: str = Field("train", description="Split of a hub dataset.")
    columns: ColumnsConfig = ColumnsConfig()
    solution_format: Annotated[SolutionFormat, Later("auto")] = Field(
        "auto",
        description="What the solution is where there are options: a letter, an index from 0 or from 1, or an option's "
        "text. auto: what fits most of the first rows.",
    )
    template: Annotated[str | None, Later(None)] = Field(
        None,
        description="Jinja template of the question; `problem`, `options` and the row's columns are its variables: "
        "`{{ problem }} Answer in {{ unit }}.`.",
    )
    image_root: Annotated[str | tuple[str, ...] | None, Later(None)] = Field(
        None,
        description="Folders that may contain images given as paths, besides the dataset's own. Only below these may "
        "paths be absolute, and symbolic links lead.",
    )
    allow_unwinnable: Annotated[bool, Later(False)] = Field(
        False,
        description="Carry on if no question can be answered right: a letter is wanted, but no options are shown.",
    )
    held_out_fraction: Fraction = Field(
        0.1, description="Fraction of the rows held out for evaluation: 0 for none, 1 for a benchmark alone."
    )
    held_out_source: Annotated[str | None, Later(None)] = Field(
        None, description="Source of the held-out rows, all of which are used; null takes them from data.source."
    )
    held_out_split: Annotated[str | None, Later(None)] = Field(
        None, description="Split of the held-out rows, such as `test`; null takes them from data.split."
    )
    split_by: Annotated[Literal["row", "image"], Later("row")] = Field(
        "row", description="image: all questions about an image are either for training or held out."
    )
    split_seed: int = Field(42, description="Seed of the train/held-out split.")
    max_rows: Count | None = Field(None, description="Use only the first rows of the source.")
    max_image_size: Annotated[int, Field(ge=28)] = Field(
        1024, description="Larger images are scaled down to fit a square with sides of this many pixels."
    )
    min_image_size: Annotated[Count, Later(1)] = Field(
        1, description="Smaller images are scaled up until both sides have this many pixels, within max_image_size."
    )
    max_image_pixels: Count = Field(
        50_000_000, description="An image with more pixels is rejected before it is decoded (data.on_bad_image)."
    )
    video_fps: Annotated[float, Field(gt=0, le=120), Later(2.0)] = Field(
        2.0, description="Frames per second that are taken of a video file, and that a list of frames has."
    )
    max_video_frames: Annotated[Count, Later(16)] = Field(
        16,
        description="Most frames of a video: of a longer file that many are taken at equal distances; a longer list is "
        "rejected (data.on_bad_image).",
    )
    max_frame_size: Annotated[int, Field(ge=28), Later(224)] = Field(
        224, description="Larger frames are scaled down to fit a square with sides of this many pixels."
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
    tags: Annotated[Literal["added", "plain"], Later("added")] = Field(
        "added",
        description="What `<think>` and `<answer>` become where the tokenizer has added tokens for them: these, or "
        "plain: tokens of ordinary text, for checkpoints that never learned the added ones (docs/rewards.md).",
    )
    system_prompt: str | None = Field(None, description="System message; null uses the built-in one, '' leaves it out.")
    synthetic: SyntheticConfig = SyntheticConfig()

    def of_sources(self) -> dict[str, DataConfig]:
        """The section for each dataset, by its name; a single one has the name "". Their own `sources` are empty."""
        if not self.sources:
            return {"": self}
        found = {}
        for name, one in self.sources.items():
            own = {key: value for key in type(one).model_fields if (value := getattr(one, key)) is not None}
            found[name] = self.model_copy(update={**own, "sources": {}})
        return found

    @property
    def holds_out(self) -> bool:
        """Whether there are held-out rows to evaluate on."""
        return any(
            one.source == "embedded" or one.held_out_fraction > 0 or one.of_held_out() is not None
            for one in self.of_sources().values()
        )

    def of_held_out(self) -> DataConfig | None:
        """The section for a source of its own for held-out rows, all of which are used; None if there is none."""
        if self.held_out_source is None and self.held_out_split is None:
            return None
        return self.model_copy(
            update={
                "source": self.held_out_source or self.source,
                "split": self.held_out_split or self.split,
                "held_out_fraction": 1.0,
                "held_out_source": None,
                "held_out_split": None,
                "max_rows": None,
            }
        )
