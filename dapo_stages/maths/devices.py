"""Rates of the devices that ranks compute on: GPUs from NVIDIA's data sheets, and a CPU as measured here."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

Gpu = Literal["rtx4090", "l40s", "h100", "h200", "l4", "a100"]


@dataclass(frozen=True)
class Device:
    """Peak rates, of which only a share is reached (REACHED_OPERATIONS, REACHED_BYTES)."""

    memory: float  # GiB
    bfloat16: float  # 10¹² operations a second in matrix products, sums in float32, no sparsity
    float32: float
    bandwidth: float  # GB/s of its memory
    link: float  # GB/s in one direction to the other GPUs of its machine: NVLink, else PCIe


# From NVIDIA's data sheets, which count a link in both directions; half of that is given here. gpu_with picks the first
# one with a given memory.
GPUS: dict[Gpu, Device] = {
    "rtx4090": Device(24, 165, 82.6, 1008, 32),
    "l40s": Device(48, 362, 91.6, 864, 32),
    "h100": Device(80, 989, 67, 3350, 450),
    "h200": Device(141, 989, 67, 4800, 450),
    "l4": Device(24, 121, 30.3, 300, 32),
    "a100": Device(80, 312, 19.5, 2039, 300),
}
# Two cores of a Xeon with AMX, each measured alone: 511 × 2048 · 2048 × 11008, as in a layer of the 3B model, and a sum
# over 256 MB. Memory and link are assumed.
CPU = Device(16, 1.5, 0.35, 20, 5)
NETWORK = 50.0  # GB/s of a GPU to other machines: 400 Gbit/s each, an assumption
REACHED_OPERATIONS, REACHED_BYTES = 0.35, 0.6  # shares of the peaks: assumptions
# CPU seconds per call of torch, including Python (measured); launching a kernel doubles that (assumed).
CALL = {"cpu": 3.5e-6, "cuda": 7e-6}


def gpu_with(memory: float) -> Gpu:
    """The GPU with the smallest memory of at least so many GiB, else the one with the largest memory."""
    enough = [name for name, device in GPUS.items() if device.memory >= memory]
    if not enough:
        return max(GPUS, key=lambda name: GPUS[name].memory)
    return min(enough, key=lambda name: GPUS[name].memory)
