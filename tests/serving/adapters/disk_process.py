"""A process that uses a folder of the disk tier as a fetcher does, one step at a time, and can be killed in any."""

from __future__ import annotations

import multiprocessing
from contextlib import ExitStack
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

from lorafleet_contract.digest import CONFIG_FILE, WEIGHTS_FILE
from lorafleet_serving.adapters.disk import DiskTier
from lorafleet_serving.exceptions import NoRoom

_CONFIG = b"{}"

# Each process is a copy of one that has imported all this, and that no test has touched.
_context = multiprocessing.get_context("forkserver")
_context.set_forkserver_preload([__name__])


def adapter(seed: int, num_bytes: int) -> bytes:
    """Weights with which an adapter has so many bytes."""
    return bytes([seed]) * (num_bytes - len(_CONFIG))


class _Hand:
    """Does what it is told."""

    def __init__(self, root: Path, budget: int) -> None:
        self._tier = DiskTier(root, budget)
        self._downloads: dict[str, tuple[ExitStack, Path, bytes]] = {}
        self._used: dict[str, ExitStack] = {}

    def begin(self, digest: str, weights: bytes) -> str:
        """Write half of an adapter."""
        with ExitStack() as opened:
            if not opened.enter_context(self._tier.flight(digest, 0.0)):
                return "elsewhere"
            if self._tier.find(digest) is not None:
                return "there"
            try:
                staged = opened.enter_context(self._tier.staging(len(_CONFIG) + len(weights)))
            except NoRoom:
                return "no room"
            (staged / WEIGHTS_FILE).write_bytes(weights[: len(weights) // 2])
            self._downloads[digest] = opened.pop_all(), staged, weights
        return "begun"

    def finish(self, digest: str) -> None:
        """Write the other half."""
        opened, staged, weights = self._downloads.pop(digest)
        with opened:
            (staged / WEIGHTS_FILE).write_bytes(weights)
            (staged / CONFIG_FILE).write_bytes(_CONFIG)
            self._tier.admit(staged, digest)

    def give_up(self, digest: str) -> None:
        """Leave it at half."""
        self._downloads.pop(digest)[0].close()

    def use(self, digest: str) -> bool:
        """Begin to read an adapter; False if it is not there."""
        opened = ExitStack()
        found = opened.enter_context(self._tier.use(digest)) is not None
        if found:
            self._used[digest] = opened
        return found

    def stop_using(self, digest: str) -> None:
        """Read it no longer."""
        self._used.pop(digest).close()

    def keep(self, digests: frozenset[str]) -> None:
        """Want these."""
        self._tier.keep(digests)

    def check(self) -> None:
        """Check all accounts."""
        self._tier.check_integrity()


class DiskProcess:
    """One process; each call is one step of it, and raises what the step does."""

    def __init__(self, root: Path, budget: int) -> None:
        self._pipe, theirs = _context.Pipe()
        self._process = _context.Process(target=_main, args=(theirs, root, budget), daemon=True)
        self._process.start()
        theirs.close()
        assert self._pipe.recv() is None, "it did not start"

    def call(self, step: str, *arguments: object) -> Any:
        """Have one step done."""
        self._pipe.send((step, arguments))
        result = self._pipe.recv()
        if isinstance(result, Exception):
            raise result
        return result

    def kill(self) -> None:
        """End it by force, in the middle of whatever it has begun."""
        self._process.kill()
        self._process.join()
        self._pipe.close()


def _main(pipe: Connection, root: Path, budget: int) -> None:
    hand = _Hand(root, budget)
    pipe.send(None)
    while True:
        try:
            step, arguments = pipe.recv()
        except EOFError:
            return
        try:
            pipe.send(getattr(hand, step)(*arguments))
        except Exception as error:
            pipe.send(error)
