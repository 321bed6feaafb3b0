"""Transformers without torch, for processes that want its tokenizers and configs alone.

Where transformers finds torch, its configs import it, and that of Llama imports torch's compiler and distributed
tensors as well: four seconds of a core and 350 MiB in the front, two seconds in the engine (transformers 5.23, torch
2.13, 2 x AMD EPYC).
"""

from __future__ import annotations

import os
import sys


def keep_torch_from_transformers() -> None:
    """Let transformers look for torch, and remember for good, while this process has none.

    Call it before either is imported; where that is too late, it changes nothing. Torch itself can be imported
    afterwards, and by no other thread meanwhile.
    """
    if "torch" in sys.modules or "transformers" in sys.modules:
        return
    # It would advise to install torch.
    os.environ.setdefault("TRANSFORMERS_NO_ADVISORY_WARNINGS", "1")
    # Python's own way to say that a module cannot be imported, which stubs do not know.
    sys.modules["torch"] = None  # type: ignore[assignment]
    try:
        import transformers.utils  # noqa: F401  # On its way in it looks for torch, once.
    finally:
        del sys.modules["torch"]
