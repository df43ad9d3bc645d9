"""Writes the dataset of digits.yaml: scikit-learn's 1,797 handwritten digits of 8 by 8 pixels, in three sizes.

    pip install scikit-learn
    python pipelines/digits/make_dataset.py

Without scikit-learn, `--csv` names its file datasets/data/digits.csv.gz (64 values from 0 to 16 and the digit, a row
each). The digits are those of the UCI repository (Alpaydin and Kaynak 1998, CC BY 4.0).
"""

from __future__ import annotations

import argparse
import gzip
import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from PIL import Image

SIZES = (28, 56, 84)  # pixels a side: 1, 4 and 9 image tokens
BRIGHTEST = 16


def main() -> None:
    parser = argparse.ArgumentParser(description="Write the dataset of digits.yaml.")
    parser.add_argument("--csv", type=Path, help="scikit-learn's digits.csv.gz; default: of the installed package")
    parser.add_argument("--out", type=Path, default=Path("build/digits.parquet"), help="file to write")
    args = parser.parse_args()
    values = read(args.csv or installed())
    args.out.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(table(values), args.out)
    print(f"{len(values)} digits -> {args.out}")


def installed() -> Path:
    """The file in the installed scikit-learn."""
    from importlib.resources import files

    return Path(str(files("sklearn.datasets.data") / "digits.csv.gz"))


def read(path: Path) -> np.ndarray:
    """All rows: 64 values and the digit, [rows, 65]."""
    with gzip.open(path, "rt", encoding="utf-8") as file:
        return np.loadtxt(file, delimiter=",")


def table(values: np.ndarray) -> pa.Table:
    """A row per digit in random order, each in one of the sizes."""
    order = np.random.default_rng(0).permutation(len(values))
    rows = [
        {
            "image": {"bytes": png(values[i, :64].reshape(8, 8), SIZES[i % len(SIZES)]), "path": None},
            "problem": "Which digit is this?",
            "solution": str(int(values[i, 64])),
            "size": str(SIZES[i % len(SIZES)]),
        }
        for i in order
    ]
    return pa.Table.from_pylist(rows)


def png(pixels: np.ndarray, size: int) -> bytes:
    """A digit as an RGB image with sides of `size` pixels."""
    image = Image.fromarray((pixels * 255 / BRIGHTEST).astype(np.uint8)).convert("RGB")
    buffer = io.BytesIO()
    image.resize((size, size), Image.Resampling.BICUBIC).save(buffer, "PNG")
    return buffer.getvalue()


if __name__ == "__main__":
    main()
