"""Lets torchvision be imported beside a CPU build of torch: two operators that its own library would declare.

Copied into the vLLM environment of machines without a GPU, where vLLM needs torchvision for its Python parts only.
"""

import sys
from importlib.abc import MetaPathFinder


class _BeforeTorchvision(MetaPathFinder):
    """Finds nothing; it acts when torchvision is asked for, so that other programs need not wait for torch."""

    def find_spec(self, name, path=None, target=None):
        if name == "torchvision":
            sys.meta_path.remove(self)
            import torch

            self.library = torch.library.Library("torchvision", "DEF")
            boxes = "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor"
            for operator in ("nms", "qnms"):
                self.library.define(operator + boxes)
            sys.modules["torch"].torchvision_operators = self.library  # undone when it is collected
        return None


sys.meta_path.insert(0, _BeforeTorchvision())
