"""`python -m lorafleet_serving`: run a pod."""

from __future__ import annotations

import asyncio
import importlib.util
import sys
from collections.abc import Callable

from lorafleet_serving.child import start_logging
from lorafleet_serving.config import read_config
from lorafleet_serving.exceptions import ServingError


def main() -> int:
    """Run a pod until it is told to end; the exit status."""
    start_logging()
    try:
        config = read_config(sys.argv[1:])
        # The web framework is imported only once the settings are good: a mistake is then told at once.
        from lorafleet_serving.api.server import serve

        with asyncio.Runner(loop_factory=_loop_factory()) as runner:
            runner.run(serve(config))
    except ServingError as error:
        print(f"lorafleet pod: {error}", file=sys.stderr)
        return 1
    return 0


def _loop_factory() -> Callable[[], asyncio.AbstractEventLoop] | None:
    """The quicker loop where there is one: every token of every stream passes through it."""
    if importlib.util.find_spec("uvloop") is None:
        return None
    import uvloop

    return uvloop.new_event_loop


if __name__ == "__main__":
    sys.exit(main())
