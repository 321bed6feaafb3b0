"""What a process keeps for as long as it lives, out of the garbage collector's way."""

from __future__ import annotations

import atexit
import gc


def freeze_heap() -> None:
    """Have no later collection look through what is there now; to be called when all is loaded and nothing yet served.

    Libraries leave half a million objects behind. To look through them takes a quarter of a second, for which every
    answer would stand still.
    """
    gc.collect()
    gc.freeze()
    # At the end all is collected as ever: libraries in C complain of objects that outlive the interpreter.
    atexit.register(gc.unfreeze)
