"""A lock on a file of the home folder. It ends with the process that holds it, however that ends."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TextIO

from lorafleet_pipeline.exceptions import StackError


class HomeLock:
    """A lock by one file, which tells who holds it."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: TextIO | None = None

    @property
    def holder(self) -> int | None:
        """The pid of the process that holds it, if one does."""
        if not self._path.is_file():
            return None
        with self._path.open() as file:
            return None if _try_lock(file) else int(file.read() or 0)

    def take(self) -> bool:
        """Hold it until this process ends; False when another process does.

        Raises:
            StackError: the file cannot be written.
        """
        try:
            file = self._path.open("a+")
        except OSError as error:
            raise StackError(
                f"{self._path} cannot be written ({error.strerror}): mend its folder's owner and mode, or choose "
                "another home folder"
            ) from error
        if not _try_lock(file):
            file.close()
            return False
        file.truncate(0)
        file.write(str(os.getpid()))
        file.flush()
        self._file = file
        return True

    def release(self) -> None:
        """Give it up."""
        if self._file is not None:
            self._file.close()
            self._file = None

    @contextmanager
    def held(self, refusal: str) -> Iterator[None]:
        """Hold it for a while.

        Raises:
            StackError: another process holds it (with the text of `refusal`), or the file cannot be written.
        """
        if not self.take():
            raise StackError(refusal)
        try:
            yield
        finally:
            self.release()


def _try_lock(file: TextIO) -> bool:
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
