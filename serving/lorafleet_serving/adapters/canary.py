"""A canary: the share of a name's traffic that its challenger answers, until it ends or turns out to be bad.

Who is asked is decided by what the request goes by, its user where it names one: the same user reaches the same
version as long as the canary lasts, and a share that grows takes nobody away from the challenger. The pod stops a bad
challenger at once, by itself; the registry's tag, which says that there is a canary at all, is the controller's.
"""

from __future__ import annotations

import hashlib
import logging

from lorafleet_serving.adapters.answer_watch import AnswerWatch
from lorafleet_serving.adapters.evidence import AnswerSeen, Evidence

_logger = logging.getLogger(__name__)


class Canary:
    """The canary of one name with one challenger, beside whatever is champion meanwhile."""

    def __init__(self, name: str, version: int, digest: str, share: float, window_s: float) -> None:
        self.version = version
        self.digest = digest
        self.share = share
        self.stopped: str | None = None
        """Why the challenger is asked no more, where that is so."""
        self._champion: str | None = None
        self._evidence = Evidence(window_s)
        self._name = name
        self._salt = f"{name}:{version}:{digest}:"

    @property
    def num_answers(self) -> int:
        """Answers of the challenger that came to an end."""
        return self._evidence.num_answers

    def takes(self, key: str) -> bool:
        """Whether the challenger is asked by who goes by a key."""
        return self.stopped is None and self._place(key) < self.share

    def follow_champion(self, digest: str | None) -> None:
        """Measure the challenger by this champion from now on; None while there is none."""
        if digest != self._champion:
            self._champion = digest
            self._evidence.begin_anew()

    def watch(self, digest: str) -> AnswerWatch:
        """Follow an answer of champion or challenger."""
        return AnswerWatch(lambda answer: self.note(answer.seen, digest))

    def note(self, seen: AnswerSeen, digest: str) -> None:
        """Take in an answer; stops the challenger where that is enough against it.

        One of another digest than the challenger's and the champion's of now, which was begun before the name moved,
        measures nobody.
        """
        if digest != self.digest:
            if digest == self._champion:
                self._evidence.note_champion(seen)
        elif (reason := self._evidence.note_challenger(seen)) is not None and self.stopped is None:
            self.stopped = reason
            _logger.warning("the canary of %s:%d is stopped: %s", self._name, self.version, reason)

    def _place(self, key: str) -> float:
        """Where a key lies between 0 and 1; elsewhere for another challenger."""
        # A caller's own name for a user may hold half of a surrogate pair, as JSON may.
        return int.from_bytes(hashlib.sha256((self._salt + key).encode(errors="surrogatepass")).digest()[:8]) / 2**64
