"""`make gpu-check`: everything that only a GPU can tell, in eight minutes, offline, with what a plain image has.

Writes gpu-check.json and gpu-check.md after every line, so that a run that is cut off leaves what it has. Ends with 0
if it is complete and nothing is wrong; targets that are missed are no error.

    make gpu-check                                  # on the first GPU; needs 40 GB of memory for all of it
    make gpu-check DEVICE=cpu TINY=1 OUT=folder     # tries the code at toy size
"""

from __future__ import annotations

import argparse
import os
import signal
import sys
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any, NoReturn

from benchmarks import gpu_wheels

if TYPE_CHECKING:
    import torch

    from benchmarks.gpu_record import Line, Record

ROOT = Path(__file__).resolve().parents[2]
SECONDS = 470  # after which it ends by itself


class CutOff(BaseException):
    """The time is up, or the process is asked to end."""


def main() -> None:
    """Run the parts that are asked for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--device", default="cuda", choices=("cuda", "cpu"))
    parser.add_argument("--tiny", action="store_true", help="toy size")
    parser.add_argument("--out", type=Path, default=ROOT / "build/gpu-check", help="folder of the results")
    parser.add_argument("--bundle", type=Path, default=ROOT / "build/gpu-bundle", help="folder of wheels")
    parser.add_argument("--seconds", type=int, default=SECONDS, help="end after this long with what there is")
    parser.add_argument("--only", default="", help="parts whose name contains this")
    asked = parser.parse_args()
    os.environ |= {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_OFFLINE": "1", "TOKENIZERS_PARALLELISM": "false"}
    os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
    signal.signal(signal.SIGALRM, _end)
    signal.signal(signal.SIGTERM, _end)
    signal.alarm(asked.seconds)
    with TemporaryDirectory(prefix="gpu-check-") as place:
        used = gpu_wheels.provide(asked.bundle, Path(place))
        sys.exit(check(asked, used))


def check(asked: argparse.Namespace, wheels: list[str]) -> int:
    """-> the exit status."""
    import warnings

    from benchmarks.gpu_record import Record

    warnings.simplefilter("ignore", FutureWarning)  # of transformers, about names of its own
    record = Record(asked.out, {"device": asked.device, "tiny": asked.tiny, "wheels": " ".join(wheels)})
    try:
        for name, part in parts(asked.device, tiny=asked.tiny).items():
            if asked.only in name:
                _carry_out(record, name, part)
        record.end("complete")
    except (CutOff, KeyboardInterrupt) as stop:
        record.end(f"cut off: {stop or 'interrupted'}")
    return 0 if record.sound else 1


def parts(device: str, *, tiny: bool) -> dict[str, Any]:
    """What is checked, in this order."""
    import torch

    from benchmarks import gpu_equality, gpu_stages, gpu_work

    if device == "cuda" and not torch.cuda.is_available():
        sys.exit("gpu-check: there is no CUDA device. To try it without one: make gpu-check DEVICE=cpu TINY=1")
    on = torch.device(device)
    torch.manual_seed(0)
    return {
        "machine": partial(_machine, on),
        "equality": partial(gpu_equality.packed_against_separate, on, tiny=tiny),
        "masses": partial(gpu_equality.masses_against_eager, on, tiny=tiny),
        "work": partial(gpu_work.measured, on, tiny=tiny),
        "stages": partial(gpu_stages.iteration, on, tiny=tiny),
        "decoding": partial(gpu_equality.recorded_decoding, on, tiny=tiny),
        "on disk": partial(gpu_stages.on_disk, on, tiny=tiny),
    }


def _carry_out(record: Record, name: str, part: Any) -> None:
    """A part that fails is a wrong line, and the next one has its turn."""
    import gc

    import torch

    from benchmarks.gpu_record import Line

    try:
        for line in part():
            record.add(line)
    except Exception as error:
        record.add(Line(name, "failed", {}, ok=False, note=f"{type(error).__name__}: {str(error)[-1500:]}"))
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _machine(device: torch.device) -> Iterator[Line]:
    """What it runs on. Triton needs a C compiler, without which nothing is compiled."""
    import shutil
    from importlib.util import find_spec

    import torch

    from benchmarks import limits, machine
    from benchmarks.gpu_record import Line

    here: dict[str, Any] = dict(machine.describe())
    here |= {name: str(find_spec(name) is not None) for name in ("triton", "flash_attn")}
    here["C compiler"] = str(shutil.which("cc") or shutil.which("gcc") or shutil.which("clang"))
    if device.type == "cuda":
        card = torch.cuda.get_device_properties(device)
        here |= {"card": card.name, "its memory, GiB": card.total_memory / 2**30, "CUDA": str(torch.version.cuda)}
        here |= {"capability": f"{card.major}.{card.minor}", "multiprocessors": card.multi_processor_count}
        free, _ = torch.cuda.mem_get_info(device)
        here["free, GiB"] = free / 2**30
    yield Line("machine", device.type, here)
    size, seconds = (4096, 1.0) if device.type == "cuda" else (256, 0.1)
    for dtype in (torch.bfloat16, torch.float32):
        rate = limits.matrix_rate(device, dtype, size=size, seconds=seconds)
        yield Line("machine", f"product of matrices, {str(dtype).removeprefix('torch.')}", {"TFLOP/s": rate / 1e12})


def _end(number: int, _: Any) -> NoReturn:
    raise CutOff("the time is up" if number == signal.SIGALRM else "asked to end")


if __name__ == "__main__":
    main()
