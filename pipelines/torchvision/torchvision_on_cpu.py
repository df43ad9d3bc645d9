"""Makes torchvision importable with a CPU build of torch: declares two operators that its own library would declare.

Copied into the environments of machines without a GPU, where vLLM and transformers' AutoProcessor need torchvision for
its Python parts only. torchvision_on_cpu.pth imports this file when Python starts, whatever sitecustomize there is.
"""

import sys
from collections.abc import Sequence
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it acts only when torchvision is imported, so that other programs need not wait for torch."""

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            if hasattr(torch, "torchvision_operators"):  # declared already
                return None
            self.library = torch.library.Library("torchvision", "DEF")
            boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                self.library.define(operator + boxes)
            vars(torch)["torchvision_operators"] = self.library  # garbage collection would undo it
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
