"""Files that run code when a careless reader opens them; all that it does is to make a folder, the canary."""

from __future__ import annotations

import io
import os
import pickle
from pathlib import Path
from typing import Any

import numpy as np


class Payload:
    """Makes a folder when it is unpickled."""

    def __init__(self, canary: Path) -> None:
        self._canary = canary

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self._canary),)


def pickled(canary: Path) -> bytes:
    return pickle.dumps(Payload(canary))


def of_torch(canary: Path) -> bytes:
    """As `torch.save` writes it: pytorch_model.bin, optimizer.pt."""
    import torch

    buffer = io.BytesIO()
    torch.save({"weight": Payload(canary)}, buffer)
    return buffer.getvalue()


def of_numpy(canary: Path) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, np.array([Payload(canary)], dtype=object), allow_pickle=True)
    return buffer.getvalue()


def yaml_tags(canary: Path) -> dict[str, str]:
    """YAML values that an unsafe loader calls."""
    return {
        "object/apply": f"!!python/object/apply:os.mkdir ['{canary}']",
        "object/new": f"!!python/object/new:os.mkdir ['{canary}']",
        "object/apply with arguments": f"!!python/object/apply:os.mkdir {{args: ['{canary}']}}",
        "name": "!!python/name:os.mkdir",
        "module": "!!python/module:os",
        "tuple": "!!python/tuple [1, 2]",
        "a tag of its own": "!mkdir x",
    }


def templates(canary: Path) -> dict[str, str]:
    """Chat templates that walk from a string to a function, as in attacks on web servers."""
    made = f"makedirs('{canary}')"
    return {
        "globals of a macro": "{{ lipsum.__globals__['os']." + made + " }}",
        "globals of a test": "{{ cycler.__init__.__globals__.os." + made + " }}",
        "classes": "{% for c in ''.__class__.__mro__[1].__subclasses__() %}{% if c.__name__ == '_wrap_close' %}"
        "{{ c.__init__.__globals__." + made + " }}{% endif %}{% endfor %}",
        "attr filter": "{{ (messages|attr('__class__')|attr('__mro__'))[1]|attr('__subclasses__')() }}",
        "changes its input": "{{ messages.clear() }}",
        "format": "{{ '{0.__class__.__init__.__globals__}'.format(messages) }}",
    }


def module(canary: Path) -> str:
    """Python that sings when it is imported."""
    return f"import os\nos.makedirs({str(canary)!r}, exist_ok=True)\n"


def postscript(canary: Path) -> bytes:
    """EPS, which Pillow would hand to Ghostscript."""
    return (
        b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 9 9\n%%EndComments\n("
        + str(canary).encode()
        + b") (w) file closefile\nshowpage\n%%EOF\n"
    )
