"""The keys as their file has them now, and what each has had: changes are taken while the pod runs."""

from __future__ import annotations

import asyncio
import logging
import os
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

from lorafleet_serving.api_keys import ApiKey, ApiKeys
from lorafleet_serving.exceptions import InvalidSetting
from lorafleet_serving.quota import Quota

_logger = logging.getLogger(__name__)

LOOK_S = 1.0


class _Mark(NamedTuple):
    """By which a file is known to be another, or changed."""

    inode: int
    size: int
    modified_ns: int
    changed_ns: int
    """Its rights, too."""

    @classmethod
    def of(cls, path: Path) -> _Mark | None:
        """None where there is no such file, or none that may be looked at."""
        try:
            found = os.stat(path)
        except OSError:
            return None
        return cls(found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)


class KeyFile:
    """Keys that follow their file. One that is wrong or gone changes nothing but `error`.

    A change counts once the file has stood still from one look to the next: half of a file may be one without limits.

    Raises:
        InvalidSetting: the file cannot be read at first, or is wrong.
    """

    def __init__(self, path: Path) -> None:
        self._path = path
        self._mark = self._seen = _Mark.of(path)
        self.keys = ApiKeys.read(path)
        self.error: str | None = None
        """Why the file as it is now is not in force."""
        self._quotas = {key.name: Quota(key) for key in self.keys}
        """Of keys that have left, too: they may come back within the minute."""

    def quota(self, key: ApiKey) -> Quota:
        """What a key may still have."""
        return self._quotas[key.name]

    async def follow(self, on_change: Callable[[ApiKeys], None]) -> None:
        """Take every change of the file, within about two seconds, for ever."""
        while True:
            await asyncio.sleep(LOOK_S)
            try:
                if await self.look():
                    on_change(self.keys)
            except Exception:  # The loop must outlive any one failure: nobody else reads the file.
                _logger.exception("the keys stay as they were: their file could not be looked at")

    async def look(self) -> bool:
        """Read the file if it has changed; returns whether other keys are in force now."""
        mark = await asyncio.to_thread(_Mark.of, self._path)
        stands_still, self._seen = mark == self._seen, mark
        if mark == self._mark:
            self.error = None  # What was in the way has passed, and the file is as it was.
        if mark == self._mark or not stands_still:
            return False
        try:
            keys = await asyncio.to_thread(ApiKeys.read, self._path)
        except InvalidSetting as error:
            if str(error) != self.error:
                _logger.error("the keys stay as they were: %s", error)  # It says all there is to say.
            self.error = str(error)
            return False  # It is read again at each look: what was in its way may pass without a trace.
        if await asyncio.to_thread(_Mark.of, self._path) != mark:
            return False
        self._take(keys)
        self._mark, self.error = mark, None
        return True

    def _take(self, keys: ApiKeys) -> None:
        self.keys = keys
        for key in keys:
            if key.name in self._quotas:
                self._quotas[key.name].update(key)
            else:
                self._quotas[key.name] = Quota(key)
        _logger.info("keys are in force: %s", ", ".join(key.name for key in keys))
