"""The fetcher process: takes orders from the front and works on several at a time.

A process of its own, so that neither hashing nor a slow S3 takes time from HTTP or from decoding.
"""

from __future__ import annotations

import os
import threading
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from typing import TYPE_CHECKING

from lorafleet_serving.adapters.messages import (
    DistrustAdapter,
    FetcherCommand,
    FetcherEvent,
    FetchOrder,
    HandOrder,
    KeepAdapters,
    MergeOrder,
    StopFetcher,
)
from lorafleet_serving.config import FetcherConfig

if TYPE_CHECKING:
    from lorafleet_serving.adapters.fetcher import Fetcher


def fetcher_main(pipe: Connection, config: FetcherConfig) -> None:
    """Take orders from the pipe until it closes, which it does when the front is gone."""
    # The front imports this module only to name it: boto3 belongs into this process alone.
    from lorafleet_serving.adapters.fetcher import Fetcher

    sending = threading.Lock()

    def post(event: FetcherEvent) -> None:
        with sending:
            pipe.send(event)

    fetcher = Fetcher(config, post)
    workers = ThreadPoolExecutor(config.fetch_concurrency, thread_name_prefix="fetch")
    # Apart: what is on disk does not queue behind downloads, however slow S3 is.
    shelf = ThreadPoolExecutor(1, thread_name_prefix="disk")
    # One, and apart: however many merges callers ask for, promotions do not queue behind them.
    merger = ThreadPoolExecutor(1, thread_name_prefix="merge")
    while True:
        try:
            command: FetcherCommand = pipe.recv()
        except (EOFError, OSError):
            _exit_at_once()
        match command:
            case FetchOrder(at_hand=True) | HandOrder(digest=str()):
                shelf.submit(_take_or_fetch, fetcher, workers, command)
            case FetchOrder() | HandOrder():
                workers.submit(fetcher.execute, command)
            case MergeOrder():
                merger.submit(fetcher.merge, command)
            case KeepAdapters():
                fetcher.keep(command)
            case DistrustAdapter(digest):
                fetcher.distrust(digest)
            case StopFetcher():
                _exit_at_once()


def _take_or_fetch(fetcher: Fetcher, workers: ThreadPoolExecutor, order: FetchOrder | HandOrder) -> None:
    if not fetcher.take_at_hand(order):
        workers.submit(fetcher.execute, order)


def _exit_at_once() -> None:
    # Downloads under way leave scraps in the staging folder alone; waiting for them would outlive the front.
    os._exit(0)
