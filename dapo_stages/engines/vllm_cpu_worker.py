"""The worker of a vLLM server on a CPU that reloads policies, in vLLM's own processes (--worker-cls).

On CPUs vLLM computes with a copy of each matrix, packed for the kernel. Reloading packs all of them anew except that of
a head that is tied to the embeddings: no tensor of a checkpoint is loaded into it (vLLM 0.32). The logprobs are then
those of the new layers under the old head.
"""

from __future__ import annotations

from typing import Any

from vllm.model_executor.layers.vocab_parallel_embedding import ParallelLMHead
from vllm.v1.worker.cpu_worker import CPUWorker


class ReloadingWorker(CPUWorker):  # type: ignore[misc]
    """Packs the head anew, too."""

    def reload_weights(self, *args: Any, **settings: Any) -> None:
        """What vLLM does, then the head."""
        super().reload_weights(*args, **settings)
        for layer in self.model_runner.get_model().modules():
            if isinstance(layer, ParallelLMHead):
                layer.quant_method.process_weights_after_loading(layer)
