"""A decoding step as a CUDA graph: its kernels are launched as one, instead of some hundred by the program.

Everything that a step reads and writes must stay where it is: static caches (shared_prefix/decoding.py), and inputs
that are copied to one place. Not run on a GPU yet; tests/engines/test_recorded_step.py has a recorder for CPUs that
repeats the same operations on the same memory.
"""

from __future__ import annotations

from collections.abc import Callable

import torch

Step = Callable[..., torch.Tensor]


class Recorded:
    """A step that is run the first time, recorded the second time, and replayed from then on.

    The first time compiles, and lets libraries set themselves up, which cannot be recorded. The result is overwritten
    by the next call.
    """

    def __init__(self, step: Step) -> None:
        self._step = step
        self._is_warm = False
        self._replay: Callable[[], None] | None = None

    def __call__(self, *inputs: torch.Tensor) -> torch.Tensor:
        """Inputs of the same shapes each time."""
        if not self._is_warm:
            self._is_warm = True
            return self._step(*inputs)
        if self._replay is None:
            self._inputs = [one.clone() for one in inputs]
            self._replay, self._output = record(lambda: self._step(*self._inputs))
        else:
            for place, one in zip(self._inputs, inputs, strict=True):
                place.copy_(one)
        self._replay()
        return self._output


def record(step: Callable[[], torch.Tensor]) -> tuple[Callable[[], None], torch.Tensor]:
    """Record a step, which is not run yet: what runs it, and the tensor that then has its result."""
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph, capture_error_mode="thread_local"):  # other threads may use the GPU meanwhile
        output = step()
    return graph.replay, output
