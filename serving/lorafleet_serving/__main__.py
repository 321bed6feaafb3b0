"""`python -m lorafleet_serving`: run a pod."""

from __future__ import annotations

import asyncio
import sys

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

        asyncio.run(serve(config))
    except ServingError as error:
        print(f"lorafleet pod: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
