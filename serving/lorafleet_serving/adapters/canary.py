"""A canary: the share of a name's traffic that its challenger answers, until it ends or turns out to be bad.

Who is asked is decided by what the request goes by, its user where it names one: the same user reaches the same
version as long as the canary lasts, and a share that grows takes nobody away from the challenger. The pod stops a bad
challenger at once, by itself; the registry's tag, which says that there is a canary at all, is the controller's.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Sequence

from lorafleet_serving.adapters.evidence import AnswerSeen, Evidence, is_looping
from lorafleet_serving.engine.request import FinishReason
from lorafleet_serving.generation import Piece

_logger = logging.getLogger(__name__)


class Canary:
    """The canary of one name with one challenger."""

    def __init__(self, name: str, version: int, digest: str, share: float, window_s: float) -> None:
        self.version = version
        self.digest = digest
        self.share = share
        self.stopped: str | None = None
        """Why the challenger is asked no more, where that is so."""
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

    def watch(self, digest: str) -> AnswerWatch:
        """Follow an answer of champion or challenger."""
        return AnswerWatch(self, is_challenger=digest == self.digest)

    def note(self, seen: AnswerSeen, *, is_challenger: bool) -> None:
        """Take in an answer; stops the challenger where that is enough against it."""
        if not is_challenger:
            self._evidence.note_champion(seen)
        elif (reason := self._evidence.note_challenger(seen)) is not None and self.stopped is None:
            self.stopped = reason
            _logger.warning("the canary of %s:%d is stopped: %s", self._name, self.version, reason)

    def _place(self, key: str) -> float:
        """Where a key lies between 0 and 1; elsewhere for another challenger."""
        return int.from_bytes(hashlib.sha256((self._salt + key).encode()).digest()[:8]) / 2**64


class AnswerWatch:
    """Follows one answer, and hands on what it saw once that is over. One that its caller gives up says nothing."""

    def __init__(self, canary: Canary, *, is_challenger: bool) -> None:
        self._canary = canary
        self._is_challenger = is_challenger
        self._token_ids: list[int] = []
        self._logprobs: list[float] = []
        self._has_text = False
        self._first_s: float | None = None

    def piece(self, piece: Piece, elapsed_s: float) -> None:
        """A piece came, so long after the start."""
        output = piece.output
        self._has_text = self._has_text or bool(piece.text.strip())
        if output.token_id is not None:
            self._first_s = elapsed_s if self._first_s is None else self._first_s
            self._token_ids.append(output.token_id)
            if output.logprob is not None:
                self._logprobs.append(output.logprob)
        if piece.finish_reason is not None:
            self._end(elapsed_s, is_cut=piece.finish_reason is FinishReason.LENGTH)

    def failed(self, reason: str) -> None:
        """The engine gave up."""
        self._canary.note(AnswerSeen(failed=reason), is_challenger=self._is_challenger)

    def _end(self, elapsed_s: float, *, is_cut: bool) -> None:
        first_s, num_later = self._first_s, len(self._token_ids) - 1
        seen = AnswerSeen(
            is_empty=not self._has_text,
            is_cut=is_cut,
            is_looping=is_looping(self._token_ids),
            first_token_s=first_s,
            token_s=(elapsed_s - first_s) / num_later if first_s is not None and num_later > 0 else None,
            mean_logprob=_mean(self._logprobs),
        )
        self._canary.note(seen, is_challenger=self._is_challenger)


def _mean(values: Sequence[float]) -> float | None:
    return sum(values) / len(values) if values else None
