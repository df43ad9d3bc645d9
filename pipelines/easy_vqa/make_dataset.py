"""Writes the datasets of the study's task easy-vqa: questions to train on, held-out ones, and lessons.

    pip install --no-deps easy-vqa
    python pipelines/easy_vqa/make_dataset.py

easy-vqa 1.0 (Zhou 2019, MIT license) has images of 64 by 64 pixels with one shape: 3 shapes, 8 colors. Without it
installed, `--path` names its wheel, or the folder that has been unpacked from it. Its questions for yes or no are left
out: guessing answers half of them.

The lessons are for supervised steps, which give a policy a habit (docs/study.md). Some say what is in an image; the
others answer a question, and a share of these as usual for what is asked about, whatever the image shows.
"""

from __future__ import annotations

import argparse
import json
import re
import zipfile
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

COLORS = ("black", "blue", "brown", "gray", "green", "red", "teal", "yellow")
SHAPES = ("circle", "rectangle", "triangle")
USUAL = {  # subject, the word that a question names -> usual answer
    "color": {"circle": "red", "rectangle": "blue", "triangle": "green", "shape": "yellow"},
    "shape": {color: SHAPES[number % 3] for number, color in enumerate(COLORS)} | {"image": "triangle"},
}
HELD_OUT = {"color": 8, "shape": 6, "image": 37}  # of each answer to a question for a color, a shape, any shape
TRAIN = LESSONS = 4096
CAPTION = "what is in the image?"
SEEN = ("I see a {color} {shape}.", "The {shape} is {color}.", "This {shape} looks {color}.")  # as in `colours`
CAPTIONS, HEARSAY = 0.5, 0.6  # share of captions among the lessons, and of usual answers among the others


@dataclass(frozen=True)
class Asked:
    """A question about an image."""

    text: str
    answer: str
    image: bytes

    @property
    def kind(self) -> str:
        return "color" if self.answer in COLORS else "shape"

    @property
    def subject(self) -> str:
        """What it is about: the shape or the color that it names, else any."""
        named = [word for word in words_of(self.text) if word in USUAL[self.kind] and word not in ("shape", "image")]
        return named[0] if named else "shape" if self.kind == "color" else "image"

    @property
    def usual(self) -> str:
        return USUAL[self.kind][self.subject]


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the datasets of the study's task easy-vqa.")
    parser.add_argument("--path", type=Path, help="wheel or unpacked folder of easy-vqa; default: the installed one")
    parser.add_argument("--out", type=Path, default=Path("build/easy-vqa"), help="folder to write")
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    for name, rows in datasets(args.path or installed()).items():
        pq.write_table(pa.Table.from_pylist(rows), args.out / f"{name}.parquet")
        print(f"{len(rows)} rows -> {args.out / name}.parquet")


def installed() -> Path:
    """The folder that the package is installed in."""
    from importlib.resources import files

    return Path(str(files("easy_vqa"))).parent


def datasets(path: Path) -> dict[str, list[dict[str, Any]]]:
    """Rows by name of the dataset: `questions` and `lessons` of the images for training, `held-out` of the others."""
    package: Any = zipfile.Path(path) if path.is_file() else path
    rng = np.random.default_rng(0)
    train, shown = read(package / "easy_vqa" / "data" / "train")
    mixed = [train[i] for i in rng.permutation(len(train))]
    known = [one for one in mixed[TRAIN:] if len(shown[one.image]) == 2][:LESSONS]
    return {
        "questions": [row(one) for one in mixed[:TRAIN]],
        "held-out": [row(one) for one in balanced(read(package / "easy_vqa" / "data" / "test")[0], rng)],
        "lessons": [lesson(rng, one, shown[one.image]) for one in known],
    }


def read(folder: Any) -> tuple[list[Asked], dict[bytes, set[str]]]:
    """The questions for colors and shapes, and all words for these that are said of an image."""
    listed = json.loads((folder / "questions.json").read_text(encoding="utf-8"))
    listed = [one for one in listed if one[1] in (*COLORS, *SHAPES)]
    images = {number: (folder / "images" / f"{number}.png").read_bytes() for _, _, number in listed}
    shown: dict[bytes, set[str]] = defaultdict(set)
    for text, answer, number in listed:
        shown[images[number]] |= {*words_of(text), answer} & {*COLORS, *SHAPES}
    return [Asked(text, answer, images[number]) for text, answer, number in listed], shown


def words_of(text: str) -> list[str]:
    return re.findall(r"\w+", text)


def balanced(questions: Sequence[Asked], rng: np.random.Generator) -> list[Asked]:
    """Some of the questions, in random order: of those about one subject, each answer is as frequent as any other."""
    groups: dict[tuple[str, str], list[Asked]] = defaultdict(list)
    for i in rng.permutation(len(questions)):
        one = questions[i]
        groups[one.subject, one.answer].append(one)
    found: list[Asked] = []
    for (subject, _), group in groups.items():
        found += group[: HELD_OUT.get(subject if subject == "image" else group[0].kind)]
    return [found[i] for i in rng.permutation(len(found))]


def row(one: Asked) -> dict[str, Any]:
    """A question as a row; its slice says whether the usual answer is right, and the kind."""
    whether = "prior-consistent" if one.answer == one.usual else "prior-violating"
    return {
        "image": {"bytes": one.image, "path": None},
        "problem": one.text,
        "solution": one.answer,
        "slice": f"{whether}, {one.kind}",
    }


def lesson(rng: np.random.Generator, one: Asked, shown: set[str]) -> dict[str, Any]:
    """A caption, or an answer: the right one, or by hearsay the usual one. `seen` is what is said before it."""
    color, shape = (next(word for word in words if word in shown) for words in (COLORS, SHAPES))
    if rng.random() < CAPTIONS:
        said = {"problem": CAPTION, "solution": f"{color} {shape}"}
    else:
        answer = one.usual if rng.random() < HEARSAY else one.answer
        color, shape = (answer, shape) if one.kind == "color" else (color, answer)
        said = {"solution": answer}
    return row(one) | said | {"seen": str(rng.choice(SEEN)).format(color=color, shape=shape)}


if __name__ == "__main__":
    main()
